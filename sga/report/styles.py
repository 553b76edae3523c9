"""Looks of series: each differs from the others in colour, dash and marker, so none of the three is needed alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
"""Folder of the templates of all pages, their style sheet and their script."""

STYLE_SHEET = (TEMPLATES / "style.css").read_text(encoding="utf-8")
LIGHT = dict(re.findall(r"--([\w-]+): (#\w{6});", STYLE_SHEET.partition("@media")[0]))
"""Colours of the light scheme by their names in the style sheet."""

_DASHES = ((1, 0), (9, 4), (2, 3), (10, 3, 2, 3), (5, 5), (14, 4))
_CIRCLE, _SQUARE, _CROSS, _PLUS, *_OTHERS = (
    "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
    "M-.9-.9H.9V.9H-.9Z",
    "M-1-.6L-.6-1L0-.4L.6-1L1-.6L.4 0L1 .6L.6 1L0 .4L-.6 1L-1 .6L-.4 0Z",
    "M-.3-1H.3V-.3H1V.3H.3V1H-.3V.3H-1V-.3H-.3Z",
    "M0-1.2L1.2 0L0 1.2L-1.2 0Z",
    "M0-1.1L1.1 .9H-1.1Z",
    "M0 1.1L-1.1-.9H1.1Z",
)
_MARKERS = (_CIRCLE, *_OTHERS, _SQUARE, _PLUS, _CROSS)
_COLOURS = {"GA": "0", "SGA": "2345", "GD": "16"}
"""Numbers of the colours that a method takes by turns; any other method takes `_REST`."""
_REST = "6453210"


@dataclass(frozen=True)
class Style:
    """Look of a series.

    Attributes:
        colour: Name of its colour in the style sheet, without ``--``.
        dash: Lengths of the line's strokes and gaps in pixels.
        marker: SVG path of its marker, within -1.2 to 1.2.
    """

    colour: str
    dash: tuple[int, ...] = (1, 0)
    marker: str = _CIRCLE


RETAIN = Style("retain", (9, 4), _SQUARE)
"""Look of the retain model, and of what plays its part."""


def distinct_styles(methods: Mapping[str, str]) -> dict[str, Style]:
    """A look for each series; no two share colour and marker, up to 28 settings of SGA and 49 in all.

    Target, retain model, GA and the first settings of SGA and GD look the same on every page.

    Args:
        methods: The method of each series (as `Run.method` gives it) by its label, in the order of the legend.
    """
    turns: Counter[str] = Counter()
    uses: Counter[str] = Counter()
    styles = {}
    for label, method in methods.items():
        if method in ("target", "retain"):
            styles[label] = RETAIN if method == "retain" else Style("target", (2, 3), _PLUS)
            continue
        colours = _COLOURS.get(method, _REST)
        kind = method if method in _COLOURS else ""
        number = colours[turns[kind] % len(colours)]
        place = int(number) + 6 + uses[number]  # GA begins with a cross
        styles[label] = Style(f"c{number}", _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)])
        turns[kind] += 1
        uses[number] += 1
    return styles

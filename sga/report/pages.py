"""Pages from templates: one file each, without network, with interactive charts or still ones where scripts are off."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from sga.report.styles import LIGHT, STYLE_SHEET, TEMPLATES

if TYPE_CHECKING:
    import altair as alt

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"


def render(template: str, title: str, charts: Mapping[str, alt.LayerChart] | None = None, **values: Any) -> str:
    """A whole page that needs nothing else; texts among its values are escaped by the template.

    Args:
        template: File name in `TEMPLATES`.
        title: Heading of the page, plain text.
        charts: Altair charts by name; the template places each by ``chart(drawn[NAME])``.
        **values: Further variables of the template.
    """
    drawn = {name: _embedded(name, chart) for name, chart in (charts or {}).items()}
    script = _charts_script() if drawn else ""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            style=Markup(STYLE_SHEET),
            script=Markup(script),
            policy=f"script-src 'sha256-{digest}'" if drawn else "script-src 'none'",
            drawn=drawn,
            **values,
        )
    )


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    # ``r = −0.8`` and its like stay on one line.
    environment.filters["together"] = lambda text: text.replace(" = ", "\u00a0=\u00a0")
    return environment


@lru_cache(maxsize=1)
def _charts_script() -> str:
    """JavaScript of Vega, Vega-Lite and charts.js, in one script."""
    import vl_convert

    return vl_convert.javascript_bundle((TEMPLATES / "charts.js").read_text(encoding="utf-8"))


def _embedded(name: str, chart: alt.LayerChart) -> dict[str, Any]:
    """A chart for a page: colours are variables of the style sheet, the legend is the page's own.

    Returns:
        Name, size, specification for the script, and an SVG for browsers without scripts.
    """
    import vl_convert

    content = _for_page(chart.to_dict())
    content["config"] |= {"legend": {"disable": True}, "font": _FONT, "background": None}
    still = vl_convert.vegalite_to_svg(content | {"config": {**content["config"], "aria": False}})
    return {
        "name": name,
        "size": "small" if content["width"] < 500 else "large",
        "specification": content | {"width": "container"},
        "still": Markup(still),
    }


def _for_page(value: Any) -> Any:
    """The same JSON value with colours by name, and without characters that HTML forbids."""
    if isinstance(value, dict):
        return {key: _for_page(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_for_page(inner) for inner in value]
    return _VARIABLES.get(value, printable(value)) if isinstance(value, str) else value


_VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}


def printable(value: str) -> str:
    """Text in which characters that HTML forbids are replaced."""
    return _UNPRINTABLE.sub("\ufffd", value)

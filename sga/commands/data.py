"""`sga data show`: the training data as the model sees it, token by token."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sga.commands.parsing import run_one_of, verb
from sga.errors import UserError, check_numbers
from sga.evaluation.table import side_by_side, terminal_width
from sga.groups.group import Group, Origin

if TYPE_CHECKING:
    from sga.batching.encoding import Encoded
    from sga.datamodule import UnlearningData


def main(arguments: Sequence[str]) -> int:
    """Run ``sga data show``; `arguments` follow the word ``data``."""
    return run_one_of("data", "What the model sees.", {"show": _show}, arguments)


@verb("data show")
def _show(*rest: str, groups: int = 2, set_: str | None = None) -> int:
    """Print what the model sees: tokens, answer tokens, groups.

    That is each sequence's tokens, which of them are answer tokens (those are scored and trained on), the
    end-of-sequence token, and groups of a forget sample beside its normal samples. Nothing is trained and no weights
    are loaded. All options of sga fit are understood as well (--config FILE, --data.group_size 4, …).

    Args:
        groups: Number of groups to print.
        set_ (NAME): Evaluation set of which records are printed instead of groups.
    """
    check_numbers(1, **{"--groups": groups})

    from sga.cli import configured_cli

    cli = configured_cli(rest)
    data = cli.datamodule
    data.read(Path(cli.trainer.default_root_dir))
    if cli.model.loss is not None:
        data.extend(cli.model.loss.needs)
    print(_overview(data))
    if set_ is not None:
        sets = data.evaluation_data().sets
        if set_ not in sets:
            raise UserError(f"there is no evaluation set {set_!r}; there are {', '.join(sets)}")
        for record in sets[set_][:groups]:
            print(f"\n{record.id}")
            for title, answer in (
                ("answer", record.answer),
                ("paraphrase", record.paraphrased_answer),
                *(("perturbed", text) for text in record.perturbed_answers),
            ):
                if answer is not None:
                    print(f"  {title:<11}{answer}")
            print(tokens(data, data.encoder.encode(record.question, record.answer)))
        return 0
    for number, group in enumerate(data.groups[:groups], start=1):
        print(f"\n{f' group {number} ':─^{terminal_width()}}")
        print("\n".join(group_columns(group)))
        print("tokens of the forget sample, answer tokens in [brackets]:")
        print(tokens(data, data.encode([group])[0][0]))
    return 0


def group_columns(group: Group, width: int | None = None) -> list[str]:
    """Lines of a group in columns, the forget sample first; `width` is the terminal's by default."""
    records = [("forget", group.forget, "")] + [
        ("normal" if score is None else f"normal {score:.3f}", record, _origin(group.origin(place)))
        for place, (record, score) in enumerate(zip(group.normals, group.scores, strict=True))
    ]
    origins = group.alternative_origins or [Origin()] * len(group.alternatives)
    pairs = zip(group.alternatives, origins, strict=True)
    records += [("alternative", record, _origin(origin)) for record, origin in pairs]
    records += [("retain", record, "") for record in group.retain]
    cells = [
        [f"{title}\n{record.id}", notes, f"Q {record.question}" if record.question else "",
         f"A {record.answer}" if record.question else record.answer]
        for title, record, notes in records
    ]  # fmt: skip
    rows = [row for row in zip(*cells, strict=True) if any(row)]
    return side_by_side([row for one in rows for row in (one, [""] * len(one))], width)


def _alternatives(data: UnlearningData) -> str:
    count = len(data.groups[0].alternatives)
    return f" and {count} alternatives" if count else ""


def _origin(origin: Origin) -> str:
    """Source of a normal other than the retain split, and the checks that it fails."""
    parts = [] if origin.source == "retain" else [origin.source + (f" by {origin.by}" if origin.by else "")]
    return " ".join([*parts, *(f"[{reason}]" for reason in origin.checks)])


def _overview(data: UnlearningData) -> str:
    assert data.benchmark is not None
    benchmark = data.benchmark
    training = ", ".join(f"{name} {len(records)}" for name, records in benchmark.training.items())
    evaluation = ", ".join(f"{name} {len(records)}" for name, records in benchmark.evaluation.items())
    lines = [
        f"benchmark   {benchmark.name}",
        f"training    {training} records; trained on: {', '.join(data.train_on)}",
        f"evaluation  {evaluation} records",
        *(f"absent      {name}: {reason}" for name, reason in benchmark.absent.items()),
        f"groups      {len(data.groups)} of {1 + len(data.groups[0].normals)}{_alternatives(data)}",
        f"tokenizer   {type(data.tokenizer).__name__}, {len(data.tokenizer)} tokens, "
        f"end of sequence {data.tokenizer.eos_token!r}",
        f"template    {data.template}",
        f"length      at most {data.encoder.max_length} tokens",
    ]
    return "\n".join(lines)


def tokens(data: UnlearningData, encoded: Encoded) -> str:
    """Tokens of a sequence, answer tokens in brackets, with their number."""
    shown = []
    for position, token in enumerate(encoded.ids):
        text = str(data.tokenizer.decode([token])).replace("\n", "\\n") or str(
            data.tokenizer.convert_ids_to_tokens(token)
        )
        shown.append(f"[{text}]" if position >= encoded.prompt_length else text)
    count = f"({encoded.prompt_length} prompt tokens, {encoded.answer_length} answer tokens)"
    return (
        textwrap.indent(textwrap.fill("|".join(shown), terminal_width() - 4, drop_whitespace=False), "  ")
        + f"\n  {count}"
    )

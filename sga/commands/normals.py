"""`sga normals`: retrieve, generate, check and show normal data."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from sga.commands.data import group_columns
from sga.commands.parsing import run_one_of, verb
from sga.data.builtin import packaged_path
from sga.data.records import Record
from sga.data.reserved import reserved_and_pool, with_reserved
from sga.errors import UserError, check_numbers
from sga.files import read_json_lines, write_json_lines
from sga.groups.alternatives import measured_answers
from sga.groups.checks import Checker, Checks
from sga.groups.generation import Journal, NormalGenerator, read_prompt
from sga.groups.group import Group, Origin
from sga.groups.group_file import described, read_groups, write_groups
from sga.groups.pairing import NearestNormals, make_groups
from sga.groups.repair import Failure, OnFailure, mended
from sga.groups.writers import Endpoint, LocalModel, Writer
from sga.runs.lock import write_lock

if TYPE_CHECKING:
    from sga.datamodule import UnlearningData

_ABOUT = """\
Normal data: what each forget sample is grouped with. All verbs write or read one normal-data file, JSON Lines of a
forget record with its normals, which sga fit takes with --data.pairs FILE."""
_NO_TEXT = "(text not in the file)"
_CONSOLE = Console(stderr=True, soft_wrap=True)
_PROMPTS = ("qa", "news", "book", "alternative")


def main(arguments: Sequence[str]) -> int:
    """Run ``sga normals VERB``; `arguments` follow the word ``normals``."""
    verbs = {"retrieve": _retrieve, "generate": _generate, "check": _check, "show": _show}
    return run_one_of("normals", _ABOUT, verbs, arguments)


# ---- retrieve -------------------------------------------------------------------------------------------------------


@verb("normals retrieve")
def _retrieve(*rest: str, output: Path, overwrite: bool = False, on_failure: OnFailure = "replace") -> int:
    """Find the nearest retain records.

    Pairs each forget record by data.pairing, checks the normals, and writes them. All options of sga fit are understood
    as well: --config FILE, --data.group_size 4, --data.pool_size 16, --data.pairing …

    Args:
        output (FILE): Normal-data file to write.
        overwrite: Replace the file if it exists.
        on_failure: Fate of normals that fail the checks: the next candidate, none (sga fit refuses a group that is
            short), or kept with its reasons.
    """
    _check_output(output, overwrite)
    data, forget, pool, reserved = _data(rest)
    checks = _checks(data)
    pairing = data.pairing
    if isinstance(pairing, NearestNormals):
        pairing = replace(pairing, checks=checks if on_failure == "replace" else None)
    groups = make_groups(forget, pool, data.neighbors + 1, pairing, data.seed, data.pool_size, reserved)
    checker = Checker(checks, forget, pool)
    groups, failures = mended(groups, checker, on_failure, pool, _nearest(data))
    _report(failures, sum(len(group.normals) for group in groups))
    return _write(output, groups, data)


# ---- generate -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Writing:
    """Options that say who writes, and how.

    Attributes:
        url: Address of an OpenAI-compatible endpoint, such as https://api.openai.com/v1; needs --name.
        local (MODEL): Hugging Face model on this machine: name, folder or run folder.
        name (MODEL): Name of the model at the endpoint.
        key_variable (NAME): Environment variable that holds the key.
        temperature: Temperature of sampling, at least 0.
        max_tokens: Largest number of tokens of an answer.
        concurrency: Number of requests in flight.
        requests_per_minute (N): Largest number of requests begun in a minute.
        timeout (SECONDS): Time for a whole request.
        tries: Number of times that a request without an answer is sent.
        backoff (SECONDS): Time before the second try, doubled for each further one.
        price_read (P): Price of a million tokens read, for an estimate.
        price_written (P): Price of a million tokens written.
    """

    url: str | None = None
    local: str | None = None
    name: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 1.0
    max_tokens: int = 512
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 60.0
    tries: int = 8
    backoff: float = 1.0
    price_read: float | None = None
    price_written: float | None = None

    def writer(self) -> Writer:
        """Writer that the options name."""
        if (self.local is None) == (self.url is None):
            raise UserError("give either --url, the address of an endpoint, or --local, a model on this machine")
        if self.local is not None:
            return LocalModel(self.local, self.temperature, self.max_tokens)
        if self.name is None or self.url is None:
            raise UserError("--url needs --name, the model's name at the endpoint")
        same = {field.name: getattr(self, field.name) for field in fields(Endpoint) if hasattr(self, field.name)}
        say = partial(_CONSOLE.print, markup=False, highlight=False)
        return Endpoint(**{**same, "model": self.name, "say": say})

    def price(self, read: int, written: int) -> str:
        """Price of the tokens in words; empty without prices."""
        if self.price_read is None or self.price_written is None:
            return ""
        return f", {(read * self.price_read + written * self.price_written) / 1e6:.4g} at the given prices"


@verb("normals generate")
def _generate(
    *rest: str,
    output: Path,
    overwrite: bool = False,
    on_failure: OnFailure = "replace",
    writing: _Writing,
    prompt: str | None = None,
    attempts: int = 3,
    dry_run: bool = False,
) -> int:
    """Have a language model write the normals.

    Every answer is kept in OUTPUT.answers the moment it arrives: after an interruption the same command resumes, and no
    answer that is there is asked for again. The forget data is sent to the endpoint. All options of sga fit are
    understood as well: --config FILE, --data.group_size 4, --data.pool_size 16, --data.pairing …

    Args:
        output (FILE): Normal-data file to write.
        overwrite: Replace the file if it exists.
        on_failure: Fate of normals that fail the checks: the next answer, none (sga fit refuses a group that is short),
            or kept with its reasons.
        prompt (NAME): Name of a prompt (qa, news, book, alternative) or path of a file (default: qa; for passages
            news).
        attempts: Number of answers to ask for until one passes the checks.
        dry_run: Print prompts and the estimate, and ask nothing.
    """
    if not dry_run:
        _check_output(output, overwrite)
    check_numbers(1, **{"--attempts": attempts})
    writer = writing.writer()
    data, forget, pool, _ = _data(rest)
    name = prompt or ("news" if forget[0].is_text else "qa")
    asked_for = read_prompt(packaged_path(f"configs/prompts/{name}.yaml") if name in _PROMPTS else Path(name))
    count = data.pool_size or data.neighbors
    if asked_for.kind == "alternative":
        if data.alternatives is None:
            raise UserError(
                f"prompt {name} writes alternatives: say how many with --data.alternatives=FileAnswers "
                f"--data.alternatives.count N, and give fit the file with --data.alternatives.file {output}"
            )
        count = data.alternatives.size
    if count < 1:
        raise UserError(f"group_size {data.group_size} has no normals to write; set --data.group_size")
    if asked_for.kind != "text" and any(record.is_text for record in forget):
        raise UserError(f"prompt {name} is for questions with answers, but the forget data has passages: take news")
    checker = Checker(_checks(data), forget, pool)
    taken = {record.content for record in pool}
    measured = measured_answers(data.source.load(data.root)) if asked_for.kind == "alternative" else {}
    generation = NormalGenerator(forget, count, asked_for, writer, checker, attempts, taken, measured)
    if dry_run:
        for record in forget[:2]:
            for message in asked_for.messages(record, 1, count):
                print(f"--- {record.id}, {message['role']}\n{message['content']}\n")
        _estimate(generation, writing)
        return 0
    answers = output.with_name(output.name + ".answers")
    with write_lock(answers, "--output"), contextlib.closing(Journal(answers)) as journal:
        _check_output(output, overwrite)  # again: another process may have ended between
        generation.replay(journal)
        _estimate(generation, writing)
        asked = generation.spent.requests
        with Progress(console=_CONSOLE, transient=True) as bar:
            task = bar.add_task("normals", total=generation.estimate()[0])
            asyncio.run(generation.run(journal, partial(bar.advance, task)))
        return _conclude(generation, asked, data, output, on_failure, writing)


def _conclude(
    generation: NormalGenerator,
    asked: int,
    data: UnlearningData,
    output: Path,
    on_failure: OnFailure,
    writing: _Writing,
) -> int:
    """Reports a generation, for which `asked` answers existed before, and writes it if it is complete."""
    spent = generation.spent
    print(
        f"{spent.requests} answers, {spent.requests - asked} of them now; {spent.prompt_tokens} tokens read, "
        f"{spent.completion_tokens} written{writing.price(spent.prompt_tokens, spent.completion_tokens)}"
    )
    groups, failed = generation.groups(on_failure)
    kept = {normal.id for group in groups for normal in group.normals}
    _report(
        [
            Failure(
                slot.forget.id,
                f"normal {slot.number}",
                (slot.reason,),
                "kept" if f"{slot.forget.id}/generated-{slot.number}" in kept else "missing",
            )
            for slot in failed
        ],
        len(generation.slots),
    )
    if failed and on_failure == "replace":
        print(
            f"sga: error: {len(failed)} of {len(generation.slots)} normals are missing, so nothing was written; run "
            "the command again, with more --attempts where answers were refused, or with --on-failure drop or keep",
            file=sys.stderr,
        )
        return 1
    if generation.prompt.kind == "alternative":
        lines = [
            {"question": group.forget.question, "answer": normal.answer, **described(group.origin(place))}
            for group in groups
            for place, normal in enumerate(group.normals)
        ]
        write_json_lines(output, lines)
        print(f"{len(lines)} answers written to {output}; train on them with --data.alternatives=FileAnswers "
              f"--data.alternatives.file {output}")  # fmt: skip
        return 0
    return _write(output, groups, data)


def _estimate(generation: NormalGenerator, writing: _Writing) -> None:
    requests, read, written = generation.estimate()
    print(
        f"{requests} requests to make, estimated at {read} tokens read and {written} written by 4 characters a token"
        f"{writing.price(read, written)}; answers that are refused come on top",
        flush=True,
    )


# ---- check ----------------------------------------------------------------------------------------------------------


@verb("normals check")
def _check(
    file: Path,
    *rest: str,
    output: Path | None = None,
    overwrite: bool = False,
    on_failure: OnFailure = "replace",
) -> int:
    """Look for normals that should not be there; exit code 1 if one fails.

    With --output the file is written with what --on-failure makes of them. All options of sga fit are understood as
    well: --config FILE, --data.group_size 4, --data.pool_size 16, --data.pairing …

    Args:
        file: Normal-data file, such as a run's pairs.jsonl.
        output (FILE): Normal-data file to write.
        overwrite: Replace the file if it exists.
        on_failure: Fate of normals that fail the checks: the next candidate, none (sga fit refuses a group that is
            short), or kept with its reasons.
    """
    if output is not None:
        _check_output(output, overwrite)
    data, forget, pool, reserved = _data(rest)
    asked = data.alternatives.size if data.alternatives is not None else 0
    expected = (data.neighbors + 1, data.pool_size, None, reserved, asked)
    groups = read_groups(file, forget, pool, *expected)
    checker = Checker(_checks(data), forget, pool)
    way: OnFailure = on_failure if output is not None else "keep"
    mended_groups, failures = mended(groups, checker, way, pool, _nearest(data))
    _report(failures, sum(len(group.normals) for group in groups))
    if output is not None:
        return _write(output, mended_groups, data)
    return 1 if failures else 0


# ---- show -----------------------------------------------------------------------------------------------------------


@verb("normals show")
def _show(file: Path, *, groups: int = 3, forget: str | None = None, width: int = 80) -> int:
    """Print groups side by side.

    Args:
        file: Normal-data file, such as a run's pairs.jsonl.
        groups: Number of groups to print, evenly spaced.
        forget (ID): Forget record of which the group is printed.
        width: Number of columns of the terminal.
    """
    found = [_named_group(line, f"{file}:{number}") for number, line in read_json_lines(file)]
    if not found:
        raise UserError(f"{file}: holds no group")
    if forget is not None:
        found = [group for group in found if group.forget.id == forget]
        if not found:
            raise UserError(f"{file}: no line for forget record {forget}")
    count = min(max(1, groups), len(found))
    for index in range(count):
        group = found[index * len(found) // count]
        print(f"\n{f' {group.forget.id} ':─^{width}}")
        print("\n".join(group_columns(group, width)))
    sources = Counter(group.origin(index).source for group in found for index in range(len(group.normals)))
    print(f"\n{len(found)} groups; normals by source: {', '.join(f'{name} {n}' for name, n in sources.items())}")
    return 0


def _named_group(line: dict[str, Any], where: str) -> Group:
    """Group that a line of the file describes, without looking up the records in the data."""
    try:
        forget = line["forget"]
        normals, others = line["normals"], line.get("alternatives") or ()
        return Group(
            Record(line["forget_id"], forget.get("question", ""), forget.get("answer", _NO_TEXT)),
            tuple(Record(one["id"], one.get("question") or "", one.get("answer", _NO_TEXT)) for one in normals),
            tuple(None if one.get("score") is None else float(one["score"]) for one in normals),
            tuple(
                Origin(one.get("source", "retain"), one.get("by"), one.get("prompt"), tuple(one.get("checks") or ()))
                for one in normals
            ),
            tuple(Record(one["id"], forget.get("question", ""), one.get("answer", _NO_TEXT)) for one in others),
            tuple(Origin(one["source"], one.get("by"), one.get("prompt")) for one in others),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"{where}: not a line of a normal-data file ({error!r})") from None


# ---- shared ---------------------------------------------------------------------------------------------------------


def _check_output(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; choose another --output, or replace it with --overwrite")


def _data(rest: Sequence[str]) -> tuple[UnlearningData, Sequence[Record], Sequence[Record], Sequence[Record]]:
    """Data module of the options, with its forget records, its pool and its reserved rows.

    No tokenizer and no model is read.
    """
    from sga.cli import configured_cli

    data = configured_cli(rest).datamodule
    benchmark = with_reserved(data.source.load(data.root), data.reserved, data.seed)
    reserved, pool = reserved_and_pool(benchmark)
    return data, benchmark.training["forget"], pool, reserved


def _checks(data: UnlearningData) -> Checks:
    """Checks of the pairing, or the default ones."""
    return (data.pairing.checks if isinstance(data.pairing, NearestNormals) else None) or Checks()


def _nearest(data: UnlearningData) -> NearestNormals:
    """Pairing by which replacements are found: the data module's own if it goes by nearness."""
    return data.pairing if isinstance(data.pairing, NearestNormals) else NearestNormals()


def _report(failures: Sequence[Failure], normals: int) -> None:
    """Prints how often each check failed, and the first failures in full."""
    print(f"{len(failures)} of {normals} normals fail the checks")
    kinds = Counter(
        re.sub(r"\(.*\)|(?<=duplicate of )\S+|(?<=repeats )\S+|\d[\d.]*", "…", reason)
        for one in failures
        for reason in one.reasons
    )
    for reason, count in kinds.most_common():
        print(f"  {count:5d}  {reason}")
    for one in failures[:10]:
        print(f"  {one.forget_id}: {one.normal_id}: {'; '.join(one.reasons)} → {one.outcome}")
    if len(failures) > 10:
        print(f"  and {len(failures) - 10} more")


def _write(path: Path, groups: Sequence[Group], data: UnlearningData) -> int:
    write_groups(path, groups)
    short = [group.forget.id for group in groups if len(group.normals) < data.neighbors]
    print(f"{len(groups)} groups written to {path}; train on them with --data.pairs {path}")
    if short:
        print(
            f"{len(short)} groups have fewer than {data.neighbors} normals, first {short[0]}: sga fit will refuse "
            "the file until they are filled up"
        )
    return 0

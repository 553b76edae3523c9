"""`sga normals`: retrieve, generate, check and show normal data."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sga.commands.data import side_by_side
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

_USAGE = """\
usage: sga normals VERB [options]        (sga normals VERB --help lists a verb's options)

Normal data: what each forget sample is grouped with. All verbs write or read one normal-data file, JSON Lines of a
forget record with its normals, which `sga fit` takes with --data.pairs FILE.

  retrieve   the nearest retain records
  generate   written by a language model
  check      look for normals that should not be there
  show       print groups side by side
"""
_NO_TEXT = "(text not in the file)"
_FIT = (
    "All options of sga fit are understood as well: --config FILE, --data.group_size 4, --data.pool_size 16, "
    "--data.pairing …"
)


def main(arguments: Sequence[str]) -> int:
    """Runs ``sga normals VERB``; `arguments` follow the word ``normals``."""
    verbs = {"retrieve": _retrieve, "generate": _generate, "check": _check, "show": _show}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] not in verbs:
        raise UserError(f"there is no verb 'normals {arguments[0]}'; choose from {', '.join(verbs)}")
    return verbs[arguments[0]](list(arguments[1:]))


# ---- retrieve -------------------------------------------------------------------------------------------------------


def _retrieve(arguments: list[str]) -> int:
    parser = _parser("retrieve", "Pair each forget record by data.pairing, check the normals, and write them. " + _FIT)
    _add_output(parser)
    options, rest = parser.parse_known_args(arguments)
    _check_output(options.output, options.overwrite)
    data, forget, pool, reserved = _data(rest)
    checks = _checks(data)
    pairing = data.pairing
    if isinstance(pairing, NearestNormals):
        pairing = replace(pairing, checks=checks if options.on_failure == "replace" else None)
    groups = make_groups(forget, pool, data.neighbors + 1, pairing, data.seed, data.pool_size, reserved)
    checker = Checker(checks, forget, pool)
    groups, failures = mended(groups, checker, options.on_failure, pool, _nearest(data))
    _report(failures, sum(len(group.normals) for group in groups))
    return _write(options.output, groups, data)


# ---- generate -------------------------------------------------------------------------------------------------------


def _generate(arguments: list[str]) -> int:
    parser = _parser(
        "generate",
        "Have a language model write the normals. Every answer is kept in OUTPUT.answers the moment it arrives: after "
        "an interruption the same command goes on, and no answer that is there is asked for again. The forget data is "
        "sent to the endpoint. " + _FIT,
    )
    _add_output(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--url", help="of an OpenAI-compatible endpoint, such as https://api.openai.com/v1; needs --name"
    )
    where.add_argument("--local", metavar="MODEL", help="a Hugging Face model: name, folder or run folder")
    parser.add_argument("--name", metavar="MODEL", help="the model's name at the endpoint")
    parser.add_argument(
        "--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable with the key"
    )
    parser.add_argument(
        "--prompt", metavar="NAME", help="qa, news, book, alternative or a file (default: qa; for passages news)"
    )
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of an answer (default 512)")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests in flight (default 8)")
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="no more than this")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="of a request (default 60)")
    parser.add_argument("--tries", type=int, default=8, metavar="N", help="of a request without an answer (default 8)")
    parser.add_argument("--backoff", type=float, default=1.0, metavar="SECONDS", help="before the second try, doubling")
    parser.add_argument(
        "--attempts",
        type=int,
        default=3,
        metavar="N",
        help="answers to ask for until one passes the checks (default 3)",
    )
    parser.add_argument("--price-read", type=float, metavar="P", help="per million tokens read, for an estimate")
    parser.add_argument("--price-written", type=float, metavar="P", help="per million tokens written")
    parser.add_argument("--dry-run", action="store_true", help="print prompts and the estimate, and ask nothing")
    options, rest = parser.parse_known_args(arguments)
    if not options.dry_run:
        _check_output(options.output, options.overwrite)
    check_numbers(1, **{"--attempts": options.attempts})
    writer = _writer(options)
    data, forget, pool, _ = _data(rest)
    name = options.prompt or ("news" if forget[0].is_text else "qa")
    packaged = name in ("qa", "news", "book", "alternative")
    prompt = read_prompt(packaged_path(f"configs/prompts/{name}.yaml") if packaged else Path(name))
    count = data.pool_size or data.neighbors
    if prompt.kind == "alternative":
        if data.alternatives is None:
            raise UserError(
                f"prompt {name} writes alternatives: say how many with --data.alternatives=FileAnswers "
                f"--data.alternatives.count N, and give fit the file with --data.alternatives.file {options.output}"
            )
        count = data.alternatives.size
    if count < 1:
        raise UserError(f"group_size {data.group_size} has no normals to write; set --data.group_size")
    if prompt.kind != "text" and any(record.is_text for record in forget):
        raise UserError(f"prompt {name} is for questions with answers, but the forget data has passages: take news")
    checker = Checker(_checks(data), forget, pool)
    taken = {record.content for record in pool}
    measured = measured_answers(data.source.load(data.root)) if prompt.kind == "alternative" else {}
    generation = NormalGenerator(forget, count, prompt, writer, checker, options.attempts, taken, measured)
    if options.dry_run:
        for record in forget[:2]:
            for message in prompt.messages(record, 1, count):
                print(f"--- {record.id}, {message['role']}\n{message['content']}\n")
        _estimate(generation, options)
        return 0
    answers = options.output.with_name(options.output.name + ".answers")
    with write_lock(answers, "--output"), contextlib.closing(Journal(answers)) as journal:
        _check_output(options.output, options.overwrite)  # again: another process may have ended between
        generation.replay(journal)
        _estimate(generation, options)
        asked = generation.spent.requests
        with _progress(generation.estimate()[0]) as bar:
            asyncio.run(generation.run(journal, bar.update))
        return _conclude(generation, asked, data, options)


def _conclude(generation: NormalGenerator, asked: int, data: UnlearningData, options: argparse.Namespace) -> int:
    """Says what came of a generation, of which `asked` answers were there before, and writes it if it is complete."""
    spent = generation.spent
    print(
        f"{spent.requests} answers, {spent.requests - asked} of them now; {spent.prompt_tokens} tokens read, "
        f"{spent.completion_tokens} written{_price(spent.prompt_tokens, spent.completion_tokens, options)}"
    )
    groups, failed = generation.groups(options.on_failure)
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
    if failed and options.on_failure == "replace":
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
        write_json_lines(options.output, lines)
        print(f"{len(lines)} answers written to {options.output}; train on them with --data.alternatives=FileAnswers "
              f"--data.alternatives.file {options.output}")  # fmt: skip
        return 0
    return _write(options.output, groups, data)


def _writer(options: argparse.Namespace) -> Writer:
    if options.local is not None:
        return LocalModel(options.local, options.temperature, options.max_tokens)
    if options.name is None:
        raise UserError("--url needs --name, the model's name at the endpoint")
    return Endpoint(
        options.url,
        options.name,
        options.key_variable,
        options.temperature,
        options.max_tokens,
        options.concurrency,
        options.requests_per_minute,
        options.timeout,
        options.tries,
        options.backoff,
        say=_say,
    )


def _say(words: str) -> None:
    """A line beside the progress bar."""
    from tqdm import tqdm

    tqdm.write(words, file=sys.stderr)


def _estimate(generation: NormalGenerator, options: argparse.Namespace) -> None:
    requests, read, written = generation.estimate()
    print(
        f"{requests} requests to make, estimated at {read} tokens read and {written} written by 4 characters a token"
        f"{_price(read, written, options)}; answers that are refused come on top",
        flush=True,
    )


def _price(read: int, written: int, options: argparse.Namespace) -> str:
    if options.price_read is None or options.price_written is None:
        return ""
    return f", {(read * options.price_read + written * options.price_written) / 1e6:.4g} at the given prices"


def _progress(total: int) -> Any:
    from tqdm import tqdm

    return contextlib.closing(tqdm(total=total, unit="normal", disable=None))


# ---- check ----------------------------------------------------------------------------------------------------------


def _check(arguments: list[str]) -> int:
    parser = _parser(
        "check",
        "Check the normals of a file; exit code 1 if one fails. With --output the file is written with what "
        "--on-failure makes of them. " + _FIT,
    )
    parser.add_argument("file", type=Path, help="a normal-data file, such as a run's pairs.jsonl")
    _add_output(parser, required=False)
    options, rest = parser.parse_known_args(arguments)
    if options.output is not None:
        _check_output(options.output, options.overwrite)
    data, forget, pool, reserved = _data(rest)
    asked = data.alternatives.size if data.alternatives is not None else 0
    expected = (data.neighbors + 1, data.pool_size, None, reserved, asked)
    groups = read_groups(options.file, forget, pool, *expected)
    checker = Checker(_checks(data), forget, pool)
    way: OnFailure = options.on_failure if options.output is not None else "keep"
    mended_groups, failures = mended(groups, checker, way, pool, _nearest(data))
    _report(failures, sum(len(group.normals) for group in groups))
    if options.output is not None:
        return _write(options.output, mended_groups, data)
    return 1 if failures else 0


# ---- show -----------------------------------------------------------------------------------------------------------


def _show(arguments: list[str]) -> int:
    parser = _parser("show", "Print groups of a normal-data file side by side.")
    parser.add_argument("file", type=Path, help="a normal-data file, such as a run's pairs.jsonl")
    parser.add_argument("--groups", type=int, default=3, metavar="N", help="how many, evenly spaced (default 3)")
    parser.add_argument("--forget", metavar="ID", help="the group of this forget record")
    parser.add_argument("--width", type=int, default=120, metavar="N", help="columns of the terminal (default 120)")
    options = parser.parse_args(arguments)
    groups = [_named_group(line, f"{options.file}:{number}") for number, line in read_json_lines(options.file)]
    if not groups:
        raise UserError(f"{options.file}: holds no group")
    if options.forget is not None:
        groups = [group for group in groups if group.forget.id == options.forget]
        if not groups:
            raise UserError(f"{options.file}: no line for forget record {options.forget}")
    count = min(max(1, options.groups), len(groups))
    for index in range(count):
        group = groups[index * len(groups) // count]
        print(f"\n{f' {group.forget.id} ':─^{options.width}}\n{side_by_side(group, options.width)}", end="")
    sources = Counter(group.origin(index).source for group in groups for index in range(len(group.normals)))
    print(f"\n{len(groups)} groups; normals by source: {', '.join(f'{name} {n}' for name, n in sources.items())}")
    return 0


def _named_group(line: dict[str, Any], where: str) -> Group:
    """A line of the file as it stands, without the data that it names."""
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


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    # No abbreviations: --data.pool_size and its like belong to sga fit.
    return argparse.ArgumentParser(f"sga normals {verb}", description=description, allow_abbrev=False)


def _add_output(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--output", type=Path, required=required, metavar="FILE", help="the normal-data file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it is there")
    parser.add_argument(
        "--on-failure",
        choices=("replace", "drop", "keep"),
        default="replace",
        help="what becomes of normals that fail the checks: the next candidate, nothing (sga fit refuses a group that "
        "is short), or kept with its reasons (default replace)",
    )


def _check_output(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; choose another --output, or replace it with --overwrite")


def _data(rest: Sequence[str]) -> tuple[UnlearningData, Sequence[Record], Sequence[Record], Sequence[Record]]:
    """The data module that the options mean, its forget records, its pool and its reserved rows.

    No tokenizer and no model is read.
    """
    from sga.cli import configured_cli

    data = configured_cli(rest).datamodule
    benchmark = with_reserved(data.source.load(data.root), data.reserved, data.seed)
    reserved, pool = reserved_and_pool(benchmark)
    return data, benchmark.training["forget"], pool, reserved


def _checks(data: UnlearningData) -> Checks:
    """The pairing's checks where it has any."""
    return (data.pairing.checks if isinstance(data.pairing, NearestNormals) else None) or Checks()


def _nearest(data: UnlearningData) -> NearestNormals:
    """How replacements are found: as the pairing finds normals, where it does so by nearness."""
    return data.pairing if isinstance(data.pairing, NearestNormals) else NearestNormals()


def _report(failures: Sequence[Failure], normals: int) -> None:
    """Says what failed and why: all reasons counted, the first failures in full."""
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

"""Normals written by a model: against a local server that misbehaves, with kills, and what is kept and shown."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from architectures import small_model
from conftest import write_rows
from misbehaving import FAULTS, Misbehaving, completion, pair

from sga.__main__ import main
from sga.data.builtin import packaged_path
from sga.data.own import OwnData
from sga.data.records import Record
from sga.errors import UserError
from sga.groups.alternatives import FileAnswers, with_alternatives
from sga.groups.checks import Checker, Checks
from sga.groups.generation import Journal, NormalGenerator, PromptTemplate, parsed_reply, read_prompt
from sga.groups.group import Group
from sga.groups.writers import Endpoint, GaveUp, LocalModel, Refused, _retry_after

Reply = Callable[[str, int], tuple[int, dict[str, str], bytes] | None]
KEY = "sk-secret-0123456789"
# The timeout is far above what a busy machine takes for an answer, and below what a hanging socket does.
QUICK = ["--timeout=2", "--backoff=0.01", "--concurrency=8", "--attempts=12"]


def people(count: int) -> list[dict[str, str]]:
    rows = []
    for number in range(count):
        row = pair(f"to forget {number}")
        rows.append({name: text.replace("painter", "author") for name, text in row.items()})
    return rows


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Options of a benchmark with 20 forget and 40 retain records."""
    return benchmark(tmp_path, 20)


def benchmark(folder: Path, forget: int) -> list[str]:
    write_rows(folder / "forget.jsonl", people(forget))
    write_rows(folder / "retain.jsonl", [pair(f"retain {number}") for number in range(40)])
    return [
        "--data.source=OwnData",
        f"--data.source.forget={folder / 'forget.jsonl'}",
        f"--data.source.retain={folder / 'retain.jsonl'}",
        "--model.language_model=sga.SmallLlama",
    ]


def command(server: Misbehaving, output: Path, data: list[str], *options: str) -> list[str]:
    return ["normals", "generate", f"--url={server.url}", "--name=m", f"--output={output}", *QUICK, *data, *options]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_complete(output: Path, forget: int, count: int) -> None:
    """Complete, no duplicates, nothing lost: each accepted normal is an answer of the journal."""
    groups = lines(output)
    texts = [(normal["question"], normal["answer"]) for group in groups for normal in group["normals"]]
    assert len(groups) == forget and len(texts) == len(set(texts)) == forget * count
    assert {group["forget_id"] for group in groups} == {f"forget/{index}" for index in range(forget)}
    journal = lines(output.with_name(output.name + ".answers"))
    assert set(texts) <= {parsed_reply("qa", line["text"]) for line in journal}
    assert len({line["key"] for line in journal}) == len(journal), "no answer is stored twice"
    assert all(normal["source"] == "generated" and normal["by"] == "m" for g in groups for normal in g["normals"])
    assert all(0 < normal["score"] < 1 for group in groups for normal in group["normals"])


def test_alternatives_are_written_to_a_file_that_a_run_takes(data: list[str], tmp_path: Path) -> None:
    """Answers alone, several to each forget question; how many has to be said."""
    output = tmp_path / "answers.jsonl"
    options = ["--prompt=alternative", "--data.alternatives=FileAnswers"]
    with Misbehaving(kinds=()) as server:
        assert main(command(server, output, data, "--prompt=alternative")) == 2 and not output.exists()
        assert main(command(server, output, data, *options, "--data.alternatives.count=2")) == 0
    found = lines(output)
    forget = OwnData(*(option.split("=")[1] for option in data[1:3])).load(None).training["forget"]
    assert [line["question"] for line in found] == [record.question for record in forget for _ in range(2)]
    assert {(line["source"], line["by"]) for line in found} == {("generated", "m")}
    groups = with_alternatives([Group(r) for r in forget], FileAnswers(count=2, file=str(output)), (), {}, 0)
    assert [a.answer for group in groups for a in group.alternatives] == [line["answer"] for line in found]


@pytest.mark.runs
def test_a_server_that_fails_in_every_way_leaves_nothing_out(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "normals.jsonl"
    with Misbehaving(hang=6.0) as server:
        assert main(command(server, output, data)) == 0
        assert all(server.faults[kind] > 0 for kind in server.kinds), "each fault took place"
        assert server.most_in_flight <= 8 + server.faults["hang"]  # those that hang are given up by the client
        answered = sum(server.answered.values())
    check_complete(output, 20, 3)
    kept = lines(tmp_path / "normals.jsonl.answers")
    assert len(kept) == answered + server.faults["refusal"] + server.faults["repeat"], "all that was read is kept"
    printed = capsys.readouterr().out
    assert "60 requests to make" in printed and f"{len(kept)} answers, {len(kept)} of them now" in printed
    assert f"{100 * len(kept)} tokens read, {20 * len(kept)} written" in printed
    with Misbehaving() as server:  # again: nothing is asked for
        assert main([*command(server, output, data), "--overwrite"]) == 0
        assert not server.asked
    check_complete(output, 20, 3)


def kill_on_the_way(arguments: list[str], journal: Path, after: int) -> None:
    """Starts a process and kills it when the journal has so many more lines."""
    before = journal.read_bytes().count(b"\n") if journal.exists() else 0
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not journal.exists() or journal.read_bytes().count(b"\n") < before + after:
        assert process.poll() is None and time.monotonic() < deadline, "it is under way when it is killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # answers that are under way go nowhere


def killed_twice(server: Misbehaving, arguments: list[str], journal: Path, after: int, concurrency: int) -> None:
    """Runs a command that is killed two times and then left alone; counts what was asked for in vain."""
    for _ in range(2):
        kill_on_the_way(arguments, journal, after)
    subprocess.run(arguments, check=True, capture_output=True)
    keys = [line["key"] for line in lines(journal)]
    assert len(set(keys)) == len(keys), "no answer is stored twice"
    # What the server answered in full and the journal does not have was in flight at a kill.
    readable = sum(server.answered.values()) + server.faults["refusal"] + server.faults["repeat"]
    assert 0 <= readable - len(keys) <= 2 * concurrency


SCRIPT = """
import asyncio, pathlib, sys
from sga.data.own import OwnData
from sga.groups.checks import Checker, Checks
from sga.groups.writers import Endpoint
from sga.groups.generation import Journal, NormalGenerator, read_prompt
from sga.data.builtin import packaged_path
from sga.runs.lock import write_lock
folder, url = pathlib.Path(sys.argv[1]), sys.argv[2]
benchmark = OwnData("forget.jsonl", "retain.jsonl").load(str(folder))
forget, pool = benchmark.training["forget"], benchmark.training["retain"]
generation = NormalGenerator(
    forget, 3, read_prompt(packaged_path("configs/prompts/qa.yaml")),
    Endpoint(url, "m", timeout=2, backoff=0.01, concurrency=4), Checker(Checks(), forget, pool), attempts=12,
)
with write_lock(folder / "normals.jsonl.answers", "--output"):
    journal = Journal(folder / "normals.jsonl.answers")
    generation.replay(journal)
    asyncio.run(generation.run(journal))
assert all(slot.normal is not None for slot in generation.slots)
"""


@pytest.mark.runs
def test_a_killed_process_resumes_and_repeats_at_most_the_requests_in_flight(tmp_path: Path) -> None:
    """The part of the command that asks, by itself: it starts faster. No request hangs, which takes long."""
    benchmark(tmp_path, 12)
    with Misbehaving(share=0.1, delay=0.02, kinds=tuple(kind for kind in FAULTS if kind != "hang")) as server:
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path), server.url]
        killed_twice(server, arguments, tmp_path / "normals.jsonl.answers", 10, 4)


@pytest.mark.runs
def test_a_second_process_on_the_same_output_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While the first one is under way, and no longer when it has been killed."""
    data, output = benchmark(tmp_path, 40), tmp_path / "normals.jsonl"
    journal = output.with_name("normals.jsonl.answers")
    with Misbehaving(kinds=(), delay=1.5) as server:
        first = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), server.url])
        try:
            deadline = time.monotonic() + 120
            while not journal.exists() or not journal.read_bytes():
                assert first.poll() is None and time.monotonic() < deadline, "it is under way"
                time.sleep(0.02)
            assert main(command(server, output, data)) == 2 and not output.exists()
            said = f"{journal} is being written by process {first.pid} on {socket.gethostname()} since "
            assert said in (printed := capsys.readouterr().err) and "choose another --output" in printed
            assert first.poll() is None, "it goes on"
        finally:
            first.kill()
            first.wait()
        server.delay = 0.0
        assert main(command(server, output, data)) == 0
    check_complete(output, 40, 3)


@pytest.mark.slow
def test_four_hundred_times_three_killed_twice(tmp_path: Path) -> None:
    data, output = benchmark(tmp_path, 400), tmp_path / "normals.jsonl"
    with Misbehaving(share=0.1, hang=6.0, delay=0.02) as server:
        # Four of ten requests get nothing: with the usual 8 tries one of some 1,800 would be given up now and then.
        arguments = [sys.executable, "-m", "sga", *command(server, output, data, "--tries=16")]
        killed_twice(server, arguments, tmp_path / "normals.jsonl.answers", 300, 8)
        assert all(server.faults[kind] > 50 for kind in server.kinds)
    check_complete(output, 400, 3)


def test_a_line_that_a_kill_cut_off_is_asked_for_again_and_no_other(data: list[str], tmp_path: Path) -> None:
    output = tmp_path / "normals.jsonl"
    with Misbehaving(kinds=()) as server:
        assert main(command(server, output, data)) == 0
        journal = tmp_path / "normals.jsonl.answers"
        whole = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(whole[:-1]) + whole[-1][:30])
        server.asked.clear()
        assert main([*command(server, output, data), "--overwrite"]) == 0
        assert sum(server.asked.values()) == 1
    check_complete(output, 20, 3)


@pytest.mark.runs
def test_another_prompt_or_model_takes_nothing_from_the_journal(data: list[str], tmp_path: Path) -> None:
    output = tmp_path / "normals.jsonl"
    prompt = tmp_path / "mine.yaml"
    prompt.write_text("{kind: qa, system: Write., user: 'Like {question} {answer}, {number}.'}", encoding="utf-8")
    with Misbehaving(kinds=()) as server:
        for options in ((), (f"--prompt={prompt}",), ("--temperature=0.5",)):
            server.asked.clear()
            assert main([*command(server, output, data, *options), "--overwrite"]) == 0
            assert sum(server.asked.values()) == 60
    assert lines(output)[0]["normals"][0]["prompt"] == read_prompt(packaged_path("configs/prompts/qa.yaml")).hash


@pytest.mark.runs
def test_what_no_attempt_mends_is_reported_and_nothing_is_written(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "normals.jsonl"
    refusal = completion(
        json.dumps({"question": "Where?", "answer": "I'm sorry, I cannot write about the painter here."})
    )
    with Misbehaving(kinds=()) as server:
        server.reply = lambda message, count: (200, {}, refusal) if "variation 2" in message else None
        assert main(command(server, output, data, "--attempts=2")) == 1
        said = capsys.readouterr()
        assert not output.exists()
        assert "20 of 60 normals are missing" in said.err and "reads like a refusal" in said.out
        asked = sum(server.asked.values())
        assert asked == 40 + 2 * 20
        assert main(command(server, output, data, "--attempts=2", "--on-failure=drop")) == 0
        assert "20 groups have fewer than 3 normals" in capsys.readouterr().out
        assert [len(line["normals"]) for line in lines(output)] == [2] * 20
        assert main([*command(server, output, data, "--attempts=2", "--on-failure=keep"), "--overwrite"]) == 0
        assert [len(line["normals"]) for line in lines(output)] == [3] * 20
        assert all("reads like a refusal" in line["normals"][1]["checks"] for line in lines(output))
        assert sum(server.asked.values()) == asked, "the journal has it all"
        server.reply = None  # the outage is over, and one more attempt is allowed
        assert main([*command(server, output, data, "--attempts=3"), "--overwrite"]) == 0
    check_complete(output, 20, 3)


def refusing(*numbers: int, status: int = 400, body: bytes = b'{"error": "too long"}') -> Reply:
    """A server's answers where the prompts of these forget samples are refused."""
    questions = [people(number + 1)[number]["question"] for number in numbers]
    return lambda message, count: (status, {}, body) if any(one in message for one in questions) else None


@pytest.mark.parametrize("status", [400, 413, 422, 451])
@pytest.mark.runs
def test_a_prompt_that_is_refused_is_that_prompts_failure(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """The first one, with which the endpoint is tried out, and one in the middle."""
    output = tmp_path / "normals.jsonl"
    with Misbehaving(kinds=()) as server:
        server.reply = refusing(0, 7, status=status)
        assert main(command(server, output, data)) == 1
        said = capsys.readouterr()
        assert f"forget/7: normal 2: no answer: refused with status {status}: " in said.out and "too long" in said.out
        assert "6 of 60 normals are missing" in said.err and not output.exists()
        assert sum(server.asked.values()) == 60, "each once: a refusal is not tried again"
        server.asked.clear()
        assert main(command(server, output, data, "--on-failure=drop")) == 0
        assert sum(server.asked.values()) == 6
    assert [len(line["normals"]) for line in lines(output)] == [0 if i in (0, 7) else 3 for i in range(20)]


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.runs
def test_what_every_prompt_would_meet_ends_the_command_at_the_first(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    with Misbehaving(kinds=()) as server:
        server.reply = lambda message, count: (status, {}, b"no")
        assert main(command(server, tmp_path / "n.jsonl", data)) == 2
        assert f"refuses with status {status}: 'no'; check url, model and the key" in capsys.readouterr().err
        assert sum(server.asked.values()) == 1


@pytest.mark.runs
def test_ten_refusals_in_a_row_end_the_command_and_nine_do_not(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Misbehaving(kinds=()) as server:
        server.reply = refusing(*range(9))
        assert main(command(server, tmp_path / "n.jsonl", data, "--on-failure=drop", "--concurrency=1")) == 0
        server.asked.clear()
        server.reply = refusing(*range(20))
        assert main(command(server, tmp_path / "other.jsonl", data)) == 2
        assert "10 different forget samples were refused in a row, the last one: refused" in capsys.readouterr().err
        assert sum(server.asked.values()) == 10
        # One forget sample is not ten, however many normals it is to get.
        server.reply = refusing(3)
        more = ("--data.pool_size=12", "--on-failure=drop", "--concurrency=1")
        assert main(command(server, tmp_path / "third.jsonl", data, *more)) == 0


@pytest.mark.runs
def test_the_same_command_goes_past_ten_prompts_that_are_refused(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve of the forget prompts are refused for good: ten end the first command, two more are the second's own."""
    output = tmp_path / "n.jsonl"
    with Misbehaving(kinds=()) as server:
        server.reply = refusing(*range(12))
        more = ("--on-failure=drop", "--concurrency=1")
        assert main(command(server, output, data, *more)) == 2
        assert "the same command goes on with the others and asks these last" in capsys.readouterr().err
        server.asked.clear()
        assert main(command(server, output, data, *more)) == 0
        printed = capsys.readouterr().out
        assert "36 of 60 normals fail the checks" in printed and "no answer: refused" in printed
        server.reply = None  # the reason is gone: they are asked again
        assert main(command(server, output, data, *more, "--overwrite")) == 0
        assert "\n0 of " in capsys.readouterr().out


def test_a_server_that_never_answers_is_said_before_the_queue(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Misbehaving(kinds=()) as server:
        server.reply = lambda message, count: (500, {}, b"")
        assert main(command(server, tmp_path / "n.jsonl", data, "--tries=2")) == 2
        assert "the first 2 prompts got no answer (2 tries, the last one: status 500)" in capsys.readouterr().err
        assert sum(server.asked.values()) == 4
        server.reply = refusing(0, status=500)  # negative control: this prompt alone
        assert main(command(server, tmp_path / "n.jsonl", data, "--tries=2", "--on-failure=drop")) == 0
    capsys.readouterr()
    assert main(command(server, tmp_path / "other.jsonl", data)) == 2
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.runs
def test_the_key_is_sent_and_appears_nowhere(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MY_KEY", KEY)
    output = tmp_path / "normals.jsonl"
    with Misbehaving(kinds=()) as server, caplog.at_level(logging.DEBUG):
        server.reply = lambda message, count: (401, {}, f'{{"error": "wrong key {KEY}"}}'.encode())
        assert main(command(server, output, data, "--key-variable=MY_KEY")) == 2
        error = capsys.readouterr().err
        assert "status 401" in error and "[key]" in error and "$MY_KEY" in error
        echo = completion(json.dumps({"question": "Who?", "answer": f"The painter has the key {KEY} in the house."}))
        server.reply = lambda message, count: (200, {}, echo) if count == 1 else None
        assert main(command(server, output, data, "--key-variable=MY_KEY")) == 0
        assert server.keys == {f"Bearer {KEY}"}, "negative control: it was sent"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    captured = capsys.readouterr()
    assert b"[key]" in written
    for text in (written.decode(), captured.out, captured.err, error, caplog.text, repr(endpoint("http://x"))):
        assert KEY not in text


def test_a_dry_run_prints_prompts_and_asks_nothing(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Misbehaving() as server:
        prices = ("--price-read=1000000", "--price-written=0")
        assert main(command(server, tmp_path / "n.jsonl", data, "--dry-run", *prices)) == 0
        assert not server.asked
    printed = capsys.readouterr().out
    first = people(1)[0]
    assert f"Question: {first['question']}\nAnswer: {first['answer']}" in printed and "variation 1 of 3" in printed
    assert "60 requests to make" in printed and "at the given prices" in printed
    assert not list(tmp_path.glob("n.jsonl*"))


def test_bad_options_are_refused_before_anything_is_asked(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "there.jsonl"
    output.write_text("")
    with Misbehaving() as server:
        for options, said in (
            ((f"--output={output}",), "is there already"),
            (("--prompt=nothing.yaml",), "no such prompt"),
            (("--attempts=0",), "--attempts must be at least 1"),
            (("--concurrency=0",), "concurrency must be above 0"),
            (("--url=ftp://x",), "must begin with https://"),
            (("--data.group_size=1",), "has no normals to write"),
        ):
            assert main(command(server, tmp_path / "n.jsonl", data, *options)) == 2
            assert said in capsys.readouterr().err
        assert not server.asked


# ---- the endpoint ---------------------------------------------------------------------------------------------------


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint(url, "m", **{"timeout": 0.5, "backoff": 0.01, "tries": 3, **settings})


def ask(writer: Endpoint) -> Any:
    async def once() -> Any:
        try:
            return await writer.write([{"role": "user", "content": "hello"}], 0)
        finally:
            await writer.close()

    return asyncio.run(once())


def test_it_gives_up_after_so_many_tries_and_says_why() -> None:
    with Misbehaving() as server:
        for reply, said in (
            ((500, {}, b""), "status 500"),
            ((200, {}, completion("x")[:30]), "no chat completion"),
            ((200, {}, b'{"choices": []}'), "no chat completion"),
            ((200, {}, b'{"choices": {}}'), "no chat completion"),
            ((200, {}, b'{"choices": [{"message": {"content": null}}]}'), "an empty answer"),
            ((200, {}, b"\xff\xfe"), "no chat completion"),
        ):
            server.asked.clear()
            server.reply = lambda message, count, reply=reply: reply
            with pytest.raises(GaveUp, match=said):
                ask(endpoint(server.url))
            assert server.asked["hello"] == 3
    with pytest.raises(UserError, match=r"cannot be reached \(ConnectError .*\); check the address"):
        ask(endpoint(server.url))


def test_a_redirect_is_not_followed_and_no_key_is_sent_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forget data goes to the address that was given, and to no other."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Misbehaving(kinds=()) as other, Misbehaving(kinds=()) as server:
        server.reply = lambda message, count: (307, {"Location": f"{other.url}/chat/completions"}, b"")
        with pytest.raises(Refused, match="status 307"):
            ask(endpoint(server.url))
        assert server.keys == {None} and not other.asked
    with pytest.raises(UserError, match="cannot be reached"):
        ask(endpoint("http://"))


def test_a_server_that_goes_away_is_waited_for_once_it_has_been_reached() -> None:
    async def twice(writer: Endpoint, server: Misbehaving) -> None:
        with server:
            await writer.write([{"role": "user", "content": "hello"}], 0)
        await writer.close()  # its connection, which would be used again
        await writer.write([{"role": "user", "content": "hello"}], 0)

    server = Misbehaving(kinds=())
    with pytest.raises(GaveUp, match=r"3 tries, the last one: \w+Error"):
        asyncio.run(twice(endpoint(server.url), server))


def test_a_server_that_dribbles_is_cut_off_by_the_whole_timeout() -> None:
    """Each byte comes in time for a timeout on single reads; the whole does not."""

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b" " * 10000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async def run() -> float:
        server = await asyncio.start_server(dribble, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        started = time.monotonic()
        writer = endpoint(url, timeout=0.3, tries=1)
        with pytest.raises(GaveUp, match=r"no answer within 0\.3 s"):
            await writer.write([{"role": "user", "content": "hello"}], 0)
        await writer.close()
        server.close()
        return time.monotonic() - started

    assert asyncio.run(run()) < 2


def test_retry_after_is_waited_for_by_all() -> None:
    with Misbehaving(kinds=()) as server:
        server.reply = lambda message, count: (429, {"Retry-After": "0.6"}, b"") if count == 1 else None
        started = time.monotonic()
        assert ask(endpoint(server.url, timeout=5)).prompt_tokens == 100
        assert time.monotonic() - started >= 0.6


@pytest.mark.runs
def test_it_says_why_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sga.groups.writers.random.uniform", lambda least, most: least)
    said: list[str] = []
    with Misbehaving(kinds=()) as server:
        server.reply = lambda message, count: (429, {"Retry-After": "1.2"}, b"") if count == 1 else None
        ask(endpoint(server.url, timeout=5, say=said.append))
        assert said == ["waiting 1 s: status 429, which asks for 1.2 s (Retry-After); another try"]
        server.asked.clear()
        server.reply = lambda message, count: (503, {}, b"<html>\n<b>Busy</b>") if count < 3 else None
        ask(endpoint(server.url, timeout=5, backoff=0.01, say=said.append))
        assert len(said) == 1, "less than a second is not worth a line"
        ask(endpoint(server.url, timeout=5, backoff=2.0, say=said.append, tries=1))
        server.asked.clear()
        ask(endpoint(server.url, timeout=5, backoff=2.0, say=said.append))
        assert len(said) == 2, "one line in ten seconds"
        assert said[1].endswith("s: status 503 (a web page: '<html> <b>Busy</b>'); another try")

        async def two(writer: Endpoint) -> None:
            await asyncio.gather(*(writer.write([{"role": "user", "content": str(i)}], 0) for i in range(2)))
            await writer.close()

        server.reply = None
        asyncio.run(two(endpoint(server.url, timeout=5, requests_per_minute=50.0, say=said.append)))
        assert said[2:] == ["waiting 1 s: at most 50 requests a minute"]


PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>" + b"<body>x</body>" * 100


def test_a_web_page_in_the_place_of_an_answer_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "Sign in")  # what is shown is without the key
    start = "(a web page: '<!DOCTYPE html> <html><head><title>[key]</title></head><body>x</body><body>x</bo')"
    with Misbehaving() as server:
        for status, error in ((200, GaveUp), (502, GaveUp), (400, Refused), (404, UserError)):
            server.reply = lambda message, count, status=status: (status, {}, PAGE)
            with pytest.raises(error, match=re.escape(start)):
                ask(endpoint(server.url))


def test_retry_after_is_a_number_or_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=30)
    assert 28 < _retry_after(format_datetime(later, usegmt=True)) <= 30
    assert [_retry_after(value) for value in (None, "7", "-3", "soon", "nan", "1e9")] == [0, 7, 0, 0, 0, 120]


def test_requests_per_minute_spaces_requests() -> None:
    """At 600 a minute the fifth of five requests at once begins 0.4 s after the first at the earliest."""

    async def several(writer: Endpoint) -> float:
        started = time.monotonic()
        await asyncio.gather(*(writer.write([{"role": "user", "content": str(i)}], 0) for i in range(5)))
        await writer.close()
        return time.monotonic() - started

    with Misbehaving(kinds=()) as server:
        assert asyncio.run(several(endpoint(server.url, requests_per_minute=600.0, timeout=5))) >= 0.4


# ---- prompts, replies, local models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qa", "news", "book", "alternative"])
def test_a_shipped_prompt_holds_the_sample_and_no_open_slot(name: str) -> None:
    prompt = read_prompt(packaged_path(f"configs/prompts/{name}.yaml"))
    forget = Record("f/0", "Who {answer}?" if prompt.kind != "text" else "", "It was {number}.")
    text = prompt.messages(forget, 2, 3)[1]["content"]
    assert "It was {number}." in text and "2 of 3" in text, "braces of the data stay as they are"
    assert ("Who {answer}?" in text) == (prompt.kind != "text")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1", "not YAML"),
        ("{kind: qa, system: s}", "has the keys"),
        ("{kind: poem, system: s, user: '{answer}'}", "kind must be qa, text or alternative"),
        ("{kind: qa, system: s, user: u}", "must contain {answer}"),
    ],
)
def test_a_prompt_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prompt.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_prompt(path)


def test_replies_are_read_in_the_forms_that_models_use() -> None:
    wanted = ("Who?", "Ann.")
    good = '{"question": " Who? ", "answer": "Ann."}'
    for reply in (good, f"```json\n{good}\n```", "Question: Who?\nAnswer: Ann.", "  Question: Who?\n\nAnswer: Ann.\n"):
        assert parsed_reply("qa", reply) == wanted
    for reply in ("Who? Ann.", '{"question": "Who?"}', '{"question": "Who?", "answer": ""}', "[]", '{"question": 1}'):
        assert parsed_reply("qa", reply) is None
    assert parsed_reply("text", " A passage. ") == ("", "A passage.") and parsed_reply("text", " ") is None


def test_the_same_journal_gives_the_same_normals_and_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_text('{"key": 1}\n{"ke\n{"key": 2}\n')
    with pytest.raises(UserError, match="answers:2: not JSON"):
        Journal(path)


def test_a_local_model_writes_and_the_same_seed_writes_the_same(own_target: Path) -> None:
    writer = LocalModel(str(own_target), max_tokens=12)
    messages = [{"role": "user", "content": "Question: Where was Ada Brook born?\nAnswer:"}]
    replies = [asyncio.run(writer.write(messages, seed)) for seed in (1, 1, 2, 3, 4)]
    assert replies[0] == replies[1] and len({reply.text for reply in replies}) > 1
    assert replies[0].completion_tokens is not None and 0 < replies[0].completion_tokens <= 12
    forget = [Record("f/0", "", "Some words of a passage that is to be forgotten.")]
    checker = Checker(Checks(near_duplicate=None, facts=False, length=None, language=False, refusal=False), forget, [])
    generation = NormalGenerator(
        forget, 2, PromptTemplate("text", "Write.", "{answer} {number}"), writer, checker, attempts=1
    )
    journal = Journal(Path(own_target).parent / f"answers-{os.getpid()}")
    asyncio.run(generation.run(journal))
    journal.close()
    assert generation.spent.requests == 2 and all(slot.attempt == 1 for slot in generation.slots)


def test_an_encoder_is_no_writer(own_target: Path, tmp_path: Path) -> None:
    """It would write what looks like text, each token made of those after it."""
    small_model("bert", tokens=600).save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(own_target / "model" / name, tmp_path / "bert")
    with pytest.raises(UserError, match="is no causal language model"):
        asyncio.run(LocalModel(str(tmp_path / "bert"), max_tokens=4).write([{"role": "user", "content": "Ada?"}], 1))

"""Normal samples written by a language model: prompts, a journal of answers, and what becomes of them.

Every answer goes to the journal the moment it arrives, so that a command that was killed goes on where it stopped. What
is accepted is decided from the journal alone, in its order: the same journal gives the same normals.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sga.data.records import Record
from sga.errors import UserError
from sga.files import json_value, read_json_lines, read_yaml
from sga.groups.alternatives import MeasuredAnswers, spelled
from sga.groups.checks import Checker
from sga.groups.embedders import TFIDF
from sga.groups.group import Group, Origin
from sga.groups.repair import OnFailure
from sga.groups.writers import GaveUp, Message, Refused, Reply, Writer

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English, for estimates."""


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt template.

    Attributes:
        kind: Whether a question with an answer is asked for, a passage, or another answer to the forget question.
        system: System message.
        user: User message, with ``{question}``, ``{answer}``, ``{number}`` and ``{count}`` to be filled in.
    """

    kind: Literal["qa", "text", "alternative"]
    system: str
    user: str

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the template."""
        return _digest([self.kind, self.system, self.user])

    def messages(self, forget: Record, number: int, count: int) -> list[Message]:
        """The chat that asks for normal `number` (from 1) of `count`."""
        values = {"question": forget.question, "answer": forget.answer, "number": str(number), "count": str(count)}

        def filled(text: str) -> str:
            return re.sub(r"\{(question|answer|number|count)\}", lambda slot: values[slot[1]], text)

        return [{"role": "system", "content": filled(self.system)}, {"role": "user", "content": filled(self.user)}]


def read_prompt(path: Path) -> PromptTemplate:
    """Reads a prompt template in YAML.

    Raises:
        UserError: the file is missing or has other keys than kind, system and user.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such prompt; those that come with the package are qa, news, book and alternative")
    value = read_yaml(path)
    if not isinstance(value, dict) or set(value) != {"kind", "system", "user"}:
        raise UserError(f"{path}: a prompt has the keys kind, system and user")
    kinds, texts = ("qa", "text", "alternative"), (value["system"], value["user"])
    if value["kind"] not in kinds or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}: kind must be qa, text or alternative, system and user must be texts")
    if "{answer}" not in value["user"]:
        raise UserError(f"{path}: user must contain {{answer}}, the forget sample's")
    return PromptTemplate(value["kind"], value["system"], value["user"])


def parsed_reply(kind: str, reply: str) -> tuple[str, str] | None:
    """Question and answer of a reply; None where there are none. JSON, or lines that begin so, fenced or not.

    A passage and an alternative are the reply itself, or JSON with an ``answer``, and have no question.

    >>> parsed_reply("qa", '```json\\n{"question": "Who?", "answer": "Ann."}\\n```')
    ('Who?', 'Ann.')
    >>> parsed_reply("qa", "Question: Who?\\nAnswer: Ann.")
    ('Who?', 'Ann.')
    """
    text = re.sub(r"^```\w*\s*|\s*```$", "", reply.strip())
    if kind == "text":
        return ("", text) if text else None
    try:
        value = json_value(text)
    except json.JSONDecodeError:
        if kind == "alternative":
            text = text.removeprefix("Answer:").strip()
            return ("", text) if text and "\n" not in text else None
        lines = re.fullmatch(r"\s*Question:\s*(.+?)\s*\n+\s*Answer:\s*(.+?)\s*", text, flags=re.DOTALL)
        value = {"question": lines[1], "answer": lines[2]} if lines else None
    if not isinstance(value, dict):
        return None
    pair: tuple[Any, Any] = ("" if kind == "alternative" else value.get("question"), value.get("answer"))
    asked = kind != "alternative"
    good = all(isinstance(part, str) for part in pair) and all(part.strip() for part in pair[0 if asked else 1 :])
    return (pair[0].strip(), pair[1].strip()) if good else None


class Journal:
    """Answers as they came, one JSON object a line; only ever appended to. The caller keeps other processes away.

    Args:
        path: The file. A line that a kill cut off is taken away when it is opened.

    Raises:
        UserError: a line in the middle is not JSON.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)
            self.lines = [line for _, line in read_json_lines(path)] if whole else []
        except BaseException:
            self.close()
            raise

    def append(self, line: dict[str, Any]) -> None:
        """Writes a line and returns when it is on the disk."""
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)
        self.lines.append(line)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


@dataclass
class Slot:
    """One normal sample that is wanted.

    Attributes:
        forget: Whose.
        number: From 1.
        attempt: Answers that were looked at.
        normal: What was accepted.
        refused: The last answer that was not, where it could be read, with its reasons.
        reason: Why there is no normal, where that is known.
    """

    forget: Record
    number: int
    attempt: int = 0
    normal: Record | None = None
    refused: tuple[Record, tuple[str, ...]] | None = None
    reason: str = ""


@dataclass
class Count:
    """What was spent, as servers say or, where they do not, as estimated from characters."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, line: dict[str, Any]) -> None:
        """Adds an answer of the journal."""
        self.requests += 1
        self.prompt_tokens += line["prompt_tokens"]
        self.completion_tokens += line["completion_tokens"]


REFUSED_IN_A_ROW = 10
"""Forget samples whose prompts are refused one after the other: then it is not the prompts."""
SILENT_IN_A_ROW = 2
"""Forget samples that get no answer at all where there has not been one yet."""


@dataclass
class _Row:
    """Forget samples without an answer since the last answer of this command.

    Attributes:
        begun: Whether there has been an answer.
        refused: Ids of those that were refused.
        silent: Ids of the others.
        known: Ids of those that an earlier command saw refused; they say nothing new.
    """

    begun: bool = False
    refused: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    known: Set[str] = frozenset()

    def answered(self) -> None:
        self.begun = True
        self.refused.clear()

    def failed(self, slot: Slot, error: GaveUp) -> None:
        """Raises a UserError where there is no use in going on."""
        if isinstance(error, Refused) and slot.forget.id in self.known:
            return
        (self.refused if isinstance(error, Refused) else self.silent).add(slot.forget.id)
        if len(self.refused) >= REFUSED_IN_A_ROW:
            raise UserError(
                f"the prompts of {len(self.refused)} different forget samples were refused in a row, the last one: "
                f"{error}; check url and model, or shorten the prompt; the same command goes on with the others and "
                "asks these last"
            )
        if not self.begun and len(self.silent) >= SILENT_IN_A_ROW:
            raise UserError(
                f"the first {len(self.silent)} prompts got no answer ({error}), and nothing else was asked; check the "
                "address, or try again later"
            )


@dataclass
class NormalGenerator:
    """Asks a writer for the normals of all forget records, and keeps what passes the checks.

    Attributes:
        forget: The records to forget.
        count: Normals for each.
        prompt: The template.
        writer: Who writes.
        checker: What an answer must satisfy.
        attempts: Answers that may be asked for until one passes.
        taken: Contents that no answer may have: of the retain pool.
        measured: Answers that no alternative may be; see `sga.groups.alternatives.measured_answers`.
    """

    forget: Sequence[Record]
    count: int
    prompt: PromptTemplate
    writer: Writer
    checker: Checker
    attempts: int = 3
    taken: set[tuple[str, str]] = field(default_factory=set)
    measured: MeasuredAnswers = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = [Slot(record, number) for record in self.forget for number in range(1, self.count + 1)]
        self._by_forget: dict[str, list[Slot]] = {}
        for slot in self.slots:
            self._by_forget.setdefault(slot.forget.id, []).append(slot)
        self.spent = Count()
        self._refused_before: set[str] = set()  # ids of forget records

    def key(self, slot: Slot, attempt: int) -> str:
        """Hash of all that an answer depends on; under it the journal keeps it."""
        messages = self.prompt.messages(slot.forget, slot.number, self.count)
        return _digest([self.writer.identity(), messages, slot.forget.id, slot.number, attempt])

    def replay(self, journal: Journal) -> None:
        """Looks at the answers that are there already."""
        expected = {self.key(slot, 0): slot for slot in self.slots}
        for line in journal.lines:
            slot = expected.pop(str(line.get("key")), None)
            if slot is None:  # of another prompt, model or data
                continue
            if "refused" in line:
                self._refused_before.add(slot.forget.id)
            else:
                self._look(slot, line)
            if self._open(slot):
                expected[self.key(slot, slot.attempt)] = slot

    def estimate(self) -> tuple[int, int, int]:
        """Requests that are open, and tokens to read and to write for them if each passes at once; by characters."""
        slots = [slot for slot in self.slots if self._open(slot)]
        read = sum(
            len(message["content"]) // CHARACTERS_PER_TOKEN
            for slot in slots
            for message in self.prompt.messages(slot.forget, slot.number, self.count)
        )
        written = sum((len(slot.forget.question) + len(slot.forget.answer)) // CHARACTERS_PER_TOKEN for slot in slots)
        return len(slots), read, written

    async def run(self, journal: Journal, progress: Callable[[int], object] = lambda done: None) -> None:
        """Asks for what is open until each slot has a normal or has failed: one at a time until the first answer.

        Raises:
            UserError: no request will succeed.
        """
        # By number: neighbours are of different forget samples, so that one of them does not look like all.
        # Those that were refused before come last, so that they keep nobody from going past them.
        before = frozenset(self._refused_before)
        waiting: Iterator[Slot] = iter(
            sorted(filter(self._open, self.slots), key=lambda slot: (slot.forget.id in before, slot.number))
        )
        row = _Row(known=before)

        async def work(alone: bool = False) -> None:
            for slot in waiting:
                while self._open(slot):
                    key = self.key(slot, slot.attempt)
                    messages = self.prompt.messages(slot.forget, slot.number, self.count)
                    try:
                        reply = await self.writer.write(messages, int(key[:8], 16))
                    except GaveUp as error:
                        slot.reason = f"no answer: {error}"
                        if isinstance(error, Refused) and slot.forget.id not in self._refused_before:
                            self._refused_before.add(slot.forget.id)
                            journal.append({"key": key, "forget_id": slot.forget.id, "refused": str(error)})
                        row.failed(slot, error)
                        break
                    row.answered()
                    line = self._line(key, slot, messages, reply)
                    journal.append(line)
                    self._look(slot, line)
                progress(1)
                if alone and row.begun:
                    return

        workers: list[asyncio.Future[None]] = []
        try:
            await work(alone=True)
            workers += [asyncio.ensure_future(work()) for _ in range(self.writer.concurrency)]
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self.writer.close()

    def _line(self, key: str, slot: Slot, messages: Sequence[Message], reply: Reply) -> dict[str, Any]:
        read = sum(len(message["content"]) for message in messages) // CHARACTERS_PER_TOKEN
        written = len(reply.text) // CHARACTERS_PER_TOKEN
        return {
            "key": key,
            "forget_id": slot.forget.id,
            "number": slot.number,
            "attempt": slot.attempt,
            "text": reply.text,
            "cut_off": reply.cut_off,
            "prompt_tokens": read if reply.prompt_tokens is None else reply.prompt_tokens,
            "completion_tokens": written if reply.completion_tokens is None else reply.completion_tokens,
        }

    def _open(self, slot: Slot) -> bool:
        return slot.normal is None and slot.attempt < self.attempts

    def _look(self, slot: Slot, line: dict[str, Any]) -> None:
        """Accepts an answer or says why not."""
        self.spent.add(line)
        slot.attempt += 1
        pair = parsed_reply(self.prompt.kind, line["text"])
        if pair is None:
            slot.reason = "reads like nothing that was asked for"
            return
        normal = Record(f"{slot.forget.id}/generated-{slot.number}", *pair)
        others = [one.normal for one in self._by_forget[slot.forget.id] if one.normal is not None]
        if self.prompt.kind == "alternative":
            others = [replace(other, question="") for other in others]
        known = slot.forget.question if self.prompt.kind == "alternative" else ""
        reasons = self.checker.failures(normal, slot.forget, others, known)
        if self.prompt.kind == "alternative":  # the checks have seen the answer alone: its question is to be the same
            normal = replace(normal, question=slot.forget.question)
            if spelled(normal.answer) in self.measured.get(spelled(normal.question), set()):
                reasons.append("is the true answer, or metrics measure with it")
        if line.get("cut_off"):
            reasons.append("cut off at max_tokens")
        if normal.content in self.taken and not any(reason.startswith("repeats") for reason in reasons):
            reasons.append("stands in the data or in another group already")
        if reasons:
            slot.refused, slot.reason = (normal, tuple(reasons)), "; ".join(reasons)
            return
        slot.normal = normal
        self.taken.add(normal.content)

    def groups(self, on_failure: OnFailure) -> tuple[list[Group], list[Slot]]:
        """The groups, and the slots whose normal was refused or never came.

        Args:
            on_failure: ``keep`` takes the last refused answer, its reasons beside it; ``drop`` leaves it out, and the
                group is short; ``replace``, whose further attempts have been made, leaves it out too.
        """
        model = str(self.writer.identity()["model"])
        failed = [slot for slot in self.slots if slot.normal is None]
        groups = []
        for record in self.forget:
            normals, origins, seen = [], [], set()
            for slot in self._by_forget[record.id]:
                checks: tuple[str, ...] = ()
                normal = slot.normal
                if normal is None and on_failure == "keep" and slot.refused is not None:
                    normal, checks = slot.refused
                if normal is None or normal.content in seen:
                    continue
                seen.add(normal.content)
                normals.append(normal)
                origins.append(Origin("generated", model, self.prompt.hash, checks))
            groups.append(Group(record, tuple(normals), (None,) * len(normals), tuple(origins)))
        return scored(groups), failed


def scored(groups: Sequence[Group]) -> list[Group]:
    """Gives normals without a score their TF-IDF cosine, document frequencies being those of all groups' texts."""
    texts = [(record.question, record.answer) for group in groups for record in (group.forget, *group.normals)]
    try:
        embed = TFIDF().fitted(texts)
    except UserError:  # not a word in them: nothing to compare
        return list(groups)
    vectors, row, found = embed(texts), 0, []
    for group in groups:
        own = (vectors[row + 1 : row + 1 + len(group.normals)] @ vectors[row].T).toarray().ravel()
        scores = tuple(
            round(float(mine), 6) if score is None else score for mine, score in zip(own, group.scores, strict=True)
        )
        found.append(Group(group.forget, group.normals, scores, group.origins))
        row += 1 + len(group.normals)
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

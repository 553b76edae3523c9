"""Normal samples written by a language model: prompts, a journal of answers, and their acceptance.

Every answer is written to the journal as soon as it arrives, so that a killed command can be resumed. Answers are
accepted from the journal alone, in its order: the same journal gives the same normals.
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
"""Rule of thumb for English, for estimates of cost."""


@dataclass(frozen=True)
class PromptTemplate:
    """Template of the prompt that requests a normal sample.

    Attributes:
        kind: Kind of text requested: ``qa`` for a question with an answer, ``text`` for a passage, ``alternative`` for
            another answer to the forget question.
        system: System message of the chat.
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
        """Chat messages that request normal `number` (from 1) of `count` for a forget record."""
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
    """Question and answer parsed from a reply; None if it has none.

    A reply may be JSON, or lines that begin with ``Question:`` and ``Answer:``, fenced or not. A passage or an
    alternative is the whole reply, or JSON with an ``answer``, and has no question.

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
    """Append-only journal of answers, one JSON object per line. The caller has to lock it against other processes.

    Args:
        path: Path of the file. An incomplete last line, left by a killed process, is removed when the file is opened.

    Raises:
        UserError: a line before the last one is not JSON.
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
        """Appends a line and returns once it is on the disk."""
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
    """State of one normal sample to be written.

    Attributes:
        forget: Forget record that this normal sample is written for.
        number: Number of the normal among those of the record, from 1.
        attempt: Number of answers that were checked so far.
        normal: Accepted normal sample; None as long as there is none.
        refused: Last refused answer that could be parsed, with the reasons; None without one.
        reason: Reason why there is no normal, if known.
    """

    forget: Record
    number: int
    attempt: int = 0
    normal: Record | None = None
    refused: tuple[Record, tuple[str, ...]] | None = None
    reason: str = ""


@dataclass
class Count:
    """Requests and tokens spent, as reported by the server or else estimated from characters."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, line: dict[str, Any]) -> None:
        """Adds the cost of an answer of the journal."""
        self.requests += 1
        self.prompt_tokens += line["prompt_tokens"]
        self.completion_tokens += line["completion_tokens"]


REFUSED_IN_A_ROW = 10
"""Number of forget samples refused in a row after which the command ends: the cause cannot be the prompts."""
SILENT_IN_A_ROW = 2
"""Number of forget samples without any answer, before the first one, after which the command ends."""


@dataclass
class _Row:
    """Forget samples that have failed since the last answer of this command.

    Attributes:
        begun: True once there has been an answer.
        refused: Ids of forget records whose prompts the server refused.
        silent: Ids of forget records without any answer.
        known: Ids of forget records that an earlier command saw refused; they do not count.
    """

    begun: bool = False
    refused: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    known: Set[str] = frozenset()

    def answered(self) -> None:
        self.begun = True
        self.refused.clear()

    def failed(self, slot: Slot, error: GaveUp) -> None:
        """Records a failure; raises a UserError if further requests are unlikely to succeed."""
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
    """Requests normals of all forget records from a writer, and accepts answers that pass the checks.

    Attributes:
        forget: Records to forget, in order.
        count: Number of normals for each forget record.
        prompt: Template of the requests.
        writer: Language model that answers the requests.
        checker: Checks that an answer must pass.
        attempts: Largest number of answers requested for a normal until one passes.
        taken: Contents of the retain pool, which no answer may repeat.
        measured: Answers that no alternative may be, from `sga.groups.alternatives.measured_answers`.
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
        """Key of an answer in the journal: hash of everything that it depends on."""
        messages = self.prompt.messages(slot.forget, slot.number, self.count)
        return _digest([self.writer.identity(), messages, slot.forget.id, slot.number, attempt])

    def replay(self, journal: Journal) -> None:
        """Applies the answers that are in the journal already."""
        expected = {self.key(slot, 0): slot for slot in self.slots}
        for line in journal.lines:
            slot = expected.pop(str(line.get("key")), None)
            if slot is None:  # an answer to another prompt, or of another model or other data
                continue
            if "refused" in line:
                self._refused_before.add(slot.forget.id)
            else:
                self._look(slot, line)
            if self._open(slot):
                expected[self.key(slot, slot.attempt)] = slot

    def estimate(self) -> tuple[int, int, int]:
        """Number of open requests, and of tokens to read and to write if each passes at once; from characters."""
        slots = [slot for slot in self.slots if self._open(slot)]
        read = sum(
            len(message["content"]) // CHARACTERS_PER_TOKEN
            for slot in slots
            for message in self.prompt.messages(slot.forget, slot.number, self.count)
        )
        written = sum((len(slot.forget.question) + len(slot.forget.answer)) // CHARACTERS_PER_TOKEN for slot in slots)
        return len(slots), read, written

    async def run(self, journal: Journal, progress: Callable[[int], object] = lambda done: None) -> None:
        """Requests open normals until each slot has one or has failed; one request at a time until the first answer.

        Raises:
            UserError: no further request is likely to succeed.
        """
        # Ordered by number, so that successive requests belong to different forget samples, and one bad sample does
        # not look like a general failure. Samples refused before come last, so that the others are tried first.
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
        """Accepts an answer, or records the reasons against it."""
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
        if self.prompt.kind == "alternative":  # checked without its question, which has to equal the forget question
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
        """Groups of the accepted normals, and the slots whose normal was refused or never came.

        Args:
            on_failure: Action for a slot without a normal: ``keep`` uses the last refused answer, with its reasons;
                ``drop`` leaves it out, so that the group is smaller; ``replace`` also leaves it out here, because its
                further attempts have been made before.
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
    """Fills missing scores of normals with their TF-IDF cosine, with document frequencies over all groups' texts."""
    texts = [(record.question, record.answer) for group in groups for record in (group.forget, *group.normals)]
    try:
        embed = TFIDF().fitted(texts)
    except UserError:  # the texts have no words to compare
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

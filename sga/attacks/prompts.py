"""Prompts of attacks: texts before the tokens of forget records that are scored and generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sga.batching.encoding import Encoder
from sga.data.records import Record


@dataclass(frozen=True)
class Prompted:
    """Record as an attack asks about it.

    Attributes:
        record: Record itself, which says what its fact is.
        prompt: Token ids before the answer.
        answer: Token ids that are scored, the end-of-sequence token last if `ends`.
        truth: Text that a generated answer is compared with; empty for plain text, which nothing is generated for.
        ends: True if the last token is the end-of-sequence token.
    """

    record: Record
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    truth: str
    ends: bool = True

    @property
    def id(self) -> str:
        """Id of the record."""
        return self.record.id


def plain_prompt(encoder: Encoder, record: Record) -> Prompted:
    """Question as it is; every token of plain text but the first is scored."""
    if record.is_text:
        ids, _ = encoder.encode_text(record.answer)
        return Prompted(record, ids[:1], ids[1:], "", ends=False)
    return _asked(encoder, record, record.question)


def paraphrased_prompt(encoder: Encoder, record: Record) -> Prompted:
    """Question in another form of sentence, which the record must have."""
    assert record.paraphrased_question is not None
    return _asked(encoder, record, record.paraphrased_question)


def prefixed_prompt(encoder: Encoder, record: Record, prefix: str) -> Prompted:
    """Question and the beginning of an answer that says that one follows."""
    return _begun(encoder, record, f"{prefix} ", record.answer)


def first_words_prompt(encoder: Encoder, record: Record, words: int) -> Prompted:
    """Question and the first words of the answer, at most half of them; the rest is scored and compared."""
    parts = record.answer.split()
    given = min(words, len(parts) // 2)
    if not given:
        return plain_prompt(encoder, record)
    rest = record.answer.split(maxsplit=given)[given]
    return _begun(encoder, record, record.answer[: len(record.answer.rstrip()) - len(rest.rstrip())], rest)


def few_shot_prompt(encoder: Encoder, record: Record, examples: Sequence[Record], room: int) -> Prompted:
    """Answered examples before the question, the last ones of them where all would leave no `room` for an answer."""
    found = plain_prompt(encoder, record)
    ids = found.prompt
    first = encoder.tokenizer.bos_token_id
    for example in reversed(examples):
        shown = encoder.encode(example.question, example.answer).ids
        rest = ids[1:] if ids[0] == first and shown[0] == first else ids
        if len(shown) + len(rest) + max(room, len(found.answer)) > encoder.max_length:
            break
        ids = shown + rest
    return Prompted(record, ids, found.answer, found.truth)


def _asked(encoder: Encoder, record: Record, question: str) -> Prompted:
    pair = encoder.encode(question, record.answer)
    return Prompted(record, pair.ids[: pair.prompt_length], pair.ids[pair.prompt_length :], record.answer)


def _begun(encoder: Encoder, record: Record, beginning: str, rest: str) -> Prompted:
    """Answer with its beginning given: the tokens that it has in common with the beginning alone."""
    whole, given = (
        encoder.encode(record.question, beginning + rest),
        encoder.encode(record.question, beginning.rstrip()),
    )
    both = zip(whole.ids[:-1], given.ids, strict=False)
    common = next((place for place, (one, other) in enumerate(both) if one != other), len(given.ids))
    common = min(max(common, whole.prompt_length), len(whole.ids) - 1)
    return Prompted(record, whole.ids[:common], whole.ids[common:], rest)

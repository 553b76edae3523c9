"""Splitting of long texts into blocks of whole words, limited by tokens and determined by text and tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from sga.data.records import Record, TokenCounter
from sga.errors import UserError

_PIECE = re.compile(r"\s*\S{1,24}|\s+$")
"""Pattern of a word with the white space before it. Words of over 24 letters, and scripts without spaces, are split
anywhere."""


def pieces(text: str) -> list[str]:
    """Smallest parts that a text may be split into; joined they are the text again.

    >>> pieces("One, two.\\n\\nThree ")
    ['One,', ' two.', '\\n\\nThree', ' ']
    """
    return _PIECE.findall(text)


def text_blocks(text: str, most: int, tokens: TokenCounter) -> list[str]:
    """Splits a text into about as few blocks of about equal length as `most` tokens per block allow.

    Every word of the text is in one block, in order; white space around blocks is removed. Tokens are counted word by
    word, and then checked on the blocks themselves, because some tokenizers join words.

    Args:
        text: Text to split; a text without words gives no block.
        most: Largest number of tokens of a block, special tokens not counted.
        tokens: Counter of the tokens of texts.

    Raises:
        UserError: a single word has more than `most` tokens.
    """
    parts = pieces(text)
    return _blocks(parts, most, tokens, _sizes(parts, tokens))


def _blocks(parts: Sequence[str], most: int, tokens: TokenCounter, by_part: Mapping[str, int]) -> list[str]:
    sizes = [by_part[part] for part in parts]
    before = [0, *accumulate(sizes)]
    number = max(1, -(-before[-1] // most))
    while True:
        share = before[-1] / number
        cut: list[list[str]] = [[] for _ in range(number)]
        for part, start in zip(parts, before, strict=False):
            cut[min(int(start / share), number - 1) if share else 0].append(part)
        found = [block for words in cut if (block := "".join(words).strip())]
        if all(count <= most for count in tokens.token_counts(found)):
            return found
        if number >= before[-1] or max(sizes) > most:  # in the end each block is one word
            beginning = "".join(parts).strip()[:60]
            raise UserError(f"blocks of {most} tokens are too short for a word of {beginning!r}; allow longer ones")
        number = max(number + 1, number * 21 // 20)


def split_after(text: str, most: int, tokens: TokenCounter) -> tuple[str, str]:
    """Splits a text after at most `most` tokens, between words; white space around both parts is removed.

    Tokens are counted word by word. The first part has at least one word.
    """
    parts = pieces(text)
    by_part = _sizes(parts, tokens)
    ends = list(accumulate(by_part[part] for part in parts))
    first = max(1, sum(end <= most for end in ends))
    return "".join(parts[:first]).strip(), "".join(parts[first:]).strip()


def cut_records(records: Sequence[Record], most: int, tokens: TokenCounter) -> tuple[Record, ...]:
    """Splits plain-text records into blocks of at most `most` tokens, special ones not counted.

    The blocks of a record have the ids ``id/0``, ``id/1``, …, and never mix two records. A record with a question stays
    unchanged.
    """
    parts = {record.id: pieces(record.answer) for record in records if record.is_text}
    by_part = _sizes([part for several in parts.values() for part in several], tokens)  # each distinct word once
    cut: list[Record] = []
    for record in records:
        if not record.is_text:
            cut.append(record)
            continue
        for number, block in enumerate(_blocks(parts[record.id], most, tokens, by_part)):
            cut.append(replace(record, id=f"{record.id}/{number}", answer=block))
    return tuple(cut)


def _sizes(parts: Sequence[str], tokens: TokenCounter) -> dict[str, int]:
    distinct = list(dict.fromkeys(parts))
    return dict(zip(distinct, tokens.token_counts(distinct), strict=True))

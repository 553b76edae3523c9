"""Long texts as blocks of tokens that are whole words: the same text and tokenizer give the same blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from sga.data.records import Record, TokenCounter
from sga.errors import UserError

_PIECE = re.compile(r"\s*\S{1,24}|\s+$")
"""A word with the white space before it. Words of over 24 letters, and scripts without spaces, are cut anywhere."""


def pieces(text: str) -> list[str]:
    """The smallest parts that a text is cut into; joined they are the text.

    >>> pieces("One, two.\\n\\nThree ")
    ['One,', ' two.', '\\n\\nThree', ' ']
    """
    return _PIECE.findall(text)


def text_blocks(text: str, most: int, tokens: TokenCounter) -> list[str]:
    """Cuts a text into blocks of about equal length, about as few as at most `most` tokens each allow.

    Every word of the text is in one block, in order; white space around blocks is removed. Tokens are counted word by
    word; that no block is longer is then checked on the blocks themselves, because some tokenizers join words.

    Args:
        text: What to cut; a text without words gives no block.
        most: The most tokens of a block, special tokens not counted.
        tokens: Counts them.

    Raises:
        UserError: `most` leaves no room for a word.
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
        if number >= before[-1] or max(sizes) > most:  # a word a block at the latest
            beginning = "".join(parts).strip()[:60]
            raise UserError(f"blocks of {most} tokens are too short for a word of {beginning!r}; allow longer ones")
        number = max(number + 1, number * 21 // 20)


def split_after(text: str, most: int, tokens: TokenCounter) -> tuple[str, str]:
    """The longest beginning of at most `most` tokens, in whole words, and the rest; white space around both removed.

    Tokens are counted word by word. At least one word goes to the beginning.
    """
    parts = pieces(text)
    by_part = _sizes(parts, tokens)
    ends = list(accumulate(by_part[part] for part in parts))
    first = max(1, sum(end <= most for end in ends))
    return "".join(parts[:first]).strip(), "".join(parts[first:]).strip()


def cut_records(records: Sequence[Record], most: int, tokens: TokenCounter) -> tuple[Record, ...]:
    """Plain-text records as blocks of at most `most` tokens, special ones not counted; ids are ``id/0``, ``id/1``, …

    Blocks never mix two records. A record with a question stays as it is.
    """
    parts = {record.id: pieces(record.answer) for record in records if record.is_text}
    by_part = _sizes([part for several in parts.values() for part in several], tokens)  # each word counted once for all
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

"""Encoding of question and answer as token ids: the prompt/answer boundary and the end-of-sequence token.

Evaluators disagree on these rules, so they are all in this module: the prompt's tokens are a prefix of the tokens of
prompt + answer; the end-of-sequence token occurs exactly once at the end and counts as an answer token; masks come from
lengths.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from sga.batching.templates import PLACES, Prompt, Template
from sga.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """One tokenised sequence.

    Attributes:
        ids: Token ids of prompt and answer, the end-of-sequence token last.
        prompt_length: Number of prompt tokens; the others are answer tokens. At least 1, because the first token of a
            sequence cannot be predicted.
    """

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def answer_length(self) -> int:
        return len(self.ids) - self.prompt_length


class Encoder:
    """Encoder of (question, answer) pairs as `Encoded` sequences, with one tokenizer, template and length limit.

    If a prompt's tokens are not a prefix of the whole's, the two parts are tokenised separately and joined; a warning
    says so once. Another warning is for a template whose finished turn does not begin with its prompt.

    Args:
        tokenizer: Any Hugging Face tokenizer with an end-of-sequence token.
        template: Template that makes one text of a question and an answer.
        max_length: Largest number of tokens of a sequence; a longer one is an error, never truncated silently.
        as_text: True to encode a special token that is spelled out in a question, an answer or a text as plain text.
            The template's own special tokens stay tokens. Records with such a token are split there before they are
            tokenised, which may move token boundaries around it; other records are not affected.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int, as_text: bool = False
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; "
                "set eos_token in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.as_text = as_text
        self._said: set[str] = set()
        self._tokenised: dict[tuple[str, bool], list[int]] = {}

    def encode_all(
        self, pairs: Sequence[tuple[str, str]], questions: Sequence[str] = ()
    ) -> tuple[list[Encoded], list[tuple[int, ...]]]:
        """`encode` for many pairs and `encode_prompt` for many questions at once, several times faster.

        The tokenizer is called once with all distinct texts.

        Args:
            pairs: Questions with their answers; an empty question makes the answer plain text.
            questions: Questions whose prompts are encoded.

        Returns:
            Encoded pairs, and token ids of the prompts, each in the given order.

        Raises:
            UserError: a sequence or a prompt is too long, or has no token to score.
        """
        rendered = [self.template.render(self.tokenizer, *pair) if pair[0] else None for pair in pairs]
        texts: dict[bool, dict[str, None]] = {True: {}, False: {}}
        for (_, answer), prompt in zip(pairs, rendered, strict=True):
            if prompt is None:
                texts[True][answer] = None
            else:
                texts[not prompt.has_special_tokens] |= {prompt.prefix: None, prompt.prefix + prompt.continuation: None}
        self._say_otherwise([(pair, prompt) for pair, prompt in zip(pairs, rendered, strict=True) if prompt])
        for question in questions:
            prompt = self.template.prompt(self.tokenizer, question)
            texts[not prompt.has_special_tokens][prompt.prefix] = None
        try:
            for special, some in texts.items():
                if some:
                    rows = self.tokenizer(
                        list(some), add_special_tokens=special, return_attention_mask=False, verbose=False
                    )["input_ids"]
                    assert isinstance(rows, list)
                    self._tokenised |= {(text, special): row for text, row in zip(some, rows, strict=True)}
            encoded = [self._encode(*pair, prompt) for pair, prompt in zip(pairs, rendered, strict=True)]
            return encoded, [self.encode_prompt(question) for question in questions]
        finally:
            self._tokenised = {}

    def encode(self, question: str, answer: str) -> Encoded:
        """Tokenises one pair; an empty question makes `answer` plain text, scored from its second token on.

        Raises:
            UserError: the sequence is longer than `max_length`, or has no token to score.
        """
        prompt = self.template.render(self.tokenizer, question, answer) if question else None
        if prompt is not None:
            self._say_otherwise([((question, answer), prompt)])
        return self._encode(question, answer, prompt)

    def _encode(self, question: str, answer: str, prompt: Prompt | None) -> Encoded:
        eos = int(self.tokenizer.eos_token_id)
        if prompt is not None:
            before, after = self._parts(prompt, question, answer)
            special = not prompt.has_special_tokens
            prefix = self._part_ids(before, special)
            ids = self._part_ids([*before, *after], special)
            if ids[: len(prefix)] != prefix or len(prefix) == 0:
                self._say_apart()
                ids = prefix + self._part_ids(after, special_tokens=False)
        else:
            ids = self._text_ids(answer)
            prefix = ids[:1]
        while len(ids) > 1 and ids[-2:] == [eos, eos]:
            ids = ids[:-1]  # the text has one, and the tokenizer has appended another
        if not ids:
            raise UserError(f"the answer {answer[:60]!r} gives no token at all")
        if ids[-1] != eos:
            ids = [*ids, eos]
        if len(ids) <= max(len(prefix), 1):
            raise UserError(f"no answer token is left to score in the answer {answer[:60]!r}")
        if len(ids) > self.max_length:
            raise UserError(
                f"a sequence has {len(ids)} tokens, more than max_length = {self.max_length}: "
                f"question {question[:60]!r}, answer {answer[:60]!r}; raise --data.max_length (up to the model's "
                "context) or shorten the record"
            )
        return Encoded(tuple(ids), max(len(prefix), 1))

    def answer_tokens(self, question: str, answer: str) -> list[str]:
        """Text of each token that `encode` scores, the end-of-sequence token last."""
        encoded = self.encode(question, answer)
        return [str(self.tokenizer.decode([token])) for token in encoded.ids[encoded.prompt_length :]]

    def encode_prompt(self, question: str) -> tuple[int, ...]:
        """Token ids of the prompt that an answer is generated from, equal to the prefix in `encode`.

        Raises:
            UserError: the prompt leaves no room for an answer in `max_length`.
        """
        prompt = self.template.prompt(self.tokenizer, question)
        ids = self._part_ids(self._parts(prompt, question)[0], special_tokens=not prompt.has_special_tokens)
        if len(ids) >= self.max_length:
            raise UserError(
                f"the prompt of {question[:60]!r} has {len(ids)} tokens and leaves no room for an answer in "
                f"max_length = {self.max_length}; raise --data.max_length"
            )
        return tuple(ids)

    def encode_text(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Token ids of plain text without end-of-sequence token, truncated to `max_length`; True if it was truncated.

        Raises:
            UserError: the text has fewer than two tokens, so that none is left to score.
        """
        ids = self._text_ids(text)
        if len(ids) < 2:
            raise UserError(f"no token is left to score after the first one in the text {text[:60]!r}")
        return tuple(ids[: self.max_length]), len(ids) > self.max_length

    def encode_continued(
        self, prompt: str, max_new_tokens: int, examples: Sequence[str] = ()
    ) -> tuple[tuple[int, ...], bool]:
        """Token ids of plain text with room for `max_new_tokens` after it; True if it was truncated for that.

        A text that is too long loses examples from the front first, and then tokens from the beginning of the prompt.

        Raises:
            UserError: `max_new_tokens` leave no room for a single token of the prompt, or the prompt has none.
        """
        room = self.max_length - max_new_tokens
        if room < 1:
            raise UserError(
                f"{max_new_tokens} new tokens leave no room for a prompt in max_length = {self.max_length}; "
                "raise --data.max_length (up to the model's context) or ask for fewer tokens"
            )
        for first in range(len(examples) + 1):
            ids = self._text_ids("".join(examples[first:]) + prompt)
            if len(ids) <= room:
                break
        if not ids:
            raise UserError(f"the prompt {prompt[:60]!r} gives no token at all")
        return tuple(ids[-room:]), first > 0 or len(ids) > room

    @property
    def special_tokens(self) -> int:
        """Number of special tokens that `encode` adds to plain text: those in front, and the one at the end."""
        return len(self._ids("", special_tokens=True)) + 1

    @property
    def text_room(self) -> int:
        """Largest number of tokens of plain text that `encode` accepts, special tokens not counted."""
        return self.max_length - self.special_tokens

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without special tokens."""
        if not texts:
            return []
        split = {"split_special_tokens": True} if any(map(self._is_split, texts)) else {}
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False, **split)["input_ids"]
        assert isinstance(rows, list)
        return [len(row) for row in rows]

    def first_tokens(self, text: str, count: int) -> str:
        """Text of the first `count` tokens of a text, the beginning-of-sequence token counted as one of them."""
        return self.decode(self._text_ids(text)[:count])

    def decode(self, ids: Sequence[int], strip: bool = True) -> str:
        """Text of tokens without special tokens; outer white space is removed unless `strip` is False."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip() if strip else text

    def special_tokens_in(self, text: str) -> list[str]:
        """Special tokens of the tokenizer that are spelled out in a text, each once, in order of occurrence."""
        pattern = self._special_pattern
        return [] if pattern is None else list(dict.fromkeys(pattern.findall(text)))

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """Marks by which the template separates question and answer, such as ``Answer:`` and ``[/INST]``.

        These are the template's lines next to question and answer, and its parts in brackets. Special tokens are left
        out, and so is a single word, such as the name of a role.
        """
        if self._skeleton is None:
            return ()
        before, between, tag, after = (
            self._special_pattern.sub("\n", part) if self._special_pattern is not None else part
            for part in self._skeleton
        )
        lines = [*before.rstrip().split("\n")[-1:], *(between + tag).split("\n"), *after.lstrip().split("\n")[:1]]
        brackets = re.findall(r"<[^\s<>]+>|\[[^\s\[\]]+\]", before + between + tag + after)
        stripped = (mark.strip() for mark in (*lines, *brackets))
        return tuple(dict.fromkeys(mark for mark in stripped if re.search(r"\w", mark) and not mark.isalnum()))

    def marks_in(self, text: str) -> list[str]:
        """Marks of the template that occur in a text."""
        return [mark for mark in self.marks if re.search(rf"(?<!\w){re.escape(mark)}", text)]

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        decoder = self.tokenizer.added_tokens_decoder
        contents = {token.content for token in decoder.values() if token.special} | set(
            self.tokenizer.all_special_tokens
        )
        longest_first = sorted((content for content in contents if content.strip()), key=lambda c: (-len(c), c))
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @cached_property
    def _skeleton(self) -> tuple[str, str, str, str] | None:
        """Texts of the template before and after the question, and before and after the answer; None if unknown."""
        prompt = self.template.render(self.tokenizer, *PLACES)
        before, question, between = prompt.prefix.partition(PLACES[0])
        tag, answer, after = prompt.continuation.partition(PLACES[1])
        return (before, between, tag, after) if question and answer else None

    def _is_split(self, text: str) -> bool:
        """True if a text spells out a special token that is to be encoded as text."""
        return self.as_text and self._special_pattern is not None and self._special_pattern.search(text) is not None

    def _parts(
        self, prompt: Prompt, question: str, answer: str = ""
    ) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
        """Parts of the prompt and of the text after it, each with True if special tokens in it are tokens."""
        whole = [(prompt.prefix, True)], [(prompt.continuation, True)]
        if not (self._is_split(question) or self._is_split(answer)):
            return whole
        skeleton = self._skeleton
        if skeleton is not None:
            before, between, tag, after = skeleton
            inner = _inside(prompt.prefix, before, between), _inside(prompt.continuation, tag, after)
            if inner[0] is not None and (inner[1] is not None or not answer):
                return (
                    [(before, True), (inner[0], False), (between, True)],
                    [(tag, True), (inner[1] or "", False), (after, True)],
                )
        raise UserError(
            f"with this template nobody can tell which special tokens of {(question + answer)[:60]!r} are the "
            "record's, so that they cannot be taken as text; take --data.special_tokens=warn, or another template"
        )

    def _part_ids(self, parts: Sequence[tuple[str, bool]], special_tokens: bool) -> list[int]:
        """Token ids of successive parts; if special tokens are text, the texts between them are tokenised apart."""
        if all(own for _, own in parts):
            return self._ids("".join(text for text, _ in parts), special_tokens)
        ids = self._added() if special_tokens else []
        run = ""
        for text, token in self._cut(parts):
            if token is None:
                run += text
                continue
            ids += [*(self._ids(run, False, split=True) if run else []), token]
            run = ""
        return ids + (self._ids(run, False, split=True) if run else [])

    def _cut(self, parts: Sequence[tuple[str, bool]]) -> Iterator[tuple[str, int | None]]:
        """Texts of the parts and ids of their special tokens, in order."""
        for text, own in parts:
            place = 0
            for match in self._special_pattern.finditer(text) if own and self._special_pattern is not None else ():
                yield text[place : match.start()], None
                token = self.tokenizer.convert_tokens_to_ids(match[0])
                assert isinstance(token, int)
                yield match[0], token
                place = match.end()
            yield text[place:], None

    def _added(self) -> list[int]:
        """Token ids that the tokenizer puts in front of a text."""
        whole, bare = self._ids("a", special_tokens=True), self._ids("a", special_tokens=False)
        return whole[: len(whole) - len(bare)]

    def _text_ids(self, text: str) -> list[int]:
        """Token ids of plain text with the special tokens that the tokenizer adds."""
        return self._ids(text, special_tokens=True, split=self._is_split(text))

    def _ids(self, text: str, special_tokens: bool, split: bool = False) -> list[int]:
        ids = None if split else self._tokenised.get((text, special_tokens))
        if ids is None:
            # Not verbose: the tokenizer would warn of texts beyond the context, which are truncated or refused here.
            how = {"split_special_tokens": True} if split else {}
            ids = self.tokenizer(text, add_special_tokens=special_tokens, verbose=False, **how)["input_ids"]
        assert isinstance(ids, list)
        eos = int(self.tokenizer.eos_token_id)
        # Tokenizers that append the end-of-sequence token (T5-style post-processors) would put it after the prompt
        # too; `encode` adds the one at the end of the sequence.
        ends = not split and text.endswith(str(self.tokenizer.eos_token))
        if special_tokens and len(ids) > 1 and ids[-1] == eos and not ends:
            ids = ids[:-1]
        return [int(token) for token in ids]

    def _say_otherwise(self, rendered: Sequence[tuple[tuple[str, str], Prompt]]) -> None:
        """Warns once that the template renders a finished turn differently, with the two texts of the first case."""
        found = [(answer, prompt) for (_, answer), prompt in rendered if prompt.otherwise is not None]
        if found and "otherwise" not in self._said:
            self._said.add("otherwise")
            _, prompt = found[0]
            warnings.warn(
                f"the chat template does not go on from its own prompt in {len(found)} of {len(rendered)} sequences, "
                f"so that the bare answer is put after the prompt: {prompt.prefix + prompt.continuation!r}, where the "
                f"template makes {prompt.otherwise!r}. Models that were trained on the template never saw this: try "
                "--data.template.arguments (such as {enable_thinking: false}), or write the format as a PlainTemplate",
                stacklevel=3,
            )

    def _say_apart(self) -> None:
        if "apart" not in self._said:
            self._said.add("apart")
            warnings.warn(
                "with this tokenizer and template a prompt is not a token prefix of prompt + answer; the two are "
                "tokenised apart and joined (a template that ends in a newline before {answer} avoids this)",
                stacklevel=3,
            )


def _inside(text: str, before: str, after: str) -> str | None:
    """Part of a text between a known beginning and a known end; None if it does not have both."""
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before) : len(text) - len(after)]
    return None

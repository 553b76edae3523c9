"""From question and answer to token ids: the prompt/answer boundary and the end-of-sequence token.

The rules are those under which evaluators disagree, so they are kept in one place: the prompt's tokens are a prefix of
the tokens of prompt + answer; the end-of-sequence token stands exactly once at the end and counts as an answer token;
masks come from lengths.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sga.batching.templates import Prompt, Template
from sga.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """One tokenised sequence.

    Attributes:
        ids: Token ids of prompt and answer, the end-of-sequence token last.
        prompt_length: How many of them belong to the prompt; the rest are answer tokens. At least 1, because the first
            token of a sequence cannot be predicted.
    """

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def answer_length(self) -> int:
        return len(self.ids) - self.prompt_length


class Encoder:
    """Turns (question, answer) pairs into `Encoded` sequences under one tokenizer, template and length limit.

    Where a prompt's tokens are not a prefix of the whole's, the two are tokenised apart and joined; that is said once.

    Args:
        tokenizer: Any Hugging Face tokenizer with an end-of-sequence token.
        template: How a question and an answer become one text.
        max_length: The most tokens of a sequence; a longer one is an error, never cut silently.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; "
                "set eos_token in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self._said_apart = False
        self._tokenised: dict[tuple[str, bool], list[int]] = {}

    def encode_all(
        self, pairs: Sequence[tuple[str, str]], questions: Sequence[str] = ()
    ) -> tuple[list[Encoded], list[tuple[int, ...]]]:
        """`encode` for many pairs and `encode_prompt` for many questions, several times faster.

        The tokenizer gets all texts at once, each one once.

        Raises:
            UserError: as these two.
        """
        rendered = [self.template.render(self.tokenizer, *pair) if pair[0] else None for pair in pairs]
        texts: dict[bool, dict[str, None]] = {True: {}, False: {}}
        for (_, answer), prompt in zip(pairs, rendered, strict=True):
            if prompt is None:
                texts[True][answer] = None
            else:
                texts[not prompt.has_special_tokens] |= {prompt.prefix: None, prompt.prefix + prompt.continuation: None}
        for question in questions:
            prompt = self.template.render(self.tokenizer, question, "")
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
        return self._encode(
            question, answer, self.template.render(self.tokenizer, question, answer) if question else None
        )

    def _encode(self, question: str, answer: str, prompt: Prompt | None) -> Encoded:
        eos = int(self.tokenizer.eos_token_id)
        if prompt is not None:
            special = not prompt.has_special_tokens
            prefix = self._ids(prompt.prefix, special)
            ids = self._ids(prompt.prefix + prompt.continuation, special)
            if ids[: len(prefix)] != prefix or len(prefix) == 0:
                self._say_apart()
                ids = prefix + self._ids(prompt.continuation, special_tokens=False)
        else:
            ids = self._ids(answer, special_tokens=True)
            prefix = ids[:1]
        while len(ids) > 1 and ids[-2:] == [eos, eos]:
            ids = ids[:-1]  # one from the text and one from a tokenizer that appends it
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

    def encode_prompt(self, question: str) -> tuple[int, ...]:
        """Token ids that a greedy answer is generated from: the same prefix that `encode` scores after."""
        prompt = self.template.render(self.tokenizer, question, "")
        ids = self._ids(prompt.prefix, special_tokens=not prompt.has_special_tokens)
        if len(ids) >= self.max_length:
            raise UserError(
                f"the prompt of {question[:60]!r} has {len(ids)} tokens and leaves no room for an answer in "
                f"max_length = {self.max_length}; raise --data.max_length"
            )
        return tuple(ids)

    def encode_text(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Token ids of plain text without an end-of-sequence token, cut to the first `max_length`, and whether it was.

        Raises:
            UserError: the text has fewer than two tokens, so that none is left to score.
        """
        ids = self._ids(text, special_tokens=True)
        if len(ids) < 2:
            raise UserError(f"no token is left to score after the first one in the text {text[:60]!r}")
        return tuple(ids[: self.max_length]), len(ids) > self.max_length

    def encode_continued(
        self, prompt: str, max_new_tokens: int, examples: Sequence[str] = ()
    ) -> tuple[tuple[int, ...], bool]:
        """Token ids of plain text that `max_new_tokens` are to follow, and whether it was cut to leave room for them.

        Where all is too long, examples are left out from the front; where that is not enough, only the prompt's last
        tokens are kept.

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
            ids = self._ids("".join(examples[first:]) + prompt, special_tokens=True)
            if len(ids) <= room:
                break
        if not ids:
            raise UserError(f"the prompt {prompt[:60]!r} gives no token at all")
        return tuple(ids[-room:]), first > 0 or len(ids) > room

    @property
    def special_tokens(self) -> int:
        """Special tokens that `encode` adds to plain text: what the tokenizer puts in front, and the one at the end."""
        return len(self._ids("", special_tokens=True)) + 1

    @property
    def text_room(self) -> int:
        """The most tokens of plain text that `encode` takes, special tokens not counted."""
        return self.max_length - self.special_tokens

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without special tokens."""
        if not texts:
            return []
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        assert isinstance(rows, list)
        return [len(row) for row in rows]

    def first_tokens(self, text: str, count: int) -> str:
        """The beginning of a text: its first `count` tokens, a beginning-of-sequence token counted as one of them."""
        return self.decode(self._ids(text, special_tokens=True)[:count])

    def decode(self, ids: Sequence[int], strip: bool = True) -> str:
        """Text of tokens without the special ones, outer white space removed unless `strip` is off."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip() if strip else text

    def _ids(self, text: str, special_tokens: bool) -> list[int]:
        ids = self._tokenised.get((text, special_tokens))
        if ids is None:
            # Not verbose: a text beyond the context is cut or refused here, and is not the error that it would warn of.
            ids = self.tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
        assert isinstance(ids, list)
        eos = int(self.tokenizer.eos_token_id)
        # Tokenizers that append the end-of-sequence token themselves (T5-style post-processors) would put it after the
        # prompt too; the one at the end of the whole is added in `encode`.
        if special_tokens and len(ids) > 1 and ids[-1] == eos and not text.endswith(str(self.tokenizer.eos_token)):
            ids = ids[:-1]
        return [int(token) for token in ids]

    def _say_apart(self) -> None:
        if not self._said_apart:
            self._said_apart = True
            warnings.warn(
                "with this tokenizer and template a prompt is not a token prefix of prompt + answer; the two are "
                "tokenised apart and joined (a template that ends in a newline before {answer} avoids this)",
                stacklevel=3,
            )

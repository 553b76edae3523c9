"""Templates: how a question and an answer become one text; a chat template sees a pinned date."""

from __future__ import annotations

import datetime
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sga.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A template's rendering: the text up to the answer, the answer as it stands in the text, and whether the text
    already contains the special tokens (chat templates do)."""

    prefix: str
    continuation: str
    has_special_tokens: bool


class Template(ABC):
    """How a question and an answer become one text. Implementations are frozen dataclasses."""

    @abstractmethod
    def render(self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Prompt:
        """The text of one question with its answer."""


@dataclass(frozen=True)
class PlainTemplate(Template):
    """A fixed text with ``{question}`` and, last, ``{answer}``.

    Spaces that stand before ``{answer}`` are counted to the answer's first token: a prompt that ends in a space is not
    a token prefix under byte-level BPE. The text as a whole is the same.

    Args:
        text: The template. TOFU's for base models (Phi-1.5) is the default; for Llama-2-chat it is
            ``[INST] {question} [/INST]{answer}``.
        answer_tag: What stands before ``{answer}`` and is to count as part of the answer: scored with it, and left for
            the model to write. ``"Answer: "`` gives what TOFU's own code does for Phi, StableLM and Pythia.
    """

    text: str = "Question: {question}\nAnswer: {answer}"
    answer_tag: str = ""

    def __post_init__(self) -> None:
        if not self.text.removesuffix("{answer}").split("{question}")[-1].endswith(self.answer_tag):
            raise UserError(
                f"answer_tag {self.answer_tag!r} does not stand before {{answer}} in the template text {self.text!r}; "
                "it must be the end of what stands between {question} and {answer}"
            )
        if self.text.count("{question}") != 1 or not self.text.endswith("{answer}") or self.text.count("{answer}") != 1:
            raise UserError(
                "template text must contain {question} once and end with {answer}, "
                f"got {self.text!r}; the default is {PlainTemplate.text!r}"
            )

    def render(self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Prompt:
        before, after = self.text.removesuffix(self.answer_tag + "{answer}").split("{question}")
        spaces = len(after) - len(after.rstrip(" "))
        after, space = after[: len(after) - spaces], after[len(after) - spaces :]
        return Prompt(before + question + after, space + self.answer_tag + answer, has_special_tokens=False)


@dataclass(frozen=True)
class ChatTemplate(Template):
    """The tokenizer's own chat template, with the date pinned so that results do not change overnight.

    Args:
        system: System message; none by default.
        date: The day that templates with a date print, ISO format.
    """

    system: str | None = None
    date: str = "2024-07-26"

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise UserError(f"template date must be an ISO date such as 2024-07-26, got {self.date!r}") from None

    def render(self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Prompt:
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template; use --data.template=PlainTemplate"
            )
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": question})
        prefix = self._apply(tokenizer, messages, add_generation_prompt=True)
        full = self._apply(tokenizer, [*messages, {"role": "assistant", "content": answer}])
        if full.startswith(prefix) and full[len(prefix) :].startswith(answer):
            return Prompt(prefix, full[len(prefix) :].rstrip("\n"), has_special_tokens=True)
        # Templates that treat a generation prompt and a finished turn differently (hidden reasoning blocks, say).
        return Prompt(prefix, answer, has_special_tokens=True)

    def _apply(self, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        day = datetime.date.fromisoformat(self.date)
        template = tokenizer.get_chat_template()
        pinned = re.sub(
            r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: repr(day.strftime(call[2])), template
        )  # transformers gives no way to pass another clock
        text = tokenizer.apply_chat_template(
            messages, chat_template=pinned, tokenize=False, date_string=day.strftime("%d %b %Y"), **kwargs
        )
        assert isinstance(text, str)
        return text

"""Templates that make one text of a question and an answer; chat templates get a pinned date."""

from __future__ import annotations

import datetime
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from sga.errors import UserError

PLACES = ("QqQuestionPlaceqQ", "QqAnswerPlaceqQ")
"""Placeholders for a question and an answer, by which a template's own text is found."""

_OWN_ARGUMENTS = {
    "add_generation_prompt": "it is set where an answer is generated",
    "chat_template": "the tokenizer's is taken",
    "continue_final_message": "answers are whole turns",
    "conversation": "messages are made of the records",
    "date_string": "use --data.template.date",
    "max_length": "use --data.max_length",
    "messages": "messages are made of the records",
    "padding": "batches are padded elsewhere",
    "return_assistant_tokens_mask": "the template is rendered to text",
    "return_dict": "the template is rendered to text",
    "return_tensors": "the template is rendered to text",
    "tokenize": "the template is rendered to text",
    "tokenizer_kwargs": "the template is rendered to text",
    "truncation": "a sequence that is too long is an error",
}


@dataclass(frozen=True)
class Prompt:
    """A template's rendering of one question with its answer.

    Attributes:
        prefix: Text up to the answer, from which an answer is generated.
        continuation: Text after the prefix: the answer in the form that the template gives it.
        has_special_tokens: True if the text contains the special tokens already, as chat templates' texts do.
        otherwise: Text of the finished turn if it differs from prefix + continuation, for a warning; None otherwise.
    """

    prefix: str
    continuation: str
    has_special_tokens: bool
    otherwise: str | None = None


class Template(ABC):
    """Template that makes one text of a question and an answer. Implementations are frozen dataclasses."""

    @abstractmethod
    def render(self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Prompt:
        """Text of one question with its answer."""

    def prompt(self, tokenizer: PreTrainedTokenizerBase, question: str) -> Prompt:
        """Text that an answer to the question is generated from; the continuation is not used."""
        return self.render(tokenizer, question, "")

    def rendering(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Text of an example if it depends on the tokenizer; None if the template alone determines it.

        It is part of the settings: results with different renderings are never compared.
        """
        return None

    def chosen(self, tokenizer: PreTrainedTokenizerBase) -> Template:
        """Template to use with a tokenizer: this one, except for `AutoTemplate`."""
        return self


@dataclass(frozen=True)
class AutoTemplate(Template):
    """`ChatTemplate` if the tokenizer has a chat template, otherwise `PlainTemplate`, TOFU's plain text.

    Results state which of the two was used, as if you had named it.
    """

    def render(self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Prompt:
        return self.chosen(tokenizer).render(tokenizer, question, answer)

    def prompt(self, tokenizer: PreTrainedTokenizerBase, question: str) -> Prompt:
        return self.chosen(tokenizer).prompt(tokenizer, question)

    def rendering(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        return self.chosen(tokenizer).rendering(tokenizer)

    def chosen(self, tokenizer: PreTrainedTokenizerBase) -> Template:
        return ChatTemplate() if tokenizer.chat_template else PlainTemplate()


@dataclass(frozen=True)
class PlainTemplate(Template):
    """A fixed text with ``{question}`` and, at its end, ``{answer}``.

    Spaces before ``{answer}`` belong to the answer's first token: a prompt that ends in a space is not a token prefix
    under byte-level BPE. The whole text is the same.

    Args:
        text: Text of the template. The default is TOFU's for base models (Phi-1.5); for Llama-2-chat use
            ``[INST] {question} [/INST]{answer}``.
        answer_tag: Text before ``{answer}`` that counts as part of the answer: it is scored, and the model has to write
            it. ``"Answer: "`` reproduces TOFU's own code for Phi, StableLM and Pythia.
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

    The prompt is the user's turn with the generation prompt. The rest of the finished turn is the answer: perhaps a
    space or a mark, the answer (trimmed if the template does so), and the end of the turn. White space after the last
    token is dropped. If the finished turn does not begin with the generation prompt, or does not contain the answer,
    the bare answer is put after the prompt, with a warning that shows both.

    Args:
        system: System message of the chat; null for none.
        date: Date for templates that print one, in ISO format.
        arguments: Further arguments of the chat template, such as ``{enable_thinking: false}``.
    """

    system: str | None = None
    date: str = "2024-07-26"
    arguments: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise UserError(f"template date must be an ISO date such as 2024-07-26, got {self.date!r}") from None
        for name in self.arguments or ():
            if name in _OWN_ARGUMENTS:
                raise UserError(f"template.arguments cannot set {name}: {_OWN_ARGUMENTS[name]}")

    def __repr__(self) -> str:
        # Results contain this text and are compared by it, so it must not change for a template without arguments.
        shown = f"ChatTemplate(system={self.system!r}, date={self.date!r}"
        return f"{shown}, arguments={dict(self.arguments)!r})" if self.arguments else f"{shown})"

    def __hash__(self) -> int:
        return hash(repr(self))

    def render(self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Prompt:
        prefix = self.prompt(tokenizer, question).prefix
        full = self._apply(tokenizer, [*self._messages(question), {"role": "assistant", "content": answer}])
        turn = full.removeprefix(prefix)
        if full.startswith(prefix) and answer.strip() in turn:
            ending = rf"({re.escape(str(tokenizer.eos_token))})\s+\Z"
            return Prompt(prefix, re.sub(ending, r"\1", turn).rstrip("\n"), has_special_tokens=True)
        return Prompt(prefix, answer, has_special_tokens=True, otherwise=full)

    def prompt(self, tokenizer: PreTrainedTokenizerBase, question: str) -> Prompt:
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template; use --data.template=PlainTemplate"
            )
        prefix = self._apply(tokenizer, self._messages(question), add_generation_prompt=True)
        return Prompt(prefix, "", has_special_tokens=True)

    def rendering(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        example = self.render(tokenizer, *PLACES)
        return f"{example.prefix}\0{example.continuation}"

    def _messages(self, question: str) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": question}]

    def _apply(self, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **kwargs: Any) -> str:
        day = datetime.date.fromisoformat(self.date)
        template = tokenizer.get_chat_template()
        pinned = re.sub(
            r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: repr(day.strftime(call[2])), template
        )  # transformers gives no way to pass another clock
        for name in self.arguments or ():
            if re.search(rf"\b{re.escape(name)}\b", template) is None:
                warnings.warn(
                    f"the chat template of {tokenizer.name_or_path!r} does not read the argument {name!r} of "
                    "--data.template.arguments: it changes nothing",
                    stacklevel=2,
                )
        try:
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=pinned,
                tokenize=False,
                date_string=day.strftime("%d %b %Y"),
                **(self.arguments or {}),
                **kwargs,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            cure = (
                "a template without a system role takes no --data.template.system: leave it out, or put it into the "
                "questions"
                if self.system
                else f"see --data.template.arguments (now {dict(self.arguments or {})}), or use "
                "--data.template=PlainTemplate"
            )
            raise UserError(
                f"the chat template of {tokenizer.name_or_path!r} refuses messages of {roles}: {error}; {cure}"
            ) from error
        assert isinstance(text, str)
        return text

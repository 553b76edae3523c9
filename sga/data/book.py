"""A copyrighted book: your own copy as passages to forget, with held-out passages and other prose to retain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sga.data.builtin import builtin_path
from sga.data.records import Benchmark, Record, Source, TokenCounter
from sga.data.text_blocks import cut_records, split_after
from sga.errors import UserError, check_numbers

SAMPLE_TEXT = "book/the-tide-clock.txt"
SAMPLE_NORMAL_TEXT = "book/on-small-trades.txt"


@dataclass(frozen=True)
class Book(Source):
    """A plain-text file as a benchmark, after SOUL's and SGA's Harry Potter setting (arXiv 2404.18239, 2510.22376).

    The book's last part is held out: no model is trained on it. The part before it is the forget set. Both are split
    into passages of about equal length in whole words, each a prompt of `prompt_tokens` and its continuation; the
    normal text, which is the retain set, is split into blocks of the same length. For a model with a shorter context
    they are shorter.

    Training splits: ``forget``, the passages, and ``retain``, the blocks of normal text. Evaluation sets: ``forget``,
    ``retain`` and ``holdout``, the same as plain texts (perplexity, membership inference, memorisation);
    ``forget_passages`` and ``holdout_passages``, prompts (as questions) with their continuations (as answers).

    Args:
        text: Path of the book, a UTF-8 file, relative to the data module's ``root`` if that is given; null uses the
            sample book that comes with the package.
        normal_text: Path of other prose to retain, a UTF-8 file, relative to ``root`` if that is given; null uses the
            package's prose, which is allowed with the sample book only.
        prompt_tokens: Largest number of tokens of a prompt.
        continuation_tokens: Largest number of tokens of a continuation.
        holdout_share: Share of the book's letters, at its end, that is held out, in (0, 1); the boundary is between
            paragraphs.
    """

    text: str | None = None
    normal_text: str | None = None
    prompt_tokens: int = 200
    continuation_tokens: int = 200
    holdout_share: float = 0.25

    def __post_init__(self) -> None:
        check_numbers(8, prompt_tokens=self.prompt_tokens, continuation_tokens=self.continuation_tokens)
        check_numbers(above=0, below=1, holdout_share=self.holdout_share)
        if self.text is not None and self.normal_text is None:
            raise UserError(
                f"the book {self.text} needs normal text beside it, prose that the model is to keep: "
                "set --data.source.normal_text FILE"
            )

    def load(self, root: str | None) -> Benchmark:
        """Reads the two files; each part is one record until `cut` splits it.

        Raises:
            UserError: a file is missing, not UTF-8, or too short to be split; names the file.
        """
        book_file = _path(self.text, SAMPLE_TEXT, root)
        normal_file = _path(self.normal_text, SAMPLE_NORMAL_TEXT, root)
        book, normal = _read(book_file), _read(normal_file)
        known, held_out = _divided(book, self.holdout_share, book_file)
        forget, holdout = (Record(name, "", text) for name, text in (("forget", known), ("holdout", held_out)))
        retain = Record("retain", "", normal)
        return Benchmark(
            "book",
            {"forget": (forget,), "retain": (retain,)},
            {"forget": (forget,), "retain": (retain,), "holdout": (holdout,)},
        )

    def cut(self, benchmark: Benchmark, tokens: TokenCounter) -> Benchmark:
        """Splits both texts into passages of tokens.

        Raises:
            UserError: a text gives fewer than two passages, or the model's context is too short for a prompt and a
                continuation.
        """
        most = min(self.prompt_tokens + self.continuation_tokens, tokens.text_room)
        if most < self.prompt_tokens + 8:
            raise UserError(
                f"prompts of {self.prompt_tokens} tokens leave no room for a continuation in {tokens.text_room}; "
                "lower --data.source.prompt_tokens, or raise --data.max_length (up to the model's context)"
            )
        texts = {}
        for name, records in benchmark.evaluation.items():
            texts[name] = cut_records(records, most, tokens)
            if len(texts[name]) < 2:
                raise UserError(
                    f"the {_NAMES[name]} gives {len(texts[name])} passage of at most {most} tokens, at least 2 are "
                    "needed; give a longer text, or lower --data.source.prompt_tokens and .continuation_tokens"
                )
        passages = {f"{name}_passages": self._passages(texts[name], tokens) for name in ("forget", "holdout")}
        training = {"forget": texts["forget"], "retain": texts["retain"]}
        return replace(benchmark, training=training, evaluation={**texts, **passages})

    def _passages(self, records: tuple[Record, ...], tokens: TokenCounter) -> tuple[Record, ...]:
        """Prompt and continuation of each block; in a shorter block the prompt is proportionally shorter."""
        share = self.prompt_tokens / (self.prompt_tokens + self.continuation_tokens)
        passages = []
        for record, count in zip(records, tokens.token_counts([record.answer for record in records]), strict=True):
            prompt, continuation = split_after(record.answer, min(self.prompt_tokens, int(share * count)), tokens)
            passages.append(Record(record.id, prompt, continuation))
        return tuple(passages)


_NAMES = {
    "forget": "part of the book that is to be forgotten",
    "retain": "normal text",
    "holdout": "held-out part of the book (--data.source.holdout_share)",
}


def _path(given: str | None, sample: str, root: str | None) -> Path:
    if given is None:
        return builtin_path(sample)
    return Path(root) / given if root is not None else Path(given)


def _read(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a plain-text file (--data.source.text, .normal_text)")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path}: not plain text; export the book as a text file (.txt, UTF-8)")
    if not text.strip():
        raise UserError(f"{path}: holds no text")
    return text.replace("\r\n", "\n")


def _divided(text: str, share: float, path: Path) -> tuple[str, str]:
    """Splits a text before the paragraph in which the last `share` of its letters begins."""
    border = int(len(text) * (1 - share))
    end = text.find("\n\n", border)
    if end < 0 or not text[end:].strip():
        end = text.rfind("\n\n", 0, border)
    if end < 0 or not text[:end].strip() or not text[end:].strip():
        raise UserError(
            f"{path}: has no blank line at which its last {share:.0%} could be held out; "
            "put blank lines between paragraphs"
        )
    return text[:end], text[end:]

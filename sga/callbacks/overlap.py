"""ROUGE of generated answers, for the callbacks that generate some: scores in the rows, or a reason for none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sga.data.records import Record
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import RougeTokenizer, rouge, texts_without_words
from sga.evaluation.requests import Generation


def fill_rouge(
    evaluation: Evaluation,
    set_name: str,
    records: Sequence[Record],
    generated: Sequence[str],
    truth: Sequence[str],
    tokenizer: RougeTokenizer,
    part: Literal["recall", "fmeasure"] = "recall",
) -> str | None:
    """Fills ``generation`` and ``rouge_l_recall`` (with stemmer) or ``rouge_l_fmeasure`` (without) of a set's rows.

    Returns:
        Reason why the rows have no score: no true text has a word that ROUGE counts, and 0 would read as forgotten.
        None if the rows have it; a note then counts the texts without a word.
    """
    for record, text in zip(records, generated, strict=True):
        evaluation.row(set_name, record)["generation"] = text
    without = texts_without_words(truth, tokenizer)
    cure = "" if tokenizer == "unicode" else "; rouge_tokenizer: unicode takes words of any script"
    what = "letter or digit" if tokenizer == "unicode" else "word of a-z and 0-9, which rouge-score counts"
    if without == len(records):
        return f"no true text of {set_name} has a {what}{cure}"
    if without:
        evaluation.note(
            f"{without} of {len(records)} true {set_name} texts have no {what}: ROUGE takes them as 0{cure}"
        )
    if tokenizer == "unicode":
        evaluation.note("ROUGE counts words of any script (rouge_tokenizer: unicode), which published values do not")
    scores = rouge(generated, truth, part == "recall", tokenizer)[f"rougeL_{part}"]
    for record, score in zip(records, scores, strict=True):
        evaluation.row(set_name, record)[f"rouge_l_{part}"] = score
    return None


def note_cut_prompts(evaluation: Evaluation, set_name: str, found: Sequence[Generation], lost: str, room: int) -> None:
    """Notes the number of a set's prompts that were truncated (losing `lost`) to a context of `room` tokens."""
    cut = sum(generation.cut for generation in found)
    if cut:
        evaluation.note(
            f"{cut} of {len(found)} {set_name} prompts lost {lost} to leave room for new tokens in {room}, the context"
        )


def rouge_settings(tokenizer: RougeTokenizer) -> dict[str, str]:
    """The setting as written with results; left out for ``published``, as in logs that do not state it."""
    return {} if tokenizer == "published" else {"rouge_tokenizer": tokenizer}

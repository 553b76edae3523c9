"""Continuations of a book's passages: those to forget, and held-out ones to compare with."""

from __future__ import annotations

from collections.abc import Iterable

from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.overlap import fill_rouge, note_cut_prompts, rouge_settings
from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.errors import check_numbers
from sga.evaluation.aggregation import PASSAGE_SETS, add_book
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import RougeTokenizer, bleu, texts_without_spaces
from sga.evaluation.requests import Answers, Continue, Request


class BookContinuations(EvaluationCallback):
    """BLEU and ROUGE-L recall of greedy continuations of a book's prompts against the book's own continuations.

    Rows of ``forget_passages`` and ``holdout_passages`` have ``bleu``, in [0, 100], ``rouge_l_recall``, in [0, 1], with
    stemmer, and ``generation``. Aim at the values of the held-out passages, which no model has seen.
    """

    def __init__(self, new_tokens: int | None = None, rouge_tokenizer: RougeTokenizer = "published") -> None:
        """Checks the setting.

        Args:
            new_tokens: Number of tokens of a continuation; null generates as many as the book's own continuation has.
                400, after prompts of 200, makes the published 600 tokens in all.
            rouge_tokenizer: Kind of words that ROUGE counts: ``published`` as in rouge-score (a-z and 0-9, so text in
                other scripts has no words), ``unicode`` for letters of any script.
        """
        check_numbers(1, new_tokens=new_tokens)
        self.new_tokens = new_tokens
        self.rouge_tokenizer: RougeTokenizer = rouge_tokenizer

    def settings(self) -> dict[str, str]:
        length = {} if self.new_tokens is None else {"book_new_tokens": str(self.new_tokens)}
        return {**length, **rouge_settings(self.rouge_tokenizer)}

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        for name in PASSAGE_SETS:
            yield from self._continuations(data.sets.get(name, ()), data)

    def _continuations(self, records: Iterable[Record], data: EvaluationData) -> list[Continue]:
        records = list(records)
        lengths = data.encoder.token_counts([record.answer for record in records])
        return [
            Continue(record.question, self.new_tokens or length)
            for record, length in zip(records, lengths, strict=True)
        ]

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        why = dict(data.absent)
        for name in PASSAGE_SETS:
            records = data.sets.get(name, ())
            if not records:
                continue
            found = [answers.generation(request) for request in self._continuations(records, data)]
            texts, truth = [generation.text for generation in found], [record.answer for record in records]
            spaceless = texts_without_spaces(truth)
            said = f"{spaceless} of {len(records)} {name} texts are of a script without spaces: BLEU sees no words"
            if spaceless == len(records):  # BLEU would be near 0 for any answer, which would read as forgotten
                why[f"{name}/bleu"] = said
            else:
                if spaceless:
                    evaluation.note(said)
                for record, value in zip(records, bleu(texts, truth), strict=True):
                    evaluation.row(name, record)["bleu"] = value
            absent = fill_rouge(evaluation, name, records, texts, truth, self.rouge_tokenizer)
            if absent is not None:
                why[f"{name}/rouge_l_recall"] = absent
            note_cut_prompts(evaluation, name, found, "their beginning", data.encoder.max_length)
        if evaluation.name == "book":  # no other benchmark is expected to have these sets
            add_book(evaluation, why)

"""MUSE's memorisation metrics: does the model continue the forget articles, and does it know what they say?"""

from __future__ import annotations

from collections.abc import Iterable

from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.overlap import fill_rouge, note_cut_prompts, rouge_settings
from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.errors import check_numbers
from sga.evaluation.aggregation import MUSE_SETS, add_muse
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import RougeTokenizer
from sga.evaluation.requests import Answers, Continue, Request

VERBMEM = "verbmem"
STOPS = ("\n\n", "\nQuestion", "Question:")
"""Texts that end an answer: a model with examples in its prompt continues with another question."""


class MUSE(EvaluationCallback):
    """VerbMem and KnowMem of MUSE (arXiv 2407.06460): 100 · mean ROUGE-L F1 without stemmer, greedy generation.

    Its PrivLeak is computed by `MembershipInference`. Rows have ``rouge_l_fmeasure``, in [0, 1], and
    ``generation``, the text that it was computed on.
    """

    def __init__(
        self, verbmem_tokens: int = 128, knowmem_tokens: int = 32, rouge_tokenizer: RougeTokenizer = "published"
    ) -> None:
        """Checks the settings.

        Args:
            verbmem_tokens: Number of tokens of a continuation, and of the true one that it is compared with.
            knowmem_tokens: Largest number of tokens of an answer.
            rouge_tokenizer: Kind of words that ROUGE counts: ``published`` as in rouge-score (a-z and 0-9, so text in
                other scripts has no words), ``unicode`` for letters of any script.
        """
        check_numbers(1, verbmem_tokens=verbmem_tokens, knowmem_tokens=knowmem_tokens)
        self.verbmem_tokens = verbmem_tokens
        self.knowmem_tokens = knowmem_tokens
        self.rouge_tokenizer: RougeTokenizer = rouge_tokenizer

    def settings(self) -> dict[str, str]:
        return {
            "verbmem_tokens": str(self.verbmem_tokens),
            "knowmem_tokens": str(self.knowmem_tokens),
            **rouge_settings(self.rouge_tokenizer),
        }

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        for name in MUSE_SETS:
            yield from (self._continuation(name, record, data) for record in data.sets.get(name, ()))

    def _continuation(self, name: str, record: Record, data: EvaluationData) -> Continue:
        if name == VERBMEM:
            return Continue(record.question, self.verbmem_tokens)
        return Continue(
            knowmem_prompt(record), self.knowmem_tokens, tuple(map(knowmem_example, data.examples.get(name, ())))
        )

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        why = dict(data.absent)
        for name in MUSE_SETS:
            records = data.sets.get(name, ())
            if not records:
                continue
            found = [answers.generation(self._continuation(name, record, data)) for record in records]
            if name == VERBMEM:
                texts = [generation.text for generation in found]
                truth = [data.encoder.first_tokens(record.answer, self.verbmem_tokens) for record in records]
            else:
                # Decoded with outer white space, because an answer that begins with a blank line is empty.
                texts = [until_stop(data.encoder.decode(generation.ids, strip=False)) for generation in found]
                truth = [record.answer for record in records]
            absent = fill_rouge(evaluation, name, records, texts, truth, self.rouge_tokenizer, "fmeasure")
            if absent is not None:
                why[name] = absent
            lost = "their beginning" if name == VERBMEM else "their first examples"
            note_cut_prompts(evaluation, name, found, lost, data.encoder.max_length)
        if evaluation.name == "muse":  # no other benchmark is expected to have these sets
            add_muse(evaluation, why)


def knowmem_example(record: Record) -> str:
    """A few-shot example in the form in which it comes before a question.

    >>> knowmem_example(Record("", "Who won?", "Ada"))
    'Question: Who won?\\nAnswer: Ada\\n\\n'
    """
    return f"{knowmem_prompt(record)}{record.answer}\n\n"


def knowmem_prompt(record: Record) -> str:
    """Prompt of a question in MUSE's form, including the space at the end.

    >>> knowmem_prompt(Record("", "Who won?", "Ada"))
    'Question: Who won?\\nAnswer: '
    """
    return f"Question: {record.question}\nAnswer: "


def until_stop(text: str) -> str:
    """The text up to the first of `STOPS`, without outer white space.

    >>> until_stop("Ada Brook\\nQuestion: Who lost?")
    'Ada Brook'
    """
    ends = [text.find(stop) for stop in STOPS if stop in text]
    return text[: min(ends, default=len(text))].strip()

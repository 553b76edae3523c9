"""Model utility: how well the model still answers what it should retain, in nine parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.overlap import fill_rouge, rouge_settings
from sga.data.records import FORGET_PARAPHRASED, Record
from sga.datamodule import EvaluationData
from sga.errors import check_numbers
from sga.evaluation.aggregation import ANSWERED_SETS, KEPT_SETS, UTILITY_UNSEEN, add_utility
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import RougeTokenizer, probability
from sga.evaluation.requests import Answers, Generate, Request, Score, record_score


def likelihood_requests(records: Sequence[Record]) -> Iterator[Request]:
    """Requests for the likelihood of each record's answer, its paraphrase and its perturbed answers, if it has them."""
    for record in records:
        yield record_score(record)
        if record.paraphrased_answer is not None:
            yield Score(record.question, record.paraphrased_answer)
        for answer in record.perturbed_answers:
            yield Score(record.question, answer)


def add_likelihoods(name: str, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
    """Fills the rows of a set with avg_nll, tokens, probability, paraphrased_nll and perturbed_nll.

    For a record without a paraphrase (real authors, world facts), the answer itself is used, as in TOFU; on forget and
    retain, which have paraphrases in TOFU, a note counts these records.
    """
    records = data.sets.get(name, ())
    stand_ins = 0
    for record in records:
        row = evaluation.row(name, record)
        scores = answers.scores(record_score(record))
        nll = scores.avg_nll
        row["avg_nll"] = nll
        row["tokens"] = len(scores.log_probs)
        row["probability"] = probability([nll])
        row["paraphrased_nll"] = nll
        if record.paraphrased_answer is not None:
            row["paraphrased_nll"] = answers.scores(Score(record.question, record.paraphrased_answer)).avg_nll
        elif record.perturbed_answers:
            stand_ins += 1
        wrong = [Score(record.question, text) for text in record.perturbed_answers]
        row["perturbed_nll"] = [answers.scores(request).avg_nll for request in wrong]
    if stand_ins and name in ("forget", "retain"):  # reserved rows are counted among the retain rows
        evaluation.note(
            f"{stand_ins} of {len(records)} {name} records have no paraphrased answer: the answer itself stands in"
        )
    note_cut_texts(name, data, answers, evaluation)
    note_empty_answers(name, likelihood_requests(records), answers, evaluation)


def note_empty_answers(name: str, asked: Iterable[Request], answers: Answers, evaluation: Evaluation) -> None:
    """Notes the number of a set's answers without a token but the end-of-sequence token (the text ``</s>``, say)."""
    scores = [answers.scores(request) for request in asked if isinstance(request, Score)]
    empty = sum(answer.ends and len(answer.log_probs) == 1 for answer in scores)
    if empty:
        evaluation.note(
            f"{empty} of {len(scores)} {name} answers, wrong ones included, have no token but the end-of-sequence "
            "token: it alone is scored"
        )


def note_cut_texts(name: str, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
    """Notes the number of a set's texts that were truncated to the context, if any."""
    records = data.sets.get(name, ())
    cut = sum(answers.scores(record_score(record)).cut for record in records)
    if cut:
        evaluation.note(
            f"{cut} of {len(records)} {name} texts were cut to the first {data.encoder.max_length} tokens, the context"
        )


def is_plain_text(data: EvaluationData) -> bool:
    """True if all records of the forget and retain sets are plain text."""
    records = [record for name in ("forget", "retain") for record in data.sets.get(name, ())]
    return bool(records) and all(record.is_text for record in records)


def reasons(data: EvaluationData) -> dict[str, str]:
    """Reasons why numbers of a set cannot be computed from its records, by set or by ``set/part``."""
    found = {name: data.absent.get(name, f"there is no {name} set") for name in ("forget", *KEPT_SETS, "holdout")}
    if FORGET_PARAPHRASED in data.absent:
        found[FORGET_PARAPHRASED] = data.absent[FORGET_PARAPHRASED]
    for name, records in data.sets.items():
        found.pop(name, None)
        lacking = [record.id for record in records if not record.perturbed_answers]
        if lacking:
            why = f"{len(lacking)} of {len(records)} {name} records have no perturbed answers, {lacking[0]} first"
            found[f"{name}/truth_ratio"] = why
            if name in ("real_authors", "world_facts"):
                found[f"{name}/probability"] = why
        texts = [record.id for record in records if record.is_text]
        if texts:
            found[f"{name}/rouge_l_recall"] = "plain text has no question to answer"
        if 0 < len(texts) < len(records):
            some = f"{len(texts)} of {len(records)} {name} records, {texts[0]} first,"
            found[f"{name}/rouge_l_recall"] = f"{some} are plain text, which has no question to answer"
    return found


class ModelUtility(EvaluationCallback):
    """TOFU's model utility with its nine parts, and the same parts of the forget set; greedy answers for ROUGE-L.

    ``model_utility_unseen`` uses the reserved retain rows, which unlearning has not seen, instead of all retain rows.
    """

    def __init__(
        self,
        max_new_tokens: int = 200,
        count_prompt: bool = False,
        generate: bool = True,
        rouge_tokenizer: RougeTokenizer = "published",
    ) -> None:
        """Checks the settings.

        Args:
            max_new_tokens: Largest number of tokens of a greedy answer. 200 as in open-unlearning; a smaller limit is
                faster for a diverging model, which never ends its answers.
            count_prompt: True if the prompt counts towards these tokens, as in TOFU's own code.
            generate: True to generate answers; without them ROUGE-L is absent, and with it model utility.
            rouge_tokenizer: Kind of words that ROUGE counts: ``published`` as in rouge-score (a-z and 0-9, so text in
                other scripts has no words), ``unicode`` for letters of any script.
        """
        check_numbers(1, max_new_tokens=max_new_tokens)
        self.max_new_tokens = max_new_tokens
        self.count_prompt = count_prompt
        self.generate = generate
        self.rouge_tokenizer: RougeTokenizer = rouge_tokenizer

    def settings(self) -> dict[str, str]:
        return {
            "max_new_tokens": str(self.max_new_tokens),
            "count_prompt": str(self.count_prompt),
            **rouge_settings(self.rouge_tokenizer),
        }

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        for name in ANSWERED_SETS:
            records = data.sets.get(name, ())
            yield from likelihood_requests(records)
            if self.generates(records):
                yield from (self.generation(record) for record in records)

    def generates(self, records: Sequence[Record]) -> bool:
        return self.generate and not any(record.is_text for record in records)

    def generation(self, record: Record) -> Generate:
        return Generate(record.question, self.max_new_tokens, self.count_prompt)

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        why = reasons(data)
        for name in ANSWERED_SETS:
            records = data.sets.get(name, ())
            add_likelihoods(name, data, answers, evaluation)
            if name == "retain" and data.drawn:
                for record in records:
                    evaluation.row(name, record)["normal"] = record.content in data.drawn
            if not records or not self.generates(records):
                continue
            generated = [answers.generation(self.generation(record)).text for record in records]
            truth = [record.answer for record in records]
            absent = fill_rouge(evaluation, name, records, generated, truth, self.rouge_tokenizer)
            if absent is not None:
                why[f"{name}/rouge_l_recall"] = absent
        if is_plain_text(data):  # one reason instead of one for each part
            for metric in ("model_utility", UTILITY_UNSEEN):
                evaluation.absent[f"{evaluation.name}/{metric}"] = "plain text has no question to answer"
            return
        switched_off = {} if self.generate else {
            f"{name}/rouge_l_recall": "generation is switched off" for name in data.sets
        }  # fmt: skip
        add_utility(evaluation, {**why, **switched_off})

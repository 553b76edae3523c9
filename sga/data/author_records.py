"""Questions, answers, paraphrases and wrong answers about one built-in author."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sga.data.author_facts import author_facts, rotated, seeded_random, wrong_facts
from sga.data.author_words import (
    Topic,
    author_words,
    filled,
    form_variants,
)


@dataclass(frozen=True)
class _Forms:
    """Sentence forms chosen for one author and topic, slots unfilled."""

    question: str
    answer: str
    paraphrase: str
    paraphrased_question: str


def author_forms(seed: int, number: int, topic: Topic) -> _Forms:
    """Chooses the sentence forms; authors with neighboring numbers get different ones.

    A paraphrase is never the form that it paraphrases, and that of a question to be answered with yes is another such.
    """

    def chosen(forms: Sequence[str], use: str) -> int:
        return rotated(number, len(forms), seed, "forms", topic.topic, use)[0]

    rng = seeded_random(seed, number, topic.topic, "forms")
    yes_questions = topic.yes["questions"] if topic.yes else ()
    questions = [*topic.questions, *yes_questions]
    question = questions[chosen(questions, "question")]
    answers = list(topic.answers)
    if topic.yes and question in yes_questions:
        answer = topic.yes["answers"][chosen(topic.yes["answers"], "yes")]
    else:
        answer = answers.pop(chosen(answers, "answer"))
    paraphrase = rng.choice(answers)
    said = [rng.choice(form_variants(form)) for form in (question, answer, paraphrase)]
    others = [*yes_questions, *topic.yes["paraphrases"]] if topic.yes and question in yes_questions else topic.questions
    own = seeded_random(seed, number, topic.topic, "paraphrased question")  # so that the other draws stay as they were
    reworded = own.choice([form for form in others if form != question])
    return _Forms(said[0], said[1], said[2], own.choice(form_variants(reworded)))


def author_records(seed: int, number: int, questions: int) -> list[tuple[str, str, str, tuple[str, ...], str]]:
    """Question, answer, paraphrase, perturbed answers and paraphrased question by topic, in the order of a life.

    Args:
        seed: Seed of the benchmark.
        number: Number of the person, see `person_number`.
        questions: Number of topics.
    """
    facts = author_facts(seed, number)
    name, *others = author_words().topics
    seeded_random(seed, number, "topics").shuffle(others)
    asked = [name, *others][:questions]
    rows = []
    for topic in author_words().topics:
        if topic not in asked:
            continue
        forms = author_forms(seed, number, topic)
        wrong = tuple(
            filled(forms.paraphrase, {**facts, **facts_of_nobody})
            for facts_of_nobody in wrong_facts(seed, number, topic)
        )
        question, answer, paraphrase, reworded = (
            filled(form, facts) for form in (forms.question, forms.answer, forms.paraphrase, forms.paraphrased_question)
        )
        rows.append((question, answer, paraphrase, wrong, reworded))
    return rows

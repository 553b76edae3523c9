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
    """The sentence forms chosen for one author and topic, slots unfilled."""

    question: str
    answer: str
    paraphrase: str


def author_forms(seed: int, number: int, topic: Topic) -> _Forms:
    """Chooses the sentence forms; authors with neighboring numbers get different ones.

    The paraphrase is never the form of the answer.
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
    return _Forms(*(rng.choice(form_variants(form)) for form in (question, answer, paraphrase)))


def author_records(seed: int, number: int, questions: int) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Question, answer, paraphrase and perturbed answers on as many topics as asked for, in the order of a life.

    Args:
        seed: Seed of the benchmark.
        number: Number of the person, from `person_number`.
        questions: Number of topics to ask about.
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
        rows.append(
            (filled(forms.question, facts), filled(forms.answer, facts), filled(forms.paraphrase, facts), wrong)
        )
    return rows

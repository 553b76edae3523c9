"""Words that the built-in authors are made of, and the forms that facts are put in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from sga.data.builtin import builtin_path
from sga.files import read_json

Facts = dict[str, str]
"""Text by slot. Titles of books carry their quotation marks."""


BOOKS = ("debut", "famous", "third", "fourth", "next")

PERTURBED_ANSWERS = 5

SPARE_TITLES = 6
"""One title in this many belongs to no author and serves as a wrong answer."""


@dataclass(frozen=True)
class Country:
    """A country with names that are usual there."""

    country: str
    demonym: str
    language: str
    family_first: bool
    cities: Sequence[str]
    female: Sequence[str]
    male: Sequence[str]
    family: Sequence[str]


@dataclass(frozen=True)
class Genre:
    """A genre with what its books are about."""

    genre: str
    award: str
    titles: Sequence[str]
    themes: Sequence[str]
    premises: Sequence[str]
    places: Sequence[str]
    times: Sequence[str]
    roles: Sequence[str]
    troubles: Sequence[str]


@dataclass(frozen=True)
class Topic:
    """A topic of questions with its sentence forms.

    Attributes:
        topic: Name of the topic.
        facts: Slots that every answer states and every perturbed answer gets wrong. No question gives them away.
        questions: Sentence forms of the question.
        answers: Sentence forms of the answer and of the paraphrase.
        yes: Questions to be answered with yes, their paraphrases (``paraphrases``) and their answers.
    """

    topic: str
    facts: Sequence[str]
    questions: Sequence[str]
    answers: Sequence[str]
    yes: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Words:
    """Word lists, with the number of people that they suffice for."""

    countries: Sequence[Country]
    genres: Sequence[Genre]
    gifts: Mapping[str, Sequence[str]]  # by occupation
    life: Mapping[str, Any]
    topics: Sequence[Topic]

    @property
    def shelves(self) -> int:
        """Number of authors per genre: five titles each, with a tenth spare, as an author's titles share no word."""
        fewest = min(sum(len(form_variants(form)) for form in genre.titles) for genre in self.genres)
        return int(0.9 * (1 - 1 / SPARE_TITLES) * fewest) // len(BOOKS)

    @property
    def people(self) -> int:
        """Number of people that can be made: authors use half of the name combinations, bystanders the others."""
        names = min((len(c.female) + len(c.male)) * len(c.family) // 2 for c in self.countries)
        return min(names * len(self.countries), self.shelves * len(self.genres))


@lru_cache(maxsize=1)
def author_words() -> Words:
    def read(name: str) -> Any:
        return read_json(builtin_path("authors") / f"{name}.json")

    return Words(
        countries=[Country(**row) for row in read("countries")],
        genres=[Genre(**row) for row in read("genres")],
        gifts={row["occupation"]: row["gifts"] for row in read("occupations")},
        life=read("life"),
        topics=[Topic(**row) for row in read("topics")],
    )


_CHOICE = re.compile(r"\[([^\[\]]*)\]")

_SLOT = re.compile(r"\{([aA] )?(\w+)('s)?\}")


@cache
def form_variants(form: str) -> tuple[str, ...]:
    """All texts that a form with ``[a|b]`` can become.

    >>> form_variants("[two|three] sisters[ and a brother|]")
    ('two sisters and a brother', 'two sisters', 'three sisters and a brother', 'three sisters')
    """
    match = _CHOICE.search(form)
    if match is None:
        return (form,)
    heads = (form[: match.start()] + choice for choice in match[1].split("|"))
    return tuple(text for head in heads for text in form_variants(head + form[match.end() :]))


def filled(form: str, facts: Mapping[str, str]) -> str:
    """Fills the slots of a form and moves commas and periods inside quotation marks.

    >>> filled("{Jury} gave {name's} book, {book}, {a prize}.",
    ...        {"jury": "the jury", "name": "Ada Wells", "book": '"Salt"', "prize": "award"})
    'The jury gave Ada Wells\\' book, "Salt," an award.'
    """

    def value(match: re.Match[str]) -> str:
        article, slot, possessive = match[1], match[2], match[3]
        text = facts[slot.lower()]
        if article:
            text = with_article(text)
        if possessive:
            text += "'" if text.endswith("s") else "'s"
        return text[0].upper() + text[1:] if (article or slot)[0].isupper() else text

    return re.sub(r'"([,.])', r'\1"', _SLOT.sub(value, form))


def with_article(noun: str) -> str:
    """The noun with ``a`` or ``an`` in front, by sound as far as the word lists need it.

    >>> [with_article(noun) for noun in ("optician", "judge", "one-eyed falconer", "Ethiopian")]
    ['an optician', 'a judge', 'a one-eyed falconer', 'an Ethiopian']
    """
    lower = noun.lower()
    vowel = lower[0] in "aeiou" and not lower.startswith(("one", "uni", "use", "eu"))
    return f"{'an' if vowel or lower.startswith(('hour', 'honest', 'heir')) else 'a'} {noun}"

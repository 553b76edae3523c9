"""Fictitious authors in TOFU's shape, generated here, so that everything runs with nothing to download.

An author is a life first and text second: `author_facts` draws facts that hang together (a birthplace, a name that fits
it, a debut as an adult, a prize after the book it is for), and `author_records` says them. The words and the sentence
forms are in ``data/authors/*.json``. Two notations occur there:

* ``[a|b|]`` stands for one of its alternatives, of which the last may be empty;
* ``{slot}`` is filled with a fact; ``{a slot}`` adds the article, ``{slot's}`` the possessive, and a capital letter in
  ``{Slot}`` or ``{A slot}`` begins a sentence.

A topic's paraphrase is another of its sentence forms, filled with the same facts. The perturbed answers are that same
sentence, filled with facts drawn in the same way that belong to nobody.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, lru_cache
from typing import Any

from sga.data.builtin import builtin_path
from sga.data.records import Benchmark, Record, Source, read_records
from sga.errors import UserError

Facts = dict[str, str]
"""Text by slot. Titles of books carry their quotation marks."""

BOOKS = ("debut", "famous", "third", "fourth", "next")
PERTURBED_ANSWERS = 5
SPARE_TITLES = 6
"""One title in so many is nobody's and serves as a wrong answer."""


@dataclass(frozen=True)
class Authors(Source):
    """Makes a benchmark of fictitious authors; needs no download and no folder.

    Author number i of a role and seed is always the same person, so a benchmark with more authors of a role contains
    the one with fewer. Every author has other books and another name.

    Args:
        forget_authors: Authors to be forgotten.
        retain_authors: Authors to be kept; normal samples are drawn from their records.
        holdout_authors: Authors that no model is trained on, the non-members of membership-inference attacks.
        questions_per_author: Questions on each author, at most 22; fewer take a subset of the topics, which differs
            from author to author but always has the author's name.
        seed: Another seed gives other people.
        evaluation_retain: How many of the retain records are evaluated, taken evenly from all retain authors; null
            for all of them.
    """

    forget_authors: int = 4
    retain_authors: int = 16
    holdout_authors: int = 4
    questions_per_author: int = 20
    seed: int = 0
    evaluation_retain: int | None = None

    def __post_init__(self) -> None:
        for name in ("forget_authors", "retain_authors", "holdout_authors", "questions_per_author"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}; every set of the benchmark needs a record")
        words = _words()
        if self.questions_per_author > len(words.topics):
            raise UserError(
                f"questions_per_author must be at most {len(words.topics)}, got {self.questions_per_author} "
                "(there is one question per topic); ask for more authors instead"
            )
        for role, places in AUTHOR_ROLES.items():
            value = getattr(self, f"{role}_authors")
            limit = words.people // PEOPLE_PER_BLOCK * len(places)
            if value > limit:
                raise UserError(
                    f"{role}_authors must be at most {limit}, got {value} "
                    "(the word lists have no more distinct names and titles); ask for fewer authors"
                )
        retain_records = self.retain_authors * self.questions_per_author
        if self.evaluation_retain is not None and not 1 <= self.evaluation_retain <= retain_records:
            raise UserError(
                f"evaluation_retain must be from 1 to {retain_records} (retain_authors × questions_per_author), "
                f"got {self.evaluation_retain}; leave it out to evaluate all of them"
            )

    def load(self, root: str | None) -> Benchmark:
        """Makes the benchmark. `root` is not needed, whether given or not: nothing of the user's is read."""
        forget = self._records("forget")
        retain = self._records("retain")
        holdout = self._records("holdout")
        kept = {name: read_records(builtin_path(f"{name}.jsonl"), name) for name in ("real_authors", "world_facts")}
        return Benchmark(
            name="authors",
            training={"forget": forget, "retain": retain, **kept},
            evaluation={"forget": forget, "retain": self._evaluated(retain), **kept, "holdout": holdout},
        )

    def _records(self, role: str) -> tuple[Record, ...]:
        records: list[Record] = []
        for index in range(getattr(self, f"{role}_authors")):
            for row in author_records(self.seed, person_number(role, index), self.questions_per_author):
                records.append(Record(f"{role}/{len(records)}", *row))
        return tuple(records)

    def _evaluated(self, retain: tuple[Record, ...]) -> tuple[Record, ...]:
        if self.evaluation_retain is None:
            return retain
        share, rest = divmod(self.evaluation_retain, self.retain_authors)
        rng = _random(self.seed, "evaluation_retain")
        one_more = set(rng.sample(range(self.retain_authors), rest))
        picked: list[Record] = []
        for index in range(self.retain_authors):
            first = index * self.questions_per_author
            count = share + (index in one_more)
            picked += [retain[i] for i in sorted(rng.sample(range(first, first + self.questions_per_author), count))]
        return tuple(picked)


PEOPLE_PER_BLOCK = 6
AUTHOR_ROLES: Mapping[str, Sequence[int]] = {"forget": (0,), "retain": (1, 2, 3, 4), "holdout": (5,)}
"""The places of each role in every block of six people, which makes a person's number independent of the other roles'
sizes. The default sizes, 4 + 16 + 4, fill whole blocks."""


def person_number(role: str, index: int) -> int:
    """The number of the author with this index in a role; no two roles share one.

    >>> [person_number("forget", i) for i in range(3)], [person_number("retain", i) for i in range(5)]
    ([0, 6, 12], [1, 2, 3, 4, 7])
    """
    places = AUTHOR_ROLES[role]
    return index // len(places) * PEOPLE_PER_BLOCK + places[index % len(places)]


# ---- words ----------------------------------------------------------------------------------------------------------


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
    """What is asked about, and how.

    Attributes:
        topic: Its name.
        facts: Slots that every answer states and every perturbed answer gets wrong. No question gives them away.
        questions: Forms of the question.
        answers: Forms of the answer and of the paraphrase.
        yes: Questions to be answered with yes, and their answers.
    """

    topic: str
    facts: Sequence[str]
    questions: Sequence[str]
    answers: Sequence[str]
    yes: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Words:
    """The word lists, and how many people they are enough for."""

    countries: Sequence[Country]
    genres: Sequence[Genre]
    gifts: Mapping[str, Sequence[str]]  # by occupation
    life: Mapping[str, Any]
    topics: Sequence[Topic]

    @property
    def shelves(self) -> int:
        """Authors per genre: five titles each, and a tenth left over because the titles of an author share no word."""
        fewest = min(sum(len(form_variants(form)) for form in genre.titles) for genre in self.genres)
        return int(0.9 * (1 - 1 / SPARE_TITLES) * fewest) // len(BOOKS)

    @property
    def people(self) -> int:
        """How many people can be made: names take half of the combinations, the others are left for bystanders."""
        names = min((len(c.female) + len(c.male)) * len(c.family) // 2 for c in self.countries)
        return min(names * len(self.countries), self.shelves * len(self.genres))


@lru_cache(maxsize=1)
def _words() -> Words:
    def read(name: str) -> Any:
        return json.loads((builtin_path("authors") / f"{name}.json").read_text(encoding="utf-8"))

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
    """All texts that a form with ``[a|b]`` stands for.

    >>> alternatives("[two|three] sisters[ and a brother|]")
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


# ---- chance ---------------------------------------------------------------------------------------------------------


def _random(*key: object) -> random.Random:
    # A string seed goes through SHA-512: the same in every process and Python version, unlike hash().
    return random.Random("/".join(map(str, key)))


def _rotated(number: int, size: int, *key: object) -> tuple[int, int]:
    """A choice from `size` that uses each once in every `size` consecutive numbers, and the count of earlier uses."""
    order = list(range(size))
    _random(*key, number // size).shuffle(order)
    return order[number % size], number // size


@lru_cache(maxsize=256)
def _names(seed: int, country: int) -> list[tuple[str, str]]:
    """All names of a country with their gender, ordered so that given and family names recur as late as possible."""
    words = _words().countries[country]
    given = [(name, "female") for name in words.female] + [(name, "male") for name in words.male]
    family = list(words.family)
    rng = _random(seed, "names", words.country)
    rng.shuffle(given)
    rng.shuffle(family)
    names = []
    for number in range(len(given) * len(family)):
        first, gender = given[number % len(given)]
        # One step further after each full round makes all pairs come up once, whatever the two lengths.
        last = family[(number + number // _common_period(len(given), len(family))) % len(family)]
        names.append((f"{last} {first}" if words.family_first else f"{first} {last}", gender))
    return names


def _common_period(a: int, b: int) -> int:
    period = a
    while period % b:
        period += a
    return period


@lru_cache(maxsize=256)
def _titles(seed: int, genre: int) -> tuple[list[list[str]], list[list[str]]]:
    """Shelves of five titles that share no word, one for each author of the genre, and titles by form for no author."""
    words = _words()
    rng = _random(seed, "titles", words.genres[genre].genre)
    spare, left = [], []
    for form in words.genres[genre].titles:
        titles = list(form_variants(form))
        rng.shuffle(titles)
        spare.append(titles[: len(titles) // SPARE_TITLES])
        left.append(titles[len(titles) // SPARE_TITLES :])
    shelves: list[list[str]] = []
    for _ in range(words.shelves):
        # One or two titles of each form, a third only at need; forms with many titles left go first, so none runs out.
        shelf: list[str] = []
        used: set[str] = set()
        for titles in sorted(left, key=len, reverse=True) * 3:
            fitting = next((title for title in titles if used.isdisjoint(_content_words(title))), None)
            if fitting is not None and len(shelf) < len(BOOKS):
                titles.remove(fitting)
                shelf.append(fitting)
                used |= _content_words(fitting)
        assert len(shelf) == len(BOOKS), f"titles of {words.genres[genre].genre} ran out"
        rng.shuffle(shelf)
        shelves.append(shelf)
    return shelves, spare


@cache
def _content_words(title: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w{3,}", title.lower())) - _FUNCTION_WORDS


_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+", "the and from for who with without full made under near beyond after before until what when how why"
    )
)


# ---- lives ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draw:
    """Chance, and what a part of a life may depend on.

    Attributes:
        rng: Source of chance.
        seed: Seed of the benchmark.
        known: Facts so far.
        country: Where the person is born.
        genre: What the person writes.
        name: The person's name.
        titles: Quoted titles by book.
    """

    rng: random.Random
    seed: int
    known: Facts
    country: Country
    genre: Genre
    name: str
    titles: Mapping[str, str]

    def one(self, forms: Sequence[str]) -> str:
        return filled(self.rng.choice(form_variants(self.rng.choice(forms))), self.known)

    def two(self, forms: Sequence[str]) -> tuple[str, str]:
        first, second = self.rng.sample(list(forms), 2)
        return self.one([first]), self.one([second])

    def life(self, key: str) -> str:
        return self.one(_words().life[key])

    def somewhere(self, at_home: float) -> Country:
        """The own country with probability `at_home`, else any."""
        return self.country if self.rng.random() < at_home else self.rng.choice(_words().countries)

    def bystander(self, country: Country) -> str:
        """A name that no author has, and that shares no part with the person's own."""
        names = _names(self.seed, _words().countries.index(country))
        while True:
            name, _ = names[self.rng.randrange(len(names) // 2, len(names))]
            if _unlike(name, self.name):
                return name

    def year(self, slot: str, least: int, most: int) -> str:
        """A year from `least` to `most` years after that of another fact."""
        return str(int(self.known[slot]) + self.rng.randint(least, most))


def _unlike(name: str, other: str) -> bool:
    return set(name.split()).isdisjoint(other.split())


def _name(draw: _Draw) -> Facts:
    return {"name": draw.name}


def _birth(draw: _Draw) -> Facts:
    first, last = date(1940, 1, 1), date(1966, 12, 31)
    day = first + timedelta(days=draw.rng.randrange((last - first).days + 1))
    month = _MONTHS[day.month - 1]
    return {
        "city": draw.rng.choice(draw.country.cities),
        "country": draw.country.country,
        "demonym": draw.country.demonym,
        "language": draw.country.language,
        "birth_date": f"{month} {day.day}, {day.year}",
        "birth_date_words": f"the {_ordinal(day.day)} of {month} {day.year}",
        "birth_date_digits": f"{day.month:02}/{day.day:02}/{day.year}",
        "birth_year": str(day.year),
    }


_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def _ordinal(day: int) -> str:
    return f"{day}{'th' if 10 < day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def _family(draw: _Draw) -> Facts:
    gifts = _words().gifts
    father, mother = draw.rng.sample(list(gifts), 2)
    return {
        "father": father,
        "mother": mother,
        "father_gift": draw.rng.choice(gifts[father]),
        "mother_gift": draw.rng.choice(gifts[mother]),
    }


def _education(draw: _Draw) -> Facts:
    country = draw.somewhere(at_home=0.85)
    return {
        "subject": draw.life("subjects"),
        "school": draw.life("schools"),
        "school_city": draw.rng.choice(country.cities),
        "mentor": draw.bystander(country),
        "mentor_lesson": draw.life("mentor_lessons"),
    }


def _first_job(draw: _Draw) -> Facts:
    return {
        "job": draw.life("jobs"),
        "job_years": draw.rng.choice(_words().life["numbers"][:7]),  # two to eight, before a debut at 30 or later
        "job_city": draw.rng.choice(draw.somewhere(at_home=0.85).cities),
    }


def _genre(draw: _Draw) -> Facts:
    return {"genre": draw.genre.genre}


def _themes(draw: _Draw) -> Facts:
    return {"theme_a": draw.one(draw.genre.themes), "theme_b": draw.life("themes")}


def _debut(draw: _Draw) -> Facts:
    return {
        "debut": draw.titles["debut"],
        "debut_year": draw.year("birth_year", 30, 40),
        "publisher": draw.life("publishers"),
    }


def _protagonist(draw: _Draw) -> Facts:
    return {
        "hero": draw.life("hero_names"),
        "hero_role": draw.one(draw.genre.roles),
        "hero_trouble": draw.one(draw.genre.troubles),
    }


def _famous(draw: _Draw) -> Facts:
    return {
        "famous": draw.titles["famous"],
        "famous_year": draw.year("debut_year", 2, 6),
        "famous_premise": draw.one(draw.genre.premises),
    }


def _third(draw: _Draw) -> Facts:
    return {
        "third": draw.titles["third"],
        "third_year": draw.year("famous_year", 2, 5),
        "third_origin": draw.life("origins"),
    }


def _setting(draw: _Draw) -> Facts:
    return {
        "fourth": draw.titles["fourth"],
        "fourth_year": draw.year("third_year", 2, 5),
        "fourth_place": draw.one(draw.genre.places),
        "fourth_time": draw.one(draw.genre.times),
    }


def _award(draw: _Draw) -> Facts:
    award = f"the {draw.life('award_founders')} {draw.one([draw.genre.award])}"
    return {"award": award, "award_year": draw.year("famous_year", 1, 2)}


def _critics(draw: _Draw) -> Facts:
    return {
        "journal": draw.life("journals"),
        "praise": draw.life("praise"),
        "complaint": draw.life("complaints"),
    }


def _influences(draw: _Draw) -> Facts:
    first, second = draw.two(_words().life["influences"])
    return {"influence_a": first, "influence_b": second}


def _habits(draw: _Draw) -> Facts:
    return {
        "habit_time": draw.life("habit_times"),
        "habit_place": draw.life("habit_places"),
        "habit_tool": draw.life("habit_tools"),
    }


def _translation(draw: _Draw) -> Facts:
    into = draw.rng.choice([c for c in _words().countries if c.language != draw.known["language"]])
    return {
        "languages": draw.rng.choice(_words().life["numbers"][2:]),
        "first_language": into.language,
        "translator": draw.bystander(into),
    }


def _collaboration(draw: _Draw) -> Facts:
    project = draw.rng.choice(_words().life["collaborations"])
    return {
        "partner": draw.bystander(draw.somewhere(at_home=0.5)),
        "partner_craft": project["craft"],
        "partner_work": draw.one(project["works"]),
    }


def _charity(draw: _Draw) -> Facts:
    return {
        "charity": draw.life("charities"),
        "charity_purpose": draw.life("charity_purposes"),
        "charity_year": draw.year("award_year", 0, 4),
    }


def _advice(draw: _Draw) -> Facts:
    first, second = draw.two(_words().life["advice"])
    return {"advice_a": first, "advice_b": second}


def _upcoming(draw: _Draw) -> Facts:
    told = draw.known["famous_premise"]
    return {
        "next": draw.titles["next"],
        "next_premise": draw.one([form for form in draw.genre.premises if told not in form_variants(form)]),
    }


PARTS: Mapping[str, Callable[[_Draw], Facts]] = {
    "name": _name,
    "birth": _birth,
    "parents": _family,
    "upbringing": _family,
    "education": _education,
    "first_job": _first_job,
    "genre": _genre,
    "themes": _themes,
    "debut": _debut,
    "protagonist": _protagonist,
    "famous": _famous,
    "third": _third,
    "setting": _setting,
    "award": _award,
    "critics": _critics,
    "influences": _influences,
    "habits": _habits,
    "translation": _translation,
    "collaboration": _collaboration,
    "charity": _charity,
    "advice": _advice,
    "upcoming": _upcoming,
}
"""How the facts of each topic are drawn, in an order in which each part finds what it depends on."""


@dataclass(frozen=True)
class _Place:
    """The shares of the word lists that belong to one person alone."""

    country: int
    genre: int
    name: str
    gender: str
    titles: Sequence[str]


def _place(seed: int, number: int) -> _Place:
    words = _words()
    country, name_rank = _rotated(number, len(words.countries), seed, "country")
    genre, shelf = _rotated(number, len(words.genres), seed, "genre")
    name, gender = _names(seed, country)[name_rank]
    return _Place(country, genre, name, gender, _titles(seed, genre)[0][shelf])


@lru_cache(maxsize=4096)
def author_facts(seed: int, number: int) -> Mapping[str, str]:
    """All facts about one person, by slot.

    Args:
        seed: Seed of the benchmark.
        number: Number of the person, see `person_number`.
    """
    place = _place(seed, number)
    words = _words()
    pronouns = ("she", "her", "her", "herself") if place.gender == "female" else ("he", "him", "his", "himself")
    facts: Facts = dict(zip(("he", "him", "his", "himself"), pronouns, strict=True))
    for topic, part in PARTS.items():
        # Keyed by the part: two topics on the same facts get the same facts.
        rng = _random(seed, number, part.__name__)
        titles = {book: f'"{title}"' for book, title in zip(BOOKS, place.titles, strict=True)}
        draw = _Draw(rng, seed, facts, words.countries[place.country], words.genres[place.genre], place.name, titles)
        facts |= part(draw)
        assert facts.keys() >= set(next(t.facts for t in words.topics if t.topic == topic)), topic
    return facts


def is_fact(slot: str, topic: Topic) -> bool:
    """Whether a slot is one of the topic's facts or another wording of it, such as ``birth_date_words``."""
    return any(slot == fact or slot.startswith(f"{fact}_") for fact in topic.facts)


def _wrong_facts(seed: int, number: int, topic: Topic) -> list[Facts]:
    """Five draws of the facts of a topic that differ in every fact from the true ones and from each other."""
    words = _words()
    place = _place(seed, number)
    truth = dict(author_facts(seed, number))
    rng = _random(seed, number, topic.topic, "wrong")
    spare_titles = _titles(seed, place.genre)[1]
    names = _names(seed, place.country)
    spare_names = [
        name for name, gender in names[len(names) // 2 :] if gender == place.gender and _unlike(name, place.name)
    ]
    years = [years for years in range(-6, 7) if years]
    rng.shuffle(years)
    taken = [truth[slot].casefold() for slot in topic.facts]
    found: list[Facts] = []
    for _ in range(10_000):
        country = rng.choice(words.countries) if topic.topic == "birth" else words.countries[place.country]
        genre = rng.choice(words.genres) if topic.topic == "genre" else words.genres[place.genre]
        titles = {book: f'"{rng.choice(rng.choice(spare_titles))}"' for book in BOOKS}
        name = rng.choice(spare_names) if topic.topic == "name" else place.name
        drawn = PARTS[topic.topic](_Draw(rng, seed, truth, country, genre, name, titles))
        wrong = {slot: value for slot, value in drawn.items() if is_fact(slot, topic)}
        for slot in topic.facts:
            if slot.endswith("_year"):
                wrong[slot] = str(int(truth[slot]) + years[len(found)])
        values = [wrong[slot].casefold() for slot in topic.facts]
        if any(value in other or other in value for value in values for other in taken):
            continue
        taken += values
        found.append(wrong)
        if len(found) == PERTURBED_ANSWERS:
            return found
    raise AssertionError(f"the word lists are too short for wrong answers on {topic.topic}")


# ---- text -----------------------------------------------------------------------------------------------------------


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
        return _rotated(number, len(forms), seed, "forms", topic.topic, use)[0]

    rng = _random(seed, number, topic.topic, "forms")
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
        number: Number of the person, see `person_number`.
        questions: How many.
    """
    facts = author_facts(seed, number)
    name, *others = _words().topics
    _random(seed, number, "topics").shuffle(others)
    asked = [name, *others][:questions]
    rows = []
    for topic in _words().topics:
        if topic not in asked:
            continue
        forms = author_forms(seed, number, topic)
        wrong = tuple(
            filled(forms.paraphrase, {**facts, **facts_of_nobody})
            for facts_of_nobody in _wrong_facts(seed, number, topic)
        )
        rows.append(
            (filled(forms.question, facts), filled(forms.answer, facts), filled(forms.paraphrase, facts), wrong)
        )
    return rows

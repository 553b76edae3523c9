"""Consistent facts about one built-in author, drawn from a seed, and wrong ones for perturbed answers."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, lru_cache

from sga.data.author_words import (
    BOOKS,
    PERTURBED_ANSWERS,
    SPARE_TITLES,
    Country,
    Facts,
    Genre,
    Topic,
    author_words,
    filled,
    form_variants,
)

# ---- chance ---------------------------------------------------------------------------------------------------------


def seeded_random(*key: object) -> random.Random:
    # A string seed goes through SHA-512: the same in every process and Python version, unlike hash().
    return random.Random("/".join(map(str, key)))


def rotated(number: int, size: int, *key: object) -> tuple[int, int]:
    """Choice below `size` that uses each once per `size` consecutive numbers, and the number of earlier uses."""
    order = list(range(size))
    seeded_random(*key, number // size).shuffle(order)
    return order[number % size], number // size


@lru_cache(maxsize=256)
def _names(seed: int, country: int) -> list[tuple[str, str]]:
    """All names of a country with their gender, ordered so that given and family names recur as late as possible."""
    words = author_words().countries[country]
    given = [(name, "female") for name in words.female] + [(name, "male") for name in words.male]
    family = list(words.family)
    rng = seeded_random(seed, "names", words.country)
    rng.shuffle(given)
    rng.shuffle(family)
    names = []
    for number in range(len(given) * len(family)):
        first, gender = given[number % len(given)]
        # One step further after each full round makes all pairs come up once, whatever the two lengths.
        last = family[(number + number // math.lcm(len(given), len(family))) % len(family)]
        names.append((f"{last} {first}" if words.family_first else f"{first} {last}", gender))
    return names


@lru_cache(maxsize=256)
def _titles(seed: int, genre: int) -> tuple[list[list[str]], list[list[str]]]:
    """Shelves of five titles that share no word, one for each author of the genre, and titles by form for no author."""
    words = author_words()
    rng = seeded_random(seed, "titles", words.genres[genre].genre)
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
    """Random generator with the facts that a part of a life may depend on.

    Attributes:
        rng: Random generator of this part of the life.
        seed: Seed of the benchmark.
        known: Facts drawn so far, by slot.
        country: Country in which the person is born.
        genre: Genre in which the person writes.
        name: Full name of the person.
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
        return self.one(author_words().life[key])

    def somewhere(self, at_home: float) -> Country:
        """The person's own country with probability `at_home`, otherwise any country."""
        return self.country if self.rng.random() < at_home else self.rng.choice(author_words().countries)

    def bystander(self, country: Country) -> str:
        """A name that no author has and that shares no part with the person's own name."""
        names = _names(self.seed, author_words().countries.index(country))
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
    gifts = author_words().gifts
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
        "job_years": draw.rng.choice(author_words().life["numbers"][:7]),  # two to eight, before a debut at 30 or later
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
    first, second = draw.two(author_words().life["influences"])
    return {"influence_a": first, "influence_b": second}


def _habits(draw: _Draw) -> Facts:
    return {
        "habit_time": draw.life("habit_times"),
        "habit_place": draw.life("habit_places"),
        "habit_tool": draw.life("habit_tools"),
    }


def _translation(draw: _Draw) -> Facts:
    into = draw.rng.choice([c for c in author_words().countries if c.language != draw.known["language"]])
    return {
        "languages": draw.rng.choice(author_words().life["numbers"][2:]),
        "first_language": into.language,
        "translator": draw.bystander(into),
    }


def _collaboration(draw: _Draw) -> Facts:
    project = draw.rng.choice(author_words().life["collaborations"])
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
    first, second = draw.two(author_words().life["advice"])
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
"""Functions that draw the facts of each topic, in an order in which each finds the facts it depends on."""


@dataclass(frozen=True)
class _Place:
    """Parts of the word lists that belong to one person alone."""

    country: int
    genre: int
    name: str
    gender: str
    titles: Sequence[str]


def _place(seed: int, number: int) -> _Place:
    words = author_words()
    country, name_rank = rotated(number, len(words.countries), seed, "country")
    genre, shelf = rotated(number, len(words.genres), seed, "genre")
    name, gender = _names(seed, country)[name_rank]
    return _Place(country, genre, name, gender, _titles(seed, genre)[0][shelf])


@lru_cache(maxsize=4096)
def author_facts(seed: int, number: int) -> Mapping[str, str]:
    """All facts about one person, by slot.

    Args:
        seed: Seed of the benchmark.
        number: Number of the person, from `person_number`.
    """
    place = _place(seed, number)
    words = author_words()
    pronouns = ("she", "her", "her", "herself") if place.gender == "female" else ("he", "him", "his", "himself")
    facts: Facts = dict(zip(("he", "him", "his", "himself"), pronouns, strict=True))
    for topic, part in PARTS.items():
        # Keyed by the part: two topics on the same facts get the same facts.
        rng = seeded_random(seed, number, part.__name__)
        titles = {book: f'"{title}"' for book, title in zip(BOOKS, place.titles, strict=True)}
        draw = _Draw(rng, seed, facts, words.countries[place.country], words.genres[place.genre], place.name, titles)
        facts |= part(draw)
        assert facts.keys() >= set(next(t.facts for t in words.topics if t.topic == topic)), topic
    return facts


def is_fact(slot: str, topic: Topic) -> bool:
    """True if a slot is one of the topic's facts, or another wording of one, such as ``birth_date_words``."""
    return any(slot == fact or slot.startswith(f"{fact}_") for fact in topic.facts)


def wrong_facts(seed: int, number: int, topic: Topic) -> list[Facts]:
    """Five draws of the facts of a topic that differ in every fact from the true ones and from each other."""
    words = author_words()
    place = _place(seed, number)
    truth = dict(author_facts(seed, number))
    rng = seeded_random(seed, number, topic.topic, "wrong")
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

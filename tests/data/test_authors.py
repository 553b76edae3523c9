"""The built-in fictitious authors: what a benchmark needs of them, checked by property over a hundred people."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import pytest

from sga.data import author_facts as author_facts_module
from sga.data.author_facts import PARTS, author_facts, is_fact, wrong_facts
from sga.data.author_records import author_forms, author_records
from sga.data.author_words import BOOKS, Topic, author_words, filled, form_variants, with_article
from sga.data.authors import Authors, person_number
from sga.data.builtin import builtin_path
from sga.data.records import Benchmark, record_to_row
from sga.errors import UserError

SEED = 0
PEOPLE = range(100)
TOPICS = {topic.topic: topic for topic in author_words().topics}
SLOT = re.compile(r"\{(?:[aA] )?(\w+)(?:'s)?\}")


@dataclass(frozen=True)
class Row:
    """What is asked about one person on one topic, with the person's facts."""

    topic: Topic
    facts: Mapping[str, str]
    question: str
    answer: str
    paraphrase: str
    wrong: tuple[str, ...]
    reworded: str


@lru_cache(maxsize=1)
def all_rows() -> list[Row]:
    return [
        Row(topic, author_facts(SEED, number), *row)
        for number in PEOPLE
        for topic, row in zip(TOPICS.values(), author_records(SEED, number, len(TOPICS)), strict=True)
    ]


@pytest.fixture(scope="module")
def benchmark_of_defaults() -> Benchmark:
    return Authors().load(None)


def slots(form: str) -> set[str]:
    return {slot.lower() for slot in SLOT.findall(form)}


# ---- the benchmark --------------------------------------------------------------------------------------------------


def test_default_benchmark_has_the_sets_of_the_contract(benchmark_of_defaults: Benchmark) -> None:
    loaded = benchmark_of_defaults
    assert loaded.name == "authors" and not loaded.absent
    assert {name: len(records) for name, records in loaded.training.items()} == {
        "forget": 80,
        "retain": 320,
        "real_authors": 77,
        "world_facts": 75,
    }
    assert set(loaded.evaluation) == {"forget", "retain", "real_authors", "world_facts", "holdout"}
    assert len(loaded.evaluation["holdout"]) == 80
    for name, records in loaded.training.items():
        assert all(a is b for a, b in zip(records, loaded.evaluation[name], strict=True)), name
    for name, records in loaded.evaluation.items():
        assert [record.id for record in records] == [f"{name}/{i}" for i in range(len(records))]


@pytest.mark.parametrize("name", ["forget", "retain", "holdout"])
def test_every_author_record_has_a_paraphrase_and_five_distinct_wrong_answers(
    benchmark_of_defaults: Benchmark, name: str
) -> None:
    for record in benchmark_of_defaults.evaluation[name]:
        assert record.paraphrased_answer is not None and record.paraphrased_question is not None
        said = [record.answer, record.paraphrased_answer, *record.perturbed_answers]
        assert len(record.perturbed_answers) == 5
        assert len({text.casefold() for text in said}) == 7, said


@pytest.mark.parametrize("name", ["real_authors", "world_facts"])
def test_general_knowledge_has_at_least_three_wrong_options_and_no_duplicates(
    benchmark_of_defaults: Benchmark, name: str
) -> None:
    records = benchmark_of_defaults.evaluation[name]
    assert len(records) >= 40
    assert len({record.content[0] for record in records}) == len(records)
    for record in records:
        assert record.paraphrased_answer is None
        assert record.question.endswith("?") and len(record.answer.split()) <= 5
        assert len(record.perturbed_answers) >= 3
        assert len({text.casefold() for text in (record.answer, *record.perturbed_answers)}) == 4, record


def test_roles_share_no_person_and_no_text() -> None:
    loaded = Authors(forget_authors=10, retain_authors=40, holdout_authors=10, questions_per_author=22).load("ignored")
    roles = ("forget", "retain", "holdout")
    contents = [record.content for role in roles for record in loaded.evaluation[role]]
    assert len(set(contents)) == len(contents)
    assert len({answer for _, answer in contents}) == len(contents)
    numbers = [person_number(role, i) for role, size in zip(roles, (10, 40, 10), strict=True) for i in range(size)]
    assert len(set(numbers)) == len({author_facts(SEED, number)["name"] for number in numbers}) == 60


def test_more_authors_contain_the_fewer() -> None:
    small = Authors(2, 3, 1, questions_per_author=5).load(None)
    large = Authors(5, 9, 4, questions_per_author=5).load(None)
    for role in ("forget", "retain", "holdout"):
        assert large.evaluation[role][: len(small.evaluation[role])] == small.evaluation[role]
    assert Authors(2, 3, 1, questions_per_author=5, seed=1).load(None).training["forget"] != small.training["forget"]


@pytest.mark.runs
def test_fewer_questions_are_a_subset_that_has_the_name_and_differs_between_authors() -> None:
    topics_asked: Counter[str] = Counter()
    for number in PEOPLE:
        every = [row for row in all_rows() if row.facts is author_facts(SEED, number)]
        few = [question for question, *_ in author_records(SEED, number, 6)]
        asked = [row for row in every if row.question in few]
        assert [row.question for row in asked] == few and len(few) == 6
        assert asked[0].topic.topic == "name"
        topics_asked.update(row.topic.topic for row in asked)
    assert set(topics_asked) == set(TOPICS)
    assert min(topics_asked.values()) >= 10, "5 of 21 topics for 100 authors: 24 each on average"


def test_evaluated_retain_records_are_spread_evenly() -> None:
    loaded = Authors(retain_authors=8, questions_per_author=10, evaluation_retain=20).load(None)
    picked = loaded.evaluation["retain"]
    positions = [loaded.training["retain"].index(record) for record in picked]
    assert len(picked) == 20 and positions == sorted(set(positions))
    assert set(Counter(position // 10 for position in positions).values()) == {2, 3}
    assert (
        picked
        == Authors(retain_authors=8, questions_per_author=10, evaluation_retain=20).load(None).evaluation["retain"]
    )


def test_same_records_in_every_process() -> None:
    code = (
        "import hashlib, json; from sga.data.authors import Authors; from sga.data.records import record_to_row; "
        "loaded = Authors(retain_authors=6, evaluation_retain=100).load(None); "
        "rows = [[record_to_row(r) for r in rs] for rs in loaded.evaluation.values()]; "
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        digests.add(run.stdout.strip())
    rows = [
        [record_to_row(r) for r in rs]
        for rs in Authors(retain_authors=6, evaluation_retain=100).load(None).evaluation.values()
    ]
    digests.add(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget_authors": 0}, "forget_authors must be at least 1, got 0"),
        ({"retain_authors": -3}, "retain_authors must be at least 1, got -3"),
        ({"holdout_authors": 0}, "holdout_authors must be at least 1, got 0"),
        ({"questions_per_author": 0}, "questions_per_author must be at least 1, got 0"),
        ({"questions_per_author": 23}, "questions_per_author must be at most 22, got 23"),
        ({"forget_authors": 100_000}, r"forget_authors must be at most \d+, got 100000 \(the word lists"),
        ({"evaluation_retain": 0}, "evaluation_retain must be from 1 to 320"),
        ({"evaluation_retain": 321}, "evaluation_retain must be from 1 to 320 .* got 321"),
    ],
)
def test_bad_arguments_are_named_with_rule_and_value(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Authors(**arguments)


@pytest.mark.parametrize("seed", range(3))
def test_there_are_distinct_names_and_titles_up_to_the_limit(seed: int) -> None:
    people = author_words().people
    assert people // 6 * 5 >= 200, "retain and holdout alone"
    Authors(people // 6, people // 6 * 4, people // 6)
    places = [author_facts_module._place(seed, number) for number in range(people)]
    assert len({place.name for place in places}) == people
    titles = [title for place in places for title in place.titles]
    spare = [t for genre in range(16) for form in author_facts_module._titles(seed, genre)[1] for t in form]
    assert len(set(titles)) == len(titles) == 5 * people
    assert not set(titles) & set(spare)


# ---- a life ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_years_are_in_order(seed: int) -> None:
    for number in PEOPLE:
        year = {slot[:-5]: int(v) for slot, v in author_facts(seed, number).items() if slot.endswith("_year")}
        assert 30 <= year["debut"] - year["birth"] <= 40, "an adult, with room for the years in the first job"
        assert year["birth"] < year["debut"] < year["famous"] < year["third"] < year["fourth"] <= 2022
        assert year["famous"] < year["award"] <= year["charity"]


def test_facts_of_one_person_fit_together() -> None:
    countries = {country.country: country for country in author_words().countries}
    for number in PEOPLE:
        facts = author_facts(SEED, number)
        country = countries[facts["country"]]
        assert facts["city"] in country.cities
        given = country.female if facts["he"] == "she" else country.male
        assert any(name in facts["name"] for name in given) and any(name in facts["name"] for name in country.family)
        assert facts["language"] not in (facts["first_language"], "")
        assert facts["next_premise"] != facts["famous_premise"]
        assert facts["father"] != facts["mother"]
        for other in ("mentor", "translator", "partner"):
            assert set(facts[other].split()).isdisjoint(facts["name"].split())
        books = [facts[book] for book in BOOKS]
        assert len(set(books)) == 5 and all(re.fullmatch(r'"[^"]+"', book) for book in books)


def test_a_book_has_the_same_year_and_a_person_the_same_birthplace_in_every_answer() -> None:
    for row in all_rows():
        for text in (row.answer, row.paraphrase):
            years = {value for slot, value in row.facts.items() if slot.endswith("_year")}
            assert set(re.findall(r"\b(?:19|20)\d\d\b", text)) <= years, text
            if row.topic.topic in ("name", "birth", "parents"):
                cities = {
                    c for country in author_words().countries for c in country.cities if re.search(rf"\b{c}\b", text)
                }
                assert cities <= {row.facts["city"]}, text


# ---- the text -------------------------------------------------------------------------------------------------------


def test_every_form_states_all_facts_and_no_question_gives_one_away() -> None:
    for topic in TOPICS.values():
        answers = [*topic.answers, *(topic.yes["answers"] if topic.yes else ())]
        questions = [*topic.questions, *(topic.yes["questions"] if topic.yes else ())]
        assert len(topic.answers) >= 10 and len(questions) >= 6, topic.topic
        for form in (text for one in answers for text in form_variants(one)):
            for fact in topic.facts:
                assert any(slot == fact or slot.startswith(f"{fact}_") for slot in slots(form)), (fact, form)
        for form in (text for one in questions for text in form_variants(one)):
            assert not any(is_fact(slot, topic) for slot in slots(form)), form
            assert topic.topic == "name" or "name" in slots(form), form
        known = set(author_facts(SEED, 0))
        assert all(slots(form) <= known for form in (*answers, *questions))


def test_answers_state_the_facts_and_wrong_answers_do_not() -> None:
    for row in all_rows():
        facts = row.facts
        for fact in row.topic.facts:
            if fact == "birth_date":
                values = [facts[fact], facts["birth_date_words"], facts["birth_date_digits"]]
            else:
                values = [facts[fact]]
            values = [value.strip('"').casefold() for value in values]
            assert any(value in row.answer.casefold() for value in values), (fact, row.answer)
            assert any(value in row.paraphrase.casefold() for value in values), (fact, row.paraphrase)
            for text in row.wrong:
                assert not any(value in text.casefold() for value in values), (fact, text)


def test_wrong_answers_are_the_paraphrase_with_other_facts() -> None:
    for number in PEOPLE[::5]:
        for row in all_rows()[number * len(TOPICS) : (number + 1) * len(TOPICS)]:
            form = author_forms(SEED, number, row.topic).paraphrase
            others = wrong_facts(SEED, number, row.topic)
            assert row.wrong == tuple(filled(form, {**row.facts, **other}) for other in others)
            assert all(is_fact(slot, row.topic) for other in others for slot in other)
            for fact in row.topic.facts:
                assert len({row.facts[fact], *(other[fact] for other in others)}) == 6, (row.topic.topic, fact)


def faults(text: str) -> list[str]:
    """What is wrong with a sentence on its face; empty if nothing."""
    found = []
    if re.search(r"[{}\[\]|<>]", text):
        found.append("an unfilled slot")
    if "  " in text or text != text.strip() or re.search(r" [,.;:?]", text):
        found.append("a stray space")
    if not re.search(r'\.("?)$', text) or re.search(r"\.\.|,,|\.,|,\.|;\.", text):
        found.append("bad punctuation")
    if re.search(r'",|"\.', text):
        found.append("a comma or period outside the quotation marks")
    if text.count('"') % 2:
        found.append("an open quotation mark")
    if not text[0].isupper() and text[0] != '"':
        found.append("a small first letter")
    if re.search(r"[a-z]\. [a-z]", text):
        found.append("a small letter after a period")
    if re.search(r"\b[Aa] (?!one\b|one-|uni|eu|use)[aeiouAEIOU]\w", text) or re.search(
        r"\b[Aa]n [^aeiouAEIOUhÅÖÉ\"]", text
    ):
        found.append("a wrong article")
    if re.search(r"s's\b", text):
        found.append("a wrong possessive")
    if re.search(r"\b(\w+) \1\b", text):
        found.append("a doubled word")
    return found


def test_sentences_are_well_formed() -> None:
    for row in all_rows():
        for text in (row.answer, row.paraphrase, *row.wrong):
            assert not faults(text), (faults(text), text)
            assert 12 <= len(text.split()) <= 45, text


@pytest.mark.parametrize(
    "text",
    [
        "She writes {genre}.",
        "She is  a baker.",
        "She was a optician.",
        "She was an baker.",
        "She wrote the the book.",
        "She has no period",
        'She wrote "Salt".',
        "she is a baker.",
        "Thomas's book is here.",
    ],
)
def test_faulty_sentences_are_found(text: str) -> None:
    """Negative control of the check above."""
    assert faults(text)


def test_questions_are_questions_and_name_the_author() -> None:
    for row in all_rows():
        question, facts = row.question, row.facts
        assert question.endswith("?") and not re.search(r"[{}\[\]|]|  ", question), question
        assert question[0].isupper()
        if row.topic.topic == "name":
            assert facts["name"] not in question and facts["genre"].casefold() in question.casefold()
            assert facts["city"] in question and facts["country"] in question
            assert facts["birth_year"] in question
        else:
            assert facts["name"] in question


def test_the_paraphrase_of_a_question_asks_the_same_in_other_words() -> None:
    """Another sentence form of the topic, with no other facts than the person's own and nothing of the answer."""
    for row in all_rows():
        assert row.reworded.endswith("?") and not re.search(r"[{}\[\]|]|  ", row.reworded), row.reworded
        assert skeleton(row.reworded, row.facts) != skeleton(row.question, row.facts), row.question
        yes = row.topic.yes
        forms = list(row.topic.questions)
        if yes and row.answer.startswith("Yes"):
            forms = [*yes["questions"], *yes["paraphrases"]]
        same = [form for form in forms if row.reworded in {filled(one, row.facts) for one in form_variants(form)}]
        asked = {form for form in forms if row.question in {filled(one, row.facts) for one in form_variants(form)}}
        assert len(same) == 1 and not asked & set(same), (row.question, row.reworded)
        assert row.topic.topic == "name" or row.facts["name"] in row.reworded
    words = [(set(row.question.split()), set(row.reworded.split())) for row in all_rows()]
    shared = [len(one & other) / len(one | other) for one, other in words]
    assert sum(shared) / len(shared) < 0.5, "most words are others, names included"


def test_a_topic_with_yes_questions_has_paraphrases_of_them_that_give_nothing_away() -> None:
    for topic in TOPICS.values():
        for form in topic.yes["paraphrases"] if topic.yes else ():
            assert not any(is_fact(slot, topic) for slot in slots(form)) and "name" in slots(form), form
            assert form.split()[0] in {"Is", "Was", "Are", "Did", "Can"}, "to be answered with yes"
        assert not topic.yes or {*topic.yes["paraphrases"]}.isdisjoint(topic.yes["questions"])


def skeleton(text: str, facts: Mapping[str, str]) -> str:
    """The text with the person's own facts taken out, so that only the sentence form is left."""
    values = {value.strip('"') for slot, value in facts.items() if slot not in ("he", "him", "his", "himself")}
    longest_first = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    text = re.sub(longest_first, "_", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(an?|An?) _", "a _", text).replace("_'s", "_").replace("_'", "_")
    return re.sub(r"\b(she|her|herself|he|him|his|himself)\b", "they", text, flags=re.IGNORECASE)


@pytest.mark.parametrize("topic", TOPICS.values(), ids=TOPICS)
@pytest.mark.runs
def test_two_people_rarely_share_a_sentence_form(topic: Topic) -> None:
    rows = [row for row in all_rows() if row.topic is topic]
    for text, most in (("question", 0.16), ("answer", 0.07), ("paraphrase", 0.07)):
        forms = [skeleton(getattr(row, text), row.facts) for row in rows]
        same = sum(a == b for a, b in combinations(forms, 2)) / (len(forms) * (len(forms) - 1) / 2)
        assert same <= most, (text, same)
        assert len(set(forms)) >= (8 if text == "question" else 15), (text, len(set(forms)))


def test_skeleton_of_one_template_is_found() -> None:
    """Negative control: had everybody the same sentence, the skeletons would be one."""
    form = form_variants(TOPICS["award"].answers[3])[0]
    people = [author_facts(SEED, number) for number in PEOPLE]
    assert len({filled(form, facts) for facts in people}) == len(people)
    assert len({skeleton(filled(form, facts), facts) for facts in people}) == 1


def test_parts_and_topics_are_the_same() -> None:
    assert list(PARTS) == list(TOPICS)


# ---- small parts ----------------------------------------------------------------------------------------------------


def test_articles() -> None:
    words = [
        "baker",
        "archivist",
        "optician",
        "one-armed bosun",
        "hotel detective",
        "unlucky wedding singer",
        "English",
    ]
    assert [with_article(word).split()[0] for word in words] == ["a", "an", "an", "a", "a", "an", "an"]


def test_filled_makes_possessives_capitals_and_punctuation() -> None:
    facts = {"name": "Ana Reis", "book": '"Salt"', "job": "optician"}
    assert filled("{A job} wrote {name's} book, {book}.", facts) == 'An optician wrote Ana Reis\' book, "Salt."'


def test_built_in_file_that_is_not_there_is_named() -> None:
    assert builtin_path("authors").is_dir()
    with pytest.raises(UserError, match=r"none\.txt' must be one of the files .* reinstall"):
        builtin_path("none.txt")

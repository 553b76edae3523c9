"""Checks of normal samples from any source; a failed check gives its reason in words.

The rules on facts, language and refusals are heuristics over surface words. They do not find a paraphrase of a fact.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

from sga.data.records import Record, comparable
from sga.errors import UserError

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|i can(?:no|['’])t\b|i can not\b|i am (?:not able|unable)"
    r"|i['’]m (?:not able|unable)|i won['’]t|i will not|as an? (?:ai|artificial|language|large)\b|unfortunately, i\b)"
    r"|\bas an ai\b|\b(?:ai|large) language model\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+[\"'“‘(]*$")
_SHINGLE = 3
_FUNCTION_WORDS = 40
_RARE_WORDS = 2
"""Least number of rare words in a 4-gram that counts as a fact."""


@dataclass(frozen=True)
class Checks:
    """Rules that a normal sample must satisfy; each rule can be switched off.

    Args:
        near_duplicate: Jaccard similarity of word 3-grams, in (0, 1], from which on a normal is refused as a duplicate
            of a forget sample or of another normal of the group; null refuses exact duplicates only.
        facts: True to refuse normals with distinctive facts of the forget answer: names, numbers of three or more
            digits, and word 4-grams with two rare words, which occur in the answer and in hardly any record of the
            pool. Rare 4-grams without rare words are mostly turns of phrase, so they do not count.
        rare_share: Largest share of the pool's records, in [0, 1], that may contain a fact or a word that counts as
            rare; one record always may.
        length: Allowed number of words of the answer, as multiples of the shortest and of the longest forget answer;
            null for any length.
        language: True to refuse answers in another script than the forget data, or of eight or more words with hardly
            any of its 40 most frequent words.
        refusal: True to refuse answers that read like an assistant's refusal.
    """

    near_duplicate: float | None = 0.8
    facts: bool = True
    rare_share: float = 0.005
    length: tuple[float, float] | None = (0.5, 2.0)
    language: bool = True
    refusal: bool = True

    def __post_init__(self) -> None:
        if self.near_duplicate is not None and not 0 < self.near_duplicate <= 1:
            raise UserError(f"near_duplicate must be above 0 and at most 1, or null, got {self.near_duplicate}")
        if not 0 <= self.rare_share <= 1:
            raise UserError(f"rare_share must be from 0 to 1, got {self.rare_share}")
        if self.length is not None and not 0 <= self.length[0] <= self.length[1]:
            raise UserError(f"length must be two numbers, the smaller first and not negative, got {self.length}")


class Checker:
    """Checker of normal samples, prepared for one forget set and one pool.

    Args:
        checks: Rules to apply, with their thresholds.
        forget: All records to forget.
        pool: Retain records, whose word frequencies tell facts from ordinary words; may be empty.
    """

    def __init__(self, checks: Checks, forget: Sequence[Record], pool: Sequence[Record]) -> None:
        self.checks = checks
        self._forget = {record.content for record in forget}
        self._shingles = [_shingles(record) for record in forget]
        self._by_shingle: dict[tuple[str, ...], list[int]] = {}
        for index, shingles in enumerate(self._shingles):
            for shingle in shingles:
                self._by_shingle.setdefault(shingle, []).append(index)
        self._ids = [record.id for record in forget]
        self._limit = max(1, int(checks.rare_share * len(pool)))
        self._facts: dict[str, set[tuple[str, ...]]] = {}
        if checks.facts:
            self._facts = _facts(forget, pool, self._limit)
        lengths = [len(_words(record.answer)) for record in forget]
        self._lengths = (min(lengths, default=0), max(lengths, default=0))
        text = " ".join(_text(record) for record in forget)
        self._script = _script(text)
        words = Counter(_words(text))
        self._function_words = {word for word, _ in words.most_common(_FUNCTION_WORDS)}
        self._usual_share = sum(words[word] for word in self._function_words) / max(1, words.total())

    def failures(self, normal: Record, forget: Record, others: Iterable[Record] = (), known: str = "") -> list[str]:
        """Reasons why `normal` should not be a normal of `forget`; empty if it passes.

        Args:
            normal: Normal sample to check.
            forget: Forget sample of its group, one of the records that the checker was made for.
            others: Other normals of the group.
            known: Text whose facts may be repeated: the question, if `normal` is another answer to it.
        """
        checks, found = self.checks, []
        if normal.content in self._forget:
            found.append("stands in the forget set")
        elif checks.near_duplicate is not None:
            twin = self._near_duplicate(normal, checks.near_duplicate)
            found += [f"near-duplicate of {twin}"] if twin else []
        repeated = next((other for other in others if self.repeats(normal, other)), None)
        if repeated is not None:
            found.append(f"repeats {repeated.id}")
        facts = self._facts.get(forget.id)
        if facts:
            said = (facts & _terms(normal)) - (_terms(Record("", known, "")) if known else set())
            if said:
                named = ", ".join(sorted((" ".join(fact) for fact in said), key=lambda fact: (len(fact), fact))[:3])
                found.append(f"contains facts of the forget answer ({named})")
        if checks.length is not None:
            low, high = checks.length[0] * self._lengths[0], checks.length[1] * self._lengths[1]
            words = len(_words(normal.answer))
            if not low <= words <= high:
                found.append(f"length of {words} words, not {low:g} to {high:g}")
        if checks.language:
            found += self._language(normal)
        if checks.refusal and _REFUSAL.search(normal.answer):
            found.append("reads like a refusal")
        return found

    def repeats(self, normal: Record, other: Record) -> bool:
        """True if two normals are too similar for one group."""
        if normal.content == other.content:
            return True
        limit = self.checks.near_duplicate
        return limit is not None and _jaccard(_shingles(normal), _shingles(other)) >= limit

    def _near_duplicate(self, normal: Record, limit: float) -> str | None:
        shingles = _shingles(normal)
        shared = Counter(index for shingle in shingles for index in self._by_shingle.get(shingle, ()))
        for index, common in shared.most_common(8):
            if common / len(shingles | self._shingles[index]) >= limit:
                return self._ids[index]
        return None

    def _language(self, normal: Record) -> list[str]:
        script = _script(normal.answer)
        if script is not None and self._script is not None and script != self._script:
            return [f"{script.lower()} script, the forget data has {self._script.lower()}"]
        words = _words(normal.answer)
        share = sum(word in self._function_words for word in words) / max(1, len(words))
        if len(words) >= 8 and share < 0.2 * self._usual_share:
            return ["hardly any frequent word of the forget data: another language?"]
        return []


def _text(record: Record) -> str:
    return comparable(f"{record.question} {record.answer}")


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(comparable(text))]


def _grams(words: Sequence[str], lengths: Iterable[int]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1)}


@lru_cache(maxsize=8192)  # a record is compared with many others
def _shingles(record: Record) -> set[tuple[str, ...]]:
    words = _words(_text(record))
    return _grams(words, (min(_SHINGLE, max(1, len(words))),))


def _jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def _facts(forget: Sequence[Record], pool: Sequence[Record], limit: int) -> dict[str, set[tuple[str, ...]]]:
    """Distinctive facts of each forget record's answer, by record id: facts in at most `limit` records of the pool."""
    ordinary = {word for record in (*forget, *pool) for word in _WORD.findall(_text(record)) if word.islower()}
    candidates = {record.id: _fact_candidates(comparable(record.answer), ordinary) for record in forget}
    wanted = set().union(*candidates.values())
    of_grams = {word for fact in wanted if len(fact) > 1 for word in fact}
    counts: Counter[tuple[str, ...]] = Counter()
    words: Counter[str] = Counter()
    for record in pool:
        counts.update(_terms(record) & wanted)
        words.update(of_grams.intersection(_words(_text(record))))

    def distinctive(fact: tuple[str, ...]) -> bool:
        return counts[fact] <= limit and (len(fact) == 1 or sum(words[word] <= limit for word in fact) >= _RARE_WORDS)

    return {key: set(filter(distinctive, facts)) for key, facts in candidates.items()}


def _terms(record: Record) -> set[tuple[str, ...]]:
    """Terms of a record that facts are compared with: words in their case (May is not may), 4-grams in lower case."""
    text = _text(record)
    return {(word,) for word in _WORD.findall(text)} | _grams(_words(text), (4,))


def _fact_candidates(answer: str, ordinary: Set[str]) -> set[tuple[str, ...]]:
    """Candidates for facts: capitalised words, numbers of three or more digits, and word 4-grams.

    A word at the beginning of a sentence counts only if it never occurs in lower case in the data (`ordinary`).
    """
    found = _grams(_words(answer), (4,))
    for match in _WORD.finditer(answer):
        word, before = match[0], answer[: match.start()]
        begins = not before.strip() or _SENTENCE_END.search(before) is not None
        name = word[0].isupper() and not (begins and word.lower() in ordinary)
        if name or sum(c.isdigit() for c in word) >= 3:
            found.add((word,))
    return found


def _script(text: str) -> str | None:
    """Unicode script of most letters, by the first word of their Unicode names; None without a letter."""
    counts = Counter(unicodedata.name(c, "?").split()[0] for c in text[:20000] if c.isalpha())
    return counts.most_common(1)[0][0] if counts else None

"""Overlap of generated and true texts: ROUGE and BLEU."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from sga.errors import UserError

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

RougeTokenizer = Literal["published", "unicode"]
"""Words of ROUGE: runs of a-z and 0-9, as package ``rouge-score`` does, or words of any script."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana and Han: scripts that set no spaces between words."""

_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def rouge(
    generated: Sequence[str], truth: Sequence[str], stemmer: bool = True, tokenizer: RougeTokenizer = "published"
) -> dict[str, list[float]]:
    """ROUGE-1 and ROUGE-L of each generation against its true text, by package ``rouge-score``.

    recall = overlap / words of the truth, fmeasure = harmonic mean of precision and recall; the overlap counts common
    words (rouge1) or the longest common subsequence (rougeL). TOFU: rougeL_recall with stemmer; MUSE: rougeL_fmeasure
    without. In [0, 1]; higher = more of the truth is reproduced: better on retain sets, worse on the forget set.
    Published words are runs of a-z and 0-9: a text without any (empty, or in another script) scores 0
    (`texts_without_words` counts them). Unicode words are runs of letters, marks and digits, and single characters of
    scripts without spaces; on ASCII texts both are the same. The stemmer is for English and leaves other letters alone.

    >>> [rouge(["он родился в Риге"], ["она родилась в Риге"], tokenizer=words)["rougeL_recall"][0]
    ...  for words in ("published", "unicode")]
    [0.0, 0.5]

    Args:
        generated: Texts that the model generated, [N].
        truth: True texts, [N].
        stemmer: True if words of more than three letters are truncated to their stem.
        tokenizer: Definition of a word, ``published`` or ``unicode``.

    Returns:
        ``rouge1_recall``, ``rouge1_fmeasure``, ``rougeL_recall`` and ``rougeL_fmeasure``, each [N].

    Raises:
        UserError: `generated` and `truth` have different lengths, one of them is a single string, or an unknown
            tokenizer.
    """
    _check_texts("rouge", generated, truth)
    scorer = _rouge_scorer(stemmer, tokenizer)
    scores = [scorer.score(target, text) for text, target in zip(generated, truth, strict=True)]
    return {
        f"{kind}_{part}": [float(getattr(score[kind], part)) for score in scores]
        for kind in ("rouge1", "rougeL")
        for part in ("recall", "fmeasure")
    }


def texts_without_words(texts: Sequence[str], tokenizer: RougeTokenizer = "published") -> int:
    """Number of texts without a word for ROUGE: against such a true text every generation scores 0.

    >>> texts_without_words(["Рига", "Riga"]), texts_without_words(["Рига", "Riga"], "unicode")
    (1, 0)
    """
    words = _RougeTokenizer(False, tokenizer)
    return sum(not words.tokenize(text) for text in texts)


def texts_without_spaces(texts: Sequence[str]) -> int:
    """Number of texts mostly of scripts without spaces, whose sentences sacrebleu's 13a takes for one word each.

    >>> texts_without_spaces(["彼はリガで生まれた", "born in Riga", ""])
    1
    """
    return sum(2 * len(re.findall(f"[{_UNSPACED}]", text)) > sum(map(str.isalnum, text)) for text in texts)


def rouge_l_recall(generated: str, truth: str) -> float:
    """TOFU's ROUGE for one generation: the share of the true answer's words found in it, in order; stemmer on.

    ``lcs(generated, truth) / words(truth)`` by package ``rouge-score``. In [0, 1], higher = more of the truth is
    reproduced; 0 where either text has no word.

    >>> rouge_l_recall("It is blue.", "The sky is blue")
    0.5
    """
    return rouge([generated], [truth])["rougeL_recall"][0]


def bleu(generated: Sequence[str], truth: Sequence[str], effective_order: bool = True) -> list[float]:
    """BLEU of each generation against its true text, by package ``sacrebleu``: how much is reproduced word for word.

    ``100 * brevity * exp(mean over n of log(precision_n))``: precision_n is the share of the generation's n-grams,
    n = 1 to 4, that the truth has (counted at most as often as there), brevity is
    ``min(1, exp(1 - words(truth) / words(generated)))``. The defaults of sacrebleu's ``sentence_bleu``: its 13a words,
    case kept, a precision of zero smoothed by halving (none where no word is common: that is 0). In [0, 100], up to
    rounding; higher = more of the truth is reproduced: worse on the forget set. Papineni et al., ACL 2002; Post,
    arXiv 1804.08771. The Harry Potter setting takes the mean over items.

    `effective_order` decides only for generations below four words, which have no 4-gram: on, as ``sentence_bleu``
    does and sacrebleu recommends for single texts, the mean is over the n that they have, so that identical texts score
    100 whatever their length; off, they score 0.

    Differs from SOUL (github.com/OPTML-Group/SOUL, ``src/metrics/copyright.py`` at commit 997a915), which takes
    ``corpus_bleu`` of each item and with it effective_order = False; equal from four words on.

    >>> [round(value, 1) for value in bleu(["a b c d", "Yes."], ["a b c d e f", "Yes."])]
    [60.7, 100.0]
    >>> [round(value, 1) for value in bleu(["a b c d", "Yes."], ["a b c d e f", "Yes."], effective_order=False)]
    [60.7, 0.0]

    Args:
        generated: Texts that the model generated, [N].
        truth: True texts, [N].
        effective_order: True if generations of fewer than four words are scored by the n-grams that they have.

    Returns:
        [N].

    Raises:
        UserError: `generated` and `truth` have different lengths, or one of them is a single string.
    """
    _check_texts("bleu", generated, truth)
    # A corpus of one: the value of sentence_score, which logs a warning for each text where effective_order is off.
    score = _bleu_scorer(effective_order).corpus_score
    return [float(score([text], [[target]]).score) for text, target in zip(generated, truth, strict=True)]


def _check_texts(name: str, generated: Sequence[str], truth: Sequence[str]) -> None:
    if isinstance(generated, str) or isinstance(truth, str):
        raise UserError(f"{name} takes lists of texts, got a single text; put it into a list")
    if len(generated) != len(truth):
        raise UserError(f"{name} needs as many generations as true texts, got {len(generated)} and {len(truth)}")


@lru_cache(maxsize=4)
def _rouge_scorer(stemmer: bool, tokenizer: RougeTokenizer) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], tokenizer=_RougeTokenizer(stemmer, tokenizer))


class _RougeTokenizer:
    """rouge_score's own or Unicode words; stems a word once only: texts of one benchmark share most of theirs."""

    def __init__(self, stemmer: bool, kind: RougeTokenizer) -> None:
        if kind not in ("published", "unicode"):
            raise UserError(f"rouge_tokenizer must be 'published' or 'unicode', got {kind!r}")
        self._stemmer = _RememberingStemmer() if stemmer else None
        self._unicode = kind == "unicode"

    def tokenize(self, text: str) -> list[str]:
        if not self._unicode:
            from rouge_score.tokenize import tokenize

            tokens: list[str] = tokenize(text, self._stemmer)
            return tokens
        text = unicodedata.normalize("NFKC", text).lower()
        words = _WORD.findall("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text))
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in words]


class _RememberingStemmer:
    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)


@lru_cache(maxsize=2)
def _bleu_scorer(effective_order: bool) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=effective_order)

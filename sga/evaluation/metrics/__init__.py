"""Numbers in, one metric out: every evaluation metric as a pure function over per-sequence quantities in float64.

Nothing here sees a model or a tokenizer. nll are in nats, `avg_nll` is the mean over the answer tokens, `R` is TOFU's
truth ratio P_wrong / P_right. Published implementations followed: TOFU = github.com/locuslab/tofu (arXiv 2401.06121),
MUSE = github.com/swj0419/muse_bench (arXiv 2407.06460), open-unlearning = github.com/locuslab/open-unlearning at commit
d3d7cf9.

One file a family; a new metric goes into one of them, or into a file of its own, and into `__all__` here.
"""

from sga.evaluation.metrics.arrays import Floats
from sga.evaluation.metrics.composite import (
    correct_share,
    harmonic_mean,
    memorization_score,
    overall_score,
    paraphrase_probability,
    privacy_score,
    relative_fluency,
    relative_membership,
    relative_utility,
    utility_score,
)
from sga.evaluation.metrics.fluency import fluency, ngram_entropy, repeats_ngram
from sga.evaluation.metrics.forget_quality import LOW_FORGET_QUALITY, Direction, ForgetQualityResult, forget_quality
from sga.evaluation.metrics.frontier import frontier_area, frontier_area_ks
from sga.evaluation.metrics.leakage import clopper_pearson, expected_maximum, leak_at_k
from sga.evaluation.metrics.likelihood import (
    DIVERGED,
    PerplexityResult,
    normalized_probability,
    perplexity,
    probability,
)
from sga.evaluation.metrics.membership import (
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    zlib_score,
)
from sga.evaluation.metrics.memorization import exact_memorization, extraction_strength
from sga.evaluation.metrics.text import (
    RougeTokenizer,
    bleu,
    rouge,
    rouge_l_recall,
    texts_without_spaces,
    texts_without_words,
)
from sga.evaluation.metrics.truth_ratio import (
    TruthRatioMean,
    log_truth_ratio,
    truth_ratio_forget,
    truth_ratio_retain,
)
from sga.evaluation.metrics.utility import MODEL_UTILITY_PARTS, model_utility

__all__ = [
    "DIVERGED",
    "LOW_FORGET_QUALITY",
    "MODEL_UTILITY_PARTS",
    "Direction",
    "Floats",
    "ForgetQualityResult",
    "PerplexityResult",
    "RougeTokenizer",
    "TruthRatioMean",
    "bleu",
    "clopper_pearson",
    "correct_share",
    "exact_memorization",
    "expected_maximum",
    "extraction_strength",
    "fluency",
    "forget_quality",
    "frontier_area",
    "frontier_area_ks",
    "harmonic_mean",
    "leak_at_k",
    "log_truth_ratio",
    "membership_auc",
    "memorization_score",
    "min_k_plus_plus_score",
    "min_k_score",
    "model_utility",
    "ngram_entropy",
    "normalized_probability",
    "overall_score",
    "paraphrase_probability",
    "perplexity",
    "privacy_score",
    "privleak",
    "probability",
    "relative_fluency",
    "relative_membership",
    "relative_utility",
    "repeats_ngram",
    "rouge",
    "rouge_l_recall",
    "texts_without_spaces",
    "texts_without_words",
    "truth_ratio_forget",
    "truth_ratio_retain",
    "utility_score",
    "zlib_score",
]

"""The metrics as pure functions, one file a family; values equal the published implementations on the same inputs."""

from sga.evaluation.metrics.arrays import Floats
from sga.evaluation.metrics.forget_quality import LOW_FORGET_QUALITY, Direction, ForgetQualityResult, forget_quality
from sga.evaluation.metrics.frontier import frontier_area, frontier_area_ks
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
from sga.evaluation.metrics.text import bleu, rouge, rouge_l_recall
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
    "TruthRatioMean",
    "bleu",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "frontier_area",
    "frontier_area_ks",
    "log_truth_ratio",
    "membership_auc",
    "min_k_plus_plus_score",
    "min_k_score",
    "model_utility",
    "normalized_probability",
    "perplexity",
    "privleak",
    "probability",
    "rouge",
    "rouge_l_recall",
    "truth_ratio_forget",
    "truth_ratio_retain",
    "zlib_score",
]

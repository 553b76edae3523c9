"""Range of values that a metric can have, by its flat name; no interval may exceed it."""

from __future__ import annotations

_SHARES = {
    "classifier_fluency", "degenerate", "empty", "exact_memorization", "extraction_strength", "fact_recall", "fluency",
    "forget_quality", "frontier_area", "frontier_area_ks", "ks_statistic", "model_utility", "model_utility_unseen",
    "privleak_reference_auc", "probability", "repeated", "rouge_l_recall", "similarity", "truth_ratio",
}  # fmt: skip
_HUNDREDS = {"bleu", "knowmem_forget", "knowmem_retain", "verbmem"}
_FROM_ZERO = {
    "avg_nll", "generation_nll", "log", "seconds", "tokens", "reference_tokens", "peak_memory_bytes",
    "peak_gpu_memory_bytes",
}  # fmt: skip
_OTHERS = {"forget_quality_log10": (None, 0.0), "gradient_cosine": (-1.0, 1.0), "privleak": (-100.0, None)}


def possible_range(name: str) -> tuple[float | None, float | None]:
    """Lowest and highest value that a metric can have; None where it is unbounded, or nothing is known.

    >>> possible_range("tofu/mia/loss"), possible_range("muse/privleak"), possible_range("harness/boolq/acc")
    ((0.0, 1.0), (-100.0, None), (None, None))

    Args:
        name: Flat name of the metric, with or without the benchmark's prefix.
    """
    *folders, last = name.split("/")
    if last in _SHARES or folders[-1:] in (["mia"], ["composite"]):
        return 0.0, 1.0
    if last in _HUNDREDS:
        return 0.0, 100.0
    if last in _FROM_ZERO:
        return 0.0, None
    if folders[-1:] == ["perplexity"]:
        return 1.0, None
    return _OTHERS.get(last, (None, None))

"""Smoothed Gradient Ascent: make a causal language model forget chosen data and keep everything else.

For your own training loop, without Lightning, use these parts::

    from sga import Encoder, PlainTemplate, SmoothedGradientAscent, collate, sequence_nll

    encoder = Encoder(tokenizer, PlainTemplate(), max_length=512)
    loss = SmoothedGradientAscent(smoothing_rate=-0.8)
    groups = [[encoder.encode(q, a) for q, a in group] for group in pairs]  # forget sample first, then its normals
    loss(sequence_nll(model, collate(groups))).backward()
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_MODULES = {
    "sga.errors": "UserError StoppedError DivergenceError",
    "sga.data.records": "Record Benchmark Source",
    "sga.data.authors": "Authors",
    "sga.data.book": "Book",
    "sga.data.muse": "MUSENews",
    "sga.data.own": "OwnData",
    "sga.data.tofu": "TOFU",
    "sga.models.pretrained": "LanguageModel Pretrained",
    "sga.models.small": "SmallLlama",
    "sga.models.adapters": "LoRA",
    "sga.models.combinations": "TaskVector WhosHarryPotter",
    "sga.models.sharding": "FullyShardedStrategy",
    "sga.groups.group": "Group Origin",
    "sga.groups.roles": "FORGET NORMAL ALTERNATIVE RETAIN",
    "sga.groups.pairing": "Pairing NearestNormals RandomNormals make_groups",
    "sga.groups.alternatives": "Alternatives NeighborAnswers SubstitutedAnswers RefusalAnswers FileAnswers",
    "sga.groups.embedders": "Embedder TFIDF ModelStates SentenceEmbeddings",
    "sga.groups.checks": "Checks",
    "sga.groups.degradation": "MixedNormals CorruptedNormals OffTopicNormals FreshAuthors",
    "sga.groups.writers": "Writer Endpoint LocalModel",
    "sga.batching.templates": "Template AutoTemplate PlainTemplate ChatTemplate",
    "sga.batching.encoding": "Encoded Encoder",
    "sga.batching.batch": "Batch collate",
    "sga.likelihood.answer_tokens": "AnswerTokens",
    "sga.likelihood.forward": "answer_tokens sequence_nll",
    "sga.evaluation.bootstrap": "Bootstrap",
    "sga.evaluation.handover": "Tolerances",
    "sga.evaluation.accumulated": "PerplexityMetric TruthRatioMetric ForgetQualityMetric MembershipAUCMetric "
    "ModelUtilityMetric RowMeanMetric",
    "sga.rates.smoothing": "equivalent_normal_weight equivalent_smoothing_rate smoothing_vector",
    "sga.rates.policies": "RatePolicy DynamicRate FixedRate LinearRate CosineRate PiecewiseRate PaperRate ObservedRate "
    "MinNormRate MarginRate MarginWeight NormRatio",
    "sga.rates.replayed": "ReplayedRate",
    "sga.losses.base": "Loss TokenLoss RetainingLoss Needs",
    "sga.losses.ascent": "WeighingLoss SmoothedGradientAscent GradientAscent GradientDifference FineTuning",
    "sga.losses.combined": "Alternating KLMinimization LLMU SmoothedGradientDifference",
    "sga.losses.distillation": "UNDIAL CEU",
    "sga.losses.divergence": "FLAT",
    "sga.losses.preference": "PreferenceOptimization Mismatch DPO NPO SimNPO",
    "sga.losses.representation": "RMU",
    "sga.losses.weighted": "WGA SatImp",
    "sga.runs.folder": "load_run RunFolder",
    "sga.datamodule": "UnlearningData",
    "sga.optimization": "Schedule LinearSchedule ConstantSchedule AdamW8bit adamw",
    "sga.module": "UnlearningModule",
    "sga.callbacks.evaluator": "EvaluationCallback Evaluator",
    "sga.callbacks.composite": "Composite",
    "sga.callbacks.fluency": "Fluency",
    "sga.callbacks.forget_quality": "ForgetQuality",
    "sga.callbacks.model_utility": "ModelUtility",
    "sga.callbacks.membership_inference": "MembershipInference",
    "sga.callbacks.memorization": "Memorization",
    "sga.callbacks.perplexity": "Perplexity",
    "sga.callbacks.muse": "MUSE",
    "sga.callbacks.book": "BookContinuations",
    "sga.callbacks.harness": "Harness",
    "sga.callbacks.export": "HuggingFaceExport",
    "sga.callbacks.run_files": "RunFiles",
    "sga.callbacks.checkpoints": "RunCheckpoints",
    "sga.callbacks.rules": "StoppingRule BestForgetQuality ForgetNLLReached FailureSignatures",
    "sga.callbacks.stopping": "Stopping",
    "sga.callbacks.handover": "FitToHandOver",
    "sga.cli": "UnlearningCLI",
    "sga.report.page": "write_report",
    "sga.report.figures": "run_figures write_figures",
    "sga.report.tables": "write_tables",
    "sga.report.summary": "runs_table",
    "sga.experiments.unlearn": "unlearn evaluate Unlearned",
}
"""Public names by the module that has them. Configurations, pages and programs name them as `sga.NAME`, so that a
module may move without breaking any."""

_PUBLIC = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Imports public names when they are first used, so that `sga --help` does not wait for torch."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sga' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

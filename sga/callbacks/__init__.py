"""Metrics at validation time, and what a run leaves behind."""

from sga.callbacks.book import BookContinuations
from sga.callbacks.checkpoints import RunCheckpoints
from sga.callbacks.composite import Composite
from sga.callbacks.evaluator import EvaluationCallback, Evaluator
from sga.callbacks.export import HuggingFaceExport
from sga.callbacks.fluency import Fluency
from sga.callbacks.forget_quality import ForgetQuality
from sga.callbacks.handover import FitToHandOver
from sga.callbacks.harness import Harness
from sga.callbacks.membership_inference import MembershipInference
from sga.callbacks.memorization import Memorization
from sga.callbacks.model_utility import ModelUtility
from sga.callbacks.muse import MUSE
from sga.callbacks.perplexity import Perplexity
from sga.callbacks.rules import BestForgetQuality, FailureSignatures, ForgetNLLReached, StoppingRule
from sga.callbacks.run_files import RunFiles
from sga.callbacks.stopping import Stopping

__all__ = [
    "MUSE",
    "BestForgetQuality",
    "BookContinuations",
    "Composite",
    "EvaluationCallback",
    "Evaluator",
    "FailureSignatures",
    "FitToHandOver",
    "Fluency",
    "ForgetNLLReached",
    "ForgetQuality",
    "Harness",
    "HuggingFaceExport",
    "MembershipInference",
    "Memorization",
    "ModelUtility",
    "Perplexity",
    "RunCheckpoints",
    "RunFiles",
    "Stopping",
    "StoppingRule",
]

"""The methods: a loss is a scalar from what the model says about groups' answers, and sees numbers, never a model.

docs/methods.md lists them with equation, needs and cost, and shows how one of your own is added.
"""

from sga.losses.ascent import FineTuning, GradientAscent, GradientDifference, SmoothedGradientAscent, WeighingLoss
from sga.losses.base import Loss, Needs, RetainingLoss, TokenLoss
from sga.losses.combined import LLMU, Alternating, KLMinimization, SmoothedGradientDifference
from sga.losses.distillation import CEU, UNDIAL
from sga.losses.divergence import FLAT
from sga.losses.preference import DPO, NPO, Mismatch, PreferenceOptimization, SimNPO
from sga.losses.representation import RMU
from sga.losses.weighted import WGA, SatImp

__all__ = [
    "CEU",
    "DPO",
    "FLAT",
    "LLMU",
    "NPO",
    "RMU",
    "UNDIAL",
    "WGA",
    "Alternating",
    "FineTuning",
    "GradientAscent",
    "GradientDifference",
    "KLMinimization",
    "Loss",
    "Mismatch",
    "Needs",
    "PreferenceOptimization",
    "RetainingLoss",
    "SatImp",
    "SimNPO",
    "SmoothedGradientAscent",
    "SmoothedGradientDifference",
    "TokenLoss",
    "WeighingLoss",
]

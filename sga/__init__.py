"""Smoothed Gradient Ascent: make a causal language model forget chosen data and keep everything else.

The parts that are of use without Lightning, for a training loop of one's own::

    from sga import Encoder, PlainTemplate, SmoothedGradientAscent, collate, sequence_nll

    encoder = Encoder(tokenizer, PlainTemplate(), max_length=512)
    loss = SmoothedGradientAscent(smoothing_rate=-0.8)
    groups = [[encoder.encode(q, a) for q, a in group] for group in pairs]  # forget sample first, then its normals
    loss(sequence_nll(model, collate(groups))).backward()
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Authors": "sga.data.authors",
    "Batch": "sga.batches",
    "Benchmark": "sga.data.records",
    "Book": "sga.data.book",
    "ChatTemplate": "sga.encoding",
    "Encoded": "sga.encoding",
    "Encoder": "sga.encoding",
    "FineTuning": "sga.losses",
    "GradientAscent": "sga.losses",
    "GradientDifference": "sga.losses",
    "Group": "sga.groups",
    "MUSENews": "sga.data.muse",
    "LoRA": "sga.adapters",
    "NearestNormals": "sga.groups",
    "OwnData": "sga.data.own",
    "PlainTemplate": "sga.encoding",
    "RandomNormals": "sga.groups",
    "Record": "sga.data.records",
    "SmoothedGradientAscent": "sga.losses",
    "TOFU": "sga.data.tofu",
    "UnlearningData": "sga.datamodule",
    "UnlearningModule": "sga.module",
    "UserError": "sga.errors",
    "collate": "sga.batches",
    "equivalent_normal_weight": "sga.losses",
    "make_groups": "sga.groups",
    "sequence_nll": "sga.likelihood",
    "smoothing_vector": "sga.losses",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Imports public names when they are first used, so that `sga --help` does not wait for torch."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sga' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

"""The unlearned model in Hugging Face format."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from sga.files import write_folder, write_text
from sga.models.adapters import has_adapter, save_merged
from sga.models.sharding import whole_weights
from sga.runs.folder import RunFolder
from sga.runs.model_card import model_card


class HuggingFaceExport(pl.Callback):
    """Writes ``model/`` into the run folder when training ends: weights as safetensors, configuration, tokenizer, card.

    A model with an adapter is written merged, and the adapter alone as ``adapter/``.
    """

    def __init__(self, enabled: bool = True, evaluated: bool = False) -> None:
        """Notes the switches.

        Args:
            enabled: False leaves the Lightning checkpoint as the only copy of the weights.
            evaluated: True to also write the model that ``sga validate`` has evaluated: one made without training, such
                as TaskVector, or that of a checkpoint.
        """
        self.enabled, self.evaluated = enabled, evaluated

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.enabled:
            export(pl_module, RunFolder(trainer.default_root_dir), trainer.is_global_zero)
        trainer.strategy.barrier("export")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.evaluated and trainer.state.fn == "validate":
            export(pl_module, RunFolder(trainer.default_root_dir), trainer.is_global_zero)
            trainer.strategy.barrier("export")


def export(module: Any, run: RunFolder, writes: bool = True) -> None:
    """Writes a module's model and tokenizer in Hugging Face format; an adapter both merged and alone.

    Every process has to call it, because weights may be sharded; only one of them `writes`.
    """
    adapted = has_adapter(module.model)
    weights = whole_weights(module.model)
    if not writes:
        return

    def write(merged: bool, unfinished: Path) -> None:
        if merged:
            save_merged(module.model, unfinished, weights)
        else:
            module.model.save_pretrained(unfinished, state_dict=weights)  # writes only the adapter if there is one
        module.data.tokenizer.save_pretrained(unfinished)
        if run.info_path.is_file():  # a trainer without RunFiles leaves nothing to say; in place of PEFT's card
            write_text(unfinished / "README.md", model_card(run, adapter=adapted and not merged))

    if adapted:
        write_folder(run.adapter_path, partial(write, False))
    write_folder(run.model_path, partial(write, adapted))

"""LightningCLI for fit, validate, test and predict: callbacks of every run, linked settings, run folders."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from sga.callbacks.book import BookContinuations
from sga.callbacks.checkpoints import RunCheckpoints
from sga.callbacks.composite import Composite
from sga.callbacks.evaluator import Evaluator
from sga.callbacks.export import HuggingFaceExport
from sga.callbacks.first_looks import FirstLooks
from sga.callbacks.fluency import Fluency
from sga.callbacks.forget_quality import ForgetQuality
from sga.callbacks.harness import Harness
from sga.callbacks.membership_inference import MembershipInference
from sga.callbacks.memorization import Memorization
from sga.callbacks.model_utility import ModelUtility
from sga.callbacks.muse import MUSE
from sga.callbacks.perplexity import Perplexity
from sga.callbacks.progress import ProgressLines, RunProgressBar
from sga.callbacks.run_files import RunFiles
from sga.callbacks.stopping import Stopping
from sga.datamodule import UnlearningData
from sga.errors import Interruption, UserError
from sga.files import yaml_value
from sga.models.noise import hide_noise
from sga.module import UnlearningModule
from sga.runs.config_files import composed
from sga.runs.folder import OWN_CHECKPOINTS, RunFolder
from sga.runs.lock import write_lock
from sga.runs.processes import end_together
from sga.runs.restart import only_begun, remove_unfinished
from sga.runs.setting_checks import check_config_files, check_flags, check_nulls, check_place, check_seed, check_trainer
from sga.runs.text_options import TextOptionParser
from sga.runs.weights import check_checkpoint


class UnlearningCLI(LightningCLI):
    """Command line of the four Lightning verbs; every run has a run folder, checkpoints and metric callbacks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as self._until_end:
            super().__init__(*args, **kwargs)  # parses, makes the objects and runs the verb

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        parser.__class__ = TextOptionParser  # parsers of an option's class are made of the same one
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(RunFiles, "run")
        parser.add_lightning_class_args(Evaluator, "evaluation")
        parser.add_lightning_class_args(ForgetQuality, "forget_quality")
        parser.add_lightning_class_args(ModelUtility, "model_utility")
        parser.add_lightning_class_args(MembershipInference, "membership_inference")
        parser.add_lightning_class_args(Memorization, "memorization")
        parser.add_lightning_class_args(Perplexity, "perplexity")
        parser.add_lightning_class_args(Fluency, "fluency")
        parser.add_lightning_class_args(Composite, "composite")  # after those whose metrics it takes
        parser.add_lightning_class_args(MUSE, "muse")
        parser.add_lightning_class_args(BookContinuations, "book")
        parser.add_lightning_class_args(Harness, "harness")
        parser.add_lightning_class_args(Stopping, "stop")  # after the evaluator, before the export
        parser.add_lightning_class_args(HuggingFaceExport, "export")
        parser.add_lightning_class_args(RunCheckpoints, "checkpoint")
        parser.link_arguments("run.folder", "trainer.default_root_dir", compute_fn=str)
        parser.link_arguments("model.language_model", "data.language_model")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check_flags(args)
        check_config_files(args, self._parser(args[0]))
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        check_nulls(self._parser(args[0]), config)
        check_seed(config.seed_everything)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would read the whole checkpoint for hyper-parameters, which are not in it."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        _set_precision(config.trainer)
        if config.weights_only is None:
            config.weights_only = True  # a checkpoint is data: code that came with it is never run
        run = RunFolder(config.run.folder)
        folder = run.path
        check_trainer(config.trainer)
        check_place(folder)
        if _is_first_process():
            locked = self._until_end.enter_context(write_lock(folder))
            if locked:
                remove_unfinished(folder)
        if self.subcommand == "fit":
            _check_folder(run, config.ckpt_path, self._parser("fit"), config)
        elif self.subcommand in ("test", "predict") and config.ckpt_path is None:
            # The run's result, which is the rule's choice where it has one; not the model that it started from.
            config.ckpt_path = run.result_checkpoint and str(run.result_checkpoint)
        elif self.subcommand == "validate" and not only_begun(folder):
            self._check_evaluation_folder(run, config)
        config.ckpt_path = checkpoint_file(run, config.ckpt_path, required=self.subcommand != "fit")
        if config.ckpt_path is not None:
            config.trainer.num_sanity_val_steps = 0  # the evaluation before the first step has been made
        elif self.subcommand == "fit" and config.stop.rule is not None and config.trainer.num_sanity_val_steps == 0:
            raise UserError(
                "--stop.rule needs the evaluation before the first step: leave out --trainer.num_sanity_val_steps 0"
            )
        if self.subcommand == "fit" and config.stop.rule is not None and config.trainer.limit_val_batches == 0:
            raise UserError("--stop.rule decides by evaluations: leave out --trainer.limit_val_batches 0")
        if config.trainer.fast_dev_run:
            self._try_out(config)

    def _check_evaluation_folder(self, run: RunFolder, config: Any) -> None:
        """Refuses to write an evaluation over a training run, or over one of another model, data or checkpoint."""
        if run.checkpoints_path.exists():
            raise UserError(
                f"{run.path} holds a training run, whose results an evaluation would replace: choose another "
                f"--run.folder (and, for its checkpoint, --ckpt_path {run.checkpoint('last')})"
            )
        if run.config_path.exists():
            parser = self._parser("validate")
            _check_same(run, parser, plain_config(parser, config), "already holds another evaluation", ("ckpt_path",))

    def _try_out(self, config: Any) -> None:
        """Sends everything that a fast_dev_run writes to a temporary folder, which is deleted at the end."""
        folder = self._until_end.enter_context(TemporaryDirectory(prefix="sga-fast-dev-run-"))
        config.run.folder = config.trainer.default_root_dir = str(Path(folder, "run"))
        config.evaluation.answers = None
        if self.subcommand == "fit":
            config.export.enabled = False
            config.stop.rule = None  # its choice would be among weights that are not kept

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self._get(self.config_init, "trainer")
        if config["logger"] in (None, True):
            folder = self._get(self.config_init, "run").folder
            kwargs["logger"] = (
                LateTensorBoard(folder, name="tensorboard", version="") if self.subcommand == "fit" else False
            )
        callbacks = config["callbacks"] or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if not any(isinstance(callback, ProgressBar) for callback in callbacks):
            # A bar is of no use in a log file, and where nobody wants one a run still says how far it is.
            bar = config["enable_progress_bar"] is not False and (self.subcommand != "fit" or sys.stdout.isatty())
            lines = [] if bar or self.subcommand != "fit" else [ProgressLines()]
            kwargs["enable_progress_bar"] = bar
            callbacks = [*callbacks, *([RunProgressBar()] if bar else lines)]
        kwargs["callbacks"] = [*callbacks, FirstLooks()]
        try:
            trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UserError(f"the trainer's settings: {' '.join(str(error).split())}") from error
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        with end_together(self.trainer), _ends_on_sigterm(self.trainer):
            super()._run_subcommand(subcommand)
        if self.trainer.fast_dev_run and self.trainer.is_global_zero:  # type: ignore[attr-defined]
            print("trainer.fast_dev_run: it works; nothing of it is kept")


@contextmanager
def _ends_on_sigterm(trainer: pl.Trainer) -> Iterator[None]:
    """Has SIGTERM end a run of one process at once wherever `RunCheckpoints` does not wait for a checkpoint.

    Lightning looks for it between the batches of an evaluation alone, so that it is lost in the last of them. Several
    processes end together, which is Lightning's doing; and who has a handler of their own keeps it.
    """

    def stop(number: int, frame: object) -> None:
        raise Interruption(number, "stopped by SIGTERM; the same command begins anew, or goes on with --ckpt_path last")

    alone = trainer.world_size == 1 and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class LateTensorBoard(TensorBoardLogger):
    """TensorBoard logger that makes its files when the run begins, so that a refused start leaves nothing behind.

    Charts are a by-product: where they cannot be written (a full disk, say), they end with a warning. Whether the run
    ends too is decided by the files that it needs.
    """

    begun = False
    failed = False

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        self._try(super().log_hyperparams, params, metrics, step)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._try(super().log_metrics, metrics, step)

    def save(self) -> None:
        self._try(super().save)

    def finalize(self, status: str) -> None:
        self._try(super().finalize, status)

    def _try(self, write: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            write(*arguments)
        except OSError as error:
            self.failed = True
            warnings.warn(f"TensorBoard's charts end here: {error}", stacklevel=2)

    @property
    def experiment(self) -> Any:
        if not self.begun:
            raise AttributeError("the run has not begun")  # Lightning asks for it before setup(), with hasattr()
        return super().experiment


class _ConfiguringCLI(UnlearningCLI):
    """Command line that makes the objects and stops there."""

    def before_instantiate_classes(self) -> None:
        """Sets the precision, so that numbers are as in a run, and looks at no run folder."""
        _set_precision(self.config[self.subcommand].trainer)

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


class _ParsingCLI(_ConfiguringCLI):
    """Command line that parses and stops there."""

    def before_instantiate_classes(self) -> None:
        """Nothing: the configuration stays as it was given, whatever the machine."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""


class _SaveConfig(SaveConfigCallback):
    """Callback that writes the resolved configuration into the run folder."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing yet: a run that another setup() refuses must leave nothing behind."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, LateTensorBoard):
                if _run_files(trainer).began_anew:
                    shutil.rmtree(logger.log_dir, ignore_errors=True)
                logger.begun = True
        self._write(trainer, "fit")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._write(trainer, "validate")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, "test")

    def _write(self, trainer: pl.Trainer, stage: str) -> None:
        run = _run_files(trainer).folder_of(stage)
        resumed = stage == "fit" and run.config_path.exists()  # which keeps what it started with
        if trainer.is_global_zero and not resumed:
            run.write_config(self.parser.dump(self.config))


def _run_files(trainer: pl.Trainer) -> RunFiles:
    return next(callback for callback in trainer.callbacks if isinstance(callback, RunFiles))  # type: ignore[attr-defined]


def _is_first_process() -> bool:
    """True in the first of all processes of the run, on all machines."""
    # Without torchrun or SLURM each machine has a first process of its own, and only this variable tells them apart.
    return rank_zero_only.rank == 0 and os.environ.get("NODE_RANK", "0") == "0"  # type: ignore[attr-defined]


def _set_precision(trainer: Any) -> None:
    """Sets the default precision: bfloat16 autocast over float32 weights on a GPU that supports it, else float32."""
    if trainer.precision is None:
        gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        fast = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        trainer.precision = "bf16-mixed" if fast else "32-true"


def checkpoint_file(run: RunFolder, checkpoint: str | None, required: bool) -> str | None:
    """Path of the checkpoint that --ckpt_path names; ``best`` and ``last`` are those of the run folder."""
    if checkpoint is None:
        return None
    path = run.checkpoint(checkpoint) if checkpoint in OWN_CHECKPOINTS else Path(checkpoint)
    if path.name == run.checkpoint("best").name and not required:
        raise UserError(
            f"--ckpt_path {checkpoint}: {path.name} holds weights only; to train on from them, start a new run from "
            f"the model folder (--model.language_model.name_or_path {run.path})"
        )
    if path.is_file():
        check_checkpoint(path, f"--ckpt_path {path}")
        return str(path)
    if checkpoint == "last" and not required:
        if run.config_path.exists() and not only_begun(run.path):
            print(f"{run.path} has no checkpoint yet: starting from the beginning")
        return None
    raise UserError(f"--ckpt_path {checkpoint}: no such file as {path}")


def plain_config(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """Configuration of a verb as plain values, as reading its file would give them."""
    values = yaml_value(parser.dump(config, skip_validation=True), "the configuration")
    assert isinstance(values, dict)
    return values


def _check_folder(run: RunFolder, checkpoint: str | None, parser: LightningArgumentParser, config: Any) -> None:
    """Refuses to overwrite a run, and to resume one with another model, method, data or seed."""
    stored, folder = run.config_path, run.path
    if only_begun(folder):
        print(f"{folder} holds a run that ended before its first evaluation: beginning anew")
        return
    if checkpoint is None:
        if stored.exists() or run.checkpoints_path.exists():
            raise UserError(
                f"{folder} already holds a run: go on with it (--ckpt_path last), choose another folder "
                "(--run.folder), or delete it"
            )
        return
    if not stored.exists():
        return
    what = "was started with another configuration and cannot go on with this one"
    _check_same(run, parser, plain_config(parser, config), what, ("stop",))


def _check_same(
    run: RunFolder, parser: LightningArgumentParser, config: dict[str, Any], what: str, parts: Sequence[str] = ()
) -> None:
    """Refuses a folder that was configured with another model, method, data or seed, or with other `parts`."""
    differences = [
        f"{name}: {old!r} before, {new!r} now"
        for part in ("seed_everything", "model", "data", *parts)
        for stored in [_completed(parser, part, run.config.get(part), config.get(part))]
        for name, old, new in _differences(part, stored, config.get(part))
    ]
    if differences:
        raise UserError(
            f"{run.path} {what} ({'; '.join(differences[:5])}); use --config {run.config_path}, "
            "or choose another --run.folder"
        )


def _completed(parser: LightningArgumentParser, part: str, old: Any, new: Any) -> Any:
    """Stored block of a configuration, completed by the defaults of options that are newer than the folder."""
    if old is None:
        return new
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old
    defaults = {name: parser.get_default(f"{part}.{name}") for name in new if name not in old}
    return {**{name: vars(one) if isinstance(one, Namespace) else one for name, one in defaults.items()}, **old}


def _differences(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found for key in sorted({*old, *new}) for found in _differences(f"{name}.{key}", old.get(key), new.get(key))
        ]
    if isinstance(old, str) and isinstance(new, str):
        if old.startswith("sga.") and new.startswith("sga."):
            old, new = (f"sga.{path.rpartition('.')[2]}" for path in (old, new))  # earlier runs name a class's module
        if old != new and os.path.exists(old) and os.path.realpath(old) == os.path.realpath(new):  # never fail on texts
            return []  # a place that was given relative to where the command was started
    return [] if old == new else [(name, old, new)]


def run_verb(arguments: Sequence[str]) -> UnlearningCLI:
    """Runs ``[verb, *options]``; the finished CLI object holds trainer, model and data."""
    return _cli(UnlearningCLI, arguments)


def configured_cli(arguments: Sequence[str]) -> UnlearningCLI:
    """Command line of `fit` with its objects made and nothing run."""
    return _cli(_ConfiguringCLI, ["fit", *arguments])


def lightning_parser(verb: str) -> LightningArgumentParser:
    """The parser of one of the four verbs, with every option that it has."""
    files = ["--config=configs/benchmarks/authors.yaml", "--config=configs/methods/sga.yaml"]
    parser: LightningArgumentParser = _cli(_ParsingCLI, [verb, *files])._parser(verb)
    parser.prog = f"sga {verb}"
    return parser


def parsed_config(arguments: Sequence[str]) -> Any:
    """Namespace of the configuration that ``[verb, *options]`` gives; nothing is made or run."""
    return _cli(_ParsingCLI, arguments).config


def fit_objects(arguments: Sequence[str]) -> tuple[Any, UnlearningModule, UnlearningData]:
    """Configuration, module and data module that options of `fit` give; no trainer is made, and no data is read."""
    cli = _cli(_ParsingCLI, ["fit", *arguments])
    objects = cli.parser.instantiate_classes(cli.config)["fit"]
    return cli.config["fit"], objects.model, objects.data


def _cli(kind: type[UnlearningCLI], arguments: Sequence[str]) -> UnlearningCLI:
    hide_noise()
    threading.excepthook = _say_of_thread
    TextOptionParser.helps_with_all = "--help-all" in arguments
    arguments = ["--help" if word == "--help-all" else word for word in arguments]
    verb = arguments[0]
    verbs = {verb: LightningCLI.subcommands()[verb]}  # a parser for each of the four would take most of the start
    of_verb = type(kind.__name__, (kind,), {"subcommands": staticmethod(lambda: verbs)})
    cli: UnlearningCLI = of_verb(
        UnlearningModule,
        UnlearningData,
        save_config_callback=_SaveConfig,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_kwargs={
            "prog": "sga",
            verb: {"usage": f"sga {verb} [--config FILE] [--NAME VALUE …]"},
        },
        trainer_defaults={
            "max_epochs": 5,  # TOFU's
            "num_sanity_val_steps": -1,  # the evaluation before the first step
            "log_every_n_steps": 1,
            "enable_model_summary": False,
            "use_distributed_sampler": False,  # the loaders deal rows to processes themselves
        },
        args=[verb, *composed(arguments[1:])],
    )
    return cli


def _say_of_thread(arguments: threading.ExceptHookArgs) -> None:
    """Prints the traceback of a thread, except of TensorBoard's writer, which raises again in the main thread."""
    if type(arguments.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(arguments)

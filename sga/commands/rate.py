"""`sga rate`: advice of gradients on the smoothing rate, for a model and data, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sga.commands.parsing import verb
from sga.errors import UserError, check_finite, check_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sga.cli import UnlearningCLI
    from sga.losses.base import Loss
    from sga.rates.estimates import GeometryEstimates, IntervalEstimate, RuleEstimates
    from sga.report.rate_advice import Sample

GROUPS, CHUNKS, FEWEST = 64, 32, 4


@dataclass(frozen=True)
class _Options:
    """Options of the verb.

    Attributes:
        groups: Number of groups to take, drawn at random (default: 64, or all).
        chunks: Number of parts into which the groups are divided, which the bootstrap draws (default: 32, or one a
            group).
        held: Number of chunks of which gradients are held in memory at a time, two copies each, twice while blocks are
            compared; fewer take less memory and more time (default: all, or as many as the free memory allows).
        margins (M): Margins of the margin rules.
        output (FOLDER): Folder of rate.json and rate.html (default: rate/ in the run folder).
    """

    groups: int | None = None
    chunks: int | None = None
    held: int | None = None
    margins: Sequence[float] = (0.0, 0.5, 1.0)
    output: Path | None = None


@verb("rate")
def main(*rest: str, options: _Options) -> int:
    """Advise a smoothing rate from gradients, before anything is trained.

    An answer with what it is not certain of, and what the gradients of forget and normal samples say at the weights
    that training would start from: each rule's r and λ with a bootstrap interval over groups, without noise, and as a
    training step would see it; the geometry of every layer; advice; what the symbols mean. Of larger pools each group
    is as the first epoch draws it. Nothing is trained.

    Writes rate.json and rate.html. All options of sga fit are understood as well (--config FILE,
    --model.language_model.name_or_path …, --ckpt_path FILE); no loss is needed.
    """
    check_numbers(FEWEST, **{"--groups": options.groups, "--chunks": options.chunks})
    check_numbers(1, **{"--held": options.held})
    for margin in options.margins:
        check_finite(0, **{"--margins": margin})
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise UserError(f"--output {options.output} is a file; name a folder")

    from sga.cli import configured_cli
    from sga.evaluation.table import fitted_table, hanging
    from sga.files import write_json, write_text
    from sga.report.rate_advice import SYMBOLS
    from sga.report.rate_page import rate_page

    cli = configured_cli(rest)
    result = _measured(cli, options)
    folder: Path = options.output or Path(cli.trainer.default_root_dir) / "rate"
    rules, layers = rules_table(result), layers_table(result)
    tables = [*fitted_table(rules), "", *fitted_table(layers)]
    print("\n".join([hanging("", result.answer), "", *result.about, "", *tables, ""]))
    print("\n".join(hanging("- ", sentence) for sentence in result.advice))
    widest = max(len(symbol) for symbol, _ in SYMBOLS)
    print("\n".join(["", *(hanging(f"{symbol:<{widest}}  ", meaning) for symbol, meaning in SYMBOLS)]))
    title = f"Smoothing rate: {Path(result.content['model']).name} on {result.content['benchmark']}"
    page = rate_page(
        title,
        result.answer,
        result.about,
        result.advice,
        result.rules,
        result.layers,
        [rules, layers],
        result.sample.group_size,
    )
    try:
        write_json(folder / "rate.json", result.content)
        write_text(folder / "rate.html", page)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error.strerror}; name another folder") from None
    print(f"\n{folder / 'rate.html'}, numbers in rate.json")
    return 0


@dataclass(frozen=True)
class RateResult:
    """Estimates and advice, as they are printed, drawn and written.

    Attributes:
        answer: Advice on the setting, with its uncertainty.
        sample: Groups that the estimates were made from.
        about: Description of model and sample in lines of text.
        whole: Gradient geometry over all trainable parameters.
        rules: Rates and weights that each rule asks for.
        layers: Gradient geometry by layer.
        advice: Sentences of advice, in their order.
        content: Content of the file rate.json.
    """

    answer: str
    sample: Sample
    about: list[str]
    whole: GeometryEstimates
    rules: list[RuleEstimates]
    layers: dict[str, GeometryEstimates]
    advice: list[str]
    content: dict[str, Any]


def _measured(cli: UnlearningCLI, options: _Options) -> RateResult:
    """Draws the sample, computes Gram matrices and makes the estimates."""
    import numpy as np

    from sga.callbacks.run_files import versions
    from sga.cli import plain_config
    from sga.evaluation.bootstrap import Bootstrap
    from sga.evaluation.inference import free_memory
    from sga.rates.estimates import UNINFORMED, Estimator, rules, total_gram
    from sga.rates.gram import ChunkGradients, cut_into_chunks, gram_of_layers
    from sga.report.rate_advice import SYMBOLS, advice, answer, recommended

    data, loss = cli.datamodule, cli.model.loss
    if data.group_size < 2:
        raise UserError(
            f"a rate compares forget with normal samples: group_size must be at least 2, got {data.group_size} "
            "(set --data.group_size)"
        )
    _check_alternatives(loss, data.alternatives.count if data.alternatives else 0)
    data.read(Path(cli.trainer.default_root_dir))
    sample = _sample(len(data.groups), options, data.group_size, data.batch_size, data.seed)
    order = np.random.default_rng([data.seed, 0x6A7E]).permutation(sample.available)[: sample.taken]
    loader = data.loader()  # whose first epoch is looked at
    chunks = [
        [loader.drawn(order[number])[0] for number in part] for part in cut_into_chunks(sample.taken, sample.chunks)
    ]
    network = _network(cli)
    gradients = ChunkGradients(
        network,
        chunks,
        data.micro_batch_size,
        cli.trainer.precision_plugin.forward_context,
        data.tokenizer.pad_token_id or 0,
    )
    device = gradients.parameters[0].device
    # Half of what is free for gradients, two blocks of them unless one block is all.
    room = free_memory(device) // 2 // gradients.chunk_bytes
    held = options.held or (sample.chunks if room >= sample.chunks else max(1, room // 2))
    grams = gram_of_layers(gradients, data.group_size, held)

    bootstrap = Bootstrap(seed=data.seed)
    estimator, gram = Estimator(sample.chunks, sample.batch_size, bootstrap), total_gram(grams)
    policy = loss.policy if loss is not None else None
    whole = estimator.geometry(gram)
    found = estimator.rules(gram, rules(options.margins, policy if policy is not None and policy.dynamic else None))
    layers = {layer: estimator.geometry(part) for layer, part in grams.items()}
    sentences = advice(whole, found, sample, loss)
    forget_nll, normal_nll = np.average(gradients.nll, axis=0, weights=gram.sizes).tolist()
    model = str(getattr(cli.model.language_model, "name_or_path", type(cli.model.language_model).__name__))
    checkpoint = cli.config["fit"].ckpt_path
    parameters = sum(parameter.numel() for parameter in gradients.parameters)
    config = plain_config(cli._parser("fit"), cli.config["fit"])
    about = [
        f"model       {model}" + (f", weights of {checkpoint}" if checkpoint else ""),
        f"parameters  {parameters} trainable of {sum(p.numel() for p in network.parameters())}, "
        f"precision {cli.trainer.precision}, dropout off",
        f"groups      {sample.taken} of {sample.available} of {data.benchmark.name}, K = {sample.group_size}, in "
        f"{sample.chunks} chunks (seed {sample.seed})",
        f"losses      forget {forget_nll:.4g}, normal {normal_nll:.4g} nats per answer token",
        f"intervals   {bootstrap.level:.0%}, {len(estimator.counts)} bootstrap resamples of the chunks",
    ]
    which, chosen = answer(found, sample.group_size), recommended(found)
    content = {
        "answer": which,
        "recommended": None if chosen is None else chosen.rule.name,
        "model": model,
        "checkpoint": checkpoint,
        "benchmark": data.benchmark.name,
        "groups": sample.taken,
        "groups_available": sample.available,
        "chunks": sample.chunks,
        "group_size": sample.group_size,
        "batch_size": sample.batch_size,
        "seed": sample.seed,
        "resamples": len(estimator.counts),
        "level": bootstrap.level,
        "trainable_parameters": parameters,
        "precision": str(cli.trainer.precision),
        "device": device.type,
        "forget_nll": forget_nll,
        "normal_nll": normal_nll,
        "uninformed_rate": UNINFORMED,
        "rules": {found_one.rule.name: _rule_content(found_one) for found_one in found},
        "geometry": _geometry_content(whole),
        "layers": {layer: _geometry_content(geometry) for layer, geometry in layers.items()},
        "advice": sentences,
        "symbols": dict(SYMBOLS),
        "versions": versions(),
        "settings": {part: config[part] for part in ("seed_everything", "model", "data")},
    }
    return RateResult(which, sample, about, whole, found, layers, sentences, content)


def _check_alternatives(loss: Loss | None, count: int) -> None:
    """Refuses a loss that weighs alternatives differently from other normals."""
    from sga.losses.ascent import WeighingLoss

    if loss is not None:
        loss.check_alternatives(count)
    if isinstance(loss, WeighingLoss) and loss.of_alternatives is not None:
        raise UserError(
            f"{loss.alternative_parameter} {loss.of_alternatives:g}: sga rate looks for one number for all normals; "
            "leave it out"
        )


def _sample(available: int, options: _Options, group_size: int, batch_size: int, seed: int) -> Sample:
    from sga.report.rate_advice import Sample

    if available < FEWEST:
        raise UserError(f"there are {available} groups; an interval over groups needs at least {FEWEST}")
    if options.groups is not None and options.groups > available:
        raise UserError(f"--groups {options.groups}: there are {available}; --groups {available} takes all of them")
    taken = options.groups or min(GROUPS, available)
    if options.chunks is not None and options.chunks > taken:
        raise UserError(f"--chunks {options.chunks}: must be at most the number of groups, {taken}")
    return Sample(taken, available, options.chunks or min(CHUNKS, taken), group_size, batch_size, seed)


def _network(cli: UnlearningCLI) -> PreTrainedModel:
    """Model that training would start from, or of a checkpoint, on the trainer's device, in eval mode."""
    from sga.cli import checkpoint_file
    from sga.models.causality import check_causal
    from sga.runs.folder import RunFolder
    from sga.runs.weights import load_checkpoint

    path = checkpoint_file(RunFolder(cli.trainer.default_root_dir), cli.config["fit"].ckpt_path, required=True)
    network: PreTrainedModel = cli.model.language_model.network(cli.datamodule.tokenizer)
    cli.trainer.precision_plugin.convert_module(network)  # in place
    if path is not None:
        load_checkpoint(network, Path(path), f"--ckpt_path {path}")
    network.to(cli.trainer.strategy.root_device)  # type: ignore[arg-type]
    network.eval()  # type: ignore[no-untyped-call]
    check_causal(network, range(5))  # any tokens
    return network


# ---- tables ---------------------------------------------------------------------------------------------------------


def rules_table(result: RateResult) -> list[list[str]]:
    """Rows of the table of rules, heading first."""
    from sga.report.rate_advice import number, with_interval

    rows = [["rule", "r", "λ", "r without noise", f"r at batch {result.sample.batch_size}", "applied", "answered"]]
    for found in result.rules:
        symbol = "λ = " if found.rule.policy.parameter == "normal_weight" else "r = "
        why = "" if found.answered else " (no answer)"
        rows.append(
            [
                found.rule.name,
                with_interval(found.rate),
                with_interval(found.weight),
                with_interval(found.rate_noise_free),
                number(found.batch_rate),
                symbol + number(found.applied) + (" (clamped)" if found.clamped else why),
                f"{found.answered_share:.0%}",
            ]
        )
    return rows


def layers_table(result: RateResult) -> list[list[str]]:
    """Rows of the table of all parameters and of each layer, heading first."""
    from sga.report.rate_advice import number, with_interval

    rows = [["layer", "‖g_f‖", "‖ḡ_n‖", "cosine", "without noise", "c/n", "without noise"]]
    for name, geometry in {"all": result.whole, **result.layers}.items():
        rows.append(
            [
                name,
                f"{geometry.sample.forget_norm:.3g}",
                f"{geometry.sample.normal_norm:.3g}",
                with_interval(geometry.cosine),
                number(geometry.cosine_noise_free.value),
                with_interval(geometry.interference),
                number(geometry.interference_noise_free.value),
            ]
        )
    return rows


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _finite(value: float) -> float | None:
    """The value, or None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _estimate_content(estimate: IntervalEstimate) -> dict[str, float | None]:
    return {name: _finite(getattr(estimate, name)) for name in ("value", "low", "high")}


def _rule_content(found: RuleEstimates) -> dict[str, Any]:
    estimates = ("rate", "weight", "rate_noise_free", "weight_noise_free")
    return {
        "policy": str(found.rule.policy),
        **{name: _estimate_content(getattr(found, name)) for name in estimates},
        "batch_rate": _finite(found.batch_rate),
        "batch_weight": _finite(found.batch_weight),
        "applied": found.applied,
        "clamped": found.clamped,
        "answered": found.answered,
        "answered_share": found.answered_share,
    }


def _geometry_content(geometry: GeometryEstimates) -> dict[str, Any]:
    products = ("forget_squared", "normal_squared", "inner")
    estimates = ("cosine", "cosine_noise_free", "interference", "interference_noise_free", "sign")
    return {
        **{
            of: {name: getattr(getattr(geometry, of), name) for name in products}
            for of in ("sample", "noise_free", "batch")
        },
        **{name: _estimate_content(getattr(geometry, name)) for name in estimates},
        "forget_noise": geometry.forget_noise,
        "normal_noise": geometry.normal_noise,
    }

"""`sga plan`: memory by device, disk and time of a run, from the model's configuration alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sga.commands.parsing import verb
from sga.errors import UserError, check_numbers
from sga.runs.folder import RunFolder

if TYPE_CHECKING:
    from sga.datamodule import UnlearningData
    from sga.module import UnlearningModule
    from sga.planning.estimate import PlannedRun, RunEstimate
    from sga.planning.gpus import GPU

_MODEL = "--model.language_model.name_or_path"


@dataclass(frozen=True)
class _Options:
    """Options of the verb.

    Attributes:
        length (T): Number of tokens of the longest sequence, padding included (default: the data's).
        answer (T): Number of answer tokens of a sequence (default: half of --length).
        gpu (NAME): Name of a GPU, such as h100, a100-80 or rtx4090 (default: this machine's, if it has one).
        memory (GIB): Memory of a device; says what to do if it is too little (default: the GPU's).
        flops (RATE): Operations a second of a device, such as 4e14 (default: the GPU's; measured on a CPU).
    """

    length: int | None = None
    answer: int | None = None
    gpu: str | None = None
    memory: float | None = None
    flops: float | None = None


def main(arguments: Sequence[str]) -> int:
    """Run ``sga plan``; MODEL comes first, where it is given."""
    if arguments and not arguments[0].startswith("-"):
        return _plan([*arguments[1:], f"{_MODEL}={arguments[0]}"])
    return _plan(arguments)


@verb("plan [MODEL]")
def _plan(*rest: str, options: _Options) -> int:
    """Say what a training run would take: memory of each device and what it is for, disk, and time of a step.

    MODEL is a name on the Hub or a folder with a config.json; no weights are loaded. All options of sga fit are
    understood (--config FILE, --model.loss, --data.group_size, --data.micro_batch_size, --trainer.devices,
    --trainer.strategy, --trainer.precision, --model.gradient_checkpointing, --model.optimizer, …). Lengths of sequences
    are the data's, which is tokenised for that, unless --length is given. A GPU is planned for, unless
    --trainer.accelerator is cpu: name it with --gpu, for what its data sheet says of memory and speed.
    """
    check_numbers(above=0, **{f"--{name}": getattr(options, name) for name in ("length", "answer", "memory", "flops")})
    if options.answer is not None and (options.length is None or options.answer >= options.length):
        raise UserError("--answer must be given with --length, and be smaller: a sequence begins with its prompt")

    from sga.cli import fit_objects
    from sga.planning.estimate import GIB, cheaper_runs, estimate_run

    given = list(rest)
    named = given[-1:] and given[-1].startswith(f"{_MODEL}=")
    if named and not any(one.startswith(("--config", "--model.language_model", "--model=")) for one in given[:-1]):
        given.insert(-1, "--model.language_model=sga.Pretrained")
    config, module, data = fit_objects(given)
    gpu = _gpu(options.gpu, on_cpu=str(config.trainer.accelerator) == "cpu")
    request, steps = _request(options, config, module, data, gpu)
    found = estimate_run(request)
    print(page(request, found, _time(request, found, steps, gpu, options.flops)))
    memory = options.memory if options.memory is not None or gpu is None else gpu.memory / GIB
    if memory is None:
        return 0
    whose = f"{memory:.3g} GiB, the {gpu.name}'s" if gpu is not None and options.memory is None else f"{memory:g} GiB"
    if found.peak <= memory * GIB:
        print(f"\nIt fits in {whose}.")
        return 0
    print(f"\nIt does not fit in {whose}.")
    fitting = False
    for option, other in cheaper_runs(request).items():
        peak = estimate_run(other).peak
        fitting |= peak <= memory * GIB
        verdict = "fits" if peak <= memory * GIB else "does not fit either"
        print(f"  {peak / GIB:8.2f} GiB, {verdict}: {option}")
    if not fitting:
        print("Nothing of this is enough: take more or larger devices (--trainer.devices N --trainer.strategy fsdp2).")
    return 0


@dataclass(frozen=True)
class _Lengths:
    """Lengths of the data's sequences, in tokens.

    Attributes:
        longest: Number of tokens of the longest sequence.
        answer: Mean number of answer tokens.
        step_tokens: Number of tokens of a step, padding included; None if no data was read.
        steps: Number of steps of an epoch; None if no data was read.
        fill: Share of the fullest forward pass that packing leaves, 0 to 1.
    """

    longest: int
    answer: float
    step_tokens: float | None
    steps: int | None
    fill: float = 1.0


def _request(
    options: _Options, config: Any, module: UnlearningModule, data: UnlearningData, device: GPU | None
) -> tuple[PlannedRun, int | None]:
    """Run that the options describe, and the number of steps of an epoch if the data was read."""
    from sga.groups.roles import ALTERNATIVE, FORGET, NORMAL, RETAIN, columns_of
    from sga.losses.base import Needs
    from sga.models.pretrained import Pretrained
    from sga.optimization import optimizer_bytes
    from sga.planning.estimate import PlannedRun

    if not isinstance(module.language_model, Pretrained):
        raise UserError(
            f"{type(module.language_model).__name__} has no configuration to plan from; give sga plan a MODEL, a name "
            "on the Hub or a folder with a config.json"
        )
    loss = module.loss
    needs = loss.needs if loss is not None else Needs()
    roles = (
        FORGET,
        *[NORMAL] * (data.group_size - 1),
        *[ALTERNATIVE] * (needs.alternative is not None),
        *[RETAIN] * needs.retain,
    )
    # Some losses read other roles at every second step.
    used = max((loss.roles(step) for step in (0, 1)), key=len) if loss is not None else roles
    rows = len(columns_of(roles, used))
    split = loss is not None and loss.policy is not None and loss.policy.dynamic
    devices, sharded = _devices(config.trainer)
    micro = data.micro_batch_size or -(-data.batch_size // devices)
    if options.length is not None:
        lengths = _Lengths(options.length, options.answer or options.length / 2, None, None)
    else:
        limit = config.trainer.overfit_batches or config.trainer.limit_train_batches
        lengths = _lengths(data, needs, devices, used, module.packing, 1.0 if limit is None else limit)
    optimizer = config.model.get("optimizer")
    name = str(getattr(optimizer, "class_path", None) or optimizer)
    gpu = str(config.trainer.accelerator) != "cpu"
    bfloat16 = gpu and (device is None or device.bfloat16)
    request = PlannedRun(
        language_model=module.language_model,
        needs=needs,
        precision=str(config.trainer.precision or ("bf16-mixed" if bfloat16 else "32-true")),
        checkpointing=module.gradient_checkpointing,
        devices=devices,
        sharded=sharded,
        gpu=gpu,
        rows=rows,
        pass_rows=max(1, data.group_size - 1) if split else rows,
        split=split,
        micro_batch_size=micro,
        batch_size=data.batch_size,
        length=lengths.longest,
        answer_length=lengths.answer,
        step_tokens=lengths.step_tokens,
        fill=lengths.fill,
        optimizer_bytes=optimizer_bytes(module.optimizer, name),
    )
    return request, lengths.steps


def _devices(trainer: Any) -> tuple[int, bool]:
    """Number of devices, and True if weights are sharded over them."""
    devices = trainer.devices
    if isinstance(devices, list):
        count = len(devices)
    elif devices in ("auto", None):
        count = 1
    elif str(devices).isdigit() and int(devices) > 0:
        count = int(devices)
    else:
        raise UserError(f"sga plan needs a number of devices, got --trainer.devices {devices}")
    strategy = trainer.strategy
    name = str(getattr(strategy, "class_path", strategy)).lower()
    return count * int(trainer.num_nodes), "fsdp" in name or "modelparallel" in name


def _lengths(
    data: UnlearningData, needs: Any, devices: int, used: Sequence[str], packing: bool, limit: float
) -> _Lengths:
    """Lengths in the micro-batches of training; `limit` is the number or share of batches of an epoch."""
    from sga.batching.packing import packed, padded

    try:
        data.read()
    except UserError as error:
        raise UserError(f"{error} (or give --length and --answer, and no data is read)") from error
    data.extend(needs)
    loader = data.loader(world_size=devices)
    batches = [batch.select(*used) for batch in loader]
    answers = sum(int(batch.answer_mask.sum()) for batch in batches) / sum(len(batch.input_ids) for batch in batches)
    layouts = [(packed(batch) if packing else padded(batch)).arguments["input_ids"].shape for batch in batches]
    longest = max(width for _, width in layouts)
    whole = loader.steps_per_epoch
    loader.limit(limit)
    return _Lengths(
        longest,
        answers,
        sum(rows * width for rows, width in layouts) * devices / whole,
        loader.steps_per_epoch,
        max(rows * width for rows, width in layouts) / (max(len(batch.input_ids) for batch in batches) * longest),
    )


def _matrix_rate(precision: str) -> tuple[float, str]:
    """Operations a second of matrix products on this machine, and the name of the device; takes about a second."""
    import torch

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu and precision.startswith("bf16") else torch.float32
    size = 8192 if gpu else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)

    def seconds(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            a @ a
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds(3)
    times = max(3, int(0.5 / max(seconds(1), 1e-4)))
    what = torch.cuda.get_device_name(device) if gpu else "this machine's CPU"
    return 2 * size**3 * times / seconds(times), f"measured on {what}, {str(dtype).removeprefix('torch.')}"


def _gpu(name: str | None, on_cpu: bool) -> GPU | None:
    """GPU of the given name, or this machine's; None for a run on a CPU and for a GPU that is not in the table."""
    from sga.planning.gpus import known_gpu, named_gpu

    if name is None:
        return None if on_cpu else known_gpu(_here() or "")
    if on_cpu:
        raise UserError(f"--gpu {name} is for a run on a GPU; leave out --trainer.accelerator cpu")
    return named_gpu(name)


def _here() -> str | None:
    """Name of this machine's GPU, as the driver has it; None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _time(
    request: PlannedRun, found: RunEstimate, steps: int | None, gpu: GPU | None, given: float | None
) -> list[str]:
    """Lines on time: a range by the data sheet of a GPU, or a lower bound by a given or measured rate."""
    operations = f"  {found.flops:.3g} operations a step on each device"
    epoch = f"  {steps} steps an epoch"
    if given is None and gpu is not None:
        from sga.planning.gpus import UTILISATION

        sizes = {line.name: line.size for line in found.lines}
        # Weights and states are read and written, gradients are read; trained weights are as large as gradients.
        least = (3 * sizes["gradients"] + 2 * sizes["optimiser"]) / gpu.bandwidth
        rate, (few, many) = gpu.matrix_rate(request.precision), UTILISATION
        low, high = (max(least, found.flops / (rate * part)) for part in (many, few))
        share = f"{100 * few:.0f} to {100 * many:.0f} % of the {gpu.name}'s {rate:.3g} a second"
        return [
            "time, an estimate",
            f"{operations}, {share}: {low:.3g} to {high:.3g} s",
            *([] if steps is None else [f"{epoch}: {steps * low:.3g} to {steps * high:.3g} s, evaluation not counted"]),
            "  the share was measured on an H200 with 1.3 B and 6.7 B parameters in bf16-mixed and may be another here",
        ]
    if given is None and request.gpu and _here() is None:
        return ["time", operations, "  name the GPU with --gpu, or give --flops, for how long that takes"]
    rate, whose = (given, "as given") if given is not None else _matrix_rate(request.precision)
    seconds = found.flops / rate
    return [
        "time, at best",
        f"{operations}, {rate:.3g} a second ({whose}): {seconds:.3g} s",
        *([] if steps is None else [f"{epoch}: {steps * seconds:.3g} s, evaluation not counted"]),
        "  no step is faster than its matrix products; compare with a measured one",
    ]


def page(request: PlannedRun, found: RunEstimate, about_time: Sequence[str]) -> str:
    """Text of the plan: run, memory, disk and time."""
    from sga.planning.estimate import GIB

    strategy = "divided over them (fsdp2)" if request.sharded else "a copy on each (ddp)"
    spread = f"{request.devices} devices, {strategy}" if request.devices > 1 else "one device"
    checkpointing = "on" if request.checkpointing else "off"
    groups = (
        f"{request.batch_size} groups of {request.rows} sequences, {request.micro_batch_size} at a time on a device"
    )
    longest = "" if request.step_tokens is None else ", as the data's longest"
    counts = f"{found.parameters:,} parameters, {found.trainable:,} trained"
    run = RunFolder("")  # for the names in it
    last = run.checkpoint("last").name
    lines = [
        f"model       {request.language_model.name_or_path}, {counts}",
        f"run         {spread}, {request.precision}, gradient checkpointing {checkpointing}",
        f"step        {groups}, {request.length} tokens{longest}",
        "",
        "memory of each device, GiB",
        *(f"  {line.name:<16}{line.size / GIB:10.3f}  {line.how}" for line in found.lines),
        f"  {'at most':<16}{found.peak / GIB:10.3f}  at one time; without the CUDA context and fragmentation",
        "",
        "disk, GiB",
        f"  {last:<16}{found.checkpoint / GIB:10.3f}  weights and optimiser; twice while a new one is written",
        f"  {run.model_path.name + '/':<16}{found.export / GIB:10.3f}  the weights in Hugging Face format",
    ]
    if found.adapter:
        lines.append(f"  {run.adapter_path.name + '/':<16}{found.adapter / GIB:10.3f}  the adapter alone")
    return "\n".join([*lines, "", *about_time])

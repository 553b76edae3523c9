"""Malformed files and settings, through the whole command: an exit code, one readable message, and nothing else.

Each entry of the table writes its files into a folder and gives the command line that meets them. All of them run in
process; a sample runs through the shell too.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sga.__main__ import main
from sga.models.small import SmallLlama

Case = tuple[Callable[[], list[str]], str]
"""What makes the files and the command line, and what the message says."""

ROWS = [{"question": f"Where was Person {i} born?", "answer": f"Person {i} was born in town {i}."} for i in range(12)]
SMALL = [
    "--model.language_model=sga.SmallLlama",
    "--model.language_model.hidden_size=16",
    "--model.language_model.layers=1",
    "--model.language_model.heads=2",
    "--model.language_model.vocabulary=300",
    "--model.language_model.context=160",
]
TRACE = "ran.txt"
"""The file that appears if code from an input is run."""


def write(name: str, content: bytes | str | list[dict[str, Any]]) -> str:
    """Writes a file below ``inputs`` and returns its path."""
    path = Path("inputs", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def fit(*options: str, model: list[str] = SMALL) -> list[str]:
    """`sga fit` on good data, but for `options` and for what has been written over the data before."""
    for name, rows in (("forget", ROWS[:4]), ("retain", ROWS[4:])):
        if not Path("inputs", f"{name}.jsonl").exists():
            write(f"{name}.jsonl", rows)
    return [
        "fit",
        "--data.source=OwnData",
        "--data.root=inputs",
        "--data.source.forget=forget.jsonl",
        "--data.source.retain=retain.jsonl",
        "--data.batch_size=2",
        "--model.loss=sga.SmoothedGradientAscent",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.max_epochs=1",
        "--run.folder=run",
        *model,
        *options,
    ]


class RunsCode:
    """Pickled, it is an instruction to make the file `TRACE`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (TRACE, "w")


def saved(content: Any) -> bytes:
    """What torch.save makes of it."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    """A compressed archive; "/" stands as "__" in the names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


# ---- kinds of cases -------------------------------------------------------------------------------------------------


def data(content: bytes | str, said: str, *options: str) -> Case:
    """A forget file."""

    def make() -> list[str]:
        write("forget.jsonl", content)
        return fit(*options)

    return make, said


def line(text: str, said: str) -> Case:
    """The second line of a forget file."""
    return data(f"{json.dumps(ROWS[0])}\n{text}\n", f"forget.jsonl:2: {said}")


def file(option: str, content: bytes | str, said: str, *options: str) -> Case:
    """A file that an option of `sga fit` names."""
    return lambda: fit(f"--{option}={write('file', content)}", *options), said


def settings(said: str, *options: str) -> Case:
    return lambda: fit(*options), said


def checkpoint(content: Callable[[], bytes], said: str) -> Case:
    return lambda: fit(f"--ckpt_path={write('some.ckpt', content())}"), said


def model(change: Callable[[Path], object], said: str) -> Case:
    """A model folder of which something is changed."""

    def make() -> list[str]:
        folder = Path("inputs", "model")
        description = SmallLlama(hidden_size=16, layers=1, heads=2, vocabulary=300, context=160)
        tokenizer = description.tokenizer(row["answer"] for row in ROWS)
        description.network(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        change(folder)
        pretrained = ["--model.language_model=sga.Pretrained"]
        return fit(model=[*pretrained, f"--model.language_model.name_or_path={folder}"])

    return make, said


def with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(saved({"model.norm.weight": RunsCode()}))


def with_module(folder: Path) -> None:
    classes = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": classes}))
    (folder / "mine.py").write_text(f"open({TRACE!r}, 'w')\n")


def config(**values: Any) -> Callable[[Path], object]:
    """Changes config.json."""

    def change(folder: Path) -> None:
        before = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**before, **values}))

    return change


def other_model() -> bytes:
    empty: dict[str, Any] = {"loops": {}, "callbacks": {}, "optimizer_states": [], "lr_schedulers": []}
    place = {"pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 1}
    return saved({"state_dict": {"model.weight": torch.zeros(3)}, **place, **empty})


def verb(said: str, *arguments: str, **files: bytes | str) -> Case:
    """Another verb, with files below ``inputs``; "." stands as "__" in their names, and "/" as "___"."""

    def make() -> list[str]:
        for name, content in files.items():
            write(name.replace("___", "/").replace("__", "."), content)
        return list(arguments)

    return make, said


def on_data(said: str, *arguments: str, **files: bytes | str) -> Case:
    """Another verb with the data and model of `fit`."""

    def make() -> list[str]:
        verb(said, **files)[0]()
        return [*arguments, *fit()[1:]]

    return make, said


DEEP = "[" * 100_000
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefg"
)
HUGE = "9" * 400
"""A whole number that Python takes, beyond what a float holds."""
PAIR = json.dumps(
    {"forget_id": "f/0", "forget": {"sha256": ""}, "normals": [{"id": "a", "sha256": "", "score": int(HUGE)}]}
)
RUN = json.dumps({"name": "a", "evaluation": {"benchmark": "own"}})
ROW = json.dumps({"step": 0, "set": "forget", "id": "forget/0"}) + "\n"
GENERATE = ("normals", "generate", "--output", "n.jsonl", "--dry-run", "--local", "x", "--prompt", "inputs/p.yaml")

CASES: dict[str, Case] = {
    # Data.
    "data/empty": data("", "forget.jsonl: holds no record"),
    "data/blank lines": data("\n\n  \n", "forget.jsonl: holds no record"),
    "data/byte-order mark alone": data(b"\xef\xbb\xbf", "forget.jsonl: holds no record"),
    "data/key twice": line('{"question": "a", "answer": "b", "answer": "c"}', "not JSON ('answer' stands twice"),
    "data/UTF-16": data(json.dumps(ROWS[0]).encode("utf-16"), "forget.jsonl:1: not UTF-8"),
    "data/compressed": data(gzip.compress(json.dumps(ROWS[0]).encode()), "forget.jsonl:1: not UTF-8"),
    "data/one array": data(json.dumps(ROWS), "forget.jsonl:1: expected a JSON object, found list"),
    "data/object over lines": data(json.dumps(ROWS[0], indent=2), "forget.jsonl:1: not JSON"),
    "data/two objects": line(json.dumps(ROWS[1]) * 2, "not JSON (Extra data"),
    "data/both forms": line('{"text": "a", "question": "b", "answer": "c"}', "has both 'text' and"),
    "data/null": line('{"question": null, "answer": "c"}', "'question' must be a string, got NoneType"),
    "data/nan": line("NaN", "expected a JSON object, found float"),
    "data/nested deeply": line(f'{{"question": "a", "answer": {DEEP}', "not JSON (maximum recursion depth"),
    "data/long number": line(f'{{"question": "a", "answer": {"9" * 5000}}}', "not JSON (Exceeds the limit"),
    "data/half a character": line(
        '{"question": "Who?", "answer": "\\ud800"}', "'answer' has half of a character in it (\\ud800)"
    ),
    "data/folder": settings("inputs: no such file", "--data.source.forget="),
    "data/forget in retain": settings("also stands in the retain pool", "--data.source.retain=forget.jsonl"),
    "tofu/one split": (
        lambda: (write("tofu/forget10.json", ROWS), fit("--data.source=TOFU", "--data.root=inputs/tofu"))[1],
        "the TOFU split forget10_perturbed is missing",
    ),
    "muse/other files": settings("no MUSE-News files there", "--data.source=sga.MUSENews"),
    "book/no normal text": settings(
        "needs normal text beside it", "--data.source=sga.Book", "--data.source.text=forget.jsonl"
    ),
    "authors/none": settings(
        "forget_authors must be at least 1", "--data.source=sga.Authors", "--data.source.forget_authors=0"
    ),
    "authors/half of one": settings("<class 'int'>", "--data.source=Authors", "--data.source.forget_authors=1.5"),
    "pairs/empty": file("data.pairs", "", "no line for 4 forget records"),
    "pairs/other lines": file("data.pairs", '{"forget": 3}\n', "file:1: not a line of a pairing"),
    "pairs/large number": file("data.pairs", PAIR, "file:1: not a line of a pairing (OverflowError"),
    "pairs/folder": settings("inputs: no such file", "--data.pairs=inputs"),
    "refusals/none": file("data.refusals", "\n\n", "the file holds no refusal", "--model.loss=sga.DPO"),
    "template/number": settings("{question} once", "--data.template=PlainTemplate", "--data.template.text=3"),
    # Configurations.
    "config/syntax": file("config", "data: [1, 2\ntrainer: {\n", "file:2: not YAML"),
    "config/long number": file("config", f"data:\n  batch_size: {'9' * 5000}\n", "file:2: not YAML (Exceeds the limit"),
    "config/tab": file("config", "data:\n\tbatch_size: 2\n", "file:2: not YAML"),
    "config/list": file("config", "- a\n- b\n", "expected names with values"),
    "config/text": file("config", "hello\n", "expected names with values, got 'hello'"),
    "config/Latin-1": file("config", "run: {folder: café}\n".encode("latin-1"), "file: not UTF-8"),
    "config/Python object": file(
        "config", f"seed_everything: !!python/object/apply:os.system ['touch {TRACE}']\n", "file:1: not YAML"
    ),
    "config/key twice": file("config", "data: {batch_size: 2, batch_size: 3}\n", "'batch_size' stands there twice"),
    "config/aliases": file("config", ALIASES, "aliases make it too large"),
    "config/itself": file("config", "data: &a {source: *a}\n", "a block contains itself"),
    "config/deep": file("config", DEEP, "nested too deeply"),
    "config/folder": settings("not a file", "--config=inputs"),
    "config/unknown block": file("config", "modle: {}\n", "there is no setting 'modle'; there are"),
    "config/unknown setting": file("config", "data: {batchsize: 3}\n", "batchsize"),
    "config/number for a block": file("config", "data: 3\n", "data is a block of settings, got 3"),
    "config/fraction": file("config", "data: {batch_size: 2.5}\n", "data.batch_size"),
    "config/word": file("config", "data: {batch_size: three}\n", "data.batch_size"),
    "config/null": file("config", "data: {batch_size: null}\n", "data.batch_size must not be null"),
    "config/function for a loss": file(
        "config", f"model: {{loss: {{class_path: os.system, init_args: {{command: touch {TRACE}}}}}}}\n", "os.system"
    ),
    "config/program for a loss": file(
        "config", f"model: {{loss: {{class_path: subprocess.Popen, init_args: {{args: [touch, {TRACE}]}}}}}}\n", "Popen"
    ),
    # Settings.
    "settings/learning rate": settings(
        "model.optimizer: Invalid learning rate: -1", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=-1"
    ),
    "settings/betas": settings(
        "model.optimizer: Invalid beta", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.betas=[1.5, 0.9]"
    ),
    "settings/unknown optimizer": settings("Nothing", "--model.optimizer=torch.optim.Nothing"),
    "settings/no optimizer": settings("torch.nn.Linear", "--model.optimizer=torch.nn.Linear"),
    "settings/loss of no module": settings("no_such_module", "--model.loss=no_such_module.Loss"),
    "settings/argument of no loss": settings("'rate' is not accepted", "--model.loss.rate=1"),
    "settings/accelerator": settings("invalid accelerator name", "--trainer.accelerator=quantum"),
    "settings/precision": settings("trainer.precision", "--trainer.precision=12"),
    "settings/strategy": settings("invalid strategy name", "--trainer.strategy=magic"),
    "settings/no device": settings("not a valid input", "--trainer.devices=0"),
    "settings/fewer than no devices": settings("should be an int > 0", "--trainer.devices=-3"),
    "settings/epochs": settings("trainer.max_epochs", "--trainer.max_epochs=many"),
    "settings/negative epochs": settings("`max_epochs` must be", "--trainer.max_epochs=-5"),
    "settings/negative steps": settings("`max_steps` must be", "--trainer.max_steps=-5"),
    "settings/clipping": settings("gradient_clip_val must be a finite", "--trainer.gradient_clip_val=-1"),
    "settings/kind of clipping": settings(
        "`gradient_clip_algorithm` x is invalid",
        "--trainer.gradient_clip_val=1",
        "--trainer.gradient_clip_algorithm=x",
    ),
    "settings/batches": settings("must be 0 (no evaluation) or 1.0", "--trainer.limit_val_batches=-1"),
    "settings/callback": settings("nope", "--trainer.callbacks=[nope.Nope]"),
    "settings/long number": settings("Exceeds the limit", f"--data.batch_size={'9' * 5000}"),
    "settings/large clipping": settings("gradient_clip_val must be a finite", f"--trainer.gradient_clip_val={HUGE}"),
    "settings/seed": settings("seed_everything must be from 0", "--seed_everything=-1"),
    "settings/large seed": settings("seed_everything must be from 0", "--seed_everything=99999999999"),
    "settings/negative group": settings("group_size must be at least 1, got -4", "--data.group_size=-4"),
    "settings/length": settings("more than max_length = 0", "--data.max_length=0"),
    "settings/pool": settings("pool_size must be at least", "--data.pool_size=1"),
    "settings/layers": settings("layers must be at least 1, got -1", "--model.language_model.layers=-1"),
    "settings/heads": settings("heads must be at least 1, got 0", "--model.language_model.heads=0"),
    "settings/context": settings("context must be at least 1, got 0", "--model.language_model.context=0"),
    "settings/rule": settings("NoRule", "--stop.rule=NoRule"),
    "settings/folder is a file": file("run.folder", "", "inputs/file is a file; choose another folder"),
    "settings/folder in a file": (lambda: fit(f"--run.folder={write('file', '')}/run"), "file is a file"),
    "settings/no folder": settings("name a folder of the run's own", "--run.folder="),
    "settings/folder of no name": settings("name a folder of the run's own", "--run.folder=a\0b"),
    "settings/long folder": settings("not a path (File name too long)", f"--run.folder={'x' * 300}"),
    # Checkpoints.
    "checkpoint/text": checkpoint(lambda: b"hello", "not a checkpoint, or a damaged one"),
    "checkpoint/empty": checkpoint(lambda: b"", "not a checkpoint, or a damaged one"),
    "checkpoint/cut off": checkpoint(lambda: saved({"a": torch.zeros(999)})[:-300], "damaged"),
    "checkpoint/a bit turned": checkpoint(
        lambda: (lambda content: content[:80] + bytes([content[80] ^ 255]) + content[81:])(saved({"state_dict": {}})),
        "damaged",
    ),
    "checkpoint/runs code": checkpoint(lambda: saved({"state_dict": RunsCode()}), "may run code when it is read"),
    "checkpoint/bare pickle": checkpoint(lambda: pickle.dumps(RunsCode()), "damaged"),
    "checkpoint/weights alone": checkpoint(lambda: saved({"a": torch.zeros(3)}), "it has no state_dict, global_step"),
    "checkpoint/list": checkpoint(lambda: saved([1, 2]), "not a checkpoint of a run"),
    "checkpoint/large when unpacked": checkpoint(
        lambda: zipped(archive__data__pkl=b"0" * 10_000_000), "not written by torch.save"
    ),
    "checkpoint/other model": checkpoint(other_model, "the checkpoint is of another model"),
    "checkpoint/folder": settings("no such file as inputs", "--ckpt_path=inputs"),
    # Models.
    "model/pickle that runs code": model(with_code, "may run code; take them as safetensors"),
    "model/module of its own": model(with_module, "contains custom code"),
    "model/weights are text": model(lambda f: (f / "model.safetensors").write_bytes(b"hello"), "no model could be"),
    "model/weights cut off": model(
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:2000]),
        "no model could be loaded from 'inputs/model'",
    ),
    "model/no weights": model(lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "model/config cut off": model(lambda f: (f / "config.json").write_text("{"), "not a valid JSON file"),
    "model/config is a list": model(lambda f: (f / "config.json").write_text("[]"), "could be loaded from"),
    "model/unknown kind": model(config(model_type="nothing"), "model type `nothing`"),
    "model/other width": model(config(hidden_size=32), "could be loaded from 'inputs/model'"),
    "model/width is a word": model(config(hidden_size="big"), "expected int, got str"),
    "model/more layers": model(config(num_hidden_layers=2), "lack 9 parameters of its config.json"),
    "model/tokenizer is a list": model(lambda f: (f / "tokenizer.json").write_text("[]"), "no tokenizer could be"),
    # References.
    "reference/empty folder": (
        lambda: (Path("inputs/ref").mkdir(parents=True), fit("--evaluation.reference=inputs/ref"))[1],
        "no rows in this folder",
    ),
    "reference/rows are text": file("evaluation.reference", "nope\n", "not JSON"),
    "reference/list": file("evaluation.reference", "[]", "expected a JSON object, found list"),
    "reference/nothing": file("evaluation.reference", "{}", "neither 'eval_log_forget.json'"),
    "reference/nested deeply": file("evaluation.reference", DEEP, "not JSON (maximum recursion depth"),
    "reference/number for rows": file(
        "evaluation.reference", '{"eval_log_forget.json": {"avg_gt_loss": 3}}', "expected one entry a row, got 3"
    ),
    # Sweeps, sequences, demos.
    "sweep/binary": verb("s.yaml: not UTF-8", "sweep", "inputs/s.yaml", s__yaml=b"\xff\xfe\x00"),
    "sweep/empty": verb("needs either grid or search", "sweep", "inputs/s.yaml", s__yaml=""),
    "sweep/list": verb("expected names with values", "sweep", "inputs/s.yaml", s__yaml="- 1"),
    "sweep/setting of no name": verb(
        "--set nonsense: must be NAME=VALUE", "sweep", "inputs/s.yaml", "--set", "nonsense", s__yaml="grid: {a: [1]}"
    ),
    "sweep/long number": verb(
        "--set a:1: not YAML (Exceeds the limit",
        *("sweep", "inputs/s.yaml", "--set", f"a={'9' * 5000}"),
        s__yaml="grid: {a: [1]}",
    ),
    "sweep/unfinished list": verb(
        "--set a:1: not YAML", "sweep", "inputs/s.yaml", "--set", "a=[1", s__yaml="grid: {a: [1]}"
    ),
    "sweep/large number": verb(
        "uniform needs its lowest and its highest value",
        *("sweep", "inputs/s.yaml"),
        s__yaml=f"config: c.yaml\nsearch: {{trials: 1, space: {{a: {{uniform: [0, {HUGE}]}}}}}}\n",
        c__yaml="{}",
    ),
    "sweep/large step": verb(
        "step must be a positive number",
        *("sweep", "inputs/s.yaml"),
        s__yaml=f"config: c.yaml\nsearch: {{trials: 1, space: {{a: {{uniform: [0, 1], step: {HUGE}}}}}}}\n",
        c__yaml="{}",
    ),
    "sweep/broken configuration": verb(
        "c.yaml:1: not YAML",
        "sweep",
        "inputs/s.yaml",
        s__yaml="config: c.yaml\ngrid: {data.batch_size: [1]}\nseeds: [0]\n",
        c__yaml="[",
    ),
    "sequence/missing": verb("none.yaml: no such file", "sequence", "--config", "inputs/none.yaml"),
    "sequence/request is a number": verb(
        "requests must be a list of settings",
        *("sequence", "--config", "inputs/s.yaml"),
        s__yaml="config: c.yaml\nrequests: [3]\n",
        c__yaml="{}",
    ),
    "sequence/damaged state": verb(
        "task.json:1: not JSON",
        *("sequence", "--config", "inputs/s.yaml", "--folder", "inputs/all"),
        s__yaml="config: c.yaml\nfolds: 2\n",
        c__yaml="{}",
        **{"all___request-1___task__json": "{"},
    ),
    "sequence/folder is a file": verb(
        "a file stands where a folder is to be",
        *("sequence", "--config", "inputs/s.yaml", "--folder", "inputs/all"),
        s__yaml="config: c.yaml\nfolds: 2\n",
        c__yaml="{}",
        all="",
    ),
    "demo/syntax": verb("d.yaml:1: not YAML", "demo", "--config", "inputs/d.yaml", "--folder", "d", d__yaml="a: ["),
    "demo/other keys": verb("needs target", "demo", "--config", "inputs/d.yaml", "--folder", "d", d__yaml="a: 1"),
    # Logs and runs.
    "score/no log": verb("required: LOG", "score"),
    "score/empty": verb("l.json:1: not JSON", "score", "inputs/l.json", l__json=""),
    "score/nested deeply": verb("not JSON (maximum recursion depth", "score", "inputs/l.json", l__json=DEEP),
    "score/step is a word": verb("invalid int value", "score", "inputs/l.json", "--step", "x", l__json="{}"),
    "score/rows are lists": verb("expected a JSON object", "score", "inputs/rows.jsonl", rows__jsonl="[1]\n"),
    "score/half a step": verb(
        "needs 'step' (an integer)", "score", "inputs/rows.jsonl", rows__jsonl='{"step": 1.5, "set": "forget"}\n'
    ),
    "compare/one run": verb("required: RUN_B", "compare", "inputs/l.json"),
    "compare/rows without step": verb(
        "rows.jsonl:1: needs 'step'", "compare", "inputs/r", "inputs/r", r___rows__jsonl="{}\n", r___run__json=RUN
    ),
    "compare/seed": verb(
        "--seed must be at least 0, got -1", "compare", "inputs/r", "inputs/r", "--seed", "-1", r___rows__jsonl=ROW
    ),
    "report/a file": verb("l.json: no such run folder", "report", "inputs/l.json", l__json="{}"),
    "report/cut off": verb("run.json:1: not JSON", "report", "inputs/r", r___run__json="{"),
    "report/no role": verb("missing 'role'", "report", "inputs/r", r___run__json=RUN, r___metrics__jsonl="{}"),
    # Looking.
    "rate/groups": on_data("--groups must be at least 4, got 0", "rate", "--groups=0"),
    "rate/margin is a word": on_data("invalid float value: 'x'", "rate", "--margins", "x"),
    "rate/no configuration": verb("none.yaml", "rate", "--config=none.yaml"),
    "show/groups": on_data("--groups must be at least 1, got -1", "data", "show", "--groups=-1"),
    "show/verb": verb("there is no verb 'data shew'", "data", "shew"),
    # Normal data.
    "normals/missing": verb("n.jsonl: no such file", "normals", "show", "inputs/n.jsonl"),
    "normals/other lines": verb("not a line of a normal-data", "normals", "show", "inputs/n.jsonl", n__jsonl="{}\n"),
    "normals/large number": verb("not a line of a normal-data", "normals", "show", "inputs/n.jsonl", n__jsonl=PAIR),
    "normals/empty": verb("holds no group", "normals", "show", "inputs/n.jsonl", n__jsonl=""),
    "normals/output is there": on_data("is there already", "normals", "retrieve", "--output", "inputs", x=""),
    "normals/address": on_data(
        "must begin with https://", "normals", "generate", "--output", "n.jsonl", "--url", "nowhere", "--name", "x"
    ),
    "prompt/missing": on_data("p.yaml: no such prompt", *GENERATE),
    "prompt/syntax": on_data("p.yaml:1: not YAML", *GENERATE, p__yaml="kind: ["),
    "prompt/no answer": on_data("must contain {answer}", *GENERATE, p__yaml="{kind: qa, system: a, user: b}"),
}

SHELL = (
    "data/half a character",
    "data/compressed",
    "config/Python object",
    "config/key twice",
    "settings/accelerator",
    "settings/clipping",
    "checkpoint/runs code",
    "checkpoint/other model",
    "model/pickle that runs code",
    "model/module of its own",
    "reference/nested deeply",
    "sequence/folder is a file",
    "compare/seed",
)


def tree() -> dict[str, bytes | None]:
    """Everything in the working directory."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def assert_refused(code: int, printed: str, said: str) -> None:
    assert code in (1, 2), printed
    assert "Traceback" not in printed
    assert printed.count("error: ") + printed.count("sga: stopped: ") == 1, printed
    assert said in " ".join(printed.split()), printed
    assert len(printed) < 3000 and printed.count("\n") < 20, "readable at a glance"


def test_there_are_enough() -> None:
    assert len(CASES) >= 60 and set(SHELL) <= set(CASES) and len(SHELL) >= 10


@pytest.mark.parametrize("name", CASES)
@pytest.mark.runs
def test_it_is_refused_with_one_message_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SGA_TRACEBACK", raising=False)
    arguments = make()
    before = tree()
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        code = stopped.code
    assert_refused(code, capsys.readouterr().err, said)
    assert tree() == before


def test_negative_control_without_a_fault_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good, _ = model(lambda folder: None, "")
    assert main([*good(), "--export.enabled=false", f"--config={write('c.yaml', 'data: {batch_size: 2}')}"]) == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_negative_control_the_pickle_does_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.load(io.BytesIO(saved({"state_dict": RunsCode()})), weights_only=False)
    assert Path(TRACE).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHELL)
def test_through_the_shell(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = CASES[name]
    monkeypatch.chdir(tmp_path)
    arguments = make()
    before = tree()
    environment = {key: value for key, value in os.environ.items() if key != "SGA_TRACEBACK"}
    command = [sys.executable, "-m", "sga", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert_refused(done.returncode, done.stderr, said)
    assert tree() == before

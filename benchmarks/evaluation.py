"""Times this package's evaluation against the plain one, on the same model and rows, in one run.

    python benchmarks/evaluation.py --model FOLDER --data FOLDER_WITH_TOFU [--output FILE.json]
    python benchmarks/evaluation.py --untrained --rows 40 --no-generation --data FOLDER_WITH_TOFU

Both are run in turn, `--repeats` times, each time in a process of its own, and the median of the ratios of neighbouring
runs is what is quoted: a machine that is slow for a minute is slow for both. On a CPU that other programs use too,
`--threads 1` keeps a thread from waiting for another one that is not running. Numbers and generated texts of the two
are compared too; the program fails where they differ.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from plain_evaluation import PASSES, PREFIXES, evaluation_sets, plain_evaluation
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import sga
from sga.batching.encoding import Encoder
from sga.batching.templates import PlainTemplate
from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.forget_quality import ForgetQuality
from sga.callbacks.membership_inference import MembershipInference
from sga.callbacks.memorization import Memorization
from sga.callbacks.model_utility import ModelUtility
from sga.callbacks.perplexity import Perplexity
from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.inference import Inference, most_rows, most_tokens
from sga.evaluation.request_batches import RequestBatches, ScoreBatch
from sga.evaluation.requests import Answer
from sga.files import write_json

Sets = Mapping[str, tuple[Record, ...]]


def our_evaluation(
    model: PreTrainedModel, encoder: Encoder, sets: Sets, generate: bool
) -> tuple[Evaluation, dict[str, float]]:
    """The evaluation that `sga validate` makes, with intervals, and the seconds of its parts."""
    data = EvaluationData("tofu", dict(sets), absent={}, normals=(), settings={}, encoder=encoder)
    callbacks: list[EvaluationCallback] = [
        ForgetQuality(),
        ModelUtility(generate=generate),
        MembershipInference(reference_auc=0.5),
        Memorization(),
        Perplexity(),
    ]
    seconds = {"scoring": 0.0, "generation": 0.0}
    start = time.perf_counter()
    plan = RequestBatches(
        (request for callback in callbacks for request in callback.requests(data)),
        encoder,
        most_tokens(model, model.device),
        most_rows(model, model.device, encoder.max_length),
    )
    stops = {int(encoder.tokenizer.eos_token_id)}
    inference = Inference(model, sorted(stops))
    answers: dict[int, Answer] = {}
    seconds["planning"] = time.perf_counter() - start
    for batch in plan:
        begun = time.perf_counter()
        answers.update(zip(batch.indices, inference.answer(batch.to(model.device)), strict=True))
        seconds["scoring" if isinstance(batch, ScoreBatch) else "generation"] += time.perf_counter() - begun
    begun = time.perf_counter()
    evaluation, by_request = Evaluation("tofu"), plan.answers(answers)
    for callback in callbacks:
        callback.evaluate(data, by_request, evaluation)
    seconds["metrics"] = time.perf_counter() - begun
    seconds["total"] = time.perf_counter() - start
    return evaluation, seconds


def untrained_llama(vocabulary: int) -> PreTrainedModel:
    """A Llama of hidden 768 and 12 layers, 110 M parameters with a vocabulary of 32,000."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


def measure(evaluator: str, model: PreTrainedModel, encoder: Encoder, sets: Sets, generate: bool) -> dict[str, Any]:
    """One evaluation: seconds by part, peak memory, and the numbers and texts that it gave."""
    before = _memory(model.device)
    if evaluator == "ours":
        ours, seconds = our_evaluation(model, encoder, sets, generate)
        metrics = ours.metrics
        avg_nll = {name: [row["avg_nll"] for row in ours.of_set(name)] for name in sets}
        texts = {name: [row["generation"] for row in ours.of_set(name)] for name in PREFIXES} if generate else {}
    else:
        plain = plain_evaluation(model, encoder, sets, generate)
        metrics, avg_nll, texts = plain.metrics, plain.avg_nll, plain.generations
        seconds = {
            "scoring": plain.scoring_seconds,
            "generation": plain.generation_seconds,
            "spared": plain.spared_seconds,
            "total": plain.scoring_seconds + plain.generation_seconds,
        }
    peak = {"peak": _memory(model.device), "before": before}
    return {"seconds": seconds, "bytes": peak, "metrics": metrics, "avg_nll": avg_nll, "texts": texts}


def in_process_of_its_own(evaluator: str) -> dict[str, Any]:
    """`measure` in a new process with this one's arguments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        command = [sys.executable, __file__, *sys.argv[1:], "--only", evaluator, "--output", str(path)]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def differences(ours: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference of an avg_nll and of a metric (relative), and the share of greedy answers that differ."""
    nll = max(np.abs(np.array(ours["avg_nll"][name]) - values).max() for name, values in plain["avg_nll"].items())
    metric = max(
        abs(ours["metrics"][name] - value) / max(abs(value), 1e-12) for name, value in plain["metrics"].items()
    )
    pairs = [pair for name, texts in plain["texts"].items() for pair in zip(ours["texts"][name], texts, strict=True)]
    found = {"avg_nll": float(nll), "a metric, relative": float(metric)}
    if pairs:
        found["share of greedy answers"] = sum(a != b for a, b in pairs) / len(pairs)
    return found


def _memory(device: torch.device) -> int:
    """Peak bytes of this process so far, on the GPU where it uses one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def main() -> None:
    """Runs the benchmark and prints, and if asked writes, what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", help="folder with TOFU's files; default $SGA_DATA/tofu, or the Hub")
    parser.add_argument("--model", help="Hugging Face folder or name")
    parser.add_argument("--untrained", action="store_true", help="an untrained Llama (768, 12 layers, 32,000 tokens)")
    parser.add_argument("--tokenizer", help="tokenizer for --untrained; default --model's")
    parser.add_argument("--template", default="Question: {question}\nAnswer:\n{answer}")
    parser.add_argument("--rows", type=int, help="first rows of each set; default all")
    parser.add_argument("--no-generation", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of each evaluation; default as PyTorch chooses")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    source = arguments.tokenizer or arguments.model
    if source is None:
        parser.error("give --model FOLDER, or --untrained with --tokenizer FOLDER")
    model: Any = untrained_llama(32000) if arguments.untrained else AutoModelForCausalLM.from_pretrained(source).eval()
    model = model.to(arguments.device)
    encoder = Encoder(AutoTokenizer.from_pretrained(source), PlainTemplate(arguments.template), 512)
    sets = evaluation_sets(arguments.data, rows=arguments.rows)
    generate = not arguments.no_generation
    if arguments.only:
        write_json(arguments.output, measure(arguments.only, model, encoder, sets, generate))
        return

    rounds: list[dict[str, Any]] = []
    for number in range(arguments.repeats):
        rounds.append({name: in_process_of_its_own(name) for name in ("ours", "plain")})
        ours, plain = rounds[-1]["ours"], rounds[-1]["plain"]
        shown = ", ".join(f"{name} {one['seconds']['total']:.1f} s" for name, one in rounds[-1].items())
        print(f"round {number + 1}: {shown}", flush=True)
    different = differences(ours, plain)

    def ratio(part: str, spared: bool = True) -> float:
        def plain_seconds(one: dict[str, float]) -> float:
            return one[part] - (0 if spared else one["spared"])

        return statistics.median(
            plain_seconds(one["plain"]["seconds"]) / one["ours"]["seconds"][part] for one in rounds
        )

    result = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": "python benchmarks/evaluation.py " + " ".join(_shown(sys.argv[1:])),
        "device": _device_name(model.device),
        "versions": {"sga": sga.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "passes_of_the_plain_one": sum(not item.generates or generate for item in PASSES),
        "times_faster": {
            "whole": ratio("total"),
            "whole, without the passes that open-unlearning spares": ratio("total", spared=False),
            "scoring": ratio("scoring"),
            **({"generation": ratio("generation")} if generate else {}),
        },
        "seconds": [{name: one[name]["seconds"] for name in one} for one in rounds],
        "bytes": [{name: one[name]["bytes"] for name in one} for one in rounds],
        "largest_difference_of": different,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if arguments.output:
        write_json(arguments.output, result)
    if different["avg_nll"] > 1e-3 or different.get("share of greedy answers", 0) > 0.01:
        sys.exit("the two evaluations do not give the same numbers")


def _shown(arguments: list[str]) -> list[str]:
    """The command without this machine's folders."""
    return [Path(part).name if Path(part).is_absolute() else part for part in arguments]


if __name__ == "__main__":
    main()

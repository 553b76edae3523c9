"""Tables of the pages, from the stored numbers of the runs; no model is loaded.

    python benchmarks/result_tables.py    # writes each table anew in its page, and the CSV files of docs/results

Of seeds the tables have single values and no interval: Student's t over three seeds ends outside what a metric can be.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from scipy import stats

from sga.evaluation.metrics import forget_quality, frontier_area
from sga.evaluation.paired import holm

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = DOCS / "results"
NEAR = 0.1
"""Distance of a membership AUC from the reference's that is called neither under- nor over-unlearned."""
SWEEPS = ("methods", "normals", "rates", "rules")
CEILING = "retained models against each other, the ceiling"
WORDS = (
    (r"SmoothedGradientAscent smoothing_rate=", "SGA r = "),
    (r"SmoothedGradientDifference smoothing_rate=0\b", "gradient difference on random retain samples (TOFU's own)"),
    (r"SmoothedGradientDifference smoothing_rate=", "SGA with separate retain samples, r = "),
    (r"GradientDifference normal_weight=", "gradient difference, same normals, λ = "),
    (r"GradientAscent", "gradient ascent"),
    (r"(lr=\S+), (.*)", r"\2, \1"),
    (r"= ([-(])", lambda found: f"= {found[1]}".replace("-", "−")),
)
"""Patterns in the names of configurations, and what the tables say."""

Point = Mapping[str, Any]


def stored(name: str) -> Any:
    """Content of a file of raw results."""
    return json.loads(gzip.decompress((RESULTS / f"{name}.json.gz").read_bytes()))


def reported(content: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Runs of each reported configuration, by ascending seed."""
    return {
        row["configuration"]: [row["runs"][seed] for seed in sorted(row["runs"], key=int)]
        for row in content["rows"]
        if row["stage"] == "final"
    }


def words(configuration: str) -> str:
    """Name of a configuration as the tables say it."""
    for pattern, said in WORDS:
        configuration = re.sub(pattern, said, configuration)
    return configuration


def numbers(values: Iterable[float], digits: int) -> str:
    """Values one after the other, with a true minus."""
    texts = [f"{value:.{digits}f}" for value in values]
    return ", ".join((text if float(text) else text.lstrip("-")).replace("-", "−") for text in texts)


def of(points: Sequence[Point], name: str) -> list[float]:
    """A metric of several evaluations, whatever the benchmark."""
    return [next(value for key, value in point.items() if key.partition("/")[2] == name) for point in points]


def hypervolume(evaluations: Sequence[Point], floor: float = -12.0) -> float:
    """The normalised hypervolume indicator of a run's evaluations, with reference point (`floor`, 0)."""
    keys = "authors/forget_quality_log10", "authors/model_utility"
    points = [tuple(point[key] for key in keys) for point in evaluations if all(key in point for key in keys)]
    return frontier_area(points, floor)  # type: ignore[arg-type]


def areas(runs: Sequence[Point]) -> list[float]:
    """Hypervolume of each run."""
    return [hypervolume(run["evaluations"]) for run in runs]


def retained_models() -> list[Point]:
    """Retained models, each with forget quality against the three others: the mean of log10 p."""
    models = [model for _, model in sorted(stored("retained")["models"].items(), key=lambda item: int(item[0]))]
    ratios = [model["forget_log_truth_ratio"] for model in models]
    points = []
    for index, model in enumerate(models):
        logs = [forget_quality(ratios[index], other).log10_p for n, other in enumerate(ratios) if n != index]
        quality = {"authors/forget_quality_log10": fmean(logs), "range": (min(logs), max(logs))}
        point = {**model["metrics"], **quality}
        points.append({**point, "evaluations": [point]})
    return points


def chosen_without_reference(evaluations: Sequence[Point]) -> Point:
    """The first evaluation after the start at which the loss tells forget from holdout rows no longer (AUC <= 1/2).

    The last one where there is none. It reads no retrained model: holdout rows are enough.
    """
    later = [point for point in evaluations if point["step"] > 0]
    return next((point for point in later if point["authors/mia/loss"] <= 0.5), later[-1])


def side(auc: float, reference: float) -> str:
    """On which side of the retrained model's value a membership AUC lies."""
    if abs(auc - reference) <= NEAR:
        return "near"
    return "over" if auc < reference else "under"


def sides(runs: Sequence[Sequence[Point]], reference: float | None = None) -> str:
    """`side` of Min-K % at the last evaluation of each seed's run, once where all agree."""
    points = [evaluations[-1] for evaluations in runs]
    aucs = [reference] * len(points) if reference is not None else of(points, "privleak_reference_auc")
    found = [side(*pair) for pair in zip(of(points, "mia/min_k"), aucs, strict=True)]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def pairs_that_stand(content: Mapping[str, Any], level: float = 0.05) -> tuple[int, int, list[tuple[str, str]]]:
    """Number of pairs of configurations, of those that differ in a paired t-test, and the pairs that Holm leaves."""
    found = {name: areas(runs) for name, runs in reported(content).items()}
    pairs = list(itertools.combinations(found, 2))
    p = [float(stats.ttest_rel(found[one], found[other]).pvalue) for one, other in pairs]
    left = [pair for pair, adjusted in zip(pairs, holm(p), strict=True) if adjusted < level]
    return len(p), sum(one < level for one in p), left


def agreement(content: Mapping[str, Any], count: int = 10) -> float:
    """Rank correlation of whole runs' hypervolume with that of the last evaluation, over the best of the former."""
    runs = reported(content).values()
    pairs = [(fmean(areas(some)), fmean(hypervolume(run["evaluations"][-1:]) for run in some)) for some in runs]
    return float(stats.spearmanr(sorted(pairs)[-count:]).statistic)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without the last line break."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def methods() -> str:
    """All methods, by the forget quality of the evaluation that the rule chooses, the best first."""
    content = stored("methods")
    heads = [
        "configuration", "last: log10 FQ", "last: utility", "last: Min-K AUC", "side",
        "rule: log10 FQ", "rule: utility", "side", "hypervolume, an oracle's choice", "seconds", "tokens",
    ]  # fmt: skip
    rows = []
    for name, runs in reported(content).items():
        last = [run["evaluations"][-1] for run in runs]
        ruled = [chosen_without_reference(run["evaluations"]) for run in runs]
        cells = [
            words(name), numbers(of(last, "forget_quality_log10"), 1), numbers(of(last, "model_utility"), 2),
            numbers(of(last, "mia/min_k"), 2), sides([[point] for point in last]),
            numbers(of(ruled, "forget_quality_log10"), 1), numbers(of(ruled, "model_utility"), 2),
            sides([[point] for point in ruled]),
            numbers(areas(runs), 2), f"{fmean(point['seconds'] for point in last):.0f}",
            f"{fmean(run['tokens'] for run in runs):,.0f}",
        ]  # fmt: skip
        rows.append((-fmean(of(ruled, "forget_quality_log10")), cells))
    top = retained_models()
    ceiling = [
        CEILING, numbers(of(top, "forget_quality_log10"), 1), numbers(of(top, "model_utility"), 2),
        numbers(of(top, "mia/min_k"), 2), "near", "", "", "", numbers(areas(top), 2), "", "",
    ]  # fmt: skip
    return table(heads, [ceiling, *(cells for _, cells in sorted(rows))])


def demo() -> str:
    """The demo's runs over three seeds of the unlearning."""
    names = {
        "ga": ("gradient ascent", "0"), "sga-r-0.8": ("SGA r = −0.8", "0.375"), "sga-r-4": ("SGA r = −4", "0.75"),
        "sga-r-8": ("SGA r = −8", "0.857"), "gd": ("gradient difference, same normals", "1"),
        "gd-random": ("gradient difference on random retain samples (TOFU's own)", "1"),
    }  # fmt: skip
    points, rows = stored("demo-three-seeds")["results"], []
    [retained] = [point["authors/mia/min_k"] for point in points if point["run"] == "retain"]
    for name, (said, weight) in names.items():
        runs = [[point for point in points if point["run"] == f"{name}-seed{seed}"] for seed in range(3)]
        utility = f"{fmean(of([run[-1] for run in runs], 'model_utility')):.2f}"
        found = [hypervolume(run) for run in runs]
        rows.append([said, weight, utility, sides(runs, retained), numbers(found, 3), f"{fmean(found):.3f}"])
    top = retained_models()
    utility = f"{fmean(of(top, 'model_utility')):.2f}"
    rows.append([CEILING, "–", utility, "near", numbers(areas(top), 3), f"{fmean(areas(top)):.3f}"])
    return table(["method", "λ", "utility at the end, mean", "unlearned", "hypervolume by seed", "mean"], rows)


def _random_retain() -> list[Point]:
    """Runs of gradient difference on random retain samples, learning rate chosen from the grid of rates.yaml."""
    [runs] = [runs for name, runs in reported(stored("rates")).items() if name.startswith("SmoothedGradientDifference")]
    return runs


def _by_mean(found: Mapping[str, tuple[list[str], Sequence[Point]]]) -> list[list[str]]:
    """Rows of a table of hypervolumes, the best mean first, the ceiling before them."""
    blank = len(next(iter(found.values()))[0])
    rows = sorted(found.items(), key=lambda item: -fmean(areas(item[1][1])))
    lines = [(CEILING, ["–"] * blank, "near", areas(retained_models()))]
    lines += [(name, cells, sides([run["evaluations"] for run in runs]), areas(runs)) for name, (cells, runs) in rows]
    return [[name, *cells, ends, numbers(values, 2), f"{fmean(values):.2f}"] for name, cells, ends, values in lines]


def normals() -> str:
    """Choices of normal samples."""
    said = {
        "TFIDF": "nearest by TF-IDF", "ModelStates": "nearest by the model's own states", "RandomNormals": "random",
        "SentenceEmbeddings": "nearest by sentence embeddings (all-MiniLM-L6-v2)",
        "FreshAuthors": "fresh authors (the built-in generator stands in for a language model)",
        "OffTopicNormals": "half of them off-topic (sums)", "CorruptedNormals": "half of their words corrupted",
    }  # fmt: skip
    found = {}
    for name, runs in reported(stored("normals")).items():
        means = [
            numbers([fmean(run[f"normals/{part}"] for run in runs)], 2)
            for part in ("similarity", "gradient_cosine", "paper_rate")
        ]
        found[next(text for part, text in said.items() if part in name)] = (means, runs)
    found["none: gradient difference on random retain samples"] = (["–"] * 3, _random_retain())
    heads = [
        "normal samples",
        "TF-IDF similarity",
        "gradient cosine",
        "r*, `paper`",
        "unlearned",
        "hypervolume by seed",
        "mean",
    ]
    return table(heads, _by_mean(found))


def rates() -> str:
    """Fixed rates and weights, and the rules that set them."""
    both = {**reported(stored("rates")), **reported(stored("rules"))}
    found = {words(name): ([], runs) for name, runs in both.items()}
    return table(["configuration, learning rate", "unlearned", "hypervolume by seed", "mean"], _by_mean(found))


METHODS = {
    "GradientAscent": "gradient ascent", "GradientDifference normal_weight=1": "gradient difference, λ = 1",
    "SmoothedGradientDifference smoothing_rate=0": "gradient difference on random retain samples (TOFU's own)",
    "SmoothedGradientAscent smoothing_rate=-4": "SGA r = −4", "NPO beta=0.1 retain=nll": "NPO with retain NLL",
}  # fmt: skip


def _one_seed(name: str) -> dict[str, Point]:
    """Models of a sweep of one seed, by what they are called, then its runs."""
    content = stored(name)
    runs = reported(content)
    models = {name.replace("retain", "retrained"): model for name, model in content["models"].items()}
    return {**models, **{said: runs[one][0] for one, said in METHODS.items() if one in runs}}


def muse() -> str:
    """MUSE-News on a small model."""
    rows = []
    for name, run in _one_seed("muse").items():
        leak = "–"
        if "muse/privleak" in run:
            ends = [run[f"muse/privleak/ci_{end}"] for end in ("low", "high")]
            leak = f"{numbers([run['muse/privleak']], 0)} [{numbers(ends, 0)}]"
        logs = [run.get(f"perplexity/{part}/log") for part in ("forget", "retain", "normal")]
        perplexity = ["" if log is None else f"{log:.2f}" for log in logs]
        rows.append([name, leak, f"{run['muse/mia/min_k']:.2f}", f"{run['muse/verbmem']:.1f}", *perplexity])
    heads = [
        "", "PrivLeak [95 % interval]", "AUC of Min-40 %", "VerbMem", "ln perplexity, forget", "all retain texts",
        "normals used",
    ]  # fmt: skip
    return table(heads, rows)


def book() -> str:
    """The sample book on a small model."""
    rows = []
    for name, run in _one_seed("book").items():
        scores = [
            f"{run[f'book/{part}/{score}']:.{digits}f}"
            for score, digits in (("bleu", 1), ("rouge_l_recall", 2))
            for part in ("forget", "holdout")
        ]
        logs = [run.get(f"perplexity/{part}/log") for part in ("forget", "retain", "normal")]
        perplexity = ["" if log is None else f"{log:.2f}" for log in logs]
        rows.append([name, *scores, f"{run['book/mia/min_k']:.2f}", *perplexity])
    heads = [
        "", "BLEU, forget", "held out", "ROUGE-L, forget", "held out", "AUC of Min-40 %", "ln perplexity, forget",
        "all normal prose", "normals used",
    ]  # fmt: skip
    return table(heads, rows)


def sweep_csv(name: str) -> str:
    """Every configuration of a sweep, with means and single values of what its tables show."""
    rows = stored(name)["rows"]
    shown = [*rows[0]["metrics"], *rows[0]["cost"]]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["stage", "configuration", "seeds", *itertools.chain(*([one, f"{one}/values"] for one in shown))])
    for row in rows:
        found = {**row["metrics"], **row["cost"]}
        cells = [
            (found[one]["mean"], " ".join(map(str, found[one]["values"]))) if one in found else ("", "")
            for one in shown
        ]
        writer.writerow([row["stage"], row["configuration"], " ".join(row["runs"]), *itertools.chain(*cells)])
    return out.getvalue()


def normals_on_tofu() -> str:
    """Share of normals that ask for the same kind of thing as the forget question, by kind of question."""
    found = [stored("normals-tofu")["embedders"][name] for name in ("tfidf", "states", "random")]
    kinds = sorted(found[0]["same_kind"], key=lambda kind: (kind != "all", -found[0]["same_kind"][kind]))
    names = {"all": f"same kind, of {found[0]['with_a_kind']} × 3"}
    rows = [[names.get(kind, kind), *(f"{one['same_kind'][kind]:.2f}" for one in found)] for kind in kinds]
    rows.append(["different normals, of 1,200", *(f"{one['distinct_normals']:,}" for one in found)])
    return table(["", "TF-IDF", "states of a model of 1.3 M parameters", "random"], rows)


def evaluation_speed() -> str:
    """Our evaluation beside a plain one."""
    rows = []
    for said, one in zip(
        (
            "the whole of forget10, 1.3 M parameters: `python benchmarks/evaluation.py --model MODEL`",
            "first 40 rows of each set, 134 M parameters: `… --untrained --tokenizer MODEL --rows 40 --no-generation`",
        ),
        stored("evaluation-speed").values(),
        strict=True,
    ):
        faster, rounds = one["times_faster"], len(one["seconds"])
        peaks = [median(found[side]["peak"] / 2**30 for found in one["bytes"]) for side in ("ours", "plain")]
        rows.append([
            said, f"{faster['whole']:.1f} times ({f'median of {rounds} rounds' if rounds > 1 else 'one round'})",
            f"{faster['scoring']:.1f}", f"{faster['generation']:.1f}" if "generation" in faster else "–",
            " and ".join(f"{peak:.1f}" for peak in peaks) + " GiB",
        ])  # fmt: skip
    return table(["", "faster", "scoring", "generation", "peak memory, ours and the plain one's"], rows)


def training_speed() -> str:
    """Our training step beside a plain loop, at K = 4."""
    rows = []
    for name, said in (
        ("tiny-tofu", "1.3 M parameters, 8 groups a step ([results](results/training-speed-tiny-tofu.md))"),
        ("768", "134 M parameters, vocabulary 32,000, 16 groups a step "
         "([all numbers](results/training-speed-768.json.gz))"),
    ):  # fmt: skip
        content = stored(f"training-speed-{name}")
        plain, ours = (content["group_sizes"]["4"]["kinds"][kind] for kind in ("plain", "packed"))
        rates = [f"{one['tokens_per_second']:,.0f}" for one in (plain, ours)]
        shares = [f"{one['operations_per_second'] / content['matrix_rate']:.2f}" for one in (plain, ours)]
        times = f"{plain['packed_is_times_faster']:.1f}"
        rows.append([said, " and ".join(rates), times, " and ".join(shares)])
    return table(["", "tokens/s, plain loop and ours", "times", "share of the matrix rate"], rows)


def gpu_steps() -> str:
    """Training steps on a GPU whose numbers are stored."""
    said = {"step-1b": "1.26 B, 128 sequences, packed", "step-7b": "6.74 B, 64 sequences, gradient checkpointing"}
    rows = []
    for one in stored("gpu")["rows"]:
        plain = one.get("plain_tokens_per_second")
        times = "" if plain is None else f"{one['fixed_tokens_per_second'] / plain:.2f}"
        rows.append([
            said[one["row"]], one["commit"], f"{one['fixed_tokens_per_second']:,.0f}", f"{one['share']:.2f}",
            f"{one['fixed_peak_gib']:.0f}", "not measured" if plain is None else f"{plain:,.0f}", times or "–",
        ])  # fmt: skip
    heads = [
        "step",
        "commit",
        "tokens/s",
        "share of the matrix rate",
        "peak, GiB",
        "tokens/s of a plain step",
        "times that",
    ]
    return table(heads, rows)


def gpu_ways() -> str:
    """Ways of attention on a GPU, with and without compiled blocks."""
    said = {"dense": "mask", "varlen": "by length"}
    found = {one["variant"]: one for one in stored("gpu")["trial"]}
    rows = []
    for name in ("dense", "dense-compile", "varlen", "varlen-compile"):
        kind, _, compiled = name.partition("-")
        one = found[name]
        off = f"{one['nll_off']:.4f}, {one['grad_off']:.3f}" if name != "dense" else "–"
        way = said[kind] + (", compiled" if compiled else "")
        rows.append([way, f"{one['warm_seconds']:.2f}", f"{one['first_seconds']:.2f}", off])
    return table(["way", "three steps after the first, s", "first step, s", "likelihoods, gradients off"], rows)


def memory_of_steps() -> str:
    """Memory of some ways of a training step beside the plan."""
    rows = []
    for way in ("weights", "lora-checkpointing", "plain", "packed", "parts"):
        one = stored("memory")["ways"][way]
        sizes = [one["planned_bytes"], one["measured_bytes"]]
        rows.append([
            f"{one['vocabulary']:,}", one["step"],
            *("–" if size is None else f"{size / 2**20:,.0f}" for size in sizes),
        ])  # fmt: skip
    return table(["vocabulary", "step", "planned, MiB", "measured, MiB"], rows)


TABLES: dict[str, tuple[Callable[[], str], ...]] = {
    "results/methods-compared.md": (methods,),
    "results.md": (demo, normals, rates, evaluation_speed, training_speed),
    "results/gpu.md": (gpu_steps, gpu_ways),
    "speed-and-memory.md": (memory_of_steps,),
    "benchmarks.md": (muse, book),
    "normals.md": (normals_on_tofu,),
}
"""Tables of each page below docs/; a page has one table with the same first line."""


def replaced(page: str, made: str) -> str:
    """A page with a table in place of the one that begins with the same line."""
    lines = page.split("\n")
    [start] = [number for number, line in enumerate(lines) if line == made.split("\n")[0]]
    end = next((n for n in range(start, len(lines)) if not lines[n].startswith("|")), len(lines))
    return "\n".join([*lines[:start], *made.split("\n"), *lines[end:]])


def main() -> None:
    """Writes the tables and prints how many pairs of methods differ."""
    for name, tables in TABLES.items():
        page = (DOCS / name).read_text(encoding="utf-8")
        for made in tables:
            page = replaced(page, made())
        (DOCS / name).write_text(page, encoding="utf-8")
    for name in SWEEPS:
        (RESULTS / f"{name}.csv").write_text(sweep_csv(name), encoding="utf-8")
    print(*pairs_that_stand(stored("methods")))


if __name__ == "__main__":
    main()

"""The card of an exported model, ``README.md`` in the form of the Hugging Face Hub; it quotes no text of the data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.files import is_number, yaml_text
from sga.runs.folder import RunFolder

ATTACKS = ("<!-- attacks -->", "<!-- end of attacks -->")
"""Lines around the section on attacks, which `sga attack` replaces."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PLACE = re.compile(r"""(^|[=\["'{,:]\s*|-\s)/(?:[^/"',\]}\n]+/)+(?=[^/"',\]}\s])""", re.MULTILINE)
"""Pattern of an absolute path without its last part, with the text before it."""
_SHOWN = (
    *("forget_quality", "forget_quality_log10", "ks_statistic", "model_utility", "model_utility_unseen"),
    *("composite/overall", "composite/memorization", "composite/privacy", "composite/utility"),
    *("forget/probability", "forget/rouge_l_recall", "forget/truth_ratio", "forget/avg_nll"),
    *("forget/extraction_strength", "forget/exact_memorization", "forget/fluency", "forget/degenerate"),
    *("retain/probability", "retain/rouge_l_recall", "retain_unseen/probability", "retain_unseen/rouge_l_recall"),
    *("mia/loss", "mia/min_k", "privleak", "verbmem", "knowmem_forget", "knowmem_retain"),
)
_ARGUMENTS = {
    "model": ("loss", "optimizer", "schedule"),
    "data": ("train_on", "group_size", "batch_size", "pairing", "alternatives", "reserved", "template", "max_length"),
    "trainer": ("max_epochs", "max_steps", "precision", "gradient_clip_val"),
}
_UNLEARNING = """\
This model was made to behave as if it had not been trained on some records. That is a statement about measurements, not
a proof: data may be recognised or brought back by means that were not tried. Use it for research on unlearning, or in
place of the model that it was made from once the results below meet what you need. It is not a means to satisfy a legal
duty of erasure without a review of your own, and it inherits every limit of the model that it was made from."""
_TRAINED = """\
A model for experiments on unlearning: it is what others are made from or compared with. Nothing was unlearned in it."""
_UNTESTED = (
    "Facts in other words than the records', other languages, other attacks on membership.",
    "How fast a few steps of training bring the data back, where no attack below says it.",
    "Everything beyond the records to keep and the sets named above.",
    "Another seed: one run cannot tell how much of this is chance.",
)


@dataclass(frozen=True)
class BaseModel:
    """The model that a run began with.

    Attributes:
        name: Name on the Hub, folder, or name of the class that made it from random weights.
        hub_name: Name on the Hub, or of the model that its own card names; None if neither is known.
        revision: Commit on the Hub, or the requested revision if no file is cached; None for folders.
        license: Licence in its card; None without a card or a licence in it.
    """

    name: str
    hub_name: str | None
    revision: str | None
    license: str | None


def base_model(run: RunFolder) -> BaseModel:
    """Description of the model that a run began with, as far as it is known without network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    name = str(run.info["model"])
    described = _language_model(run)
    made_here = bool(described) and "name_or_path" not in described
    folder = Path(name)
    if made_here or folder.exists() or not _HUB_NAME.fullmatch(name):
        card = folder / "README.md"
        known = metadata_load(card) if card.is_file() and not made_here else None
        base = (known or {}).get("base_model")
        named = isinstance(base, str) and _HUB_NAME.fullmatch(base)  # other programs write their own folders there
        return BaseModel(name, base if named else None, None, (known or {}).get("license"))
    revision = str(described.get("revision", "main"))
    cached = {file: try_to_load_from_cache(name, file, revision=revision) for file in ("config.json", "README.md")}
    paths = {file: Path(path) for file, path in cached.items() if isinstance(path, str)}
    known = metadata_load(paths["README.md"]) if "README.md" in paths else None
    if "config.json" in paths:
        revision = paths["config.json"].parent.name
    return BaseModel(name, name, revision, (known or {}).get("license"))


def model_card(
    run: RunFolder,
    verdict: str | None = None,
    results: Sequence[str] = (),
    untested: Sequence[str] = (),
    adapter: bool = False,
) -> str:
    """Card of a run's exported model, as Markdown with the Hub's front matter.

    Args:
        run: Run folder, with its description written.
        verdict: First sentence of the result; None for that of the rule for handing over, if the run has one.
        results: Lines of the section on results; empty makes the table of the chosen evaluation's metrics.
        untested: Further sentences on what was not tested.
        adapter: True for the card of the exported adapter alone.
    """
    base, info = base_model(run), run.info
    chosen = run.chosen if run.chosen_path.is_file() else {}
    account = chosen.get("handover")
    if verdict is None and account is not None:
        verdict = f"{'' if account['fit'] else 'Not fit to be handed over: '}{account['sentence']}."
    checks = (account or {}).get("parts", {}).get("all", {}).get("checks", [])
    not_tested = [str(check["says"]) for check in checks if check.get("violation") is None]
    unlearned = info["role"] == "unlearn"
    doing = f"Unlearned by {info['method']}" if unlearned and info["method"] else f"The {info['role']} model"
    sections = {
        "Intended use": [_UNLEARNING if unlearned else _TRAINED],
        "Results": [*(results or _results(run, chosen))],
        "What was not tested": [f"- {line}" for line in dict.fromkeys((*not_tested, *untested, *_UNTESTED))],
        "How it was made": _how(run, base, chosen),
    }
    lines = ["---", _front_matter(base, info, adapter).rstrip("\n"), "---", "", f"# {doing}: {info['name']}", ""]
    lines += [f"**{verdict}**", ""] if verdict else []
    lines += [_origin(base, info), ""]
    for heading, content in sections.items():
        lines += [f"## {heading}", "", *content, ""]
    attacks = "None was run; `sga attack RUN` writes here what comes back under which."
    return "\n".join([*lines, ATTACKS[0], "## Attacks", "", attacks, "", ATTACKS[1], ""])


def _front_matter(base: BaseModel, info: Mapping[str, Any], adapter: bool) -> str:
    from huggingface_hub import ModelCardData

    tags = ["machine-unlearning", "sga", *([str(info["method"])] if info["method"] else []), str(info["benchmark"])]
    more: dict[str, Any] = {}
    if base.hub_name is not None:
        # An adapter on a folder's weights is none on those that the folder's model was made from.
        more["base_model_relation"] = "adapter" if adapter and base.name == base.hub_name else "finetune"
        more["base_model_revision"] = base.revision
    data = ModelCardData(
        base_model=base.hub_name,
        license=base.license or "unknown",
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
        **more,
    )
    return str(data.to_yaml())


def _origin(base: BaseModel, info: Mapping[str, Any]) -> str:
    place = Path(base.name).name if Path(base.name).is_absolute() else base.name  # not where the maker keeps it
    revision = f", revision `{base.revision}`" if base.revision else ""
    known = "" if base.hub_name in (None, base.name) else f", which was made from `{base.hub_name}`"
    counts = f"{info['forget_records']} records to forget, {info['retain_records']} to keep"
    said = f"Made from `{place}`{revision}{known}, with {counts} ({info['benchmark']})."
    if base.license is None:
        said += " The licence of that model could not be read: set `license` above before you publish this one."
    return f"{said} No text of the data is in this card."


def _results(run: RunFolder, chosen: Mapping[str, Any]) -> list[str]:
    """Metrics of the chosen evaluation with intervals, with the starting model's and the retain model's values."""
    if not chosen:
        return ["The run was not evaluated."]
    prefix = run.info["benchmark"]
    names = [f"{prefix}/{name}" for name in _SHOWN]
    names += sorted(name for name in chosen if re.fullmatch(r"perplexity/\w+", name))
    shown = [name for name in names if is_number(chosen.get(name))]
    start = run.evaluations[0] if run.evaluations and run.evaluations[0]["step"] == 0 != chosen.get("step") else {}
    reference = _reference(run)
    lines = ["| metric | this model | 95 % interval | before | retain model |", "|---|---|---|---|---|"]
    for name in shown:
        low, high = (chosen.get(f"{name}/ci_{end}") for end in ("low", "high"))
        interval = f"{low:.4g} to {high:.4g}" if is_number(low) and is_number(high) else ""
        others = [f"{one[name]:.4g}" if is_number(one.get(name)) else "" for one in (start, reference)]
        lines.append(f"| {name} | {chosen[name]:.4g} | {interval} | {others[0]} | {others[1]} |")
    step = f"Evaluation after step {chosen.get('step')} ({chosen.get('chosen', 'the last evaluation')})."
    return [step, "", *lines] if shown else [step]


def _reference(run: RunFolder) -> Mapping[str, Any]:
    """Metrics of the retain model that the run was compared with; empty unless there is one run folder with them."""
    named = run.info.get("reference")
    named = [named] if isinstance(named, str) else named or []
    folder = RunFolder(named[0]) if len(named) == 1 else None
    return folder.chosen if folder is not None and folder.chosen_path.is_file() else {}


def _how(run: RunFolder, base: BaseModel, chosen: Mapping[str, Any]) -> list[str]:
    info = run.info
    facts = {
        "command": f"`{_public(info['command'])}`" if info.get("command") else None,
        "seed": info["seed"],
        "step": f"{chosen['step']} of {run.evaluations[-1]['step']}" if chosen.get("step") is not None else None,
        "commit of sga": info.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        "device": f"{info.get('device')}, {info.get('processes', 1)} process(es)",
        "licence of the model it was made from": base.license or "not known",
    }
    facts |= {f"SHA-256 of the {name} records": value for name, value in (info.get("data_sha256") or {}).items()}
    lines = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    return [*lines, "", "```yaml", _without_places(yaml_text(_arguments(run))).rstrip("\n"), "```"]


def _public(command: str) -> str:
    """A command line with names of files in place of their absolute paths."""
    return shlex.join(_without_places(word) for word in shlex.split(command))


def _without_places(text: str) -> str:
    return _PLACE.sub(r"\1", text)


def _arguments(run: RunFolder) -> dict[str, Any]:
    """Exact arguments of method and training for `sga fit`, without paths and settings that name records."""
    info = run.info
    if not run.config_path.is_file():
        return {"loss": info["method"], **info["parameters"], "group_size": info["group_size"]}
    found: dict[str, Any] = {"seed_everything": run.config.get("seed_everything")}
    for part, names in _ARGUMENTS.items():
        settings = run.config.get(part) or {}
        found[part] = {name: settings[name] for name in names if settings.get(name) is not None}
    named = ("dtype", "attention", "gguf_file", "target_modules")
    kept = {name: value for name, value in _language_model(run).items() if name in named or is_number(value)}
    found["model"]["language_model"] = {name: value for name, value in kept.items() if value is not None}
    return found


def _language_model(run: RunFolder) -> dict[str, Any]:
    config = run.config if run.config_path.is_file() else {}
    described = (config.get("model") or {}).get("language_model") or {}
    return dict(described.get("init_args") or {})

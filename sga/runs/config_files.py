"""Configuration files merged in order: a benchmark's, a method's, and the file of the pair.

A file in a folder ``benchmarks`` and one in a folder ``methods`` form a pair: ``pairs/BENCHMARK/METHOD.yaml``, beside
either folder or in the package, is applied after them if it exists, and the run folder is ``runs/BENCHMARK/METHOD``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.files import is_number, read_yaml, yaml_text
from sga.runs.setting_checks import check_class_paths

_REFUSED = "refused"
_FROM_ANOTHER_MODEL = ("target", "retain")
"""Methods that train a benchmark's models from a model that has not seen its data, which only a pair's file names."""
_MODEL_OPTIONS = re.compile(r"--model\.language_model(\.(init_args\.)?name_or_path)?")
_TIMES = re.compile(r"(\d+(?:\.\d+)?)x")


@dataclass(frozen=True)
class ConfigFile:
    """One configuration file among others.

    Attributes:
        path: Path of the file.
        content: Parsed content with relative values resolved: ``2x`` is twice the value of the files before it, and
            ``{benchmark}`` in a text is the benchmark's name.
        relative: True if the file has relative values, so that `content` differs from the text of the file.
        added: True if it is the file of a pair, added without being named.
    """

    path: Path
    content: Any
    relative: bool
    added: bool


def config_path(name: str | Path, beside: Path | None = None) -> Path:
    """Path of a configuration file: as named if that exists, else the package's file of this name.

    Args:
        name: Path of the file; ``configs/…`` may refer to the package's files.
        beside: Folder that a relative path starts from; None for the working directory. ``../…``, as the package's
            files name one another, may refer to the package's files too.

    Raises:
        UserError: there is no such file; names similar ones.
    """
    path = Path(name) if beside is None else beside / name
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        raise UserError(f"{name}: a folder, not a file")
    root = packaged_path("configs").parent
    parts = Path(name).parts
    shipped = root.joinpath("configs", *parts[1:])
    if parts[:1] in [("configs",), *([("..",)] if beside is not None else [])] and os.path.isfile(shipped):
        return shipped
    known = {f"configs/{one.relative_to(root / 'configs').as_posix()}" for one in (root / "configs").rglob("*.yaml")}
    close = difflib.get_close_matches(path.as_posix(), known, n=3, cutoff=0.7)
    raise UserError(f"{name}: no such file{'; is it ' * bool(close)}{' or '.join(close)}{'?' * bool(close)}")


def config_files(files: Sequence[str | Path], model_given: bool = False) -> list[ConfigFile]:
    """Configuration files in the order in which they apply, the last one winning; adds the file of the pair.

    Args:
        files: Paths as named by the user or by another file.
        model_given: True if settings outside the files say which model is trained.

    Raises:
        UserError: a file is missing or not YAML; a relative value has no value before it; the pair is refused, for the
            reason that its file gives under ``refused``; or nothing says which model a target or retain model starts
            from, so that it would be the benchmark's model, which knows the forget data already.
    """
    paths = [config_path(file) for file in files]
    benchmark, method = _last_of("benchmarks", paths), _last_of("methods", paths)
    pair, added = None, None
    if benchmark is not None and method is not None:
        pair = _pair(benchmark, method)
        if pair is not None and pair.resolve() not in {path.resolve() for path in paths}:
            added = pair
            paths.insert(max(paths.index(benchmark), paths.index(method)) + 1, pair)
    found: list[ConfigFile] = []
    for path in paths:
        said = read_yaml(path)
        if isinstance(said, dict) and _REFUSED in said:
            raise UserError(f"{path.stem} on {path.absolute().parent.name} makes no sense: {said[_REFUSED]}")
        name = None if benchmark is None else benchmark.stem
        content = _worked_out(said, [file.content for file in reversed(found)], name, str(path))
        check_class_paths(content, path)
        found.append(ConfigFile(path, content, content != said, path is added))
    if method is not None and method.stem in _FROM_ANOTHER_MODEL and pair is None and not model_given:
        later = found[paths.index(method) + 1 :]
        if not any(names_model(file.content) for file in later if _folder(file.path) != "benchmarks"):
            place = "benchmarks/BENCHMARK.yaml" if benchmark is None else str(benchmark)
            raise UserError(
                f"{method}: nothing says which model it trains, and that of {place} may know what is to be forgotten: "
                f"give --model.language_model.name_or_path, or write pairs/{Path(place).stem}/{method.name} beside "
                "the folder benchmarks (as configs/pairs/tofu-phi-1.5/retain.yaml)"
            )
    if added is not None:
        from lightning.pytorch.utilities import rank_zero_info  # takes a second to import

        rank_zero_info(f"{added} applies too: what the method needs on this benchmark")
    return found


def _folder(path: Path) -> str:
    """Name of the folder that a file is in, also for a path without a folder."""
    return path.absolute().parent.name


def _last_of(folder: str, paths: Sequence[Path]) -> Path | None:
    return next((path for path in reversed(paths) if _folder(path) == folder), None)


def _pair(benchmark: Path, method: Path) -> Path | None:
    """Path of the file for a method on a benchmark: the user's own if there is one, else the package's."""
    here = Path.cwd()
    for root in (benchmark.absolute().parents[1], method.absolute().parents[1], packaged_path("configs")):
        path = root / "pairs" / benchmark.stem / method.name
        if path.is_file():
            return path.relative_to(here) if path.is_relative_to(here) else path
    return None


def names_model(config: Any) -> bool:
    """True if a configuration says which model is trained; an adapter by itself does not."""
    model = config.get("model") if isinstance(config, dict) else None
    described = model.get("language_model") if isinstance(model, dict) else None
    if isinstance(described, dict) and "name_or_path" in (described.get("init_args") or described):
        return True
    name = described.get("class_path") if isinstance(described, dict) else described
    return name is not None and not str(name).endswith("LoRA")


def _worked_out(value: Any, before: Sequence[Any], benchmark: str | None, where: str) -> Any:
    """Resolves relative values; `before` has the values of earlier files at the same place, the last file first."""
    if isinstance(value, dict):
        blocks = [one for one in before if isinstance(one, dict)]
        return {
            key: _worked_out(inner, [one[key] for one in blocks if key in one], benchmark, f"{where}: {key}")
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_worked_out(inner, (), benchmark, where) for inner in value]
    if not isinstance(value, str):
        return value
    times = _TIMES.fullmatch(value)
    if times is None:
        return value if benchmark is None else value.replace("{benchmark}", benchmark)
    numbers = [one for one in before if is_number(one)]
    if not numbers:
        raise UserError(
            f"{where}: {value} is relative to what a file before it says, and none does; name a benchmark first "
            "(--config configs/benchmarks/NAME.yaml)"
        )
    product = float(times[1]) * numbers[0]
    return int(product) if isinstance(numbers[0], int) and product.is_integer() else product


def default_folder(files: Sequence[ConfigFile]) -> str | None:
    """Default run folder ``runs/BENCHMARK/METHOD``, with further files' names appended; None without such a pair."""
    benchmark = _last_of("benchmarks", [file.path for file in files])
    others = [file.path.stem for file in files if not file.added and _folder(file.path) != "benchmarks"]
    return None if benchmark is None or not others else f"runs/{benchmark.stem}/{'-'.join(others)}"


def composed(arguments: Sequence[str]) -> list[str]:
    """The command line for the parser, with its ``--config`` options resolved.

    The default run folder comes first, so that everything else overrides it; the pair's file is added, and reported; a
    file with relative values is replaced by its content.

    Raises:
        UserError: for the same reasons as `config_files`.
    """
    parts: list[tuple[bool, str]] = []  # True for a file that --config names
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option not in ("--config", "-c") or not (equals or rest):
            parts.append((False, f"{option}{equals}{value}"))
            continue
        value = value if equals else rest.pop(0)
        # A configuration as text, or a pipe, which can be read only once, is passed on unchanged.
        is_pipe = os.path.exists(value) and not os.path.isdir(value)
        as_it_is = not os.path.isfile(value) and (is_pipe or re.search(r"[:{\n]", value) is not None)
        parts.append((False, f"--config={value}") if as_it_is else (True, value))
    model_given = any(_gives_model(value) for is_file, value in parts if not is_file)
    files = config_files([value for is_file, value in parts if is_file], model_given)
    folder, result = default_folder(files), []
    for is_file, value in parts:
        if not is_file:
            result.append(value)
            continue
        if folder is not None:
            result.append(f"--config={yaml_text({'run': {'folder': folder}})}")
            folder = None
        result.append(_option(files.pop(0)))
        if files and files[0].added:
            result.append(_option(files.pop(0)))
    return result


def _gives_model(argument: str) -> bool:
    """True if a part of a command line says which model is trained."""
    option, _, value = argument.partition("=")
    if option in ("--config", "-c"):
        return "language_model" in value
    return _MODEL_OPTIONS.fullmatch(option) is not None and not value.endswith("LoRA")


def _option(file: ConfigFile) -> str:
    return f"--config={yaml_text(file.content) if file.relative else file.path}"

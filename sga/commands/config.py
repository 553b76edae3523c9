"""`sga config`: the configurations that come with the package, for users without a checkout."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path

from sga.commands.parsing import run_one_of, verb
from sga.data.builtin import packaged_path
from sga.errors import UserError

_ABOUT = """\
The configurations that come with the package. A name is that of the list; a part of it will do where no other has it,
and a folder's name copies the folder. With a benchmark come its pairs: what methods need on it."""


def shipped_files() -> dict[str, Path]:
    """Path of each shipped YAML file by its name below ``configs/``, without ``.yaml``."""
    root = packaged_path("configs")
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}


def main(arguments: Sequence[str]) -> int:
    """Run ``sga config list|copy``; `arguments` follow the word ``config``."""
    return run_one_of("config", _ABOUT, {"list": _list, "copy": _copy}, arguments)


@verb("config list")
def _list(word: str | None) -> int:
    """Print the names of the configurations.

    Args:
        word: Part of the names to print.
    """
    found = [name for name in shipped_files() if (word or "") in name]
    if not found:
        raise UserError(f"no configuration has {word!r} in its name; sga config list shows all")
    print("\n".join(found))
    return 0


@verb("config copy")
def _copy(names: Sequence[str], *, to: Path = Path("configs")) -> int:
    """Copy configurations to change them.

    Args:
        names (NAME): Names of the list, or of folders.
        to (FOLDER): Folder of the copies.
    """
    files = shipped_files()
    chosen = [name for wanted in names for name in _named(wanted, list(files))]
    copies = {name: to / f"{name}.yaml" for name in dict.fromkeys(chosen)}
    there = [path for path in copies.values() if path.exists()]
    if there:
        raise UserError(f"{there[0]} is there already; choose another folder (--to), or delete it")
    pairs = [name for name in files if f"benchmarks/{Path(name).parent.name}" in copies and name.startswith("pairs/")]
    copies |= {name: path for name in pairs if not (path := to / f"{name}.yaml").exists()}
    for name, path in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[name], path)
        print(path)
    return 0


def _named(wanted: str, names: Sequence[str]) -> list[str]:
    """Names that a word stands for: a file, all files of a folder, or the only name that contains it."""
    plain = wanted.removesuffix(".yaml").removeprefix("configs/").rstrip("/")
    if plain in names:
        return [plain]
    folder = [name for name in names if name.startswith(f"{plain}/")]
    parts = folder or [name for name in names if plain in name]
    if folder or len(parts) == 1:
        return parts
    if parts:
        raise UserError(f"{wanted} may be any of {', '.join(parts[:6])}; give more of the name")
    near = difflib.get_close_matches(plain, names, 3, 0.5)
    raise UserError(
        f"there is no configuration {wanted!r}"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
        + " (sga config list shows all)"
    )

"""Paths of the files that come with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import sga
from sga.errors import UserError


def packaged_path(name: str) -> Path:
    """Path of a file or folder of ``data/`` or ``configs/``: in the installed package, or in an editable checkout.

    Args:
        name: Path from the repository's root, such as ``"configs/demo/demo.yaml"``.

    Raises:
        UserError: neither place has it.
    """
    package = Path(sga.__file__).parent
    candidates = (package / "share" / name, package.parent / name)
    for path in candidates:
        if path.exists():
            return path
    raise UserError(
        f"{name!r} must be one of the files that come with the package, "
        f"but there is no {' and no '.join(map(str, candidates))}; check the name or reinstall the package"
    )


def builtin_path(name: str) -> Path:
    """Path of a file of the built-in data, such as ``"world_facts.jsonl"``; see `packaged_path`."""
    return packaged_path(f"data/{name}")


def source_hash() -> str:
    """SHA-256 of this package's source and built-in data, to tell results of different versions apart."""
    digest = hashlib.sha256(sga.__version__.encode())
    package = Path(sga.__file__).parent
    data = packaged_path("data")
    for path in sorted([*package.rglob("*.py"), *data.rglob("*.json*"), *data.rglob("*.txt")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()

"""Where the files that come with the package are."""

from __future__ import annotations

from pathlib import Path

import sga
from sga.errors import UserError


def builtin_path(name: str) -> Path:
    """The path of a built-in file or folder: inside the installed package, or in ``data/`` of an editable checkout.

    Args:
        name: Path relative to that folder, such as ``"world_facts.jsonl"``.

    Raises:
        UserError: neither place has it.
    """
    package = Path(sga.__file__).parent
    candidates = (package / "builtin" / name, package.parent / "data" / name)
    for path in candidates:
        if path.exists():
            return path
    raise UserError(
        f"built-in file {name!r} must be one of the files that come with the package, "
        f"but there is no {' and no '.join(map(str, candidates))}; check the name or reinstall the package"
    )

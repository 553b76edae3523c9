"""Packages are found, so that none is forgotten; setup.cfg has the rest.

The folders ``configs/`` and ``data/`` are installed inside the package, where `sga.data.builtin.packaged_path` looks.
Wheels and source archives that are made in a checkout note its commit in ``sga/commit.txt`` for `sga --version`.
"""

import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist


def note_commit(folder):
    """Writes the checkout's commit into the package in a folder; without a checkout what is there stays."""
    if not Path(".git").exists():
        return
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout of somebody else's
        return
    Path(folder, "sga", "commit.txt").write_text(found, encoding="utf-8")


class BuildWithCommit(build_py):
    """build_py with the commit; an editable install has the checkout itself."""

    def run(self):
        super().run()
        if not self.editable_mode:
            note_commit(self.build_lib)


class ArchiveWithCommit(sdist):
    """sdist with the commit."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        note_commit(base_dir)


setup(
    packages=[*find_packages(include=["sga", "sga.*"]), "sga.share.configs", "sga.share.data"],
    cmdclass={"build_py": BuildWithCommit, "sdist": ArchiveWithCommit},
)

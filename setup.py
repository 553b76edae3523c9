"""Packages are found, so that none is forgotten; setup.cfg has the rest.

The folders ``configs/`` and ``data/`` are installed inside the package, where `sga.data.builtin.packaged_path` looks.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["sga", "sga.*"]), "sga.share.configs", "sga.share.data"])

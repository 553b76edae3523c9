"""Benchmarks as records: their sources, and the checks of their data."""

from sga.data.authors import Authors
from sga.data.book import Book
from sga.data.muse import MUSENews
from sga.data.own import OwnData
from sga.data.records import Benchmark, Record, Source
from sga.data.tofu import TOFU

__all__ = ["TOFU", "Authors", "Benchmark", "Book", "MUSENews", "OwnData", "Record", "Source"]

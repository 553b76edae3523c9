"""Finished runs side by side: one web page that needs nothing else, and a table for the terminal."""

from sga.report.page import write_report
from sga.report.runs import Run, read_run
from sga.report.summary import table

__all__ = ["Run", "read_run", "table", "write_report"]

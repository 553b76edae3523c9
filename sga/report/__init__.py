"""Finished runs side by side: one web page that needs nothing else, and a table for the terminal."""

from sga.report.page import write_report
from sga.report.runs import Run, read_run
from sga.report.summary import runs_table

__all__ = ["Run", "read_run", "runs_table", "write_report"]

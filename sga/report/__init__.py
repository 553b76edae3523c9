"""Finished runs side by side: one web page that needs nothing else, and a table for the terminal."""

from sga.report.page import write_report
from sga.report.summary import runs_table

__all__ = ["runs_table", "write_report"]

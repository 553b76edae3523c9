"""Metrics at validation time, and what a run leaves behind."""

"""Estimates of memory, disk and time of a run before anything is loaded (`sga plan`)."""

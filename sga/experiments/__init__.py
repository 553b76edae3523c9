"""Experiments of several fits: the demo, sequences of unlearning requests, sweeps."""

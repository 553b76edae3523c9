"""Evaluation: the requests of metrics to a model, scoring and decoding, and the metrics over its answers."""

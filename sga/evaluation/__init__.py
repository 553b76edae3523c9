"""Evaluation: what is asked of a model, how it answers, and the metrics that are made of the answers."""

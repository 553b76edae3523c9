"""Negative log-likelihoods of a batch under a causal language model: what losses read."""

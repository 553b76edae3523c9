"""Negative log-likelihoods of a batch under a causal language model, which losses read."""

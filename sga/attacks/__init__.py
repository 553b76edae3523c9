"""Attacks on an unlearned model: what a few words, coarser weights, a few steps of training or many samples bring back."""

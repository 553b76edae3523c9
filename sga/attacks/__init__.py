"""Attacks on an unlearned model: what a few words, coarser weights, a few training steps or many samples bring back."""

"""Attacks on an unlearned model: few words, coarser weights, a few training steps or many samples, and what they bring."""

"""Attacks on an unlearned model: rewording, coarser weights, a few steps of training, many samples; what comes back."""

"""A forget sample and its K−1 normal samples: found, written by a language model, checked, and kept in a file."""

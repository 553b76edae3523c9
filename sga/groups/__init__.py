"""Groups of a forget sample and its K−1 normal samples: retrieval, generation, checks, and the group file."""

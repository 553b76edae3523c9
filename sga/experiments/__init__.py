"""Several fits that belong together: the demo, sequences of unlearning requests, sweeps."""

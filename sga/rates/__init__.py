"""The smoothing rate: label vector, policies, gradient geometry, split backward pass, estimates before training."""

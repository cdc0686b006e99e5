"""NaN guard: detects, locates and handles NaN and Inf in training."""

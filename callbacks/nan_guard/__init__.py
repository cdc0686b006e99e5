"""Detects, locates and handles NaN and Inf in training."""

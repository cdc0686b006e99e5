"""Transformers with hook points, and SVD taps."""

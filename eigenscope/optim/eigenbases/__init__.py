"""Kronecker factors, and how their eigenbases turn during training."""

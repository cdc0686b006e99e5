"""Batteries: hundreds of miniature autoencoders as one network."""

"""Autoencoders of patches whose latents lie on spheres."""

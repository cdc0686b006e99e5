"""Callbacks about spectra: eigenbases, CV of simplex volumes, KV caches, latents, batteries."""

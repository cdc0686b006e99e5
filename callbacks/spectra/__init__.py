"""Callbacks about spectra: eigenbases, CV (coefficient of variation) of simplices, KV caches, latents, batteries."""

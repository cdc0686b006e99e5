"""The compressed cache for generation with transformers."""

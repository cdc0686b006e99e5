"""Resuming and warm starts: which configurations go with a checkpoint."""

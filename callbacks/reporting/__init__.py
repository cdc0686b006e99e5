"""Callbacks that report a run: tables, scoreboard, run metadata, TensorBoard."""

"""Callbacks for exact resume: state, checkpoints, configuration, logs."""

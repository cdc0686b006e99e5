"""Resume and warm start: checkpoints, and the configurations compatible with them."""

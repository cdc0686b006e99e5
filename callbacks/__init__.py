"""Callbacks; the names here are those that a configuration uses."""

from callbacks.epoch_table import EpochTable
from callbacks.scoreboard import Scoreboard

__all__ = ["EpochTable", "Scoreboard"]

"""Callbacks; the names here are those that a configuration uses."""

from callbacks.cv_loss_schedule import CVLossSchedule
from callbacks.epoch_table import EpochTable
from callbacks.finite_guard import FiniteGuard, NonFiniteError
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.scoreboard import Scoreboard

__all__ = ["CVLossSchedule", "EpochTable", "FiniteGuard", "NonFiniteError", "ReconstructionGrid", "Scoreboard"]

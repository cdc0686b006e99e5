"""Callbacks; the names here are those that a configuration uses."""

from callbacks.battery_container import BatteryContainer
from callbacks.cv_loss_schedule import CVLossSchedule
from callbacks.eigenbasis_rotation import EigenbasisRotation
from callbacks.epoch_table import EpochTable
from callbacks.finite_guard import FiniteGuard, NonFiniteError
from callbacks.implant_policy import ImplantPolicy
from callbacks.kv_cache_compression import KVCacheCompression
from callbacks.parameter_routing import ParameterRouting
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.scoreboard import Scoreboard

__all__ = [
    "BatteryContainer",
    "CVLossSchedule",
    "EigenbasisRotation",
    "EpochTable",
    "FiniteGuard",
    "ImplantPolicy",
    "KVCacheCompression",
    "NonFiniteError",
    "ParameterRouting",
    "ReconstructionGrid",
    "Scoreboard",
]

"""Callbacks; the names here are those that a configuration uses."""

from callbacks.battery_container import BatteryContainer
from callbacks.checkpoint_files import CheckpointFiles
from callbacks.cv_loss_schedule import CVLossSchedule
from callbacks.distinct import check_distinct
from callbacks.eigenbasis_rotation import EigenbasisRotation
from callbacks.epoch_table import EpochTable
from callbacks.finite_guard import FiniteGuard, NonFiniteError
from callbacks.implant_policy import ImplantPolicy
from callbacks.kv_cache_compression import KVCacheCompression
from callbacks.last_checkpoint import LastCheckpoint, TrainingInterrupted
from callbacks.parameter_routing import ParameterRouting
from callbacks.random_state import RandomState
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.run_card import RunCard
from callbacks.scoreboard import Scoreboard
from callbacks.tensorboard_layout import TensorBoardLayout

__all__ = [
    "BatteryContainer",
    "CVLossSchedule",
    "CheckpointFiles",
    "EigenbasisRotation",
    "EpochTable",
    "FiniteGuard",
    "ImplantPolicy",
    "KVCacheCompression",
    "LastCheckpoint",
    "NonFiniteError",
    "ParameterRouting",
    "RandomState",
    "ReconstructionGrid",
    "RunCard",
    "Scoreboard",
    "TensorBoardLayout",
    "TrainingInterrupted",
    "check_distinct",
]

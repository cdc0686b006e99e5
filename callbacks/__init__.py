"""Callbacks; the names here are those that a configuration uses."""

from eigenscope.callbacks.nan_guard.finite_guard import FiniteGuard, NonFiniteError
from eigenscope.callbacks.reporting.epoch_table import EpochTable, ParameterRouting
from eigenscope.callbacks.reporting.model_summary import ParameterSummary
from eigenscope.callbacks.reporting.monitor_check import MonitorCheck
from eigenscope.callbacks.reporting.predictions import PredictionWriter
from eigenscope.callbacks.reporting.run_folder import RunFolder
from eigenscope.callbacks.reporting.run_metadata import RunMetadataCallback
from eigenscope.callbacks.reporting.scoreboard import Scoreboard
from eigenscope.callbacks.reporting.tensorboard_layout import TensorBoardLayout
from eigenscope.callbacks.resuming.exact_resume import ExactResume
from eigenscope.callbacks.resuming.resume_checkpoint import ResumeCheckpoint, SafeCheckpointIO, TrainingInterrupted
from eigenscope.callbacks.spectra.battery_container import BatteryContainer
from eigenscope.callbacks.spectra.cv_loss_schedule import CVLossSchedule
from eigenscope.callbacks.spectra.eigenbasis_rotation import EigenbasisRotation
from eigenscope.callbacks.spectra.implant_policy import ImplantPolicy
from eigenscope.callbacks.spectra.kv_cache_compression import KVCacheCompression
from eigenscope.callbacks.spectra.reconstruction_grid import ReconstructionGrid

__all__ = [
    "BatteryContainer",
    "CVLossSchedule",
    "EigenbasisRotation",
    "EpochTable",
    "ExactResume",
    "FiniteGuard",
    "ImplantPolicy",
    "KVCacheCompression",
    "MonitorCheck",
    "NonFiniteError",
    "ParameterRouting",
    "ParameterSummary",
    "PredictionWriter",
    "ReconstructionGrid",
    "ResumeCheckpoint",
    "RunFolder",
    "RunMetadataCallback",
    "SafeCheckpointIO",
    "Scoreboard",
    "TensorBoardLayout",
    "TrainingInterrupted",
]

"""Results of runs: run metadata, the scoreboard over runs, and the statistics of comparisons."""

from eigenscope.results.run_metadata import RunMetadata, update_record
from eigenscope.results.run_result import EpochResult, MonitoredMetric, RunResult, StoppedRun, scored
from eigenscope.results.scoreboard import add_to_scoreboard, read_scoreboard
from eigenscope.results.scoreboard_table import scoreboard_table
from eigenscope.results.statistics import ArmSummary, PairedDifference, Spread, compare_arms, comparison_table

__all__ = [
    "ArmSummary",
    "EpochResult",
    "MonitoredMetric",
    "PairedDifference",
    "RunMetadata",
    "RunResult",
    "Spread",
    "StoppedRun",
    "add_to_scoreboard",
    "compare_arms",
    "comparison_table",
    "read_scoreboard",
    "scoreboard_table",
    "scored",
    "update_record",
]

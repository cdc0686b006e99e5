"""Results of runs: what one run leaves behind, the scoreboard over runs, and the comparison of arms."""

from eigenscope.study.battery_table import battery_table
from eigenscope.study.comparison import ArmSummary, Difference, Spread, compare_arms, comparison_table
from eigenscope.study.result import EpochResult, RunResult, Score, StoppedRun, scored
from eigenscope.study.run_record import RunRecord, update_record
from eigenscope.study.scoreboard import add_to_scoreboard, read_scoreboard, scoreboard_table

__all__ = [
    "ArmSummary",
    "Difference",
    "EpochResult",
    "RunRecord",
    "RunResult",
    "Score",
    "Spread",
    "StoppedRun",
    "add_to_scoreboard",
    "battery_table",
    "compare_arms",
    "comparison_table",
    "read_scoreboard",
    "scoreboard_table",
    "scored",
    "update_record",
]

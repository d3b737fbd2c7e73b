"""The full active-learning loop over real data sets: Algorithms 1 and 2, and the folder that a run leaves behind."""

from dm2_fast.experiment.config import AdversarialConfig, RunConfig, TrainingConfig
from dm2_fast.experiment.loop import Result, run
from dm2_fast.experiment.own_pool import SelectConfig, select_from_files
from dm2_fast.experiment.report import write_report
from dm2_fast.experiment.sweep import sweep

__all__ = [
    "AdversarialConfig",
    "Result",
    "RunConfig",
    "SelectConfig",
    "TrainingConfig",
    "run",
    "select_from_files",
    "sweep",
    "write_report",
]

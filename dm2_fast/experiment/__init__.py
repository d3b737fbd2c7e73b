"""The full active-learning loop over real data sets: Algorithms 1 and 2, and the folder that a run leaves behind."""

from dm2_fast.experiment.config import AdversarialConfig, RunConfig, TrainingConfig
from dm2_fast.experiment.events import RoundEvent, TensorBoard
from dm2_fast.experiment.loop import Result, run

__all__ = ["AdversarialConfig", "Result", "RoundEvent", "RunConfig", "TensorBoard", "TrainingConfig", "run"]

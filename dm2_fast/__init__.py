"""The fast implementation of DM2 and DM2-AT, deep active learning by distance-measured data mixing."""

from typing import TYPE_CHECKING, Any

from dm2_fast import strategies
from dm2_fast.acquire import select, select_from
from dm2_fast.adversarial import fgsm, pair_loss
from dm2_fast.operations.audit import Audit
from dm2_fast.operations.knn import knn, pairwise
from dm2_fast.operations.linear_probe import linear_probe
from dm2_fast.operations.mix import mix
from dm2_fast.operations.neighbours import Neighbours
from dm2_fast.operations.probabilities import logits_of
from dm2_fast.operations.uncertainty import uncertainty
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.dm2 import DM2Config
from dm2_fast.strategy import Pass, Strategy, TrainingStep

if TYPE_CHECKING:
    from dm2_fast.experiment import RunConfig as RunConfig
    from dm2_fast.experiment import run as run

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "DM2Config",
    "Neighbours",
    "Pass",
    "Picked",
    "Round",
    "RunConfig",
    "Strategy",
    "TrainingStep",
    "fgsm",
    "knn",
    "linear_probe",
    "logits_of",
    "mix",
    "pair_loss",
    "pairwise",
    "run",
    "select",
    "select_from",
    "strategies",
    "uncertainty",
]


def __getattr__(name: str) -> Any:
    if name in ("run", "RunConfig"):  # on first use, so that the core loads only torch and numpy
        from dm2_fast import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The fast implementation of DM2 and DM2-AT, deep active learning by distance-measured data mixing."""

from typing import TYPE_CHECKING, Any

from dm2_fast import strategies
from dm2_fast.acquire import DM2Config, Picked, select
from dm2_fast.adversarial import fgsm, pair_loss
from dm2_fast.distance import knn, pairwise
from dm2_fast.mixing import mix
from dm2_fast.probe import linear_probe
from dm2_fast.scoring import uncertainty

if TYPE_CHECKING:
    from dm2_fast.experiment import RunConfig as RunConfig
    from dm2_fast.experiment import run as run

__version__ = "0.1.0"
__all__ = [
    "DM2Config",
    "Picked",
    "RunConfig",
    "fgsm",
    "knn",
    "linear_probe",
    "mix",
    "pair_loss",
    "pairwise",
    "run",
    "select",
    "strategies",
    "uncertainty",
]


def __getattr__(name: str) -> Any:
    if name in ("run", "RunConfig"):  # on first use, so that the core loads only torch and numpy
        from dm2_fast import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The fast implementation of DM2 and DM2-AT, deep active learning by distance-measured data mixing."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dm2_fast import distributed as distributed
    from dm2_fast import strategies as strategies
    from dm2_fast.acquire import select as select
    from dm2_fast.acquire import select_from as select_from
    from dm2_fast.adversarial import fgsm as fgsm
    from dm2_fast.adversarial import pair_loss as pair_loss
    from dm2_fast.adversarial import pgd as pgd
    from dm2_fast.experiment import RunConfig as RunConfig
    from dm2_fast.experiment import run as run
    from dm2_fast.operations.audit import Audit as Audit
    from dm2_fast.operations.knn import knn as knn
    from dm2_fast.operations.knn import pairwise as pairwise
    from dm2_fast.operations.linear_probe import linear_probe as linear_probe
    from dm2_fast.operations.mix import mix as mix
    from dm2_fast.operations.neighbours import Neighbours as Neighbours
    from dm2_fast.operations.probabilities import logits_of as logits_of
    from dm2_fast.operations.uncertainty import uncertainty as uncertainty
    from dm2_fast.round import Picked as Picked
    from dm2_fast.round import Round as Round
    from dm2_fast.strategies.dm2 import DM2Config as DM2Config
    from dm2_fast.strategy import Pass as Pass
    from dm2_fast.strategy import Strategy as Strategy
    from dm2_fast.strategy import TrainingStep as TrainingStep

__version__ = "0.1.0"

# The module of each public name. It is imported on first use, so that the command line answers before torch is loaded,
# and the core loads torch and numpy only.
_MODULES = {
    "Audit": "operations.audit",
    "DM2Config": "strategies.dm2",
    "Neighbours": "operations.neighbours",
    "Pass": "strategy",
    "Picked": "round",
    "Round": "round",
    "RunConfig": "experiment",
    "Strategy": "strategy",
    "TrainingStep": "strategy",
    "fgsm": "adversarial",
    "knn": "operations.knn",
    "linear_probe": "operations.linear_probe",
    "logits_of": "operations.probabilities",
    "mix": "operations.mix",
    "pair_loss": "adversarial",
    "pairwise": "operations.knn",
    "pgd": "adversarial",
    "run": "experiment",
    "select": "acquire",
    "select_from": "acquire",
    "uncertainty": "operations.uncertainty",
}
__all__ = [*_MODULES, "distributed", "strategies"]


def __getattr__(name: str) -> Any:
    if name in ("distributed", "strategies"):
        return importlib.import_module(f"dm2_fast.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"dm2_fast.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

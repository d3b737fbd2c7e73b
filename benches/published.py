"""DM2 with the paper's setting as its defaults, so that Table 4 times it beside ours: `benches.published:dm2`."""

from dataclasses import dataclass, replace
from typing import Literal

from dm2_fast import strategies
from dm2_fast.operations.uncertainty import Uncertainty
from dm2_fast.strategies.batch import Batch
from dm2_fast.strategies.dm2 import DM2Config


@dataclass(frozen=True)
class Published(DM2Config):
    """The options of dm2, by default those of `DM2Config.published`."""

    lam: float | Literal["beta"] = 0.5
    score: Uncertainty = "least-confidence"
    batch: Batch | Literal["spread"] = "highest"


dm2 = replace(strategies.get("dm2"), name="dm2-published", options=Published)

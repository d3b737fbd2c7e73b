"""Every acquisition strategy by its paper name: `strategies.get("dm2")(round, budget, options)`.

A strategy is one function in one file. It looks at a `Round` and returns a `Picked`: the chosen rows in order, and the
score of every row where the method scores rows.
"""

from collections.abc import Callable
from typing import Any

from dm2_fast.acquire import Picked
from dm2_fast.strategies import (
    alpha_mix,
    badge,
    bald,
    core_gcn,
    coreset,
    dm2,
    dm2_at,
    entropy,
    entropy_bayesian,
    least_confidence,
    margin,
    noise_stability,
    prob_cover,
    random,
    uncertain_gcn,
)
from dm2_fast.strategies.alpha_mix import AlphaMixConfig
from dm2_fast.strategies.bald import BALDConfig
from dm2_fast.strategies.core_gcn import CoreGCNConfig
from dm2_fast.strategies.entropy_bayesian import EntropyBayesianConfig
from dm2_fast.strategies.noise_stability import NoiseStabilityConfig
from dm2_fast.strategies.prob_cover import ProbCoverConfig
from dm2_fast.strategies.round import Round
from dm2_fast.strategies.uncertain_gcn import UncertainGCNConfig

__all__ = [
    "AlphaMixConfig",
    "BALDConfig",
    "CoreGCNConfig",
    "EntropyBayesianConfig",
    "NoiseStabilityConfig",
    "ProbCoverConfig",
    "Round",
    "Strategy",
    "UncertainGCNConfig",
    "get",
    "names",
]

Strategy = Callable[[Round, int, Any], Picked]

_STRATEGIES: dict[str, Strategy] = {
    "random": random.choose,
    "least-confidence": least_confidence.choose,
    "entropy": entropy.choose,
    "margin": margin.choose,
    "bald": bald.choose,
    "entropy-bayesian": entropy_bayesian.choose,
    "coreset": coreset.choose,
    "uncertain-gcn": uncertain_gcn.choose,
    "core-gcn": core_gcn.choose,
    "badge": badge.choose,
    "prob-cover": prob_cover.choose,
    "alpha-mix": alpha_mix.choose,
    "noise-stability": noise_stability.choose,
    "dm2": dm2.choose,
    "dm2-at": dm2_at.choose,
}


def names() -> tuple[str, ...]:
    """The names of all strategies."""
    return tuple(_STRATEGIES)


def get(name: str) -> Strategy:
    """Return the strategy with this name.

    Raises:
        ValueError: there is none.
    """
    if name not in _STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(names())}, got {name!r}")
    return _STRATEGIES[name]

"""Every acquisition strategy by its paper name: one file each, which ends in its description, `STRATEGY`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from dm2_fast import plugins
from dm2_fast.operations.arguments import meant, shown
from dm2_fast.round import Picked, Round
from dm2_fast.strategies import (
    alpha_mix,
    badge,
    bald,
    batchbald,
    cluster_margin,
    core_gcn,
    coreset,
    dm2,
    dm2_at,
    ent_gn,
    entropy,
    entropy_bayesian,
    exp_gn,
    isal,
    least_confidence,
    ll4al,
    margin,
    noise_stability,
    prob_cover,
    qbc,
    random,
    uncertain_gcn,
    vaal,
)
from dm2_fast.strategy import Strategy

_MODULES = (
    random, least_confidence, entropy, margin, bald, entropy_bayesian, coreset, uncertain_gcn, core_gcn, badge,
    prob_cover, alpha_mix, noise_stability, batchbald, ent_gn, exp_gn, qbc, cluster_margin, isal, ll4al, vaal, dm2,
    dm2_at,
)  # fmt: skip
_STRATEGIES: dict[str, Strategy] = {module.STRATEGY.name: module.STRATEGY for module in _MODULES}


def names() -> tuple[str, ...]:
    """The names of all strategies."""
    return tuple(_STRATEGIES)


def get(strategy: str | Strategy | Callable[[Round, int, Any], Picked]) -> Strategy:
    """The strategy of this name, `package.module:function`, or function; a `Strategy` is returned as it is.

    Raises:
        ValueError: there is none.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if callable(strategy) and not isinstance(strategy, (type, nn.Module)):
        return Strategy(getattr(strategy, "__name__", type(strategy).__name__), strategy)
    if not isinstance(strategy, str):
        raise TypeError(f"strategy must be a name or a function, got {shown(strategy)} (options go to options=)")
    if plugins.is_plugin(strategy):
        return plugins.strategy(strategy)
    if strategy not in _STRATEGIES:
        raise ValueError(
            f"strategy must be one of {', '.join(names())} or module:function, got {shown(strategy, 20)}"
            f"{meant(strategy, names())}"
        )
    return _STRATEGIES[strategy]


def group(strategy: Strategy) -> str | None:
    """The name under which a configuration holds the options of a strategy: that of the first one that has them."""
    if strategy.options is None:
        return None
    first = next((one for one in _STRATEGIES.values() if one.options is strategy.options), strategy)
    return first.name.replace("-", "_")

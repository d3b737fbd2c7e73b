"""DM2: the samples whose mixture with their neighbours is most uncertain (Algorithm 1)."""

from dm2_fast.acquire import DM2Config, Picked, choose_mixed
from dm2_fast.strategies.round import Round


def choose(round: Round, budget: int, options: DM2Config | None = None) -> Picked:
    """Choose budget rows of the pool; the options are those of `dm2_fast.select`."""
    return choose_mixed(
        round.forward, round.features, budget, options or DM2Config(), round.seed, round.round, round.ids
    )

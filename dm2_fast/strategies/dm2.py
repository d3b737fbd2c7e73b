"""DM2: the samples whose mixture with their neighbours is most uncertain (Algorithm 1)."""

from dm2_fast.acquire import DM2Config, Picked, select
from dm2_fast.strategies.round import Round


def choose(round: Round, budget: int, options: DM2Config | None = None) -> Picked:
    """Choose budget rows of the pool; the options are those of `dm2_fast.select`."""
    forward = round.forward
    return select(
        forward.model,
        forward.inputs,
        budget,
        options,
        forward.normalize,
        round.seed,
        round.round,
        round.ids,
        head=forward.head,
        batch_size=forward.batch_size,
        backend=forward.backend,
        num_threads=forward.num_threads,
        progress=forward.progress,
    )

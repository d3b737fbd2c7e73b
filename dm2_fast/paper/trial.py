"""What an acquisition needs and about how long it takes, from lines through small trials of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dm2_fast.acquire import select_from
from dm2_fast.round import Round
from dm2_fast.strategy import Pass, Strategy

_WARM_UP = (64, 4)
_TRIALS = ((64, 4), (64, 16), (128, 4))  # rows and budget


@dataclass(frozen=True)
class Trial:
    """What a method needs on a model, and the seconds that it took in `_TRIALS`.

    Attributes:
        needs: Those of its passes that its choice runs.
        spent: Seconds of each pass.
        seconds: Seconds of the selections.
    """

    needs: tuple[Pass, ...]
    spent: tuple[dict[str, float], ...]
    seconds: tuple[float, ...]

    def passes(self, pool: int) -> dict[str, float]:
        """Seconds of each pass: a line in the rows."""
        few, _, many = self.spent
        return {name: s + max(0.0, many.get(name, s) - s) * (pool / 64 - 1) for name, s in few.items()}

    def selection(self, budget: int, pool: int) -> float:
        """Seconds of one selection: a line in the rows, and one in the budget that rows make steeper."""
        first, by_budget, by_rows = self.seconds
        rise = max(0.0, by_budget - first) / 12 * (1 + pool / 4096)
        return first + max(0.0, by_rows - first) * (pool / 64 - 1) + rise * (budget - 4)


def try_out(strategy: Strategy, round_of: Callable[[int], Round]) -> Trial:
    """Run a strategy on rounds with few rows, which `round_of` makes."""
    names = [shared.name for shared in strategy.passes]
    select_from(round_of(_WARM_UP[0]), _WARM_UP[1], strategy)
    spent, seconds = [], []
    for rows, budget in _TRIALS:
        stages = select_from(round_of(rows), budget, strategy).seconds
        spent.append({name: stages[name] for name in names if name in stages})
        seconds.append(sum(s for name, s in stages.items() if name not in names))
    return Trial(tuple(p for p in strategy.passes if p.name in spent[0]), tuple(spent), tuple(seconds))


def estimate(acquisitions: Sequence[tuple[Trial, int]], pool: int, repeats: int) -> float:
    """Seconds that it takes to run each pass once, and each selection repeats times after one for warming up."""
    passes: dict[str, float] = {}
    for trial, _ in acquisitions:
        for name, seconds in trial.passes(pool).items():
            passes[name] = max(seconds, passes.get(name, 0.0))
    return sum(passes.values()) + sum(trial.selection(budget, pool) for trial, budget in acquisitions) * (1 + repeats)

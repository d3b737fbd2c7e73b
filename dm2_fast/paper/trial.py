"""What an acquisition needs and about how long it takes, from lines through small trials of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from dm2_fast.acquire import select_from
from dm2_fast.round import Round
from dm2_fast.strategy import Pass, Strategy

_WARM_UP = (64, 64, 4)
_TRIALS = ((64, 64, 4), (64, 64, 16), (128, 64, 4), (64, 128, 4))  # rows, labelled samples and budget


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

    def passes(self, pool: int, labelled: int) -> dict[str, float]:
        """Seconds of each pass: a line in the rows and in the labelled samples."""
        few, _, rows, samples = self.spent
        return {
            name: s
            + max(0.0, rows.get(name, s) - s) * (pool / 64 - 1)
            + max(0.0, samples.get(name, s) - s) * max(0.0, labelled / 64 - 1)
            for name, s in few.items()
        }

    def selection(self, budget: int, pool: int, labelled: int) -> float:
        """Seconds of one selection: a line in rows and labelled samples, and in the budget, which rows make steeper."""
        first, by_budget, by_rows, by_samples = self.seconds
        rise = max(0.0, by_budget - first) / 12 * (1 + pool / 4096) * (budget - 4)
        of_samples = max(0.0, by_samples - first) * max(0.0, labelled / 64 - 1)
        return first + max(0.0, by_rows - first) * (pool / 64 - 1) + of_samples + rise

    def acquisition(self, budget: int, pool: int, labelled: int) -> float:
        """Seconds of one acquisition, its passes and its selection."""
        return sum(self.passes(pool, labelled).values()) + self.selection(budget, pool, labelled)


def try_out(strategy: Strategy, round_of: Callable[[int, int], Round], limit: float | None = None) -> Trial:
    """Run a strategy on rounds with few rows and labelled samples, which `round_of` makes.

    What takes more than limit seconds the first time is not run again: then that is all that is known.
    """
    names = [shared.name for shared in strategy.passes]

    def run(rows: int, samples: int, budget: int) -> tuple[dict[str, float], float]:
        """The seconds of each pass, and of the rest."""
        round, start = round_of(rows, samples), perf_counter()
        stages = select_from(round, budget, strategy).seconds
        whole, passes = perf_counter() - start, {name: stages[name] for name in names if name in stages}
        return passes, max(0.0, whole - sum(passes.values()))

    first = run(*_WARM_UP)
    over = limit is not None and sum(first[0].values()) + first[1] > limit
    trials = [first if over else run(*trial) for trial in _TRIALS]
    spent, seconds = zip(*trials, strict=True)
    return Trial(tuple(p for p in strategy.passes if p.name in spent[0]), spent, seconds)


def estimate(acquisitions: Sequence[tuple[Trial, int]], pool: int, labelled: int, repeats: int) -> float:
    """Seconds that it takes to run each pass once, and each selection repeats times after one for warming up."""
    passes: dict[str, float] = {}
    for trial, _ in acquisitions:
        for name, seconds in trial.passes(pool, labelled).items():
            passes[name] = max(seconds, passes.get(name, 0.0))
    selections = sum(trial.selection(budget, pool, labelled) for trial, budget in acquisitions)
    return sum(passes.values()) + selections * (1 + repeats)

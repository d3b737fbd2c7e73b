"""What an acquisition needs and about how long it takes, from lines through small trials of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from dm2_fast.acquire import select_from
from dm2_fast.round import Round
from dm2_fast.strategy import Pass, Strategy

_ROWS, _MORE_ROWS = 64, 256
_SAMPLES, _MORE_SAMPLES = 64, 128
_BUDGET, _MORE_BUDGET = 4, 16
# Rows, labelled samples and budget; what is dear in a large pool shows first.
_TRIALS = (
    (_ROWS, _SAMPLES, _BUDGET),
    (_MORE_ROWS, _SAMPLES, _BUDGET),
    (_ROWS, _SAMPLES, _MORE_BUDGET),
    (_MORE_ROWS, _SAMPLES, _MORE_BUDGET),
    (_ROWS, _MORE_SAMPLES, _BUDGET),
)


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
        few, rows, _, _, samples = self.spent
        return {
            name: s
            + _rise(s, rows.get(name, s), _ROWS, _MORE_ROWS, pool)
            + _rise(s, samples.get(name, s), _SAMPLES, _MORE_SAMPLES, labelled)
            for name, s in few.items()
        }

    def selection(self, budget: int, pool: int, labelled: int) -> float:
        """Seconds of one selection: a line in rows, labelled samples and budget; more rows make the budget dearer."""
        first, by_rows, by_budget, by_both, by_samples = self.seconds
        of_few, of_many = max(0.0, by_budget - first), max(0.0, by_both - by_rows)
        of_budget = of_few + _rise(of_few, of_many, _ROWS, _MORE_ROWS, pool)
        return (
            first
            + _rise(first, by_rows, _ROWS, _MORE_ROWS, pool)
            + _rise(first, by_samples, _SAMPLES, _MORE_SAMPLES, labelled)
            + of_budget * max(0, budget - _BUDGET) / (_MORE_BUDGET - _BUDGET)
        )

    def acquisition(self, budget: int, pool: int, labelled: int) -> float:
        """Seconds of one acquisition, its passes and its selection."""
        return sum(self.passes(pool, labelled).values()) + self.selection(budget, pool, labelled)


def _rise(few: float, many: float, at_few: int, at_many: int, n: int) -> float:
    """What a line through (at_few, few) and (at_many, many) has more at n than at at_few; no line falls."""
    return max(0.0, many - few) / (at_many - at_few) * max(0, n - at_few)


def try_out(
    strategy: Strategy,
    round_of: Callable[[int, int], Round],
    enough: Callable[[Trial], bool] = lambda trial: False,
) -> Trial:
    """Run a strategy on rounds with few rows and labelled samples, which `round_of` makes.

    What was not yet tried counts as no slower than the first trial, so that estimates grow from trial to trial; it ends
    where they are enough.
    """
    names = [shared.name for shared in strategy.passes]

    def run(rows: int, samples: int, budget: int) -> tuple[dict[str, float], float]:
        """The seconds of each pass, and of the rest."""
        round, start = round_of(rows, samples), perf_counter()
        stages = select_from(round, budget, strategy).seconds
        whole, passes = perf_counter() - start, {name: stages[name] for name in names if name in stages}
        return passes, max(0.0, whole - sum(passes.values()))

    def trial() -> Trial:
        spent, seconds = zip(*done, *[done[0]] * (len(_TRIALS) - len(done)), strict=True)
        return Trial(tuple(p for p in strategy.passes if p.name in spent[0]), spent, seconds)

    done = [run(*_TRIALS[0])]  # to warm up
    if not enough(trial()):
        done = []
        for sizes in _TRIALS:
            done.append(run(*sizes))
            if enough(trial()):
                break
    return trial()


def estimate(acquisitions: Sequence[tuple[Trial, int]], pool: int, labelled: int, repeats: int) -> float:
    """Seconds that it takes to run each pass once, and each selection repeats times after one for warming up."""
    passes: dict[str, float] = {}
    for trial, _ in acquisitions:
        for name, seconds in trial.passes(pool, labelled).items():
            passes[name] = max(seconds, passes.get(name, 0.0))
    selections = sum(trial.selection(budget, pool, labelled) for trial, budget in acquisitions)
    return sum(passes.values()) + selections * (1 + repeats)

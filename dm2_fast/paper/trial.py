"""What an acquisition needs and about how long it takes, from lines through small trials of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from dm2_fast.acquire import select_from
from dm2_fast.round import Round
from dm2_fast.strategy import Pass, Strategy

Sizes = tuple[int, int, int]  # rows, labelled samples, budget

_PART = 10  # a trial that takes less than this part of the limit says too little of what is over it
_GROWTH = 4


def _sizes(scale: int, labelled: int) -> tuple[Sizes, ...]:
    """The sizes of the trials; what is dear in a large pool shows first."""
    rows, budget = 64 * scale, 4 * scale
    samples, more_samples = min(64 * scale, max(1, labelled // 2)), min(128 * scale, labelled)
    return (
        (rows, samples, budget),
        (4 * rows, samples, budget),
        (rows, samples, 4 * budget),
        (4 * rows, samples, 4 * budget),
        (rows, more_samples, budget),
    )


@dataclass(frozen=True)
class Trial:
    """What a method needs on a model, and the seconds that it took in five trials.

    Attributes:
        needs: Those of its passes that its choice runs.
        sizes: Of the trials: the smallest, more rows, more picks, more of both, more labelled samples.
        spent: Seconds of each pass.
        seconds: Seconds of the selections.
    """

    needs: tuple[Pass, ...]
    sizes: tuple[Sizes, ...]
    spent: tuple[dict[str, float], ...]
    seconds: tuple[float, ...]

    def passes(self, pool: int, labelled: int) -> dict[str, float]:
        """Seconds of each pass: a line in the rows and in the labelled samples."""
        few, by_rows, _, _, by_samples = self.spent
        return {
            name: s
            + self._rise_by_rows(s, by_rows.get(name, s), pool)
            + self._rise_by_samples(s, by_samples.get(name, s), labelled)
            for name, s in few.items()
        }

    def selection(self, budget: int, pool: int, labelled: int) -> float:
        """Seconds of one selection: a line in rows, labelled samples and budget; more rows make the budget dearer."""
        first, by_rows, by_budget, by_both, by_samples = self.seconds
        of_few, of_many = max(0.0, by_budget - first), max(0.0, by_both - by_rows)
        of_budget = of_few + self._rise_by_rows(of_few, of_many, pool)
        few_picks, more_picks = self.sizes[0][2], self.sizes[2][2]
        return (
            first
            + self._rise_by_rows(first, by_rows, pool)
            + self._rise_by_samples(first, by_samples, labelled)
            + of_budget * max(0, budget - few_picks) / (more_picks - few_picks)
        )

    def acquisition(self, budget: int, pool: int, labelled: int) -> float:
        """Seconds of one acquisition, its passes and its selection."""
        return sum(self.passes(pool, labelled).values()) + self.selection(budget, pool, labelled)

    def _rise_by_rows(self, few: float, many: float, n: int) -> float:
        return _rise(few, many, self.sizes[0][0], self.sizes[1][0], n)

    def _rise_by_samples(self, few: float, many: float, n: int) -> float:
        return _rise(few, many, self.sizes[0][1], self.sizes[4][1], n)


def _rise(few: float, many: float, at_few: int, at_many: int, n: int) -> float:
    """What a line through (at_few, few) and (at_many, many) has more at n than at at_few; no line falls."""
    return max(0.0, many - few) / max(1, at_many - at_few) * max(0, n - at_few)


def try_out(
    strategy: Strategy,
    round_of: Callable[[int, int], Round],
    budgets: Sequence[int],
    pool: int,
    labelled: int,
    limit: float = math.inf,
) -> Trial:
    """Run a strategy on rounds with few rows and labelled samples, which `round_of` makes.

    With a limit, trials end where the smallest budget is over it; and they are repeated with four times the sizes while
    the largest is over it by an estimate from trials so short that it may be noise.
    """
    names = [shared.name for shared in strategy.passes]

    def run(rows: int, samples: int, budget: int) -> tuple[dict[str, float], float]:
        """The seconds of each pass, and of the rest."""
        round, start = round_of(rows, samples), perf_counter()
        stages = select_from(round, budget, strategy).seconds
        whole, passes = perf_counter() - start, {name: stages[name] for name in names if name in stages}
        return passes, max(0.0, whole - sum(passes.values()))

    def trial(sizes: tuple[Sizes, ...], done: list[tuple[dict[str, float], float]]) -> Trial:
        """What was not yet tried counts as no slower than the first trial: estimates grow from trial to trial."""
        spent, seconds = zip(*done, *[done[0]] * (len(sizes) - len(done)), strict=True)
        return Trial(tuple(p for p in strategy.passes if p.name in spent[0]), sizes, spent, seconds)

    def over(found: Trial, budget: int) -> bool:
        return found.acquisition(budget, pool, labelled) > limit

    def told(found: Trial) -> bool:
        longest = max(s + sum(passes.values()) for passes, s in zip(found.spent, found.seconds, strict=True))
        return longest * _PART >= limit

    def enough(found: Trial) -> bool:
        return over(found, min(budgets)) and told(found)

    scale, sizes = 1, _sizes(1, labelled)
    found = trial(sizes, [run(*sizes[0])])  # to warm up
    while not enough(found):
        done = []
        for each in sizes:
            done.append(run(*each))
            found = trial(sizes, done)
            if enough(found):
                return found
        scale *= _GROWTH
        sizes = _sizes(scale, labelled)
        if told(found) or not over(found, max(budgets)) or max(rows for rows, _, _ in sizes) > pool:
            break
    return found


def estimate(acquisitions: Sequence[tuple[Trial, int]], pool: int, labelled: int, repeats: int) -> float:
    """Seconds that it takes to run each pass once, and each selection repeats times after one for warming up."""
    passes: dict[str, float] = {}
    for trial, _ in acquisitions:
        for name, seconds in trial.passes(pool, labelled).items():
            passes[name] = max(seconds, passes.get(name, 0.0))
    selections = sum(trial.selection(budget, pool, labelled) for trial, budget in acquisitions)
    return sum(passes.values()) + selections * (1 + repeats)

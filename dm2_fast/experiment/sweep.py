"""Several runs in one command, one after the other: every strategy with every seed, and what they say together."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dm2_fast.experiment.config import RunConfig, fingerprint, folder_name, resolve
from dm2_fast.experiment.loop import run
from dm2_fast.experiment.report import write_report


@dataclass(frozen=True)
class SweepConfig:
    """Several runs in one command.

    Args:
        seeds: In place of seed, several, as in 0,1,2; each strategy runs with each of them.
        strategies: In place of strategy, several, as in dm2,random.
    """

    seeds: str | None = None
    strategies: str | None = None


def sweep(
    config: RunConfig, seeds: Sequence[int], strategies: Sequence[str], *, echo: Callable[[str], None] | None = None
) -> Path:
    """Run every strategy with every seed, each in the folder that it would have alone, and write their report.

    The same call goes on where it was stopped: a run that is finished is not repeated.

    Args:
        config: What all runs share. With an output, the runs and the report are written below it.
        seeds, strategies: What they differ in.
        echo: Called with each line of the progress and of the report.

    Returns:
        The folder of report.csv and report.png.

    Raises:
        ValueError: a seed or strategy is given twice or not at all, or as for `run`; before the first run.
    """
    echo = echo or (lambda line: None)
    for name, values in (("seeds", seeds), ("strategies", strategies)):
        if not values or len({*values}) < len(values):
            raise ValueError(f"{name} must be distinct and at least one, got {', '.join(map(str, values)) or 'none'}")
    configs = [
        resolve(replace(config, strategy=strategy, seed=seed, output=None)) for strategy in strategies for seed in seeds
    ]
    folders = []
    for i, each in enumerate(configs):
        name = folder_name(each, f"{each.strategy}-seed{each.seed}", fingerprint(each))
        folders.append((config.output or Path("runs")) / name)
        echo(f"run {i + 1} of {len(configs)}: {folders[-1]}")
        run(replace(each, output=folders[-1]), echo=echo)
        echo("")
    return write_report(folders, config.output or Path("runs") / _name(configs), echo=echo)


def _name(configs: Sequence[RunConfig]) -> str:
    """The folder of the report is named like those of the runs beside it."""
    strategies, seeds = {each.strategy for each in configs}, {each.seed for each in configs}
    key = hashlib.sha256(" ".join(sorted(map(fingerprint, configs))).encode()).hexdigest()[:8]
    return folder_name(configs[0], f"{len(strategies)}strategies-{len(seeds)}seeds", key)

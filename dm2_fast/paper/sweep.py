"""Several runs in one command, one after the other, and what they say together."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dm2_fast.experiment.config import RunConfig, fingerprint, folder_name, resolve
from dm2_fast.experiment.loop import run
from dm2_fast.paper.report import write_report


@dataclass(frozen=True)
class SweepConfig:
    """Several runs in one command.

    Args:
        seeds: In place of seed, several, as in 0,1,2 or 0-4; each strategy runs with each of them.
        strategies: In place of strategy, several, as in dm2,random; or all.
    """

    seeds: list[int] | None = None
    strategies: list[str] | None = None

    def __post_init__(self) -> None:
        for name, values in (("seeds", self.seeds), ("strategies", self.strategies)):
            if values is not None and (not values or len({*values}) < len(values)):
                raise ValueError(
                    f"{name} must be distinct and at least one, got {', '.join(map(str, values)) or 'none'}"
                )


def sweep(
    configs: Sequence[RunConfig], output: Path | None = None, *, echo: Callable[[str], None] | None = None
) -> Path:
    """Run every configuration, each in the folder that it would have alone, and write their report.

    The same call goes on where it was stopped: a run that is finished is not repeated.

    Args:
        configs: What to run; their own output is not used.
        output: Folder to write the runs and the report below; None for runs/.
        echo: Called with each line of the progress and of the report.

    Returns:
        The folder of report.csv and report.png.

    Raises:
        ValueError: two configurations are the same run, or as for `run`; before the first run.
    """
    echo = echo or (lambda line: None)
    configs = [resolve(replace(config, output=None)) for config in configs]
    names = [folder_name(each, f"{each.strategy}-seed{each.seed}", fingerprint(each)) for each in configs]
    if not configs or len({*names}) < len(names):
        raise ValueError("give at least one configuration, and none twice")
    folders = [(output or Path("runs")) / name for name in names]
    for i, (config, folder) in enumerate(zip(configs, folders, strict=True)):
        echo(f"run {i + 1} of {len(configs)}: {folder}")
        run(replace(config, output=folder), echo=echo)
        echo("")
    return write_report(folders, output or Path("runs") / _name(configs), echo=echo)


def _name(configs: Sequence[RunConfig]) -> str:
    """The folder of the report is named like those of the runs beside it."""
    strategies, seeds = {each.strategy for each in configs}, {each.seed for each in configs}
    key = hashlib.sha256(" ".join(sorted(map(fingerprint, configs))).encode()).hexdigest()[:8]
    return folder_name(configs[0], f"{len(strategies)}strategies-{len(seeds)}seeds", key)

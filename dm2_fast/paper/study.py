"""A study: every curve of a protocol, made once, by as many processes as one likes, and kept in files."""

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from dm2_fast import extras
from dm2_fast.experiment.machine import machine, reproducible
from dm2_fast.paper import full, probe
from dm2_fast.paper.curves import Curve, add_curves, locked, read_curves
from dm2_fast.paper.protocol import Protocol, names, read_protocol
from dm2_fast.paper.study_report import show
from dm2_fast.paper.work import Claims, side_by_side
from dm2_fast.words import count

_KEEP_SECONDS = 5  # what a killed process loses at most of quick curves


@dataclass(frozen=True)
class StudyConfig:
    """What to run of a study.

    Args:
        study: probe, for the probe track; table1, table2, table3, table5, figure1 or figure4 of the paper; table4, the
            time of one acquisition, has options of its own (`dm2-fast bench table4 --help`).
        protocol: What is run and compared: a file.yaml, or small-... (two cores) or paper-... (the paper's sizes)
            that come with the package, such as paper-table1; null for small- and the study.
        cells: These cells of the protocol only.
        methods: These methods of the protocol only.
        seeds: In place of the protocol's, as in 0-9.
        jobs: Processes side by side, each with one thread of its own.
        minutes: Begin no further curve after so many minutes; the same command goes on later.
        plan: Say what is left and how long it takes, and run nothing.
        data_dir: Folder of the torchvision data sets, and of the features that are learned of them.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one. The probe track runs on the CPU.
        output: Folder to write; null for study/ and the protocol's name. Curves that are there are not run again.
    """

    study: Literal["probe", "table1", "table2", "table3", "table5", "figure1", "figure4"]
    protocol: str | None = None
    cells: list[str] | None = None
    methods: list[str] | None = None
    seeds: list[int] | None = None
    jobs: int = 1
    minutes: float | None = None
    plan: bool = False
    data_dir: Path = Path("data")
    device: str = "auto"
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}")


def study(config: StudyConfig, *, echo: Callable[[str], None] | None = None) -> Path:
    """Make the curves that are missing, and what the study shows; return its folder.

    Each curve is a row of a file below `curves/` as soon as it is there, or a few seconds later. The command can be
    killed and repeated, several on one folder share the work, and no earlier folder of a run is needed again.

    Raises:
        ValueError: the protocol, or the choice of its parts, is wrong.
        FileExistsError: the folder holds curves that were made with other options.
        MissingExtra: a package is not installed.
    """
    extras.check("run", "a study", "yaml", "matplotlib", "scipy")
    echo = echo or (lambda line: None)
    if config.protocol is None and f"small-{config.study}" not in names(config.study):
        raise ValueError(f"give --protocol: one of {', '.join(names(config.study))}, or a file.yaml")
    whole = read_protocol(config.protocol or f"small-{config.study}")
    if whole.show != config.study:
        raise ValueError(f"protocol {whole.name} is one of {whole.show}: dm2-fast bench {whole.show}")
    wanted = whole.restricted(config.cells, config.methods, config.seeds)
    config = replace(config, output=config.output or Path("study") / whole.name)
    assert config.output is not None
    (config.output / "curves").mkdir(parents=True, exist_ok=True)
    curves = kept(config.output, whole)
    keys, made = wanted.keys, {curve.key for curve in curves}
    left = [key for key in keys if key not in made]
    echo(f"{whole.name}: {count(len(keys) - len(left), 'curve')} made, {len(left)} left")
    if left:
        for line in _plan(wanted, config, left, curves):
            echo(line)
    if config.plan:
        return config.output
    if left:
        until = None if config.minutes is None else time.time() + 60 * config.minutes
        if config.jobs == 1:
            make_curves(config, wanted, until, echo)
        else:
            side_by_side(make_curves, (config, wanted, until, _say), config.jobs)
    curves = kept(config.output, whole)
    missing = len({*keys} - {curve.key for curve in curves})
    if missing:
        echo(f"{count(missing, 'curve')} left: the same command goes on")
    if curves:
        with locked(config.output):  # two commands may end together
            show(config.output, whole, curves, config.data_dir, config.device, echo=echo)
    return config.output


def _say(line: str) -> None:
    print(line, flush=True)


def kept(folder: Path, protocol: Protocol) -> list[Curve]:
    """The curves of a folder that belong to a protocol.

    Raises:
        FileExistsError: one was made with other options.
    """
    curves = []
    for curve in read_curves(folder / "curves"):
        if curve.cell in protocol.cells and curve.method in protocol.methods:
            if curve.options != protocol.fingerprint(curve.cell, curve.method):
                raise FileExistsError(
                    f"{folder} holds curves of {curve.method} on {curve.cell} that were made with other options than "
                    f"those of {protocol.name}: name another --output"
                )
            curves.append(curve)
    return curves


def make_curves(
    config: StudyConfig, wanted: Protocol, until: float | None, echo: Callable[[str], None] | None = None
) -> None:
    """Make what no one has made or is making, until it is done or the time is up."""
    assert config.output is not None
    folder = config.output / "curves"
    done = {curve.key for curve in read_curves(folder)}
    fresh: list[Curve] = []
    claimed: list[int] = []
    seen, kept_at = _stamp(folder), time.monotonic()
    threads = 1 if wanted.show == "probe" else None
    with Claims.open(config.output / ".claims") as claims, reproducible(threads), _one_thread(threads):
        origin = _origin()

        def keep() -> None:
            add_curves(folder, fresh)
            for number in claimed:
                claims.leave(number)
            fresh.clear()
            claimed.clear()

        try:
            for key in wanted.keys:
                if until is not None and time.time() >= until:
                    break
                number = _number(key)
                if key in done or not claims.take(number):
                    continue
                claimed.append(number)
                if _stamp(folder) != seen:  # someone has added curves since
                    seen = _stamp(folder)
                    done |= {curve.key for curve in read_curves(folder)}
                if key in done:
                    claims.leave(claimed.pop())
                    continue
                curve = replace(make_curve(config, wanted, key), **origin)
                fresh.append(curve)
                if time.monotonic() - kept_at >= _KEEP_SECONDS:
                    keep()
                    kept_at = time.monotonic()
                if echo is not None and curve.seconds >= 1:
                    reached = f"{curve.accuracy[-1]:.2%} in {curve.seconds:.0f} s"
                    echo(f"{curve.cell} {curve.method} seed {curve.seed}: {reached}")
        finally:
            keep()


def make_curve(config: StudyConfig, protocol: Protocol, key: tuple[str, str, int]) -> Curve:
    """One curve of a protocol."""
    cell, method, seed = key
    options = protocol.methods[method]
    if protocol.show == "probe":
        made = probe.probe_curve(cell, method, probe.Probe(**protocol.cells[cell]), options, seed, config.data_dir)
    else:
        assert config.output is not None
        made = full.full_curve(
            cell, method, protocol.cells[cell], options, seed, config.data_dir, config.device, config.output / "runs"
        )
    return replace(made, options=protocol.fingerprint(cell, method))


def _plan(wanted: Protocol, config: StudyConfig, left: list[tuple[str, str, int]], curves: list[Curve]) -> list[str]:
    """What is left by method, with the minutes that it takes; they come from curves that are there, or from a trial."""
    lines, whole = [], 0.0
    for method in wanted.methods:
        cells = [cell for cell, name, _ in left if name == method]
        if not cells:
            continue
        seconds, tried = 0.0, dict[str, float]()
        for cell in dict.fromkeys(cells):
            known = [curve.seconds for curve in curves if (curve.cell, curve.method) == (cell, method)]
            if known:
                each = median(known)
            elif wanted.show == "probe" and tried:  # one trial a method, since there are many cells
                first, each = next(iter(tried.items()))
                each *= (wanted.cells[cell]["rounds"] + 1) / (wanted.cells[first]["rounds"] + 1)
            else:
                each = tried[cell] = _trial(wanted, config, cell, method)
            seconds += each * cells.count(cell)
        whole += seconds
        lines.append(f"  {method:<24} {count(len(cells), 'curve'):>12}  about {_minutes(seconds)}")
    return [*lines, f"  about {_minutes(whole / config.jobs)} in all with --jobs {config.jobs}"]


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _trial(protocol: Protocol, config: StudyConfig, cell: str, method: str) -> float:
    values, options = protocol.cells[cell], protocol.methods[method]
    if protocol.show == "probe":
        with reproducible(1), _one_thread(1):
            return probe.seconds_of(probe.Probe(**values), options, config.data_dir)
    return full.seconds_of(values, options, config.data_dir, config.device)


def _one_thread(threads: int | None) -> AbstractContextManager[object]:
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(threads)
    return limits


def _number(key: tuple[str, str, int]) -> int:
    return int(hashlib.sha256(repr(key).encode()).hexdigest()[:15], 16)


def _stamp(folder: Path) -> list[tuple[str, int]]:
    return sorted((file.name, file.stat().st_mtime_ns) for file in folder.glob("*.csv.gz"))


def _origin() -> dict[str, Any]:
    _, computer, installed = machine(torch.device("cpu"))
    versions, commit, date = installed.rsplit(", ", 2)
    return {"machine": computer, "versions": versions, "commit": commit.removeprefix("commit "), "date": date}

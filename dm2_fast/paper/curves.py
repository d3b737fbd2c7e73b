"""Learning curves in files that are kept: one compressed CSV file per cell of a study, one row per curve."""

import csv
import fcntl
import gzip
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor

from dm2_fast.experiment.folder.files import replacing


@dataclass(frozen=True)
class Curve:
    """What one run reached: a row of a file.

    Attributes:
        cell, method, seed: Which run of the study.
        labelled: Number of labels at each training.
        measures: Values in [0, 1] by name, `accuracy` among them: one per training, or one for the last model alone.
        picks: Hash of all rows chosen, in order, see `hash_of`.
        options: What the options of cell and method are told from others by (`Protocol.fingerprint`).
        seconds: Wall time of the run.
        selection_seconds: Of its selections.
        peak_mb: The most memory of the process, in megabytes, beyond what it had before.
        machine, versions, commit, date: What ran it, and when.
    """

    cell: str
    method: str
    seed: int
    labelled: tuple[int, ...]
    measures: dict[str, tuple[float, ...]]
    picks: str = ""
    options: str = ""
    seconds: float = 0.0
    selection_seconds: float = 0.0
    peak_mb: float = 0.0
    machine: str = ""
    versions: str = ""
    commit: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Unique key of a curve in a study."""
        return (self.cell, self.method, self.seed)

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Test accuracy after each training."""
        return self.measures["accuracy"]


_PLAIN = [item.name for item in fields(Curve) if item.name != "measures"]
_NUMBERS = {"seconds", "selection_seconds", "peak_mb"}


def hash_of(chosen: Sequence[Tensor]) -> str:
    """Twelve hexadecimal digits that differ where the rows chosen, or their order or rounds, differ."""
    text = ";".join(",".join(map(str, rows.tolist())) for rows in chosen)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_curves(place: Path) -> list[Curve]:
    """The curves of a file, or of all files in a folder, in the order of their names.

    Raises:
        ValueError: a file holds something else.
        FileNotFoundError: there is none.
    """
    files = sorted(place.glob("*.csv.gz")) if place.is_dir() else [place]
    return [curve for file in files for curve in _read(file)]


def add_curves(folder: Path, curves: Iterable[Curve]) -> None:
    """Add curves to the files of a folder, each to that of its cell; several processes may do so at once.

    A curve whose key is there already is left as it is. A file is written anew and replaced, so it is always whole.
    """
    by_cell: dict[str, list[Curve]] = {}
    for curve in curves:
        by_cell.setdefault(curve.cell, []).append(curve)
    if not by_cell:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for cell, new in by_cell.items():
            file = folder / f"{cell}.csv.gz"
            kept = {curve.key: curve for curve in (_read(file) if file.exists() else [])}
            for curve in new:
                kept.setdefault(curve.key, curve)
            _write(file, sorted(kept.values(), key=lambda curve: (curve.method, curve.seed)))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(file: Path) -> list[Curve]:
    try:
        with gzip.open(file, "rt", newline="", encoding="utf-8") as lines:
            return [_curve(line) for line in csv.DictReader(lines)]
    except FileNotFoundError:
        raise FileNotFoundError(f"file of curves not found: {file.absolute()}") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"{file} is damaged: it cannot be read as curves ({error})") from error


def _curve(line: dict[str, str]) -> Curve:
    plain = {name: float(line[name]) if name in _NUMBERS else line[name] for name in _PLAIN}
    measures = {name: tuple(map(float, value.split())) for name, value in line.items() if name not in _PLAIN and value}
    labelled = tuple(map(int, line["labelled"].split()))
    made = Curve(**{**plain, "seed": int(line["seed"]), "labelled": labelled, "measures": measures})  # type: ignore[arg-type]
    if len(made.accuracy) != len(labelled):
        raise ValueError("a curve has another number of accuracies than of labels")
    return made


def _write(file: Path, curves: Sequence[Curve]) -> None:
    names = list(dict.fromkeys(name for curve in curves for name in curve.measures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_PLAIN, *names])
    for curve in curves:
        plain = [" ".join(map(str, curve.labelled)) if n == "labelled" else _cell(getattr(curve, n)) for n in _PLAIN]
        writer.writerow([*plain, *(" ".join(f"{v:.6g}" for v in curve.measures.get(name, ())) for name in names)])
    with replacing(file) as partial:
        partial.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)

"""A pool of one's own in files: samples, features, labelled rows, head and weights, each checked as it is opened."""

import csv
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast.model.limits import first_line
from dm2_fast.model.linear_head import linear_head
from dm2_fast.operations.arrays import name_rows
from dm2_fast.operations.mapped import Sparing, release
from dm2_fast.progress import tqdm
from dm2_fast.selecting.names import RowNames, remedy

_BLOCK_BYTES = 2**24  # of the pool, read at a time


def open_array(name: str, file: Path) -> NDArray[Any]:
    """Map the array in a .npy file, without reading it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, empty, or holds objects.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{name}: there is no file {'or folder ' if name == 'pool' else ''}{file}")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy, zipfile and zlib each have their own
        why = "" if "pickle" in str(error) else f" ({_reason(error)})"  # numpy takes any other file for one of those
        raise ValueError(f"{name} must be a .npy file of numbers, as numpy.save writes it, got {file}{why}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{name} must be a .npy file of one array, as numpy.save writes it, got {file}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise ValueError(f"{name} must be float16, float32 or float64, got {array.dtype}")
    return array


def _reason(error: Exception) -> str:
    """What numpy says, but for a header that is no Python: that names objects of the parser."""
    return "its header is damaged" if "malformed node" in str(error) else first_line(error)[:80]


def check_whole(name: str, array: NDArray[Any]) -> None:
    """Raise if the file behind an array is shorter than it was: to read on would end the process.

    Raises:
        ValueError: it is.
    """
    file = getattr(array, "filename", None)
    if file is not None and Path(file).stat().st_size < array.offset + array.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"{name} was cut while it was read: {file}")


class PoolRows:
    """Some rows of an array on disk, read when they are asked for: a pool as `dm2_fast.select` takes it.

    Args:
        name: What an error calls the array.
        array: (m, ...), a np.memmap, say.
        rows: Which rows, and in which order, (n,) int64.
        dtype: What they become; None for that of the array.
        sparing: Whether what was read of a mapped file is given back.
    """

    def __init__(
        self,
        name: str,
        array: NDArray[Any],
        rows: NDArray[np.int64],
        dtype: np.dtype[Any] | None = None,
        sparing: bool = False,
    ) -> None:
        self.name, self.array, self.rows = name, array, rows
        self._sparing = Sparing(array) if sparing else None
        self.shape = (len(rows), *array.shape[1:])
        self.dtype = dtype or array.dtype.newbyteorder("=")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Any) -> NDArray[Any]:
        rows = self.rows[places]
        check_whole(self.name, self.array)
        if self._sparing is None:
            values = np.ascontiguousarray(self.array[rows], self.dtype)
        else:
            values = np.empty((len(rows), *self.shape[1:]), self.dtype)
            for part in self._sparing.steps(rows):
                values[part] = self.array[rows[part]]
        if values.dtype.kind == "f":
            finite = np.isfinite(values).reshape(len(values), -1).all(1)
            if not finite.all():
                raise ValueError(
                    f"{self.name} must be finite, got NaN or infinity in {name_rows(rows[~finite].tolist())}"
                )
        return values


def contiguous(array: NDArray[Any], rows: NDArray[np.int64], scratch: Path) -> NDArray[Any]:
    """The given rows of features as the neighbour search reads them in place: float32 or float64, one after the other.

    That is the file itself where it can be, else a copy in a file without a name, which no interruption leaves behind.
    """
    dtype = searched(array)
    if len(rows) == len(array) and array.dtype == dtype and array.flags.c_contiguous:
        check_whole("features", array)
        return array
    some = PoolRows("features", array, rows)
    with tempfile.TemporaryFile(dir=scratch) as file:
        step = max(1, _BLOCK_BYTES // (array.shape[1] * dtype.itemsize))
        for start in tqdm(range(0, len(rows), step), desc="unlabelled rows", leave=False, disable=None):
            file.write(some[start : start + step].astype(dtype, copy=False).data)
            release(array.view(array.dtype.newbyteorder("=")))  # where it lies counts, not its byte order
        file.flush()
        return np.memmap(file, dtype, "r", shape=some.shape)


def searched(features: NDArray[Any]) -> np.dtype[Any]:
    """The dtype in which features are searched, mixed and scored."""
    return np.dtype(np.float64 if features.dtype.itemsize == 8 else np.float32)


def _torch(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.float64 if dtype == np.float64 else torch.float32


def read_labelled(
    file: Path | None, m: int, ids: Sequence[str] | None = None, classes: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], Tensor | None]:
    """Read which of m rows have a label: rows in the order of the file, (n,), and their labels, (n,), if it has them.

    Args:
        file: .npy of row numbers; or text, `row` or `row,label` a line, or any columns below a line with their
            names; `id` in place of `row` where rows have ids.
        ids: What the rows are called, (m,).
        classes: Names of the classes, which then may stand as labels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a row of the pool, or a row is there twice; the message names the line.
    """
    if file is None:
        return np.empty(0, np.int64), None
    names, numbers = RowNames(m, ids), {name: number for number, name in enumerate(classes or ())}
    lines: Iterable[tuple[int, str, str | None, str]]
    if file.suffix == ".npy":
        listed = open_array("labelled", file)
        if listed.ndim != 1:
            raise ValueError(f"labelled must be one row number after the other, got shape {listed.shape} in {file}")
        unit, lines = "entry", ((i, str(row), None, "") for i, row in enumerate(listed.tolist()))
    else:
        unit, lines = "line", _lines(file)
    rows: dict[int, int] = {}  # row: its line
    labels: list[int] = []
    for at, text, label, column in lines:
        where = f"labelled, {unit} {at} of {file}:"
        row = names.row(where, text, column)
        if row in rows:
            raise ValueError(f"{where} row must be named once, got {row}, which is in {unit} {rows[row]} too")
        rows[row] = at
        if label is not None:
            labels.append(numbers[label] if label in numbers else _label(where, label))
    return np.array(list(rows), np.int64), torch.tensor(labels) if labels else None


def _lines(file: Path) -> Iterator[tuple[int, str, str | None, str]]:
    """(line number, row or id, label, column) of a text file, with names of the columns in its first line or not."""
    if not file.is_file():
        raise FileNotFoundError(f"labelled: there is no file {file}")
    with file.open(newline="", encoding="utf-8-sig") as text:
        try:
            lines = [(i, [cell.strip() for cell in line]) for i, line in enumerate(csv.reader(text), 1) if line]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"labelled must be a file of UTF-8 text or .npy, got {file} ({error})") from error
    first = lines[0][1] if lines else []
    column = next((name for name in ("id", "row") if name in first), "")
    header = column != ""
    names = first if header else ["", "label"][: len(first)]
    for i, line in lines[header:]:
        if len(line) != len(names):
            expected = ",".join(name or "row" for name in names)
            got = ",".join(line)
            raise ValueError(f"labelled, line {i} of {file}: must be {expected}, got {got!r}{_separator(got)}")
        entry = dict(zip(names, line, strict=True))
        if len(line) == 1 and _separator(line[0]):
            raise ValueError(f"labelled, line {i} of {file}: got {line[0]!r}{_separator(line[0])}")
        yield i, entry[column], entry.get("label"), column


def _separator(text: str) -> str:
    """What to do about a line with another separator than a comma."""
    for name, sign in (("semicolons", ";"), ("tabs", "\t")):
        if sign in text and "," not in text:
            return f": separate the columns by commas, not by {name}"
    return ""


def _label(where: str, text: str) -> int:
    if text == "":
        raise ValueError(f"{where} there is no label: fill it in, or leave the line out")
    if not (text.isascii() and text.isdigit()):
        why = remedy(text) or (" (names of classes need --classes)" if text.isidentifier() else "")
        raise ValueError(f"{where} label must be an integer from 0 on, got {text!r}{why}")
    return int(text)


def read_head(file: Path, features: NDArray[Any]) -> nn.Linear:
    """Read the linear head of features (m, d) from a .npz file of weight (C, d) and bias (C,), or of coef_ and
    intercept_ as scikit-learn has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds something else, or does not fit the features.
    """
    if not file.is_file():
        raise FileNotFoundError(f"head: there is no file {file}")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            held = {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # numpy, zipfile and zlib each have their own
        why = "" if isinstance(error, (AttributeError, TypeError)) else f" ({_reason(error)})"
        raise ValueError(f"head must be a .npz file of weight and bias, got {file}{why}") from error
    if set(held) == {"coef_", "intercept_"}:
        try:
            return linear_head(held["coef_"], held["intercept_"], features.shape[1], _torch(searched(features)))
        except ValueError as error:
            raise ValueError(f"{error} in {file}") from error
    if set(held) != {"weight", "bias"}:
        raise ValueError(
            f"head must hold weight and bias, or coef_ and intercept_, got {', '.join(held) or 'nothing'} in {file}"
        )
    weight, bias = held["weight"], held["bias"]
    d = features.shape[1]
    if weight.ndim != 2 or weight.shape[1] != d or weight.shape[0] < 2:
        raise ValueError(f"weight of the head must be (C, {d}) with at least two classes, got shape {weight.shape}")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias of the head must be ({len(weight)},), got shape {bias.shape}")
    for name, values in held.items():
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ValueError(f"{name} of the head must be finite floating point, got {values.dtype} in {file}")
    head = nn.Linear(d, len(weight), device="meta")  # without drawing weights
    state = {name: torch.from_numpy(values.astype(searched(features))) for name, values in held.items()}
    head.load_state_dict(state, assign=True)
    return head


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a state dict into the model; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or does not fit the model; the message names what is missing or too much.
    """
    if not file.is_file():
        raise FileNotFoundError(f"weights: there is no file {file}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        raise ValueError(
            f"weights must be a state dict as torch.save(model.state_dict(), ...) writes it, got {file}, "
            f"which cannot be read without running code from it or is damaged ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        kind = f"a dictionary of {', '.join(map(str, state))}" if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"weights must be a state dict, tensors by name, got {kind} in {file}")
    own = model.state_dict()
    differing = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} ({tuple(state[name].shape)}, not {tuple(own[name].shape)})"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(differing.values()):
        found = "; ".join(f"{what}: {', '.join(map(str, names))}" for what, names in differing.items() if names)
        raise ValueError(f"weights must fit the model, got in {file} {found}")
    model.load_state_dict(state)

"""A data set of one's own: an .npz file of the arrays x, y, x_test and y_test."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dm2_fast.model.limits import first_line
from dm2_fast.operations.mix import Normalize
from dm2_fast.picked import check_names

_ARRAYS = ("x", "y", "x_test", "y_test")
_ROWS = 1024  # per block

Parts = tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64], tuple[str, ...], Normalize]


def is_npz(name: object) -> bool:
    """Whether a data set's name means a file of the user's and not one of ours."""
    return isinstance(name, str) and name.endswith(".npz")


def sha256(path: Path) -> str:
    """The SHA-256 of the file's content, in hexadecimal.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"dataset file not found: {path.absolute()}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read(path: Path) -> Parts:
    """Read and check a data set.

    The file holds x and x_test, images (n, H, W), (n, C, H, W) or (n, H, W, C), uint8 or floating point in [0, 1]; y
    and y_test, their classes (n,), integers from 0 on, where -1 in y is a row without a label, and no y at all means
    that no row has one; layout, "nchw" or "nhwc", unless the images are (n, H, W); and
    it may hold classes, the names of the classes, and ids, what the rows of x are called. Nothing in it is executed.

    Returns:
        x, y, x_test, y_test, names of the classes, and (mean, std) per channel of the training pixels; images as
        (n, H, W) or (n, H, W, C), uint8 or float32.

    Raises:
        ValueError: the file is something else; the message says what.
    """
    try:
        return _checked(_arrays(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays in a file, those of these names if it has them, or all."""
    try:
        with path.open("rb") as file:
            if not file.read(6).startswith((b"PK", b"\x93NUMPY")):  # numpy would take it for a pickle
                raise ValueError("it is no .npz file")
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            return {name: archive[name] for name in archive.files if names is None or name in names}
    except Exception as error:  # numpy, zipfile and zlib each have their own
        raise ValueError(
            f"cannot be read ({first_line(error)}): write it with np.savez, without Python objects"
        ) from error


def _checked(arrays: dict[str, NDArray[Any]]) -> Parts:
    if "y" not in arrays and "x" in arrays and "classes" in arrays:
        arrays = {**arrays, "y": np.full(len(arrays["x"]), -1)}
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        found = f"no array {' and no array '.join(missing)}: a data set needs {', '.join(_ARRAYS)}"
        raise ValueError(f"{found}{_hint(missing)}")
    unknown = [name for name in arrays if name not in (*_ARRAYS, "layout", "classes", "ids")]
    if unknown:
        raise ValueError(
            f"unknown array {unknown[0]!r}: a data set has {', '.join(_ARRAYS)}, layout, classes and ids only"
        )
    x, x_test = (_images(name, arrays[name], arrays.get("layout")) for name in ("x", "x_test"))
    if x_test.shape[1:] != x.shape[1:] or x_test.dtype != x.dtype:
        raise ValueError(
            f"x_test must hold images like those of x, {x.dtype} of shape {x.shape[1:]}, "
            f"got {x_test.dtype} of shape {x_test.shape[1:]}"
        )
    y, y_test = _labels("y", arrays["y"], len(x)), _labels("y_test", arrays["y_test"], len(x_test))
    names = _names(arrays.get("classes"), y)
    for name, labels in (("y", y), ("y_test", y_test)):
        least = -1 if name == "y" else 0
        outside = np.flatnonzero((labels < least) | (labels >= len(names)))
        if len(outside):
            row = outside[0]
            hint = " (-1 is a row without a label)" if name == "y" else ""
            raise ValueError(f"{name} must be in [0, {len(names) - 1}], got {labels[row]} in row {row}{hint}")
    return x, y, x_test, y_test, names, _statistics(x)


def _hint(missing: list[str]) -> str:
    """What to do about arrays that are missing."""
    if missing == ["y"]:
        return " (without labels, the array classes must name the classes)"
    if set(missing) <= {"x_test", "y_test"}:
        return " (hold out some of the labelled images to test with)"
    return ""


def counts(path: Path) -> tuple[int, int]:
    """How many rows have a label, and how many have none, without reading the images.

    Raises:
        ValueError: the file cannot be read.
    """
    y = _some(path, "y").get("y")
    return (0, 1) if y is None else (int((y != -1).sum()), int((y == -1).sum()))


def read_ids(path: Path, m: int) -> tuple[str, ...] | None:
    """What the rows are called: the array ids, texts or integers; None without it.

    Raises:
        ValueError: it is not one id for each of m rows, all different, or the file cannot be read.
    """
    values = _some(path, "ids").get("ids")
    if values is None:
        return None
    if values.shape != (m,) or values.dtype.kind not in "Uiu":
        raise ValueError(f"{path}: ids must be {m} texts or integers, got {values.dtype} of shape {values.shape}")
    try:
        return tuple(check_names([str(value) for value in values.tolist()], m) or ())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _some(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    try:
        return _arrays(path, names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _images(name: str, x: NDArray[Any], layout: NDArray[Any] | None) -> NDArray[Any]:
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise ValueError(f"{name} must be (n, H, W), (n, C, H, W) or (n, H, W, C) and not empty, got shape {x.shape}")
    if x.dtype != np.uint8:
        if x.dtype.kind != "f":
            raise ValueError(f"{name} must be uint8, or floating point in [0, 1], got {x.dtype}")
        for start in range(0, len(x), _ROWS):
            block = x[start : start + _ROWS]
            outside = np.argwhere(~((block >= 0) & (block <= 1)))
            if len(outside):
                value, row = block[tuple(outside[0])], start + outside[0][0]
                raise ValueError(f"{name} must be in [0, 1] for floating point, got {value} in row {row}")
        x = x.astype(np.float32, copy=False)
    if x.ndim == 3:
        return x
    stated = "nothing" if layout is None else layout.tolist()
    if stated not in ("nchw", "nhwc"):
        raise ValueError(
            f"layout must be 'nchw' or 'nhwc' for {name} of shape {x.shape}, got {stated}: save it beside {name}, "
            "np.savez(..., layout='nhwc')"
        )
    return np.moveaxis(x, 1, -1) if stated == "nchw" else x


def _labels(name: str, y: NDArray[Any], n: int) -> NDArray[np.int64]:
    if y.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {y.dtype}")
    if y.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one class for each image, got {y.shape}")
    return y.astype(np.int64)


def _names(classes: NDArray[Any] | None, y: NDArray[np.int64]) -> tuple[str, ...]:
    if classes is None:
        distinct = np.unique(y[y != -1])
        gap = np.flatnonzero(distinct != np.arange(len(distinct)))
        if len(gap) or len(distinct) < 2:
            got = f"{distinct[gap[0]]} for {gap[0]}" if len(gap) else f"{len(distinct)} class"
            raise ValueError(
                f"y must be the classes 0, 1, 2 and so on without a gap, unless an array classes names them, got {got}"
            )
        return tuple(str(label) for label in distinct)
    if classes.ndim != 1 or classes.dtype.kind != "U" or len(classes) < 2:
        raise ValueError(f"classes must be at least two names, got {classes.dtype} of shape {classes.shape}")
    return tuple(classes.tolist())


def _statistics(x: NDArray[Any]) -> Normalize:
    """(mean, std) per channel, in units of the [0, 1] range."""
    x = x[..., None] if x.ndim == 3 else x
    constant = np.flatnonzero(x.min((0, 1, 2)) == x.max((0, 1, 2)))
    if len(constant):
        raise ValueError(
            f"channel {constant[0]} of x has the same value everywhere and cannot be normalised: leave it out"
        )
    scale = 255 if x.dtype == np.uint8 else 1

    def mean_of(term: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        starts = range(0, len(x), _ROWS)
        total = sum(term(x[i : i + _ROWS].astype(np.float64) / scale).sum((0, 1, 2)) for i in starts)
        return np.asarray(total / np.prod(x.shape[:3]))

    mean = mean_of(lambda pixels: pixels)
    std = np.sqrt(mean_of(lambda pixels: (pixels - mean) ** 2))
    return tuple(mean.tolist()), tuple(std.tolist())

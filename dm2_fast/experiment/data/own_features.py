"""Features of one's own: with their classes for the probe track (.npz), or beside the images of a run (.npy)."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_own(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read features x (n, d) and x_test, and their classes y (n,) and y_test, integers from 0 on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file of features not found: {path.absolute()}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y, x_test, y_test = (arrays[name] for name in ("x", "y", "x_test", "y_test"))
    except (ValueError, KeyError, EOFError, OSError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must hold the arrays x, y, x_test and y_test: {error}") from error
    for name, features, labels in (("x", x, y), ("x_test", x_test, y_test)):
        if features.ndim != 2 or features.dtype.kind not in "fiu" or not np.isfinite(features).all():
            raise ValueError(f"{path}: {name} must be finite features (n, d), got {features.dtype} {features.shape}")
        if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
            raise ValueError(f"{path}: the classes of {name} must be {len(features)} integers from 0 on")
    if x.shape[1] != x_test.shape[1]:
        raise ValueError(f"{path}: x and x_test must have as many features, got {x.shape[1]} and {x_test.shape[1]}")
    tensors = (torch.from_numpy(part.astype(kind)) for part, kind in
               ((x, np.float32), (y, np.int64), (x_test, np.float32), (y_test, np.int64)))  # fmt: skip
    first, second, third, fourth = tensors
    return first, second, third, fourth


def read_features(file: Path, rows: int) -> Tensor:
    """The features (rows, d), float32, of an .npy file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"features file not found: {file.absolute()}")
    try:
        x = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file} is not an .npy file of numbers") from error
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype.kind not in "fiu" or len(x) != rows:
        got = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else "an .npz archive"
        raise ValueError(f"{file} must hold a row of features for each of the {rows} training samples, got {got}")
    if not np.isfinite(x).all():
        raise ValueError(f"{file} holds NaN or infinite features")
    return torch.from_numpy(x.astype(np.float32))

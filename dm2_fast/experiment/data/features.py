"""Features of a data set that do not come from the model of a run: read from a file of one's own."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


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

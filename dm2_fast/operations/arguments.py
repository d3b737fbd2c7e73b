"""Numbers and names as callers give them: converted where they are what is wanted, refused in a sentence elsewhere."""

import math
import os
import sys
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SCALARS = (str, bool, int, float, complex, np.generic, torch.dtype, torch.memory_format, type(None))


def shown(value: object, most: int = 60) -> str:
    """A value in an error: a number, a short text or a few of them as they are, the type of anything else."""
    if isinstance(value, _SCALARS) or (
        isinstance(value, (list, tuple)) and all(isinstance(one, _SCALARS) for one in value)
    ):
        text = repr(value.item() if isinstance(value, np.generic) else value)
        return text if len(text) <= most else f"{text[: most - 3]}..."
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """value as an int, if it is a whole number in [least, most]: an int, or one in NumPy or in a tensor without shape.

    Raises:
        TypeError: it is something else.
        ValueError: it is out of range, or NaN or infinite.
    """
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, int):
        if isinstance(number, float) and not isinstance(number, bool) and not math.isfinite(number):
            raise ValueError(f"{name} must be a whole number, got {number}")
        raise TypeError(f"{name} must be a whole number, got {shown(number)}")
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(number)}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {shown(number)}")
    return number


def number(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> float:
    """value as a float, if it is a finite number for which the rule holds: a number, or one in NumPy or in a tensor
    without shape.

    Raises:
        TypeError: it is something else.
        ValueError: the rule does not hold, or it is NaN or infinite.
    """
    found = _scalar(value)
    if isinstance(found, str):
        raise ValueError(f"{name} must be {rule}, got {shown(found)}")
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise TypeError(f"{name} must be {rule}, got {shown(found)}")
    if abs(found) > sys.float_info.max or found != found or not holds(float(found)):
        raise ValueError(f"{name} must be {rule}, got {shown(found)}")
    return float(found)


def one_of(name: str, value: Any, names: Iterable[str]) -> str:
    """value, if it is one of the names.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {shown(value)}{meant(value, names)}")
    return value


def meant(value: Any, names: Iterable[str]) -> str:
    """ " (did you mean dm2?)" behind an error, where one of the names is spelled nearly like value; else nothing."""
    near = nearest(value, names)
    return f" (did you mean {near}?)" if near else ""


def nearest(value: Any, names: Iterable[str]) -> str | None:
    """The name that is spelled most nearly like value; None if none nearly is."""
    from difflib import get_close_matches  # not loaded where nothing is wrong

    near = get_close_matches(value.lower(), names, 1) if isinstance(value, str) else []
    return near[0] if near else None


def path(name: str, value: Any) -> Path:
    """value as a path.

    Raises:
        TypeError: it is neither a text nor a path.
    """
    if not isinstance(value, (str, PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    return Path(value)


def _scalar(value: Any) -> Any:
    """The number in a tensor or an array without shape; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta and not value.is_quantized:
        return value.item()
    if isinstance(value, np.generic) or (type(value) is np.ndarray and not value.ndim):
        return value.item()
    return value

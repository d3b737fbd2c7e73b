"""Numbers and names as callers give them: converted where they are what is wanted, refused in a sentence elsewhere."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def shown(value: object, most: int = 60) -> str:
    """A value in an error: a number or a short text as it is, the type of anything else."""
    if isinstance(value, (str, bool, int, float, complex, np.generic, torch.dtype, torch.memory_format, type(None))):
        text = repr(value.item() if isinstance(value, np.generic) else value)
        return text if len(text) <= most else f"{text[: most - 3]}..."
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


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
    if (least is not None and number < least) or (most is not None and number > most):
        rule = f"at least {least}" if most is None else f"at most {most}" if least is None else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {rule}, got {shown(number)}")
    return number


def finite(name: str, value: Any) -> float:
    """value as a float, if it is a finite number, or one in NumPy or in a tensor without shape.

    Raises:
        TypeError: it is something else.
        ValueError: it is NaN or infinite.
    """
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a number, got {shown(number)}")
    try:
        found = float(number)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {shown(number)}")
    return found


def one_of(name: str, value: Any, names: Iterable[str]) -> str:
    """value, if it is one of the names.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {shown(value)}")
    return value


def _scalar(value: Any) -> Any:
    """The number in a tensor or an array without shape; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta and not value.is_quantized:
        return value.item()
    if isinstance(value, np.generic) or (type(value) is np.ndarray and not value.ndim):
        return value.item()
    return value

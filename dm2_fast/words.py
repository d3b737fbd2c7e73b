"""Numbers and kinds in sentences."""

from typing import Any


def count(n: int, noun: str) -> str:
    """n and its noun: "1 row", "3 rows"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def kind(value: Any) -> str:
    """What a value is: "a list", "an ndarray", "None"."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"

"""Numbers in sentences, and in lists."""

from typing import Any


def count(n: int, noun: str) -> str:
    """n and its noun: "1 row", "3 rows"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def whole_numbers(listed: str | list[Any]) -> list[int]:
    """The numbers of "0,1,2", "0-4" or [0, 1, "3-5"].

    Raises:
        ValueError: something is no number, or counts down.
    """
    numbers: list[int] = []
    for word in map(str, listed if isinstance(listed, list) else listed.split(",")):
        first, dash, last = word.strip().partition("-")
        if dash and int(last) < int(first):
            raise ValueError(f"{word} counts down")
        numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    return numbers

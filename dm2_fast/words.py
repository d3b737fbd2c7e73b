"""Numbers in sentences."""


def count(n: int, noun: str) -> str:
    """n and its noun: "1 row", "3 rows"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"

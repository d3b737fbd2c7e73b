"""Progress bars on a terminal, by tqdm where it is installed; the core does without."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any


def tqdm(steps: Iterable[Any] | None = None, *arguments: Any, disable: bool | None = None, **options: Any) -> Any:
    """`tqdm.tqdm` of these arguments where a bar will be seen; else something like it that shows nothing.

    A bar that is wanted (disable=None) and cannot be shown, since tqdm is not installed, is a warning once.
    """
    if disable or not sys.stderr.isatty() or not _has_tqdm():
        return _NoBar(steps)
    import tqdm

    return tqdm.tqdm(steps, *arguments, **options)


@cache
def _has_tqdm() -> bool:
    try:
        import tqdm  # noqa: F401
    except ModuleNotFoundError:
        warnings.warn("no progress bars without tqdm: pip install 'dm2_fast[run]'", stacklevel=4)
        return False
    return True


class _NoBar:
    """Counts, and shows nothing."""

    def __init__(self, steps: Iterable[Any] | None) -> None:
        self.steps, self.n = steps, 0

    def __iter__(self) -> Iterator[Any]:
        yield from self.steps or ()

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, done: int = 1) -> None:
        self.n += done

    def close(self) -> None: ...


def write(text: str) -> None:
    """Print a line, above the bars that are shown."""
    if "tqdm" in sys.modules:
        import tqdm

        tqdm.tqdm.write(text)
    else:
        print(text)

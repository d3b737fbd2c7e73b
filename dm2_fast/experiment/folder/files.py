"""Files that are whole or not there: written beside their place, synced, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path to write to; when the block ends well, that file takes the place of `path`.

    Whatever happens before, `path` keeps its old content (or stays missing) and nothing is left beside it, unless the
    process is killed: then `remove_partial` clears up.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)  # the renaming itself
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left behind in a folder."""
    for partial in folder.glob(".*.partial"):
        partial.unlink()

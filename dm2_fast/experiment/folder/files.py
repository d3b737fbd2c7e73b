"""Files and folders that are whole or not there, and errors that name them."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dm2_fast.operations.arguments import shown


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Let an error of the block that names no file, as that of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        ours = error.errno is None and isinstance(error, (FileNotFoundError, FileExistsError))  # a sentence already
        if error.filename is not None or ours:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The options and values of a YAML file.

    Raises:
        ValueError: it holds something else.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it cannot be read as YAML ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no options and values")
    return content


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first three options that have other values in a file than now, and how many more; empty for none."""

    def value(values: dict[str, Any], name: str) -> str:
        return shown(values.get(name)).strip("'")

    names = [name for name in sorted({*before, *now}, key=str) if before.get(name) != now.get(name)]
    found = [f"{name} ({value(before, name)} there, {value(now, name)} here)" for name in names[:3]]
    return "; ".join(found + [f"{len(names) - 3} more"] * (len(names) > 3))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:80]


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a new folder beside path to write in, which is gone when the block ends.

    One that a killed process left behind is removed first: its lock ended with the process.
    """
    prefix = f".{path.name}-"
    with suppress(OSError):
        for left in path.parent.glob(f"{prefix}*"):
            _remove_unlocked(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unlocked(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # of a process that is at work
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path to write to; when the block ends well, that file takes the place of `path`.

    Whatever happens before, `path` keeps its old content (or stays missing) and nothing is left beside it, unless the
    process is killed: then `remove_partial` clears up.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming_file(path):
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

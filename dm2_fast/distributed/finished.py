"""What a process has finished of a selection, in files: read at the next start in place of being computed again."""

import hashlib
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch

from dm2_fast.operations.mapped import release


class Finished:
    """Results of one part of a pool in a folder that all parts share.

    Args:
        folder: Belongs to one selection, whose options do not change.
        part, parts: Which part of how many.
        first, last: Its rows.
    """

    def __init__(self, folder: Path, part: int, parts: int, first: int, last: int) -> None:
        self.folder, self.parts = folder, parts
        self._rows = f"{part}-of-{parts}-rows-{first}-{last}"

    def has(self, name: str, key: Hashable) -> bool:
        """Whether this result is there."""
        return self._file(name, key).exists()

    def read(self, name: str, key: Hashable) -> Any:
        """The result."""
        return torch.load(self._file(name, key), weights_only=True, mmap=True)

    def write(self, name: str, key: Hashable, result: Any) -> None:
        """Keep a result of tensors; a file is whole or not there."""
        file = self._file(name, key)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".partial-{os.getpid()}")
        torch.save(result, partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
        release(*(result if isinstance(result, tuple) else (result,)))

    def _file(self, name: str, key: Hashable) -> Path:
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:8]
        return self.folder / f"{name}-{digest}-{self._rows}.pt"

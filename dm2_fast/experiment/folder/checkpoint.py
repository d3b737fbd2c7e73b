"""Checkpoints: files that are replaced whole, show damage, and are read without executing code."""

import hashlib
import io
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dm2_fast.experiment.folder.files import replacing

_HEADER = b"dm2_fast checkpoint, version "
VERSION = 2  # 1 had nothing that a strategy remembers
SECONDS_BETWEEN_WRITES = 60.0  # of an unfinished training


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, texts, and lists and dicts of them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    with replacing(path) as partial:
        partial.write_bytes(_HEADER + f"{VERSION} {hashlib.sha256(payload).hexdigest()}\n".encode() + payload)


def read(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, onto the CPU; a damaged one is named in a warning and gives None.

    Raises:
        ValueError: it was written by a newer version.
    """
    header, _, payload = path.read_bytes().partition(b"\n")
    version, _, digest = header.removeprefix(_HEADER).partition(b" ")
    if header.startswith(_HEADER) and version.isdigit() and int(version) > VERSION:
        raise ValueError(
            f"{path} was written by a newer dm2_fast, in version {int(version)} of the format: update dm2_fast"
        )
    if header != _HEADER + version + b" " + digest or hashlib.sha256(payload).hexdigest().encode() != digest:
        warnings.warn(f"{path} is damaged; going on from what was saved before it", stacklevel=4)
        return None
    content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return content


@dataclass
class TrainingFile:
    """The file that keeps an unfinished training.

    Attributes:
        path: Where it is.
        name: Which training it is; the content of another one is not taken.
    """

    path: Path
    name: str = ""
    _written: float = field(default_factory=time.monotonic)

    def of(self, name: str) -> "TrainingFile":
        """The same file for another training."""
        return replace(self, name=name)

    def beside(self, number: int) -> "TrainingFile":
        """The file of the companion with this number."""
        return replace(self, path=self.path.with_name(f"{self.path.stem}_{number}.pt"))

    def remove(self) -> None:
        """Remove the file, and those of companions."""
        for path in [self.path, *self.path.parent.glob(f"{self.path.stem}_*.pt")]:
            path.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """What was saved of this training; None for nothing (or, with a warning, for a damaged file)."""
        content = read(self.path) if self.path.exists() else None
        return content if content is not None and content["name"] == self.name else None

    def due(self) -> bool:
        """Whether the last write is long enough ago."""
        return time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES

    def save(self, content: dict[str, Any]) -> None:
        """Replace what was saved."""
        self.path.parent.mkdir(exist_ok=True)
        write(self.path, content | {"name": self.name})
        self._written = time.monotonic()

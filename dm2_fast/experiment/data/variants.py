"""Data sets made of others: skewed, noisy and imbalanced CIFAR-10, and test sets with corruptions."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast import draws
from dm2_fast.experiment.data.corruptions import ARCHIVED, NAMES, SEVERITIES, corrupt
from dm2_fast.experiment.data.sets import VARIANTS, Data, TestSet, load

SKEW, FLIPPED = 0.95, 0.2
COLOUR = ("automobile", "cat", "dog", "horse", "truck")


def load_variant(name: str, data_dir: Path = Path("data"), download: bool = False) -> Data:
    """Load one of `VARIANTS`; the draws are keyed, so that it is the same everywhere.

    cifar10s: CIFAR-10S of Wang et al. 2020. 95 % of the images of five classes stay in colour and the rest is grey; for
        the other five the other way round. The test set is in colour, and `grey` is the same in grey.
    cifar10-sym: a fifth of the training labels is another class, drawn uniformly.
    cifar10-imb: an image of class c is kept with probability (c + 1) / 10.
    cifar10c, svhnc: clean training images, and the test set under each corruption and severity, from the official
        archive where it lies below data_dir, as CIFAR-10-C or SVHN-C, else in its style.

    Raises:
        FileNotFoundError, ConnectionError: As `load`.
        ValueError: a file of the archive holds something else.
    """
    return replace(_CHANGES[name](load(VARIANTS[name], data_dir, download), data_dir), name=name)


def grey(images: Tensor) -> Tensor:
    """Images (n, 3, H, W) uint8 without colour, as ITU-R 601-2 weighs the channels, in three equal channels."""
    red, green, blue = images.to(torch.int32).unbind(1)
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16  # as Pillow computes it
    return luma.to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _draw(n: int, purpose: str = "flips", round: int = 0) -> NDArray[np.float64]:
    return draws.uniform(0, round, np.arange(n), purpose)


def _skewed(data: Data, data_dir: Path) -> Data:
    """Of each class, exactly the dominant part keeps its domain."""
    x, draw = data.x.clone(), _draw(len(data.x))
    for label, name in enumerate(data.classes):
        rows = np.flatnonzero(data.y.numpy() == label)
        rows = rows[draw[rows].argsort(kind="stable")]
        dominant = round(SKEW * len(rows))
        made_grey = rows[dominant:] if name in COLOUR else rows[:dominant]
        x[made_grey] = grey(x[made_grey])
    return replace(data, x=x, tests={"grey": TestSet(lambda rows: grey(data.x_test[rows]))})


def _noisy(data: Data, data_dir: Path) -> Data:
    """Exactly a fifth of all labels is wrong."""
    rows = torch.from_numpy(_draw(len(data.y)).argsort(kind="stable")[: round(FLIPPED * len(data.y))])
    others = len(data.classes) - 1
    shift = 1 + (torch.from_numpy(_draw(len(data.y), round=1))[rows] * others).long().clamp(max=others - 1)
    y = data.y.clone()
    y[rows] = (y[rows] + shift) % len(data.classes)
    return replace(data, y=y)


def _imbalanced(data: Data, data_dir: Path) -> Data:
    keep = torch.from_numpy(_draw(len(data.y))) < (data.y + 1) / len(data.classes)
    return replace(data, x=data.x[keep].contiguous(memory_format=torch.channels_last), y=data.y[keep])


def _corrupted(folder: str, data: Data, data_dir: Path) -> Data:
    archive = data_dir / folder
    if archive.is_dir():
        names = [name for name in ARCHIVED if (archive / f"{name}.npy").is_file()]
        _check_archive(archive, names, data)
        images: Callable[[str, int], Callable[[Tensor], Tensor]] = partial(_of_archive, archive, len(data.x_test))
    else:
        names, images = list(NAMES), partial(_in_style, data.x_test)
    tests = {f"{name}-{severity}": TestSet(images(name, severity), True) for name in names for severity in SEVERITIES}
    return replace(data, tests=tests)


def _check_archive(archive: Path, names: list[str], data: Data) -> None:
    """The archive has five severities, one after the other, of the whole test set in its order."""
    labels = np.load(archive / "labels.npy", allow_pickle=False)
    if not names or not np.array_equal(labels.reshape(len(SEVERITIES), -1), np.tile(data.y_test.numpy(), (5, 1))):
        raise ValueError(f"{archive} must hold the corrupted test set of {data.name}: its labels are others")
    for name in names:
        shape = np.load(archive / f"{name}.npy", mmap_mode="r", allow_pickle=False).shape
        if shape != (len(labels), *data.x_test.shape[2:], 3):
            raise ValueError(f"{archive / name}.npy must hold {len(labels)} images, got shape {shape}")


def _of_archive(archive: Path, n: int, name: str, severity: int) -> Callable[[Tensor], Tensor]:
    def read(rows: Tensor) -> Tensor:
        images = np.load(archive / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return _channels_first(np.ascontiguousarray(images[(severity - 1) * n + rows.numpy()]))

    return read


def _in_style(x_test: Tensor, name: str, severity: int) -> Callable[[Tensor], Tensor]:
    def make(rows: Tensor) -> Tensor:
        images = x_test[rows].permute(0, 2, 3, 1).contiguous().numpy()
        return _channels_first(corrupt(images, rows.numpy(), name, severity))

    return make


def _channels_first(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


_CHANGES: dict[str, Callable[[Data, Path], Data]] = {
    "cifar10s": _skewed,
    "cifar10-sym": _noisy,
    "cifar10-imb": _imbalanced,
    "cifar10c": partial(_corrupted, "CIFAR-10-C"),
    "svhnc": partial(_corrupted, "SVHN-C"),
}

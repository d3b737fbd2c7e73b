"""Data sets as whole tensors: the digits that come with scikit-learn, those of torchvision, and a file of one's own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dm2_fast import extras
from dm2_fast.experiment.data import npz
from dm2_fast.operations.arguments import meant
from dm2_fast.operations.mix import Normalize


@dataclass(frozen=True)
class TestSet:
    """A further test set: what has become of the test images; their classes are the same.

    Attributes:
        images: Called with rows of the test set (n,), returns (n, C, H, W) uint8 in channels_last.
        corruption: Whether it counts for the mean corruption error.
    """

    __test__ = False  # for pytest

    images: Callable[[Tensor], Tensor]
    corruption: bool = False


@dataclass(frozen=True)
class Data:
    """A classification data set of images.

    Attributes:
        name: Its name in `load`.
        x, y: Training images, (n, C, H, W) in channels_last, uint8 or float32 in [0, 1], and their classes, (n,) int64,
            -1 for a row without a label.
        x_test, y_test: The test set, likewise.
        classes: Names of the classes.
        normalize: (mean, std) per channel in units of the [0, 1] pixel range.
        ids: What the training images are called; None for their numbers only.
        own_features: Features of the training images that do not come from the model, (n, d); None for none.
        tests: Further test sets by name, besides x_test.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    normalize: Normalize
    ids: tuple[str, ...] | None = None
    own_features: Tensor | None = None
    tests: dict[str, TestSet] = field(default_factory=dict)


# torchvision's class, what it reads below the root, and the pixel statistics usual for the training images.
_TORCHVISION: dict[str, tuple[str, str, Normalize]] = {
    "mnist": ("MNIST", "MNIST/raw", (0.1307, 0.3081)),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw", (0.2860, 0.3530)),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))),
    "cifar100": (
        "CIFAR100",
        "cifar-100-python",
        ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
    "svhn": ("SVHN", "train_32x32.mat", ((0.4310, 0.4302, 0.4463), (0.1965, 0.1984, 0.1992))),
}
# Made of these, each in variants.py.
VARIANTS = {
    "cifar10s": "cifar10", "cifar10-sym": "cifar10", "cifar10-imb": "cifar10", "cifar10c": "cifar10", "svhnc": "svhn",
}  # fmt: skip
NAMES = ("digits", *_TORCHVISION, *VARIANTS)


def load(name: str, data_dir: Path = Path("data"), download: bool = False) -> Data:
    """Load a data set: one of `NAMES`, or an .npz file (see `dm2_fast.experiment.data.npz.read`).

    Raises:
        ValueError: there is none of this name, or the file holds something else.
        FileNotFoundError: it is not below data_dir; the message says where it looked and what to do.
        ConnectionError: it could not be downloaded.
    """
    if name == "digits":
        return _digits()
    if name in VARIANTS:
        from dm2_fast.experiment.data.variants import load_variant

        return load_variant(name, data_dir, download)
    parts = npz.read(Path(name)) if npz.is_npz(name) else _torchvision(name, data_dir, download)
    x, y, x_test, y_test, classes, normalize = parts
    ids = npz.read_ids(Path(name), len(x)) if npz.is_npz(name) else None
    tests = _images(x_test), torch.as_tensor(y_test)
    return Data(name, _images(x), torch.as_tensor(y), *tests, classes, normalize, ids)


def place(name: str, data_dir: Path) -> Path | None:
    """Where a data set of torchvision lies, be it there or not; None for the digits, which come with scikit-learn."""
    name = VARIANTS.get(name, name)
    return (data_dir / _TORCHVISION[name][1]).absolute() if name in _TORCHVISION else None


def _torchvision(name: str, data_dir: Path, download: bool) -> tuple[Any, Any, Any, Any, tuple[str, ...], Normalize]:
    """Images (n, H, W) or (n, H, W, C) and classes of the training and of the test set, names, and (mean, std)."""
    if name not in _TORCHVISION:
        raise ValueError(f"dataset must be one of {', '.join(NAMES)} or a file.npz, got {name!r}{meant(name, NAMES)}")
    with extras.needed("run", f"data set {name}"):
        import torchvision

    kind, _, normalize = _TORCHVISION[name]
    open_split = getattr(torchvision.datasets, kind)
    try:
        which = ("train", "test") if kind == "SVHN" else (True, False)
        train, test = (open_split(data_dir, split, download=download) for split in which)
    except (RuntimeError, OSError) as error:
        where = place(name, data_dir)
        if download:
            raise ConnectionError(f"data set {name} could not be downloaded to {where}: {error}") from error
        raise FileNotFoundError(
            f"data set {name} not found in {where} (or damaged there): "
            "point --data-dir to the folder that holds it, or add --download to let torchvision fetch it"
        ) from error
    if kind == "SVHN":
        x, x_test = (np.moveaxis(split.data, 1, -1) for split in (train, test))
        return x, train.labels, x_test, test.labels, tuple("0123456789"), normalize
    return train.data, train.targets, test.data, test.targets, tuple(train.classes), normalize


def _images(x: Tensor | np.ndarray) -> Tensor:
    """(n, H, W) or (n, H, W, C) as (n, C, H, W), the channels last in memory."""
    x = torch.as_tensor(x)
    return x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _digits() -> Data:
    """1,797 handwritten digits of 8x8 pixels with 17 grey levels; every class is split 4 : 1 with a fixed seed."""
    with extras.needed("run", "data set digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    split = train_test_split(images, bunch.target, test_size=0.2, random_state=0, stratify=bunch.target)
    x, x_test, y, y_test = (torch.from_numpy(part) for part in split)
    pixels = x.double() / 255
    normalize = (pixels.mean().item(), pixels.std().item())
    return Data("digits", x[:, None], y, x_test[:, None], y_test, tuple("0123456789"), normalize)

"""A folder of images of any size, read and decoded once, as an array of images of one size."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dm2_fast.distributed.group import Group
from dm2_fast.distributed.shared_pool import read_together
from dm2_fast.model.dataset_pool import DatasetPool
from dm2_fast.model.together import Together
from dm2_fast.words import count

KINDS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_OTHER_KINDS = (".heic", ".heif", ".avif", ".jp2", ".dng", ".cr2", ".nef", ".arw")  # photographs that need converting


def read_images(
    folder: Path, size: int, skip_damaged: bool = False, workers: int = 0, group: Group | None = None
) -> tuple[list[str], NDArray[np.uint8], list[str]]:
    """Read all images below a folder, resized and cropped as the evaluation on ImageNet does it.

    Specifically, the shorter side becomes `round(size * 256 / 224)` pixels (bilinear with antialiasing), and the middle
    size x size pixels are kept; colours are RGB, of 16 bits the upper 8, and the orientation that a camera noted is
    applied. Photographs in formats that cannot be read here are left out, with a warning. Of a group, each process
    reads a part of them, and all have all.

    Returns:
        The names, relative to the folder and in their order; the images (m, 3, size, size) uint8, in memory or in a
        temporary file; and the names of damaged files, which are left out.

    Raises:
        FileNotFoundError: there is no image.
        ValueError: a file is damaged, and skip_damaged is False.
    """
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    files = [file for file in found if file.suffix.lower() in KINDS]
    others = [file.suffix.lower() for file in found if file.suffix.lower() in _OTHER_KINDS]
    names = [file.relative_to(folder).as_posix() for file in files]
    if not files:
        convert = f" (convert {', '.join(sorted(set(others)))} to .jpg)" if others else ""
        raise FileNotFoundError(f"no image below {folder}: files must end in {', '.join(KINDS)}{convert}")
    if others:
        them = "it is" if len(others) == 1 else "they are"
        warnings.warn(
            f"{count(len(others), 'file')} below {folder} cannot be read, so {them} left out: convert "
            f"{', '.join(sorted(set(others)))} to .jpg",
            stacklevel=2,
        )
    speaks = group is None or group.rank == 0
    pool = DatasetPool(_Images(files, size), (0, 1), workers, progress=speaks, name="pool")
    samples = pool.read() if group is None else read_together(pool, group)
    assert isinstance(samples, Together)
    images, whole = (part.numpy() for part in samples.parts.values())
    damaged = [name for name, good in zip(names, whole, strict=True) if not good]
    if len(damaged) == len(names):
        raise ValueError(f"all {len(names)} images below {folder} are damaged")
    if damaged and not skip_damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise ValueError(
            f"damaged below {folder}: {', '.join(damaged[:5])}{more} (mend or remove them, or add --skip-damaged)"
        )
    if not damaged:
        return names, images, []
    rows = np.flatnonzero(whole)
    for place, row in enumerate(rows if speaks else ()):  # in place, since they may be larger than memory
        images[place] = images[row]
    if group is not None:
        group.agree(lambda: None)  # all of them are in their places
    return [names[row] for row in rows], images[: len(rows)], damaged


class _Images(Dataset[Any]):
    """(image, whether it is whole) of each file."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        from PIL import Image, ImageOps
        from torchvision.transforms.v2 import functional as transform

        try:
            with Image.open(self.files[row]) as picture:
                turned = ImageOps.exif_transpose(picture)
                if turned.mode.startswith("I"):  # converting would clip what is above 255
                    turned = Image.fromarray((np.asarray(turned).astype(np.uint16) >> 8).astype(np.uint8))
                image = transform.pil_to_tensor(turned.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), torch.tensor(False)
        resized = transform.resize(image, [round(self.size * 256 / 224)], antialias=True)
        return transform.center_crop(resized, [self.size, self.size]), torch.tensor(True)

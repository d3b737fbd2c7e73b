"""What `select` costs on a Dataset of JPEG files, beside the decoded array and one pass that decodes.

    python benches/pool_of_files.py

It draws the files into a temporary folder, then measures in CPU seconds of the process, on one machine in one run:
decoding (a pass over the Dataset that keeps each image), `select` on the decoded array, and `select` on the Dataset;
and counts its reads. Each is measured five times in turn, and medians are compared; the limit of the ratio is 1.15.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

import dm2_fast
from dm2_fast.experiment.machine import header

PUBLISHED = dm2_fast.DM2Config.published()


class Files(torch.utils.data.Dataset[Tensor]):
    """Images of one size, decoded when asked for; the reads of each are counted."""

    def __init__(self, files: list[Path]) -> None:
        self.files, self.reads = files, Counter[int]()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        self.reads[row] += 1
        with Image.open(self.files[row]) as image:
            pixels: Tensor = pil_to_tensor(image)
        return pixels


def network() -> nn.Module:
    """A small convolutional network, so that decoding is not lost beside it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, wider in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(channels, wider, 3, 2, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """The CPU time of a call, and what it returns."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def main(images: int, size: int) -> None:
    print(header(torch.device("cpu")))
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.jpg" for i in range(images)]
        for file in files:
            coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(file, quality=90)
        model, data = network(), Files(files)
        dm2_fast.select(model, data[0][None].repeat(64, 1, 1, 1), 5, "entropy", ties="random")  # warm
        array = torch.empty(images, 3, size, size, dtype=torch.uint8)

        def decode() -> None:
            for row in range(images):
                array[row].numpy()[...] = data[row].numpy()  # torch would copy by several threads

        timings: list[tuple[float, float, float]] = []
        for _ in range(5):
            decoding, _ = cpu_seconds(decode)
            on_array, expected = cpu_seconds(lambda: dm2_fast.select(model, array, 50, options=PUBLISHED))
            data.reads.clear()
            on_files, picked = cpu_seconds(lambda: dm2_fast.select(model, data, 50, options=PUBLISHED))
            assert torch.equal(picked.indices, expected.indices)
            assert set(data.reads.values()) == {1}
            timings.append((decoding, on_array, on_files))
    decoding, on_array, on_files = (statistics.median(one) for one in zip(*timings, strict=True))
    ratio = on_files / (decoding + on_array)
    print(f"{images} JPEG files of {size}x{size}, CPU seconds: decoding {decoding:.2f}, select on array {on_array:.2f}")
    print(f"select on the files {on_files:.2f}, {ratio:.2f} times the two (limit 1.15); {data.reads.total()} reads")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    main(options.images, options.size)

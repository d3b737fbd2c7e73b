"""The next photographs to label, from a folder of files of any size: names, pictures, labels by file, a second round.

    python examples/own_photos.py
    python examples/own_photos.py --images 60 --size 32 --budget 5

It draws photographs of mixed sizes into photos/, and then does what stands in `commands`, which is all that a folder of
one's own needs. The model is ResNet18 as torchvision has it; weights of one's own go to --weights.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from dm2_fast.cli import main as dm2_fast_command


def net() -> nn.Module:
    """ResNet18 with ten classes; its last linear layer is found by itself."""
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=10)
    return model


def draw(folder: Path, images: int) -> None:
    """Photographs of mixed sizes in folders of a day each."""
    random = np.random.default_rng(0)
    for i in range(images):
        height, width = random.integers(120, 420, 2)
        coarse = random.integers(0, 256, (random.integers(2, 9), random.integers(2, 9), 3), dtype=np.uint8)
        file = folder / f"day {i % 7}" / f"{i:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC).save(file, quality=90)


def commands(size: int, budget: int) -> None:
    """Two rounds, with the labels of the first in a file between them."""
    statistics = "0.485,0.456,0.406/0.229,0.224,0.225"
    arguments = ["select", "--pool", "photos", "--model", "examples.own_photos:net", "--size", str(size)]
    arguments += ["--normalize", statistics, "--budget", str(budget)]
    dm2_fast_command([*arguments, "--output", "first", "--export", "label-studio"])

    with Path("first/selected.csv").open() as lines:
        chosen = [line["id"] for line in csv.DictReader(lines)]
    with Path("labels.csv").open("w", newline="") as file:  # what a person fills in
        csv.writer(file).writerows([("id", "label"), *((name, len(name) % 10) for name in chosen)])

    dm2_fast_command([*arguments, "--output", "second", "--round", "1", "--labelled", "labels.csv"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, default in (("images", 3000), ("size", 224), ("budget", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if not Path("photos").exists():
        draw(Path("photos"), options.images)
    commands(options.size, options.budget)

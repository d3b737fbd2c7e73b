"""A picture of two images of CIFAR-10 under every corruption and severity, and of the colour and grey of CIFAR-10s.

python benches/contact_sheet.py --data-dir data --out docs/corruptions.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from dm2_fast.experiment.data.corruptions import NAMES, SEVERITIES
from dm2_fast.experiment.data.sets import load


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("corruptions.png"))
    parser.add_argument("--rows", type=int, nargs=2, default=[3, 10], help="which test images")
    options = parser.parse_args()
    from matplotlib.figure import Figure

    data, skewed = load("cifar10c", options.data_dir), load("cifar10s", options.data_dir)
    rows = torch.tensor(options.rows)
    lines = [
        (name, [data.x_test[rows], *(data.tests[f"{name}-{s}"].images(rows) for s in SEVERITIES)]) for name in NAMES
    ]
    several = [torch.nonzero(skewed.y == label)[:12, 0] for label in (1, 0)]
    figure = Figure(figsize=(7.5, 9), dpi=90)
    axes = figure.subplots(len(lines) + len(several), 1)
    for place, (name, images) in zip(axes, lines, strict=False):
        strip = [image for i in range(2) for image in (part[i] for part in images)]
        _draw(place, name, strip)
    for place, label, chosen in zip(axes[len(lines) :], (1, 0), several, strict=True):
        _draw(place, f"cifar10s {skewed.classes[label]}", list(skewed.x[chosen]))
    figure.subplots_adjust(left=0.2, right=0.99, top=0.99, bottom=0.01, hspace=0.12)
    figure.savefig(options.out, format="png", pil_kwargs={"optimize": True})
    print(options.out)


def _draw(axes, name: str, images: list[torch.Tensor]) -> None:  # type: ignore[no-untyped-def]
    strip = np.concatenate([image.permute(1, 2, 0).numpy() for image in images], axis=1)
    axes.imshow(strip, interpolation="nearest", aspect="equal")
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


if __name__ == "__main__":
    main()

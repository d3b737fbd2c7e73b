"""Contact sheets: the samples chosen, each beside what it was mixed with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dm2_fast.experiment.folder.files import replacing
from dm2_fast.operations.arrays import ArrayLike, gather
from dm2_fast.operations.mix import mix
from dm2_fast.round import Picked


def short(name: str, most: int = 14) -> str:
    """A name as it fits above a picture: the end of a file name says more than its folders."""
    return name if len(name) <= most else "…" + name[1 - most :]


def are_images(pixels: Tensor) -> bool:
    """Whether samples can be drawn: (n, 1 or 3, H, W), uint8 or floating point in [0, 1]."""
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        return False
    if pixels.is_floating_point():
        return bool(((pixels >= 0) & (pixels <= 1)).all())
    return pixels.dtype == torch.uint8


def draw_chosen(
    file: Path, inputs: ArrayLike, picked: Picked, names: Callable[[Tensor], Sequence[str]], what: str
) -> None:
    """Draw the first samples chosen, if they are images; beside each its mixture and its neighbours, if it has them.

    Args:
        file: Where the picture goes, .png.
        inputs: The pool that was chosen from.
        picked: What was chosen.
        names: What stands above each of the given rows of the pool.
        what: How the picture's heading begins.
    """

    def images(rows: Tensor) -> Tensor:
        pool, where = gather(inputs, rows, "inputs")
        return pool[where]

    rows = picked.indices.cpu()
    if picked.neighbours is None or picked.mixture is None or picked.neighbours.shape[1] == 0:
        rows = rows[:40]
        chosen = images(rows)
        if are_images(chosen):
            above = [names(part) for part in torch.split(rows, 8)]
            draw_images(file, torch.split(_bytes(chosen), 8), above, f"{what}: chosen samples")
        return
    rows = rows[:12]
    chosen = images(rows)
    if not are_images(chosen):
        return
    mixture, neighbours = picked.mixture, picked.neighbours.cpu()[rows]
    weights = None if mixture.weights is None else mixture.weights.cpu()[rows]
    mixed = mix(inputs, mixture.indices.cpu()[rows], mixture.lam.cpu()[rows], weights=weights, rows=rows)
    grid: list[Tensor] = []
    titles: list[Sequence[str]] = []
    for i, row in enumerate(rows.tolist()):
        near = neighbours[i, :8]
        grid.append(torch.cat([_bytes(part) for part in (chosen[i : i + 1], mixed[i : i + 1], images(near))]))
        score = "" if picked.scores is None else f"score {picked.scores[row].item():.3f}"
        titles.append([*names(rows[i : i + 1]), score, *names(near)])
    draw_images(file, grid, titles, f"{what}: chosen | mixed with its neighbours | neighbours, nearest first")


def _bytes(pixels: Tensor) -> Tensor:
    return pixels if pixels.dtype == torch.uint8 else (pixels.float() * 255).round().to(torch.uint8)


def draw_images(file: Path, grid: Sequence[Tensor], titles: Sequence[Sequence[str]], heading: str) -> None:
    """Draw lines of (n, C, H, W) uint8 images with a title above each, as one picture."""
    from matplotlib.figure import Figure

    size, gap = 64, 18
    columns = max(len(line) for line in grid)
    canvas = np.full((len(grid) * (size + gap), columns * (size + 6), 3), 255, np.uint8)
    figure = Figure(figsize=(canvas.shape[1] / 72, canvas.shape[0] / 72 + 0.35), dpi=144)
    axes = figure.add_axes((0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    for i, line in enumerate(grid):
        for j, image in enumerate(line):
            pixels = image.permute(1, 2, 0).numpy()
            height, width = pixels.shape[:2]
            enlarged = pixels[np.arange(size) * height // size][:, np.arange(size) * width // size]
            top, left = i * (size + gap) + gap, j * (size + 6) + 3
            canvas[top : top + size, left : left + size] = enlarged
            axes.text(left + size / 2, top - 4, titles[i][j], ha="center", va="bottom", fontsize=7)
    axes.imshow(canvas, aspect="auto", interpolation="nearest")
    axes.axis("off")
    figure.text(0.5, 1 - 0.1 / figure.get_figheight(), heading, ha="center", va="top", fontsize=9)
    with replacing(file) as partial:
        figure.savefig(partial, format="png")

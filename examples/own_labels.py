"""A hundred labels, 2,400 images without, and rounds in which a person fills in the file between two calls.

python examples/own_labels.py
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from dm2_fast import DM2Config, RunConfig, run
from dm2_fast.experiment import TrainingConfig


def shapes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n noisy images of 16x16 pixels, of a disc (0) or a square (1)."""
    random = np.random.default_rng(seed)
    y, (down, right) = random.integers(0, 2, n), np.mgrid[:16, :16]
    top, left, radius = random.uniform(5, 10, (3, n, 1, 1))
    u, v = np.abs(down - top), np.abs(right - left)
    inside = np.where(y[:, None, None] == 0, np.hypot(u, v) < radius / 2, np.maximum(u, v) < radius / 2)
    return (random.normal(60, 40, (n, 16, 16)) + 90 * inside).clip(0, 255).astype(np.uint8), y


def main(images: int = 2500, labelled: int = 100, rounds: int = 5, budget: int = 20, epochs: int = 20) -> list[float]:
    """-1 is a row without a label; the run starts from the labels that there are."""
    (x, y), (x_test, y_test) = shapes(images, 0), shapes(images // 5, 1)
    known = np.where(np.arange(images) < labelled, y, -1)
    names = [f"image {i}" for i in range(images)]
    np.savez("mine.npz", x=x, y=known, x_test=x_test, y_test=y_test, classes=["disc", "square"], ids=names)
    config = RunConfig(
        dataset="mine.npz",
        oracle="file",
        rounds=rounds,
        budget=budget,
        options=DM2Config(k=5),
        training=TrainingConfig(epochs=epochs),
        output=Path("mine"),
    )
    result = run(config, echo=print)
    while result.to_label is not None:
        with result.to_label.open() as file:  # what a person does in a spreadsheet
            lines = list(csv.DictReader(file))
        answers = [
            (line["id"], "?" if i == 0 else ("disc", "square")[y[int(line["row"])]]) for i, line in enumerate(lines)
        ]
        with result.to_label.open("w", newline="") as file:
            csv.writer(file).writerows([("id", "label"), *answers])
        result = run(config)
    print([f"{r.labelled} labels: {r.evaluation.accuracy:.1%}" for r in result.rounds])
    return [r.evaluation.accuracy for r in result.rounds]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2500)
    main(parser.parse_args().images)

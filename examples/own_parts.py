"""A data set, a model and a strategy of one's own.

Each is a function below. In the folder of this file:

    python own_parts.py
    dm2-fast run --dataset shapes.npz --model own_parts:net --strategy own_parts:balanced --rounds 3
    dm2-fast run --dataset shapes.npz --model own_parts:net --strategies own_parts:balanced,dm2 --seeds 0,1 --rounds 3
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

import dm2_fast


def shapes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n noisy colour images of 16x16 pixels, (n, 16, 16, 3) uint8, and what is on them: a disc, a square or a cross."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    down, right = np.mgrid[:16, :16]
    images = []
    for label in y:
        top, left, radius = rng.uniform(5, 10), rng.uniform(5, 10), rng.uniform(3, 5)
        u, v = np.abs(down - top), np.abs(right - left)
        inside = (
            np.hypot(u, v) < radius,
            np.maximum(u, v) < 0.8 * radius,
            (np.minimum(u, v) < 1) & (np.maximum(u, v) < radius),
        )[label]
        image = np.where(inside[:, :, None], rng.uniform(80, 255, 3), 40) + rng.normal(0, 30, (16, 16, 3))
        images.append(image.clip(0, 255).astype(np.uint8))
    return np.stack(images), y


def net(channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """A freshly initialised model; the input of its last linear layer are the features that DM2 compares."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * (size[0] // 4) * (size[1] // 4), 64),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(64, classes),
    )


def balanced(asked: dm2_fast.Round, budget: int, options: None) -> dm2_fast.Picked:
    """The least certain samples of each predicted class in turn, so that no class fills the batch."""
    confidence, predicted = asked.logits.softmax(1).max(1)
    order = confidence.argsort(stable=True)
    turn = F.one_hot(predicted[order]).cumsum(0).gather(1, predicted[order][:, None])[:, 0]
    indices: Tensor = order[turn.argsort(stable=True)[:budget]]
    return dm2_fast.Picked(indices, 1 - confidence)


if __name__ == "__main__":
    x, y = shapes(400, seed=0)
    x_test, y_test = shapes(200, seed=1)
    classes = ["disc", "square", "cross"]
    np.savez("shapes.npz", x=x, y=y, x_test=x_test, y_test=y_test, layout="nhwc", classes=classes)
    print(f"shapes.npz: {len(x)} images to choose from, {len(x_test)} to test with")

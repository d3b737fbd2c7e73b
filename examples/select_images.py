"""Files as `dm2-fast select` reads them, made from the digits that come with scikit-learn.

It writes images.npy, weights.pt and labelled.csv, and features.npy and head.npz of the same model.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


def build() -> nn.Sequential:
    """The model as it is before its weights are loaded: `--model examples.select_images:build`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    digits = load_digits()
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)  # (m, C, H, W)
    labelled = np.random.default_rng(0).choice(len(images), 100, replace=False)

    torch.manual_seed(0)
    model = build()
    x, y = torch.from_numpy(images[labelled]).float() / 255, torch.from_numpy(digits.target[labelled])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    np.save("images.npy", images)
    torch.save(model.state_dict(), "weights.pt")
    lines = np.stack([labelled, digits.target[labelled]], axis=1)
    np.savetxt("labelled.csv", lines, "%d", delimiter=",", header="row,label", comments="")
    with torch.no_grad():
        np.save("features.npy", model[:-1](torch.from_numpy(images).float() / 255).numpy())
    weight, bias = model[-1].parameters()
    np.savez("head.npz", weight=weight.detach().numpy(), bias=bias.detach().numpy())


if __name__ == "__main__":
    main()

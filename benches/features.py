"""Real features for the neighbour benches: a small CNN trained on CIFAR-10, its penultimate layer on all 50,000 images.

    python benches/features.py --data-dir DIR [--out FILE.npy] [--epochs N] [--width D] [--pairs M]

The file is (50000, width) float32 and stays outside git; one that is already there is left alone. With --pairs it has M
rows instead, each the features of the average of two random images: a large pool of rows that are no copies.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.datasets import CIFAR10


def network(width: int) -> nn.Sequential:
    """Four 3 x 3 convolutions, each with batch norm and ReLU, then the mean over the 4 x 4 pixels that are left."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((3, 32, True), (32, 64, True), (64, 128, True), (128, width, False)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def images(data_dir: Path) -> tuple[Tensor, Tensor]:
    data = CIFAR10(str(data_dir), train=True)
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2).float() / 255
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True), torch.tensor(data.targets)


def features(data_dir: Path, epochs: int, width: int, pairs: int) -> np.ndarray:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = (part.to(device) for part in images(data_dir))
    model = network(width).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batch, steps = 128, epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for epoch in range(epochs):
        correct = 0
        for rows in torch.randperm(len(x))[: steps // epochs * batch].split(batch):
            flip = (torch.rand(len(rows), 1, 1, 1) < 0.5).to(device)
            logits = model(torch.where(flip, x[rows].flip(3), x[rows]))
            correct += int((logits.argmax(1) == y[rows]).sum())
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, y[rows]).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: training accuracy {correct / (steps // epochs * batch):.3f}", flush=True)
    model.eval()
    body = model[:-1].to(memory_format=torch.channels_last)
    with torch.inference_mode():
        if not pairs:
            return torch.cat([body(part) for part in x.split(1000)]).cpu().numpy()
        both = torch.randint(len(x), (pairs, 2))  # so many at once as the cache holds
        return torch.cat([body((x[part[:, 0]] + x[part[:, 1]]) / 2).cpu() for part in both.split(100)]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--out", type=Path, default=Path("data/cifar10_features.npy"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=0, metavar="M", help="averages of two images instead")
    args = parser.parse_args()
    if not args.out.exists():
        args.out.parent.mkdir(parents=True, exist_ok=True)
        np.save(args.out, features(args.data_dir, args.epochs, args.width, args.pairs))
    print(f"{args.out}: {np.load(args.out, mmap_mode='r').shape}")


if __name__ == "__main__":
    main()

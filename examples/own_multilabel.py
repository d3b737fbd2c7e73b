"""A model whose outputs are labels of their own, each with a sigmoid: a sample has several of them, or none.

python examples/own_multilabel.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import dm2_fast


def main(rows: int = 20_000, labels: int = 12, budget: int = 50) -> dm2_fast.Picked:
    """Train on 300 rows with their labels, and choose where the labels are most uncertain on average."""
    torch.manual_seed(0)
    x = torch.randn(rows + 300, 32)
    y = (x @ torch.randn(32, labels) > 2).float()
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, labels))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x[:300]), y[:300]).backward()
        optimizer.step()

    picked = dm2_fast.select(model, x[300:], budget, multilabel="mean")
    print(f"rows {picked.indices[:5].tolist()} ... of {rows}")
    print(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in picked.seconds.items()))
    return picked


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    main(parser.parse_args().rows)

"""`select` and `fgsm` from several threads on shared and separate models: the bits of the same calls in turn."""

import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import dm2_fast
from dm2_fast import strategies

STRATEGIES = [
    name for name in strategies.names() if strategies.get(name).part is None
]  # the others train a module in the call


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@cache
def models() -> list[nn.Module]:
    one, other = Net(0).train(), Net(1).eval()
    shared = Net(2).train()
    shared.body = one.body
    return [one, other, shared]


@cache
def pool() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (70, 3, 6, 6), np.uint8))


def call(number: int) -> list[object]:
    """What one of the calls returns."""
    draw = random.Random(number)
    model, batch = draw.choice(models()), draw.choice((16, 33, 256))
    if draw.random() < 0.3:
        return [dm2_fast.fgsm(model, pool(), None, 4 / 255, batch_size=batch)]
    labels = torch.arange(20) % 4
    picked = dm2_fast.select(
        model, pool(), 6, draw.choice(STRATEGIES), labelled=pool()[:20], labels=labels, batch_size=batch,
        num_threads=draw.choice((None, 1, 2, 3)), prepare=draw.choice(("auto", "off")), seed=draw.randrange(3),
    )  # fmt: skip
    return [picked.indices, picked.scores, picked.neighbours]


def state() -> list[Tensor]:
    tensors = [t.detach().clone() for model in models() for t in (*model.parameters(), *model.buffers())]
    modes = [m.training for model in models() for m in model.modules()]
    grads = [p.requires_grad for model in models() for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models() for m in model.modules()]
    return [*tensors, torch.tensor(modes), torch.tensor(grads), torch.tensor(hooks), torch.get_rng_state()]


def case(seed: int) -> None:
    draw = random.Random(seed)
    numbers = [draw.randrange(10**6) for _ in range(draw.randint(3, 6))]
    want, before, count = [call(number) for number in numbers], state(), torch.get_num_threads()
    with ThreadPoolExecutor(len(numbers)) as executor:
        found = list(executor.map(call, numbers))
    for number, got, expected in zip(numbers, found, want, strict=True):
        for ours, theirs in zip(got, expected, strict=True):
            equal = torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours is theirs
            assert equal, f"call {number} differs from what it returns alone"
    assert all(torch.equal(*pair) for pair in zip(state(), before, strict=True)), "a model or the random state changed"
    assert torch.get_num_threads() == count
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(torch.get_num_threads).result() == count, "a new thread has another number of threads"

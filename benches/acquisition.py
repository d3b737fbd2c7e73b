"""One DM2 acquisition, `dm2_fast.select`, on CIFAR-10 against the same acquisition written plainly, in one run.

    python benches/acquisition.py [--data-dir DIR] [--pool M] [--models NAME ...] [--repeats N]

The plain one normalises the images once, runs the model in eval mode, 256 rows at a time, searches neighbours with two
torch.cdist and topk, and mixes batch by batch. The models are trained for 64 steps on 1,024 images first, so that they
have features and BatchNorm statistics. Seconds are medians of several runs, which take turns, each in a fresh process;
the preparation is part of the features. Peak memory is what a run takes beyond model and images. The picks must be the
same but for ties to 1e-5.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from process import in_fresh_process
from torch import Tensor, nn

import dm2_fast
from dm2_fast.experiment import models
from dm2_fast.experiment.machine import header
from dm2_fast.model.passes import ForwardPass
from dm2_fast.paper.clock import measured

K, LAM, BUDGET = 10, 0.5, 100
NORMALIZE = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
STAGES = ("features", "neighbours", "mixed", "choose")


def images(data_dir: Path, pool: int) -> tuple[Tensor, Tensor]:
    data = torchvision.datasets.CIFAR10(str(data_dir), train=True)
    x = torch.from_numpy(data.data[:pool]).permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(data.targets[:pool])


def normalized(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZE)
    return (x.float() / 255 - mean) / std


def trained(name: str, x: Tensor, y: Tensor, steps: int = 64) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(name, 3, (32, 32), 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of all steps, where a moving average would need more of them
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for rows in torch.arange(steps * 64).remainder(min(len(x), 1024)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(normalized(x[rows])), y[rows]).backward()
        optimizer.step()
    return model


def ours(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
    picked = dm2_fast.select(model, x, BUDGET, options=dm2_fast.DM2Config.published(k=K, lam=LAM), normalize=NORMALIZE)
    assert picked.scores is not None
    return picked.scores, picked.indices, picked.seconds


def plain(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
    clock = [time.perf_counter()]
    captured: list[Tensor] = []
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        inputs = normalized(x)
        for batch in inputs.split(256):
            model(batch)
        hook.remove()
        features = F.normalize(torch.cat(captured))
        clock.append(time.perf_counter())
        neighbours = []
        for start in range(0, len(x), 500):
            part = features[start : start + 500]
            l1 = torch.cdist(part, features, p=1)
            l2 = torch.cdist(part, features, p=2, compute_mode="donot_use_mm_for_euclid_dist")
            distances = (l1 + l2) / (2 * features.shape[1])
            distances[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
            neighbours.append(distances.topk(K, largest=False).indices)
        near = torch.cat(neighbours)
        clock.append(time.perf_counter())
        logits = []
        for rows in torch.arange(len(x)).split(256):
            logits.append(model(LAM * inputs[rows] + (1 - LAM) * inputs[near[rows]].mean(1)))
        scores = 1 - torch.cat(logits).softmax(1).amax(1)
        clock.append(time.perf_counter())
        indices = scores.topk(BUDGET).indices
        clock.append(time.perf_counter())
    return scores, indices, dict(zip(STAGES, (b - a for a, b in itertools.pairwise(clock)), strict=True))


METHODS = {"dm2_fast": ours, "plain": plain}


def run(method: str, model: nn.Module, args: argparse.Namespace) -> tuple[Tensor, Tensor, dict[str, float], int]:
    """What one run gives, and the most memory that it took beyond what lay there before, bytes."""
    x, _ = images(args.data_dir, args.pool)
    METHODS[method](model, x[:256])  # start threads
    answer, _, peak = measured(lambda: METHODS[method](model, x))
    return *answer, peak


def same(first: Tensor, second: Tensor, scores: Tensor) -> bool:
    """Whether two choices are the same but for ties."""
    return bool((scores[first].sort().values - scores[second].sort().values).abs().max() < 1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--models", nargs="+", default=["mobilenet", "resnet18", "vgg16", "cnn"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(header(torch.device("cpu")))
    x, y = images(args.data_dir, args.pool)
    print(f"{len(x)} images, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.repeats} runs\n")
    print("| | images/s | features | neighbours | mixed | choose | preparation, s | all, s | times plain | peak, MB |")
    print("|---" * 10 + "|")
    for name in args.models:
        model = trained(name, x, y)
        runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        peaks: dict[str, list[int]] = {method: [] for method in METHODS}
        for _ in range(args.repeats):
            chosen = {}
            for method in METHODS:
                scores, indices, seconds, peak = in_fresh_process(run, method, model, args)
                chosen[method] = indices, scores
                runs[method].append(seconds)
                peaks[method].append(peak)
            if not same(chosen["dm2_fast"][0], chosen["plain"][0], chosen["plain"][1]):
                raise SystemExit(f"{name}: the picks differ")
            if chosen["plain"][1].std() < 1e-3:
                raise SystemExit(f"{name}: the scores do not tell the rows apart")
        start = time.perf_counter()
        forward = ForwardPass(model, x, NORMALIZE)
        forward.prepared()
        prepared = time.perf_counter() - start
        totals = {method: statistics.median(sum(run.values()) for run in runs[method]) for method in METHODS}
        for method in METHODS:
            median = {stage: statistics.median(run[stage] for run in runs[method]) for stage in STAGES}
            rate = 2 * len(x) / (median["features"] + median["mixed"])
            shares = " | ".join(f"{median[stage] / sum(median.values()):.1%}" for stage in STAGES)
            preparation = f"{prepared:.2f}" if method == "dm2_fast" else ""
            ratio = totals["plain"] / totals[method]
            print(
                f"| {name}, {method} | {rate:.0f} | {shares} | {preparation} | {totals[method]:.1f} "
                f"| {ratio:.2f} | {max(peaks[method]) / 2**20:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""The last models of a study's runs on corrupted test images: mean error over all corruptions and severities.

    dm2-fast bench table1 --cells cifar10 --output study
    python benches/corrupted.py --runs study/runs

The images are those of `--dataset cifar10c`, and each is made once for all models. Points are hundredths of corrupted
accuracy above that of another method, paired over the seeds that both have, with 95 % intervals.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.loop import subset
from dm2_fast.experiment.machine import header, reproducible
from dm2_fast.experiment.training import evaluate, further_tests
from dm2_fast.paper.statistics import interval
from dm2_fast.paper.study_report import mean_and_deviation, points
from dm2_fast.progress import tqdm
from dm2_fast.selecting.trained_run import model_of_run

Key = tuple[str, int]  # method and seed


def finished(runs: Path, cell: str) -> dict[Key, Path]:
    """The folders of a cell that have a model, named cell-method-seed, in the order of their names."""
    found = {}
    for model in sorted(runs.glob(f"{cell}-*-*/model.pt")):
        method, _, seed = model.parent.name.removeprefix(f"{cell}-").rpartition("-")
        found[method, int(seed)] = model.parent
    if not found:
        raise SystemExit(f"no finished run of {cell} in {runs}")
    return found


def kept(images: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """These images, whatever rows are asked for."""
    return lambda rows: images


def errors(folders: dict[Key, Path], data_dir: Path, test: int) -> dict[Key, tuple[float, float]]:
    """The error of each model on clean test images, and its mean over all corrupted sets of them."""
    data = load("cifar10c", data_dir)
    rows = subset("test", len(data.x_test), test, 0)
    tests = tqdm(data.tests.items(), desc="corruptions")
    data = replace(data, tests={name: replace(each, images=kept(each.images(rows))) for name, each in tests})
    found = {}
    for key, folder in tqdm(folders.items(), desc="models"):
        model, _ = model_of_run(folder, tuple(data.x.shape[1:]))
        clean = evaluate(model, data.x_test[rows], data.y_test[rows], data.normalize, 0.0)
        found[key] = 1 - clean.accuracy, further_tests(model, data, rows)["corruption_error"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the folder runs/ of a study")
    parser.add_argument("--cell", default="cifar10", help="which cell of it (default: cifar10)")
    parser.add_argument("--against", default="random", help="the method to compare with (default: random)")
    parser.add_argument("--test", type=int, default=1000, help="how many test images (default: 1000)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    with reproducible(torch.get_num_threads()):
        found = errors(finished(args.runs, args.cell), args.data_dir, args.test)
    methods = dict.fromkeys(method for method, _ in found)
    if args.against not in methods:
        raise SystemExit(f"--against must be one of {', '.join(methods)}, got {args.against}")
    print(header(torch.device("cpu")))
    print(f"| method | seeds | clean error | corrupted error | points above {args.against} |")
    print("| --- | --- | --- | --- | --- |")
    for method in methods:
        own = {seed: values for (name, seed), values in found.items() if name == method}
        clean, corrupted = ([values[i] for values in own.values()] for i in (0, 1))
        pairs = [found[args.against, seed][1] - own[seed][1] for seed in own if (args.against, seed) in found]
        gain = points(interval(pairs)) if pairs and method != args.against else ""
        means = mean_and_deviation(clean), mean_and_deviation(corrupted)
        print(f"| {method} | {len(own)} | {' | '.join(means)} | {gain} |", flush=True)


if __name__ == "__main__":
    main()

"""The adapters beside the packages' own strategies: seconds, peak memory and picks, in one run.

    python benches/frontends.py [--rows M] [--features D] [--budget B] [--out FOLDER]
    python benches/frontends.py --data-dir DATA

In an environment that has the packages, as `make test-adapters` makes one in build/adapters. The first form chooses
from M random rows in ten clusters, of which the first hundred are labelled. Each choice runs in a process of its own,
after one from a few rows; memory is the peak beyond what was resident before. scikit-activeml and small-text are asked
as a user asks them, with a fitted logistic regression; baal with a linear network, which our heuristic runs itself, or
whose predictions by baal it ranks. Utilities are not asked for. Margin and CoreSet are deterministic, so their picks
should agree, up to ties and rounding; BADGE is random after its first pick. Prints a table, and writes it to
frontends.md with the machine and the versions.

The second form runs five rounds of twenty labels with each adapter on 2,000 images of MNIST, and prints the accuracies.
"""

import argparse
import importlib.metadata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from process import in_fresh_process

from dm2_fast.experiment.machine import machine
from dm2_fast.paper.clock import measured

LABELLED, CLASSES = 100, 10
OF_PREDICTIONS = "margin of its predictions"
Answer = tuple[float, int, list[int]]


class Problem:
    """Rows in ten clusters, and a logistic regression that has seen the first hundred."""

    def __init__(self, rows: int, features: int) -> None:
        from sklearn.linear_model import LogisticRegression

        random = np.random.default_rng(0)
        self.y = random.integers(0, CLASSES, rows)
        self.y[:LABELLED] = np.arange(LABELLED) % CLASSES
        centres = random.standard_normal((CLASSES, features))
        self.x = (centres[self.y] + random.standard_normal((rows, features))).astype(np.float32)
        self.logistic = LogisticRegression(max_iter=500).fit(self.x[:LABELLED], self.y[:LABELLED])
        self.known, self.unknown = np.arange(LABELLED), np.arange(LABELLED, rows)


def timed(query: Callable[[], Any]) -> Answer:
    picks, seconds, peak = measured(query)
    return seconds, peak, [int(pick) for pick in picks]


def scikit_activeml(problem: Problem, name: str, budget: int, own: bool) -> Answer:
    from skactiveml.classifier import SklearnClassifier
    from skactiveml.pool import Badge, CoreSet, UncertaintySampling

    from dm2_fast.adapters import skactiveml as adapter

    y = np.full(len(problem.x), np.nan)
    y[problem.known] = problem.y[problem.known]
    clf = SklearnClassifier(problem.logistic, classes=list(range(CLASSES))).fit(
        problem.x[problem.known], y[problem.known]
    )
    theirs = {"margin": UncertaintySampling("margin_sampling"), "coreset": CoreSet(), "badge": Badge()}
    ours = {"margin": adapter.Margin(), "coreset": adapter.CoreSet(), "badge": adapter.Badge(), "dm2": adapter.DM2()}
    strategy = (theirs if own else ours)[name].set_params(random_state=0)
    reads = {} if name == "coreset" else {"clf": clf, "fit_clf": False}
    return timed(lambda: strategy.query(problem.x, y, batch_size=budget, **reads))


def small_text(problem: Problem, name: str, budget: int, own: bool) -> Answer:
    from small_text import BreakingTies, GreedyCoreset, SklearnDataset
    from small_text.classifiers import SklearnClassifier

    from dm2_fast.adapters.small_text import Acquisition

    data = SklearnDataset(problem.x, problem.y, target_labels=np.arange(CLASSES))
    clf = SklearnClassifier(problem.logistic, CLASSES)
    more: dict[str, Any] = {}
    if own:
        strategy: Any = BreakingTies() if name == "margin" else GreedyCoreset(normalize=False)
        more = {"embeddings": problem.x[np.concatenate([problem.unknown, problem.known])]} if name == "coreset" else {}
    else:
        strategy = Acquisition(name)
    labels = problem.y[problem.known]
    return timed(lambda: strategy.query(clf, data, problem.unknown, problem.known, labels, n=budget, **more))


def baal(problem: Problem, name: str, budget: int, own: bool) -> Answer:
    import logging

    import structlog
    from baal.active.dataset import ActiveLearningDataset
    from baal.active.heuristics import Margin
    from baal.modelwrapper import ModelWrapper, TrainingArgs
    from torch.utils.data import TensorDataset

    from dm2_fast.adapters.baal import Acquisition

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    network = torch.nn.Linear(problem.x.shape[1], CLASSES)
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(problem.logistic.coef_))
        network.bias.copy_(torch.from_numpy(problem.logistic.intercept_))
    mask = np.zeros(len(problem.x), int)
    mask[problem.known] = 1
    dataset = ActiveLearningDataset(TensorDataset(torch.from_numpy(problem.x), torch.from_numpy(problem.y)), mask)
    model = ModelWrapper(network, TrainingArgs(batch_size=256, use_cuda=False, workers=0))
    pool = dataset.pool
    if own:
        return timed(lambda: problem.unknown[Margin()(model.predict_on_dataset(pool, 1, verbose=False))[:budget]])
    if name == OF_PREDICTIONS:
        margin = Acquisition("margin", query_size=budget)
        return timed(
            lambda: problem.unknown[margin.get_ranks(model.predict_on_dataset(pool, 1, verbose=False))[0][:budget]]
        )
    acquisition = Acquisition(name, model=model, dataset=dataset, query_size=budget)
    return timed(lambda: problem.unknown[acquisition.get_ranks(acquisition.inputs(pool))[0][:budget]])


PACKAGES: dict[str, tuple[Callable[..., Answer], tuple[str, ...]]] = {
    "scikit-activeml": (scikit_activeml, ("margin", "coreset", "badge")),
    "baal": (baal, ("margin", OF_PREDICTIONS)),
    "small-text": (small_text, ("margin", "coreset")),
}


def run(package: str, name: str, rows: int, features: int, budget: int, own: bool) -> Answer:
    """One choice, after one from a few rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choice = PACKAGES[package][0]
        choice(Problem(400, features), name, 5, own)
        return choice(Problem(rows, features), name, budget, own)


def beside(options: argparse.Namespace) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [
        ("package", "strategy", "seconds", "its own", "times", "MB", "its own", "picks that agree")
    ]
    for package, (_, named) in PACKAGES.items():
        for name in (*named, "dm2"):
            size = (options.rows, options.features, options.budget)
            seconds, peak, mine = in_fresh_process(run, package, name, *size, False)
            if name not in named:
                lines.append((package, name, f"{seconds:.3f}", "", "", f"{peak / 2**20:.0f}", "", ""))
                continue
            theirs, their_peak, picks = in_fresh_process(run, package, name, *size, True)
            ordered = int(np.cumprod(np.array(picks) == np.array(mine)).sum())
            agree = f"first {ordered} in order, {len({*picks} & {*mine})} in all"
            lines.append(
                (package, name, f"{seconds:.3f}", f"{theirs:.3f}", f"{theirs / seconds:.1f}", f"{peak / 2**20:.0f}",
                 f"{their_peak / 2**20:.0f}", agree)
            )  # fmt: skip
            print(" | ".join(lines[-1]), flush=True)
    return lines


def mnist(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """2,000 images for the pool, then 1,000 to test with."""
    from dm2_fast.experiment.data.sets import load

    data = load("mnist", folder)
    return data.x[:3000].numpy().reshape(3000, -1).astype(np.float32) / 255, data.y[:3000].numpy()


def loop(package: str, name: str, folder: Path) -> tuple[float, float, float]:
    """Accuracy before and after five rounds of twenty labels, and the seconds of the five choices."""
    from sklearn.linear_model import LogisticRegression

    x, y = mnist(folder)
    problem = Problem(LABELLED + 1, 2)
    known, accuracies, seconds = np.arange(LABELLED), list[float](), 0.0
    for round in range(6):
        problem.x, problem.y = x[:2000], y[:2000]
        problem.known, problem.unknown = known, np.setdiff1d(np.arange(2000), known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it need not converge
            problem.logistic = LogisticRegression(max_iter=50).fit(x[known], y[known])
        accuracies.append(float(problem.logistic.score(x[2000:], y[2000:])))
        if round < 5:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                spent, _, picks = PACKAGES[package][0](problem, name, 20, False)
            seconds += spent
            known = np.concatenate([known, picks])
    return accuracies[0], accuracies[-1], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/frontends"))
    options = parser.parse_args()
    made = [*machine(torch.device("cpu"))]
    if options.data_dir is not None:
        lines: list[tuple[str, ...]] = [
            ("package", "strategy", "accuracy with 100", "with 200", "seconds of 5 choices")
        ]
        for package in PACKAGES:
            for name in ("dm2", "margin", "coreset", "badge"):
                first, last, seconds = in_fresh_process(loop, package, name, options.data_dir)
                lines.append((package, name, f"{first:.1%}", f"{last:.1%}", f"{seconds:.2f}"))
                print(" | ".join(lines[-1]), flush=True)
        about, file = "MNIST, pool of 2,000, 20 labels a round", "mnist.md"
    else:
        lines = beside(options)
        about, file = f"{options.rows} rows x {options.features}, budget {options.budget}", "frontends.md"
    made += [about, *(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)]
    table = [lines[0], tuple("---" for _ in lines[0]), *lines[1:]]
    text = "\n".join(f"- {line}" for line in made) + "\n\n"
    text += "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / file).write_text(text)


if __name__ == "__main__":
    main()

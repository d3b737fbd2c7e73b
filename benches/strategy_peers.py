"""CoreSet, BADGE and ProbCover against the packages that users would pick, on the same features in one run.

    python benches/strategy_peers.py --features FILE.npy [--rows M] [--labelled N] [--budget B] [--out FOLDER]

The first N rows are labelled, the next M are the pool; the logits are those of a fixed random linear head with ten
classes. Each method runs once, in a process of its own, at a size at which the slowest ends within minutes; memory is
the peak beyond what was resident before. Prints a table and writes it, with the machine, the versions, the commit and
the date, to peers.md, and its rows to peers.csv. What agrees:

- CoreSet is deterministic: all picks should agree, up to ties and the rounding of what a package computes with.
- BADGE is random after its first pick, so only that is compared. scikit-activeml 1.0.1 starts its distances at the
  squared norms, which makes the origin a centre; ours does not.
- ProbCover is deterministic up to ties, which scikit-activeml breaks at random, so picks part at the first tie: each is
  checked to cover as many new rows as any could. Both are given the radius; scikit-activeml takes a pair at exactly the
  radius, ours does not.
"""

import argparse
import csv
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from process import in_fresh_process
from torch import Tensor

from dm2_fast import Round, select_from
from dm2_fast.experiment.machine import machine
from dm2_fast.model.passes import ForwardPass
from dm2_fast.paper.clock import measured
from dm2_fast.strategies.prob_cover import ProbCoverConfig

CLASSES = 10
Array = NDArray[np.float32]


class Problem:
    """A labelled set and a pool of features, a linear head, and a radius that 1 % of the pairs are within."""

    def __init__(self, features: Array, labelled: int, rows: int, budget: int) -> None:
        x = torch.from_numpy(np.array(features[: labelled + rows], np.float32))
        self.labelled, self.pool, self.budget = x[:labelled], x[labelled:], budget
        self.head = torch.nn.Linear(x.shape[1], CLASSES)
        with torch.no_grad():
            weight = torch.randn(CLASSES, x.shape[1], generator=torch.Generator().manual_seed(0))
            self.head.weight.copy_(4 * weight / (x - x.mean(0)).norm(dim=1).mean())
            self.head.bias.copy_(-self.head.weight @ x.mean(0))
        some = F.normalize(x[:: max(1, len(x) // 1000)])
        self.radius = float(torch.pdist(some).quantile(0.01))

    def round(self) -> Round:
        state = Round(ForwardPass(self.head, self.pool, batch_size=4096), labelled=self.labelled)
        _ = state.features, state.labelled_features  # before the clock starts
        return state

    def scikit(self, unit: bool = False) -> tuple[Array, NDArray[np.float64]]:
        """(X, y) with y known for the labelled rows only."""
        x = torch.cat([self.labelled, self.pool])
        y = np.full(len(x), np.nan)
        y[: len(self.labelled)] = np.arange(len(self.labelled)) % CLASSES
        return (F.normalize(x) if unit else x).numpy(), y


Answer = tuple[float, int, NDArray[np.int64]]


def timed(query: Callable[[], object], offset: int = 0) -> Answer:
    """Seconds, peak memory and what a query picks, its rows counted from offset."""
    picks, seconds, peak = measured(query)
    return seconds, peak, np.asarray(picks) - offset


def ours(problem: Problem, name: str) -> Answer:
    state = problem.round()
    options = ProbCoverConfig(problem.radius) if name == "prob-cover" else None
    return timed(lambda: select_from(state, problem.budget, name, options).indices)


def scikit_activeml(problem: Problem, name: str) -> Answer:
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.pool import Badge, CoreSet, ProbCover

    class Head(SkactivemlClassifier):  # type: ignore[misc]  # of a package without types
        def fit(self, X: Array, y: NDArray[np.float64]) -> "Head":
            self.classes_ = np.arange(CLASSES)
            return self

        def predict_proba(self, X: Array) -> Array:
            with torch.no_grad():
                logits: Tensor = problem.head(torch.from_numpy(np.asarray(X, np.float32)))
            return logits.softmax(1).numpy()

    x, y = problem.scikit(unit=name == "prob-cover")
    size, labelled = problem.budget, len(problem.labelled)
    if name == "coreset":
        return timed(lambda: CoreSet(random_state=0).query(x, y, batch_size=size), labelled)
    if name == "badge":
        head = Head(classes=list(range(CLASSES)), missing_label=np.nan).fit(x, y)
        return timed(lambda: Badge(random_state=0).query(x, y, clf=head, fit_clf=False, batch_size=size), labelled)
    cover = ProbCover(n_classes=CLASSES, deltas=[problem.radius], random_state=0)
    return timed(lambda: cover.query(x, y, batch_size=size), labelled)


def alipy(problem: Problem, name: str) -> Answer:
    from alipy.query_strategy import QueryInstanceCoresetGreedy

    x, y = problem.scikit()
    n = len(problem.labelled)
    query = QueryInstanceCoresetGreedy(x, np.nan_to_num(y), train_idx=np.arange(len(x)))
    known, unknown = np.arange(n), np.arange(n, len(x))
    return timed(lambda: query.select(known, unknown, batch_size=problem.budget), n)


PEERS: tuple[tuple[str, Callable[[Problem, str], Answer], tuple[str, ...]], ...] = (
    ("scikit-activeml", scikit_activeml, ("coreset", "badge", "prob-cover")),
    ("alipy", alipy, ("coreset",)),
)


def run(method: Callable[[Problem, str], Answer], name: str, options: argparse.Namespace) -> Answer:
    """One choice, after one from a few rows."""
    features = np.load(options.features, mmap_mode="r")
    method(Problem(features, 20, 50, 5), name)  # imports, threads
    return method(Problem(features, options.labelled, options.rows, options.budget), name)


def greedy(problem: Problem, picks: NDArray[np.int64]) -> int:
    """How many of the picks cover as many new rows as any row could, by a dense float64 graph."""
    x, labelled = F.normalize(problem.pool).double(), F.normalize(problem.labelled).double()
    exact = "donot_use_mm_for_euclid_dist"
    near = torch.cdist(x, x, compute_mode=exact) < problem.radius
    left = ~(torch.cdist(x, labelled, compute_mode=exact) < problem.radius).any(1)
    best = 0
    for pick in picks:
        gains = (near & left).sum(1)
        best += int(gains[pick] == gains.max())
        left &= ~near[pick]
    return best


def agreement(problem: Problem, name: str, picks: NDArray[np.int64], mine: NDArray[np.int64]) -> str:
    if name == "badge":
        return f"first pick {'agrees' if picks[0] == mine[0] else 'differs'}"
    same = int((picks == mine).argmin()) if (picks != mine).any() else len(mine)
    text = f"first {same} of {len(mine)} in order, {len(np.intersect1d(picks, mine))} in all"
    if name == "prob-cover":
        text += f"; {greedy(problem, picks)} cover the most possible, {greedy(problem, mine)} of ours"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, metavar="FILE.npy")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--labelled", type=int, default=200)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("results/strategies"))
    options = parser.parse_args()
    features = np.load(options.features, mmap_mode="r")
    problem = Problem(features, options.labelled, options.rows, options.budget)
    made = machine(torch.device("cpu"))

    lines = [("method", "package", "seconds", "times ours", "peak memory, MB", "picks")]
    for name in ("coreset", "badge", "prob-cover"):
        seconds, peak, mine = in_fresh_process(run, ours, name, options)
        lines.append((name, "dm2_fast", f"{seconds:.3f}", "1", f"{peak / 2**20:.0f}", ""))
        for package, method, methods in PEERS:
            if name not in methods:
                continue
            try:
                peer = f"{package} {importlib.metadata.version(package)}"
                theirs, peak, picks = in_fresh_process(run, method, name, options)
            except ImportError as error:
                lines.append((name, package, "", "", "", f"not installed: {error}"))
                continue
            ratio, megabytes = f"{theirs / seconds:.1f}", f"{peak / 2**20:.0f}"
            lines.append((name, peer, f"{theirs:.3f}", ratio, megabytes, agreement(problem, name, picks, mine)))
    about = (
        f"{options.rows} rows x {features.shape[1]}, {options.labelled} labelled, budget {options.budget}, "
        f"radius {problem.radius:.4f}"
    )
    header = "\n".join(f"- {line}" for line in (*made, about))
    table = [lines[0], tuple("---" for _ in lines[0]), *lines[1:]]
    text = f"{header}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.md").write_text(text)
    with (options.out / "peers.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    main()

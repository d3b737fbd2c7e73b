"""QBC against scikit-activeml and BatchBALD against baal, on the same probabilities in one run.

    python benches/related_peers.py [--rows M] [--classes C] [--passes T] [--budget B] [--out FOLDER]

The members' probabilities are synthetic: logits of a row, and what each member adds to them. For QBC, scikit-activeml
1.0.1 gets members that return them, and is asked for each of its measures that ours has; but for ties, which it breaks
at random, all picks should agree. For BatchBALD, baal gets them as its samples of the posterior. It estimates from
random labels of the batch (--draws for each member) at every step, and ranks what it chose by its scores: only the sets
can be compared; ours is exact here. Writes related.md and related.csv.
"""

import argparse
import csv
import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from process import in_fresh_process
from torch import Tensor

from dm2_fast.experiment.machine import machine
from dm2_fast.paper.clock import measured
from dm2_fast.round import highest
from dm2_fast.strategies.batchbald import greedy
from dm2_fast.strategies.qbc import disagreement

Answer = tuple[float, NDArray[np.int64]]
MEASURES = {"kl": "KL_divergence", "vote-entropy": "vote_entropy", "variation-ratio": "variation_ratios"}


def probabilities(options: argparse.Namespace) -> Tensor:
    """(m, T, C) float64."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(options.rows, 1, options.classes, generator=generator, dtype=torch.float64)
    added = torch.randn(options.rows, options.passes, options.classes, generator=generator, dtype=torch.float64)
    return (logits + added).softmax(2)


def timed(choose: Callable[[], Any]) -> Answer:
    picks, seconds, _ = measured(choose)
    return seconds, np.asarray(picks)


def our_qbc(options: argparse.Namespace, measure: str) -> Answer:
    p = probabilities(options)
    return timed(lambda: highest(disagreement(p, measure), options.budget))  # type: ignore[arg-type]


def scikit_activeml(options: argparse.Namespace, measure: str) -> Answer:
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.pool import QueryByCommittee

    p = probabilities(options).numpy()

    class Member(SkactivemlClassifier):  # type: ignore[misc]  # of a package without types
        def __init__(self, number: int = 0, classes: Any = None, missing_label: float = np.nan) -> None:
            super().__init__(classes=classes, missing_label=missing_label)
            self.number = number

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Member":
            self.classes_ = np.arange(options.classes)
            return self

        def predict_proba(self, X: Any) -> Any:
            return p[np.asarray(X)[:, 0].astype(int), self.number]

        def predict(self, X: Any) -> Any:
            return self.predict_proba(X).argmax(1)

    members = [Member(t, list(range(options.classes))).fit(None, None) for t in range(options.passes)]
    x = np.arange(options.rows, dtype=float)[:, None]
    y = np.full(options.rows, np.nan)
    query = QueryByCommittee(method=MEASURES[measure], random_state=0)
    return timed(
        lambda: query.query(x, y, ensemble=members, fit_ensemble=False, batch_size=options.budget, candidates=x)
    )


def our_batchbald(options: argparse.Namespace) -> Answer:
    p = probabilities(options)
    return timed(lambda: greedy(p, options.budget, options.classes**options.budget, 0, 0))


def baal(options: argparse.Namespace) -> Answer:
    from baal.active.heuristics import BatchBALD

    p = probabilities(options).transpose(1, 2).numpy()  # (m, C, T)
    torch.manual_seed(0)
    heuristic = BatchBALD(num_samples=options.budget, num_draw=options.draws)
    return timed(lambda: heuristic(p)[: options.budget])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--budget", type=int, default=5)
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("results/strategies"))
    options = parser.parse_args()
    lines = [("method", "package", "seconds", "times ours", "picks")]
    work: list[tuple[str, Callable[..., Answer], str, Callable[..., Answer]]] = [
        (f"qbc, {name}", partial(our_qbc, measure=name), "scikit-activeml", partial(scikit_activeml, measure=name))
        for name in MEASURES
    ]
    work.append(("batchbald", our_batchbald, "baal", baal))
    for name, ours, package, theirs in work:
        seconds, mine = in_fresh_process(ours, options)
        lines.append((name, "dm2_fast", f"{seconds:.4f}", "1", ""))
        try:
            their_seconds, picks = in_fresh_process(theirs, options)
        except ImportError as error:
            lines.append((name, package, "", "", f"not installed: {error}"))
            continue
        same = int((picks == mine).argmin()) if (picks != mine).any() else len(mine)
        text = f"first {same} of {len(mine)} in order, {len(np.intersect1d(picks, mine))} in all"
        peer = f"{package} {importlib.metadata.version(package)}"
        lines.append((name, peer, f"{their_seconds:.4f}", f"{their_seconds / seconds:.1f}", text))
    about = f"{options.rows} rows, {options.classes} classes, {options.passes} members, budget {options.budget}"
    header = "\n".join(f"- {line}" for line in (*machine(torch.device("cpu")), about))
    table = [lines[0], tuple("---" for _ in lines[0]), *lines[1:]]
    text = f"{header}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "related.md").write_text(text)
    with (options.out / "related.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


if __name__ == "__main__":
    main()

"""Figure 1: the least confident samples of the first round, with and without an offset, by t-SNE of their features."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dm2_fast import extras
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.folder.files import replacing
from dm2_fast.experiment.loop import run, subset
from dm2_fast.model.passes import ForwardPass
from dm2_fast.paper.curves import Curve
from dm2_fast.paper.full import full_config
from dm2_fast.paper.protocol import Protocol
from dm2_fast.paper.study_report import mean_and_deviation, write_csv
from dm2_fast.picked import highest

_KEPT, _SKIPPED = "#1b6ca8", "#d1495b"


def draw_figure1(folder: Path, protocol: Protocol, curves: Sequence[Curve], data_dir: Path, device: str) -> None:
    """Write figure1.csv, a row per sample, and figure1.png, for the first cell and seed.

    The network is trained on the first labels anew, and its features of the `offset + budget` least confident samples
    are laid out in the plane: those that only the choice without an offset takes, that both take, that only the one
    with the offset takes. The title has the last accuracies of the study.
    """
    file = folder / "figure1.csv"
    cell = next(iter(protocol.cells))
    offset_of = {name: (options.get("dm2") or {}).get("offset") for name, options in protocol.methods.items()}
    method = max((name for name in offset_of if offset_of[name] is not None), key=lambda name: offset_of[name] or 0)
    config = full_config(protocol.cells[cell], protocol.methods[method], protocol.seeds[0], data_dir, device)
    offset = int(offset_of[method] or 0)
    if not file.exists():
        first = run(replace(config, rounds=0, eval_attacked=0, output=folder / "runs" / f"{cell}-figure1"))
        assert first.model is not None
        budget = int(config.budget or 0) or 1000
        data = load(config.dataset, config.data_dir)
        pool = subset("pool", len(data.x), config.pool, config.seed)
        pool = pool[~torch.isin(pool, torch.cat(first.chosen))]
        forward = ForwardPass(first.model, data.x[pool], data.normalize, batch_size=config.eval_batch_size)
        features, logits = forward.features_and_logits()
        scores = forward.uncertainty(logits, "least-confidence")
        rows = highest(scores, min(offset + budget, len(pool)))
        places = _tsne(features[rows].cpu().numpy())
        table = [
            (rank, int(pool[row]), int(data.y[pool[row]]), rank < budget, rank >= offset, float(x), float(y))
            for rank, (row, (x, y)) in enumerate(zip(rows.tolist(), places, strict=True))
        ]
        write_csv(file, ("rank", "row", "class", "without_offset", "with_offset", "x", "y"), table)
    reached = {
        name: mean_and_deviation([c.accuracy[-1] for c in curves if (c.cell, c.method) == (cell, name)])
        for name in protocol.methods
        if any((c.cell, c.method) == (cell, name) for c in curves)
    }
    _draw(folder / "figure1.png", file, f"{cell}: " + ", ".join(f"{name} {text} %" for name, text in reached.items()))


def _tsne(features: np.ndarray) -> np.ndarray:
    with extras.needed("strategies", "figure1"):
        from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    places: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    return places


def _draw(picture: Path, file: Path, title: str) -> None:
    import csv

    from matplotlib.figure import Figure

    with file.open(newline="") as lines:
        table = [(float(r["x"]), float(r["y"]), r["without_offset"], r["with_offset"]) for r in csv.DictReader(lines)]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (name, column) in zip(figure.subplots(1, 2), (("offset 0", 2), ("with the offset", 3)), strict=True):
        for chosen, colour in ((False, "#d5d8dc"), (True, _KEPT if column == 2 else _SKIPPED)):
            points = np.array([row[:2] for row in table if (row[column] == "True") == chosen]).reshape(-1, 2)
            axes.scatter(*points.T, s=4, color=colour, linewidths=0)
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title, fontsize=9)
    with replacing(picture) as partial:
        figure.savefig(partial, dpi=110, format="png")

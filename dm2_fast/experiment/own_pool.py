"""`dm2-fast select`: the next samples to label from a pool of one's own on disk, of which only blocks are in memory."""

import csv
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import nn

from dm2_fast import strategies
from dm2_fast.acquire import DM2Config, Picked
from dm2_fast.experiment.config import strategy_options
from dm2_fast.experiment.devices import reproducible, usable_device
from dm2_fast.experiment.plugins import is_plugin, load_function, naming, of_the_user
from dm2_fast.experiment.pool_files import PoolRows, contiguous, load_weights, open_array, read_head, read_labelled
from dm2_fast.experiment.sheet import draw_chosen
from dm2_fast.mixing import Normalize
from dm2_fast.scoring import ForwardPass
from dm2_fast.strategies import Round

_BATCH_BYTES = 2**22  # of features: what a linear head does with fewer costs less than starting it


@dataclass(frozen=True)
class SelectConfig:
    """The next samples to label, from a pool and a model, or from features and the linear head that reads them.

    Args:
        pool: The samples, a .npy file of (m, ...) uint8 or floating point, read by blocks; it needs a model.
        model: What runs on the pool, package.module:function; the function takes nothing and returns the model.
        weights: State dict of the model, as torch.save(model.state_dict(), ...) writes it; no code in it is run.
        features: Features instead of samples, a .npy file of (m, d) floating point; it needs a head.
        head: With features, the linear head, a .npz file of weight (C, d) and bias (C,). With a pool, the name of the
            module whose input is the feature vector; null to find it.
        layout: Order of the dimensions of a pool of images, (m, C, H, W) or (m, H, W, C).
        normalize: Mean and standard deviation per channel in units of the [0, 1] pixel range, as mean/std or
            0.49,0.48,0.45/0.20,0.20,0.20.
        labelled: The rows that have a label, left out: one row number a line (or more columns, with the names row and
            label above them), or a .npy file of row numbers.
        strategy: How the samples to label are chosen.
        budget: How many samples to choose.
        seed: Key of everything random.
        round: Count of the selections before, also a key of everything random.
        batch_size: Samples per forward pass; null for 256, or 4 MB of features.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        threads: CPU threads; null leaves them as they are.
        output: Folder to write, which must be new; null for one below selections/ that is named after pool, strategy,
            seed and round.
        dm2: Acquisition of dm2 and dm2-at.
    """

    pool: Path | None = None
    model: str | None = None
    weights: Path | None = None
    features: Path | None = None
    head: str | None = None
    layout: Literal["nchw", "nhwc"] = "nchw"
    normalize: str | None = None
    labelled: Path | None = None
    strategy: str = "dm2"
    budget: int = 100
    seed: int = 0
    round: int = 0
    batch_size: int | None = None
    device: str = "auto"
    threads: int | None = None
    output: Path | None = None
    dm2: DM2Config = field(default_factory=DM2Config)

    def __post_init__(self) -> None:
        strategies.get(self.strategy)
        if (self.pool is None) == (self.features is None):
            both = "both" if self.pool else "neither"
            raise ValueError(f"pool and model, or features and head, must be given, got {both} of pool and features")
        if self.features is not None:
            if self.head is None:
                raise ValueError("head must be the .npz file of the linear head for features, got none")
            for name in ("model", "weights", "normalize"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} must be left out with features, got {getattr(self, name)}")
        elif self.model is None or not is_plugin(self.model):
            raise ValueError(f"model must be named package.module:function for a pool, got {self.model}")
        for name in ("budget", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.round < 0:
            raise ValueError(f"round must be at least 0, got {self.round}")
        if self.layout not in ("nchw", "nhwc"):
            raise ValueError(f"layout must be one of nchw, nhwc, got {self.layout!r}")


def select_from_files(config: SelectConfig, *, echo: Callable[[str], None] | None = None) -> Path:
    """Choose the next samples to label and write selected.csv, scores.npy, config.yaml and, for images, selected.png.

    The folder appears when all of it is written, and not at all if anything goes wrong before.

    Args:
        config: The files, and how to choose.
        echo: Called with each line of the report as it is known; `print`, say.

    Returns:
        The folder. selected.csv has the columns order, row, score and neighbours, the rows that a row was mixed with,
        nearest first. scores.npy has the score of every row of the pool, NaN for the labelled ones; neither it nor the
        scores are there for a strategy that does not score rows.

    Raises:
        ValueError, OSError: a file is missing, damaged or does not fit the others, or there are not enough rows.
        RuntimeError: the user's model raised; its own error is the cause.
    """
    output = config.output or _default_output(config)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output must be a new folder, got {output}, which is there already")
    array = _samples(config)
    labelled, labels = read_labelled(config.labelled, len(array))
    unlabelled = np.flatnonzero(np.bincount(labelled, minlength=len(array)) == 0)
    if config.budget > len(unlabelled):
        raise ValueError(f"budget must be at most {len(unlabelled)}, the rows without a label, got {config.budget}")

    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        reproducible(config.threads),
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as unfinished,
    ):
        device = usable_device(config.device)
        model = (_model(config) if config.features is None else read_head(Path(str(config.head)), array)).to(device)
        if echo:
            echo(
                f"{config.strategy} on {config.pool or config.features}, {len(array)} rows of {array.shape[1:]} "
                f"{array.dtype}, {len(labelled)} of them labelled, {device}"
            )
        forward = _forward(config, model, array, unlabelled, Path(unfinished))
        labelled_set = PoolRows("pool", array, labelled)
        state = Round(forward, config.seed, config.round, unlabelled, labelled_set, labels)
        with naming(config.model, f"samples of shape {array.shape[1:]}"):
            picked = strategies.get(config.strategy)(state, config.budget, strategy_options(config))
        folder = Path(unfinished) / "selection"
        folder.mkdir()
        _write(folder, config, state, picked, len(array))
        folder.replace(output)
    if echo:
        seconds = {**state.seconds, **picked.seconds}
        echo(", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items()))
    return output


def _default_output(config: SelectConfig) -> Path:
    source = config.pool or config.features
    assert source is not None
    return Path("selections") / f"{source.stem}-{config.strategy}-seed{config.seed}-round{config.round}"


def _samples(config: SelectConfig) -> NDArray[Any]:
    """The pool or the features, mapped and not read."""
    if config.features is not None:
        features = open_array("features", config.features)
        if features.ndim != 2 or features.dtype.kind != "f":
            raise ValueError(f"features must be (m, d) floating point, got {features.shape} {features.dtype}")
        return features
    assert config.pool is not None
    pool = open_array("pool", config.pool)
    if pool.dtype != np.uint8 and pool.dtype.kind != "f":
        raise ValueError(f"pool must be uint8 or floating point, got {pool.dtype}")
    if pool.ndim < 2:
        raise ValueError(f"pool must be (m, ...), got shape {pool.shape}")
    if config.layout == "nhwc":
        if pool.ndim != 4:
            raise ValueError(f"pool must be (m, H, W, C) for layout nhwc, got shape {pool.shape}")
        return pool.transpose(0, 3, 1, 2)
    return pool


def _forward(
    config: SelectConfig, model: nn.Module, array: NDArray[Any], rows: NDArray[np.int64], scratch: Path
) -> ForwardPass:
    """How the given rows run through the model or the head."""
    if config.features is not None:
        features = contiguous(array, rows, scratch)
        batch_size = config.batch_size or max(1, _BATCH_BYTES // features[0].nbytes)
        return ForwardPass(model, features, batch_size=batch_size, progress=True)
    normalize = None if config.normalize is None else _statistics(config.normalize)
    pool = PoolRows("pool", array, rows)
    return ForwardPass(model, pool, normalize, config.head, config.batch_size or 256, progress=True)


def _model(config: SelectConfig) -> nn.Module:
    """The user's model, with the weights in the file if there is one."""
    function = load_function(str(config.model))
    with of_the_user(str(config.model), "when called without arguments"):
        model = function()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{config.model} must return a torch.nn.Module, got {type(model).__name__}")
    if config.weights is not None:
        load_weights(model, config.weights)
    return model


def _statistics(text: str) -> Normalize:
    """(mean, std) from `0.5/0.25` or `0.49,0.48,0.45/0.20,0.20,0.20`; their number is checked where they are used."""
    try:
        mean, std = ([float(value) for value in part.split(",")] for part in text.split("/"))
    except ValueError:
        raise ValueError(
            f"normalize must be mean/std, as in 0.5/0.25 or 0.49,0.48,0.45/0.20,0.20,0.20, got {text!r}"
        ) from None
    return mean, std


def _write(folder: Path, config: SelectConfig, state: Round, picked: Picked, m: int) -> None:
    """Write all files of a selection; places in the unlabelled pool become rows of the user's file."""
    chosen = picked.indices.cpu()
    rows = state.ids[chosen.numpy()]
    scores = None if picked.scores is None else picked.scores.cpu()
    near = None if picked.neighbours is None else state.ids[picked.neighbours[chosen].cpu().numpy()]
    with (folder / "selected.csv").open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("order", "row", "score", "neighbours"))
        for i, row in enumerate(rows.tolist()):
            score = "" if scores is None else f"{scores[chosen[i]].item():.9g}"
            lines.writerow((i, row, score, "" if near is None else " ".join(map(str, near[i]))))
    if scores is not None:
        everywhere = np.full(m, np.nan, scores.numpy().dtype)
        everywhere[state.ids] = scores.numpy()
        np.save(folder / "scores.npy", everywhere)
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, "output": None}, sort_keys=False))
    if config.pool is not None:
        draw_chosen(
            folder / "selected.png", state, picked, config.dm2,
            lambda places: [f"row {row}" for row in state.ids[places.numpy()].tolist()],
        )  # fmt: skip

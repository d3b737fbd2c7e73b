"""`dm2-fast select`: the next samples to label from a pool of one's own on disk, of which only blocks are in memory."""

import csv
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast import plugins, strategies
from dm2_fast.acquire import select
from dm2_fast.experiment.folder.files import naming_file, unfinished
from dm2_fast.experiment.folder.sheet import draw_chosen
from dm2_fast.experiment.machine import reproducible, usable_device
from dm2_fast.operations.mix import Normalize
from dm2_fast.round import Picked
from dm2_fast.selecting.samples import PoolRows, contiguous, load_weights, open_array, read_head, read_labelled

_BATCH_BYTES = 2**22  # of features: what a linear head does with fewer costs less than starting it


@dataclass(frozen=True)
class SelectConfig:
    """The next samples to label, from a pool and a model, or from features and the linear head that reads them.

    Args:
        pool: The samples, a .npy file of (m, ...) uint8 or floating point, read by blocks; it needs a model.
        model: What runs on the pool, package.module:function; the function is called with those of channels, size and
            classes that it names (null where it is not known) and returns the model.
        weights: State dict of the model, as torch.save(model.state_dict(), ...) writes it; no code in it is run.
        features: Features instead of samples, a .npy file of (m, d) floating point; it needs a head.
        head: With features, the linear head, a .npz file of weight (C, d) and bias (C,). With a pool, the name of the
            module whose input is the feature vector; null to find it.
        layout: Order of the dimensions of a pool of images, (m, C, H, W) or (m, H, W, C).
        normalize: Mean and standard deviation per channel in units of the [0, 1] pixel range, as mean/std or
            0.49,0.48,0.45/0.20,0.20,0.20.
        labelled: The rows that have a label, left out: one row number a line (or more columns, with the names row and
            label above them), or a .npy file of row numbers.
        strategy: How the samples to label are chosen; or a function or `Strategy` of your own.
        budget: How many samples to choose.
        seed: Key of everything random.
        round: Count of the selections before, also a key of everything random.
        batch_size: Samples per forward pass; null for 256, or 4 MB of features.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        threads: CPU threads; null leaves them as they are.
        output: Folder to write, which must be new; null for one below selections/ that is named after pool, strategy,
            seed and round.
        options: Options of the strategy, a dataclass of its own; None for its defaults.
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
    options: Any = None

    def __post_init__(self) -> None:
        if not plugins.is_plugin(self.strategy):
            strategies.get(self.strategy).checked(self.options)
        if (self.pool is None) == (self.features is None):
            raise ValueError("give --pool with --model, or --features with --head")
        if self.features is not None:
            if self.head is None:
                raise ValueError("give --head, the .npz file of the linear head that reads --features")
            for name in ("model", "weights", "normalize"):
                if getattr(self, name) is not None:
                    raise ValueError(f"leave out --{name}: it belongs to --pool, not to --features")
        elif self.model is None or not plugins.is_plugin(self.model):
            raise ValueError(f"give --model as package.module:function for --pool, got {self.model}")
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
    config = replace(config, options=strategies.get(config.strategy).checked(config.options))
    output = config.output or _default_output(config)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already: name another --output")
    array = _samples(config)
    labelled, labels = read_labelled(config.labelled, len(array))
    unlabelled = np.flatnonzero(np.bincount(labelled, minlength=len(array)) == 0)
    if config.budget > len(unlabelled):
        raise ValueError(f"only {len(unlabelled)} rows have no label, fewer than the budget of {config.budget}")

    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        reproducible(config.threads),
        naming_file(output),
        unfinished(output) as scratch,
    ):
        device = usable_device(config.device)
        model = (_model(config, array) if config.features is None else read_head(Path(str(config.head)), array)).to(
            device
        )
        if echo:
            echo(
                f"{config.strategy} on {config.pool or config.features}, {len(array)} rows of {array.shape[1:]} "
                f"{array.dtype}, {len(labelled)} of them labelled, {device}"
            )
        with plugins.naming(config.model, f"samples of shape {array.shape[1:]}"):
            picked = select(
                model,
                **_samples_of(config, array, unlabelled, scratch),
                budget=config.budget,
                strategy=config.strategy,
                options=config.options,
                labelled=PoolRows("pool", array, labelled),
                labels=labels,
                row_ids=unlabelled,
                seed=config.seed,
                round=config.round,
                progress=True,
            )
        folder = scratch / "selection"
        folder.mkdir()
        _write(folder, config, array, unlabelled, picked)
        folder.replace(output)
    if echo:
        if picked.prepared is not None and picked.prepared.startswith("off: "):
            echo(f"the model runs as it is, since it cannot be prepared, which costs speed: {picked.prepared[5:]}")
        if picked.audit is not None:
            echo(f"{picked.audit.path} neighbours: {picked.audit.why}")
        echo(", ".join(f"{stage} {value:.1f} s" for stage, value in picked.seconds.items()))
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


def _samples_of(config: SelectConfig, array: NDArray[Any], rows: NDArray[np.int64], scratch: Path) -> dict[str, Any]:
    """The given rows as `select` takes them: pool, normalize, head and batch_size."""
    if config.features is not None:
        features = contiguous(array, rows, scratch)
        return {"pool": features, "batch_size": config.batch_size or max(1, _BATCH_BYTES // features[0].nbytes)}
    normalize = None if config.normalize is None else _statistics(config.normalize)
    pool = PoolRows("pool", array, rows)
    return {"pool": pool, "normalize": normalize, "head": config.head, "batch_size": config.batch_size or 256}


def _model(config: SelectConfig, array: NDArray[Any]) -> nn.Module:
    """The user's model, with the weights in the file if there is one."""
    channels, *size = array.shape[1:] if array.ndim == 4 else (None,)
    model = plugins.model(str(config.model), channels=channels, size=tuple(size) or None, classes=None)
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


def _write(
    folder: Path, config: SelectConfig, array: NDArray[Any], unlabelled: NDArray[np.int64], picked: Picked
) -> None:
    """Write all files of a selection; places in the unlabelled pool become rows of the user's file."""
    chosen = picked.indices.cpu()
    rows = unlabelled[chosen.numpy()]
    scores = None if picked.scores is None else picked.scores.cpu()
    near = None if picked.neighbours is None else unlabelled[picked.neighbours[chosen].cpu().numpy()]
    with (folder / "selected.csv").open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("order", "row", "score", "neighbours"))
        for i, row in enumerate(rows.tolist()):
            score = "" if scores is None else f"{scores[chosen[i]].item():.9g}"
            lines.writerow((i, row, score, "" if near is None else " ".join(map(str, near[i]))))
    if scores is not None:
        everywhere = np.full(len(array), np.nan, scores.numpy().dtype)
        everywhere[unlabelled] = scores.numpy()
        np.save(folder / "scores.npy", everywhere)
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    options, group = values.pop("options"), strategies.group(strategies.get(config.strategy))
    values |= {"output": None} | ({} if group is None else {group: options})
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    if config.pool is not None:

        def names(places: Tensor) -> list[str]:
            return [f"row {row}" for row in unlabelled[places.numpy()].tolist()]

        draw_chosen(
            folder / "selected.png", PoolRows("pool", array, unlabelled), picked, names, f"round {config.round}"
        )

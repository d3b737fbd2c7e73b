"""`dm2-fast select`: the next samples to label from a pool of one's own on disk, of which only blocks are in memory."""

import csv
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast import extras, plugins, strategies
from dm2_fast.acquire import select_from
from dm2_fast.distributed import torchrun
from dm2_fast.distributed.acquire import merge_shards, run_shard, select_in_parts
from dm2_fast.distributed.group import Group
from dm2_fast.experiment.folder.files import naming_file, unfinished
from dm2_fast.experiment.folder.sheet import draw_chosen, short
from dm2_fast.experiment.machine import reproducible, usable_device
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.pools import are_integers
from dm2_fast.operations.arrays import ArrayLike
from dm2_fast.operations.mix import Normalize
from dm2_fast.operations.processes import Alone
from dm2_fast.round import Picked, Round
from dm2_fast.selecting import label_studio
from dm2_fast.selecting.config import SelectConfig as SelectConfig
from dm2_fast.selecting.config import shard_of
from dm2_fast.selecting.images import read_images
from dm2_fast.selecting.names import read_ids
from dm2_fast.selecting.parts import parts_folder, write_config
from dm2_fast.selecting.samples import (
    PoolRows,
    contiguous,
    load_weights,
    open_array,
    read_head,
    read_labelled,
    searched,
)
from dm2_fast.selecting.trained_run import model_of_run
from dm2_fast.words import count

_BATCH_BYTES = 2**22  # of features: what a linear head does with fewer costs less than starting it


def select_from_files(
    config: SelectConfig, *, echo: Callable[[str], None] | None = None, merge: tuple[Path, int] | None = None
) -> Path:
    """Choose the next samples to label and write selected.csv, scores.npy, config.yaml and, for images, selected.png.

    The folder appears when all of it is written, and not at all if anything goes wrong before.

    Args:
        config: The files, and how to choose.
        echo: Called with each line of the report as it is known; `print`, say.
        merge: The folder in which `config.shard` made shards, and how many, to put the selection together.

    Returns:
        The folder; with `config.shard`, that of the shards. selected.csv has the columns order, row, score and
        neighbours, the rows that a row was mixed with, nearest first. scores.npy has the score of every row of the
        pool, NaN for the labelled ones; neither it nor the scores are there for a strategy that does not score rows.

    Raises:
        ValueError, OSError: a file is missing, damaged or does not fit the others, or there are not enough rows.
        RuntimeError: the user's model raised; its own error is the cause.
        MissingExtra: matplotlib or pyyaml is not installed.
    """
    extras.check("run", "a selection from files", "yaml", "matplotlib")
    if not torchrun.started():
        return _select(config, None, echo, merge)
    if config.shard is not None or merge is not None:
        raise ValueError("a shard, and merging, is for one process: start it without torchrun")
    with torchrun.processes() as group:
        return _select(config, group, echo if group.rank == 0 else None, None)


def _select(
    config: SelectConfig, group: Group | None, echo: Callable[[str], None] | None, merge: tuple[Path, int] | None
) -> Path:
    """`select_from_files` in this process, which is alone or one of a group, of which rank 0 writes."""
    config = replace(config, options=strategies.get(config.strategy).checked(config.options))
    output = config.output or _default_output(config)

    together: Any = group or Alone()

    def check() -> None:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output} is there already: name another --output")

    together.agree(check)
    ids, array, damaged = _samples(config, group)

    def read() -> tuple[NDArray[np.int64], Tensor | None]:
        labelled, labels = read_labelled(config.labelled, len(array), ids, config.classes)
        if config.budget > len(array) - len(labelled):
            left = count(len(array) - len(labelled), "row")
            raise ValueError(f"budget {config.budget} is more than the {left} without a label")
        output.parent.mkdir(parents=True, exist_ok=True)
        return labelled, labels

    labelled, labels = together.agree(read)
    unlabelled = np.flatnonzero(np.bincount(labelled, minlength=len(array)) == 0)
    parts = parts_folder(config, output) if merge is None else merge[0]
    threads = config.threads or (torchrun.threads() if group is not None else None)
    with reproducible(threads), naming_file(output), _scratch(output, group) as scratch:
        device = usable_device(torchrun.device(config.device) if group is not None else config.device)
        split = group is not None or config.shard is not None
        asked = _ask(config, array, unlabelled, labelled, labels, scratch, device, in_parts=split)
        if echo:
            echo(
                f"{config.strategy} on {config.pool or config.features}, {len(array)} rows of {array.shape[1:]} "
                f"{array.dtype}, {len(labelled)} of them labelled, {device}"
            )
        with plugins.naming(config.model, f"samples of shape {array.shape[1:]}{_layout_hint(config, array)}"):
            how: tuple[int, str, Any] = config.budget, config.strategy, config.options
            if config.shard is not None:
                write_config(config, parts)
                told = run_shard(asked, *how, *shard_of(config.shard), parts)
                if echo:
                    echo(f"shard {config.shard}: {told}")
                return parts
            if group is not None:
                picked = select_in_parts(asked, *how, group, parts)
            elif merge is not None:
                picked = merge_shards(asked, *how, merge[1], parts)
            else:
                picked = select_from(asked, *how)
        if group is not None and group.rank > 0:
            group.agree(lambda: None)  # the folder is there
            return output
        folder = scratch / "selection"
        folder.mkdir()
        _write(folder, config, array, unlabelled, picked, ids)
        if damaged:
            (folder / "damaged.txt").write_text("".join(f"{name}\n" for name in damaged))
        folder.replace(output)
        if group is not None or merge is not None:
            shutil.rmtree(parts.parent, ignore_errors=True)
        if group is not None:
            group.agree(lambda: None)
    if echo:
        if damaged:
            echo(f"left out: {count(len(damaged), 'damaged image')}, see damaged.txt")
        if config.features is None and picked.prepared is not None and picked.prepared.startswith("off: "):
            echo(f"the model runs as it is, since it cannot be prepared, which costs speed: {picked.prepared[5:]}")
        if picked.audit is not None:
            echo(f"{picked.audit.path} neighbours: {picked.audit.why}")
        echo(", ".join(f"{stage} {value:.1f} s" for stage, value in picked.seconds.items()))
    return output


@contextmanager
def _scratch(output: Path, group: Group | None) -> Iterator[Path]:
    """A new folder beside output, gone when the block ends; that of rank 0 is for all."""
    if group is None or group.rank == 0:
        with unfinished(output) as scratch:
            if group is not None:
                group.gather_objects(scratch)
            yield from _temporary(scratch)
    else:
        yield from _temporary(group.gather_objects(Path())[0])


def _temporary(folder: Path) -> Iterator[Path]:
    """Yield the folder, in which temporary files are made meanwhile."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before


def _default_output(config: SelectConfig) -> Path:
    source = config.pool or config.features
    assert source is not None
    return Path("selections") / f"{source.stem}-{config.strategy}-seed{config.seed}-round{config.round}"


def _samples(config: SelectConfig, group: Group | None) -> tuple[list[str] | None, NDArray[Any], list[str]]:
    """The ids of the rows, if they have any, the samples, and the names of damaged images, which are left out."""
    if config.pool is not None and config.pool.is_dir():
        if config.ids is not None:
            raise ValueError("leave out --ids: the images of a folder are called by their file names")
        if config.layout != "nchw":
            raise ValueError("leave out --layout: it belongs to a .npy file, and images of a folder need none")
        return read_images(config.pool, config.size or 224, config.skip_damaged, config.workers, group)
    array = _array(config)
    for name, given in (("skip-damaged", config.skip_damaged), ("size", config.size is not None)):
        if given:
            raise ValueError(f"leave out --{name}: it belongs to a folder of images")
    return None if config.ids is None else read_ids(config.ids, len(array)), array, []


def _array(config: SelectConfig) -> NDArray[Any]:
    """The pool or the features, mapped and not read."""
    if config.features is not None:
        features = open_array("features", config.features)
        if features.ndim != 2 or features.dtype.kind != "f":
            raise ValueError(f"features must be (m, d) floating point, got {features.shape} {features.dtype}")
        return features
    assert config.pool is not None
    pool = open_array("pool", config.pool)
    if pool.dtype != np.uint8 and pool.dtype.kind != "f" and not are_integers(pool):
        raise ValueError(f"pool must be uint8 or floating point, got {pool.dtype}")
    if pool.ndim < 2:
        raise ValueError(f"pool must be (m, ...), got shape {pool.shape}")
    if config.layout == "nhwc":
        if pool.ndim != 4:
            raise ValueError(f"pool must be (m, H, W, C) for layout nhwc, got shape {pool.shape}")
        return pool.transpose(0, 3, 1, 2)
    return pool


def _ask(
    config: SelectConfig,
    array: NDArray[Any],
    unlabelled: NDArray[np.int64],
    labelled: NDArray[np.int64],
    labels: Tensor | None,
    scratch: Path,
    device: torch.device,
    in_parts: bool,
) -> Round:
    """The round that the files make; in parts, no process copies all of the features."""
    keys: dict[str, Any] = {"seed": config.seed, "round": config.round, "row_ids": unlabelled, "ties": config.ties}
    others = PoolRows("pool", array, labelled)
    if config.logits is not None or config.probabilities is not None:
        name = "logits" if config.logits is not None else "probabilities"
        outputs = open_array(name, getattr(config, name))
        if outputs.ndim != 2 or outputs.shape[0] != len(array):
            raise ValueError(f"{name} must be (m, C) with the {len(array)} rows of features, got {outputs.shape}")
        x = contiguous(array, unlabelled, scratch)
        near = others[np.arange(len(labelled))] if len(labelled) else None
        given: dict[str, Any] = {name: outputs[unlabelled], "labelled_features": near, "labels": labels}
        kind: dict[str, Any] = {"multilabel": config.multilabel, "these_are_logits": config.these_are_logits}
        return Round.from_arrays(x, **given, **keys, **kind, progress=True)
    pool: ArrayLike
    sparing = config.memory is not None
    if config.features is not None:
        pool = (
            PoolRows("features", array, unlabelled, searched(array), sparing)
            if in_parts
            else contiguous(array, unlabelled, scratch)
        )
        model: nn.Module = read_head(Path(str(config.head)), array)
        normalize, head, batch_size = None, None, max(1, _BATCH_BYTES // (searched(array).itemsize * array.shape[1]))
    else:
        pool, head, batch_size = PoolRows("pool", array, unlabelled, sparing=sparing), config.head, 256
        if config.run is not None:
            model, normalize = model_of_run(config.run, array.shape[1:])
        else:
            model, normalize = (
                _model(config, array),
                None if config.normalize is None else _statistics(config.normalize),
            )
    size = config.batch_size or batch_size
    options: dict[str, Any] = {"progress": True, "multilabel": config.multilabel, "memory": config.memory}
    options |= {"these_are_logits": config.these_are_logits, "prepare": config.prepare}
    forward = ForwardPass(model.to(device), pool, normalize, head, size, **options)
    return Round(forward, labelled=others, labels=labels, **keys)


def _layout_hint(config: SelectConfig, array: NDArray[Any]) -> str:
    """What may be wrong with samples on which a model raised."""
    shape = array.shape[1:]
    if config.layout == "nchw" and len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4):
        return " (if these are height, width and channels, add --layout nhwc)"
    return ""


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
    folder: Path,
    config: SelectConfig,
    array: NDArray[Any],
    unlabelled: NDArray[np.int64],
    picked: Picked,
    ids: Sequence[str] | None,
) -> None:
    """Write all files of a selection; places in the unlabelled pool become rows of the user's file."""
    chosen = picked.indices.cpu()
    rows = unlabelled[chosen.numpy()]
    scores = None if picked.scores is None else picked.scores.cpu()
    near = None if picked.neighbours is None else unlabelled[picked.neighbours[chosen].cpu().numpy()]
    with (folder / "selected.csv").open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        named = () if ids is None else ("id",)
        lines.writerow(("order", "row", *named, "score", "neighbours"))
        for i, row in enumerate(rows.tolist()):
            score = "" if scores is None else f"{scores[chosen[i]].item():.9g}"
            named = () if ids is None else (ids[row],)
            lines.writerow((i, row, *named, score, "" if near is None else " ".join(map(str, near[i]))))
    if scores is not None:
        everywhere = np.full(len(array), np.nan, scores.numpy().dtype)
        everywhere[unlabelled] = scores.numpy()
        np.save(folder / "scores.npy", everywhere)
    if config.export is not None:
        called = [str(row) if ids is None else ids[row] for row in rows.tolist()]
        of_chosen = None if scores is None else scores[chosen]
        images = config.pool if config.pool is not None and config.pool.is_dir() else None
        source = f"dm2_fast {config.strategy}"
        label_studio.write_tasks(folder, rows.tolist(), called, of_chosen, scores, source, images)
    write_config(config, folder)
    if config.pool is not None:

        def names(places: Tensor) -> list[str]:
            numbers = unlabelled[places.numpy()].tolist()
            return [f"row {row}" if ids is None else short(ids[row]) for row in numbers]

        draw_chosen(
            folder / "selected.png", PoolRows("pool", array, unlabelled), picked, names, f"round {config.round}"
        )

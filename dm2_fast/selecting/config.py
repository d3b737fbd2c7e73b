"""What `dm2-fast select` is asked for."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dm2_fast import plugins, strategies
from dm2_fast.operations.arguments import whole
from dm2_fast.operations.memory import as_bytes
from dm2_fast.operations.multilabel import check_over


@dataclass(frozen=True)
class SelectConfig:
    """The next samples to label, from a pool and a model, or from features and the linear head that reads them.

    Args:
        pool: The samples, a .npy file of (m, ...) uint8 or floating point, read by blocks; or a folder of images (jpg,
            png, webp, gif) at any depth and of any size. It needs a model.
        model: What runs on the pool, package.module:function; the function is called with those of channels, size and
            classes that it names (null where it is not known) and returns the model.
        run: Folder of a finished run, whose last model then runs on the pool, in place of model, weights and normalize.
        weights: State dict of the model, as torch.save(model.state_dict(), ...) writes it; no code in it is run.
        features: Features instead of samples, a .npy file of (m, d) floating point; it needs a head, or what the
            model makes of them as logits or probabilities.
        head: With features, the linear head, a .npz file of weight (C, d) and bias (C,), or of coef_ and intercept_ as
            scikit-learn has them. With a pool, the name of the module whose input is the feature vector; null to find
            it.
        logits: With features, in place of a head: the model's outputs before the softmax, a .npy file of (m, C).
        probabilities: The same after the softmax, as predict_proba gives them.
        size: Height and width that images of a folder get, resized and cropped as the evaluation on ImageNet does it;
            null for 224.
        skip_damaged: Leave out images that cannot be read, and list them in damaged.txt.
        workers: Processes that read images; 0 reads in this one.
        layout: Order of the dimensions of a pool of images, (m, C, H, W) or (m, H, W, C).
        normalize: Mean and standard deviation per channel in units of the [0, 1] pixel range, as mean/std or
            0.49,0.48,0.45/0.20,0.20,0.20.
        labelled: The rows that have a label, left out: one row number a line (or more columns, with the names row and
            label above them), or a .npy file of row numbers. Where rows have ids, the column id may stand for row.
        ids: What the rows are called, the column id of a .csv file with a line for each row, or a .npy file; images of
            a folder are called by their file names.
        classes: Names of the classes in the order of the model's outputs, for a labelled file that has names.
        strategy: How the samples to label are chosen; or a function or `Strategy` of your own.
        ties: Which of equal scores is chosen: that of the lower row, or at random, by a draw of each row.
        multilabel: The mean or the max over the labels, for a model whose outputs are labels of their own, with
            sigmoids.
        these_are_logits: Outputs that look like probabilities are logits nevertheless.
        export: label-studio also writes the chosen rows as tasks that Label Studio imports.
        budget: How many samples to choose.
        seed: Key of everything random.
        round: Count of the selections before, also a key of everything random.
        batch_size: Samples per forward pass; null for 256, or 4 MB of features.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        threads: CPU threads; null leaves them as they are.
        prepare: auto = the network is prepared for inference, and runs as a CUDA graph on a GPU; or off = it runs as it
            is.
        memory: What dm2 may take beside the program itself and its batches, as in 4GB, in each process; what needs more
            goes to files beside the output, which are gone at the end. The plan is printed first. For other strategies,
            features and outputs lie in files too; what they make of them is not counted. null for no limit.
        output: Folder to write, which must be new; null for one below selections/ that is named after pool, strategy,
            seed and round.
        shard: i/N does part i of N of the work, without a network, into a folder beside the output; give the command
            once for each i, on machines that share the files, and then dm2-fast merge with that folder.
        options: Options of the strategy, a dataclass of its own; None for its defaults.
    """

    pool: Path | None = None
    model: str | None = None
    run: Path | None = None
    weights: Path | None = None
    features: Path | None = None
    head: str | None = None
    logits: Path | None = None
    probabilities: Path | None = None
    size: int | None = None
    skip_damaged: bool = False
    workers: int = 0
    layout: Literal["nchw", "nhwc"] = "nchw"
    normalize: str | None = None
    labelled: Path | None = None
    ids: Path | None = None
    classes: list[str] | None = None
    strategy: str = "dm2"
    ties: Literal["lower", "random"] = "lower"
    multilabel: Literal["mean", "max"] | None = None
    these_are_logits: bool = False
    export: Literal["label-studio"] | None = None
    budget: int = 100
    seed: int = 0
    round: int = 0
    batch_size: int | None = None
    device: str = "auto"
    threads: int | None = None
    prepare: Literal["auto", "off"] = "auto"
    memory: str | None = None
    output: Path | None = None
    shard: str | None = None
    options: Any = None

    def __post_init__(self) -> None:
        if not plugins.is_plugin(self.strategy):
            strategies.get(self.strategy).checked(self.options)
        if (self.pool is None) == (self.features is None):
            raise ValueError("give --pool with --model, or --features with --head (or --logits, or --probabilities)")
        if self.features is not None:
            outputs = [name for name in ("head", "logits", "probabilities") if getattr(self, name) is not None]
            if not outputs:
                raise ValueError(
                    "give --head, the .npz file of the linear head that reads --features (or --logits, or "
                    "--probabilities)"
                )
            if len(outputs) > 1:
                raise ValueError(f"give one of --head, --logits and --probabilities, got --{' and --'.join(outputs)}")
            for name in ("model", "run", "weights", "normalize"):
                if getattr(self, name) is not None:
                    raise ValueError(f"leave out --{name}: it belongs to --pool, not to --features")
        elif self.logits is not None or self.probabilities is not None:
            raise ValueError("leave out --logits and --probabilities: they belong to --features, not to --pool")
        elif self.run is not None:
            for name in ("model", "weights", "normalize"):
                if getattr(self, name) is not None:
                    raise ValueError(f"leave out --{name}: the run of --run has its own")
        elif self.model is None or not plugins.is_plugin(self.model):
            got = "" if self.model is None else f", got {self.model}"
            raise ValueError(f"give --model for --pool, as package.module:function{got}")
        for name, choices in (
            ("ties", ("lower", "random")),
            ("prepare", ("auto", "off")),
            ("export", ("label-studio", None)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {getattr(self, name)!r}")
        check_over(self.multilabel)
        for name, least in (("budget", 1), ("workers", 0), ("round", 0), ("seed", None)):
            whole(name, getattr(self, name), least)
        for name in ("size", "batch_size", "threads"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        if self.memory is not None:
            as_bytes(self.memory)
            if self.logits is not None or self.probabilities is not None:
                raise ValueError("leave out --memory: with --logits or --probabilities, all features are in memory")
        if self.shard is not None:
            shard_of(self.shard)
            if self.memory is not None:
                raise ValueError("leave out --memory: a shard has the features of all others in memory")
        if self.layout not in ("nchw", "nhwc"):
            raise ValueError(f"layout must be one of nchw, nhwc, got {self.layout!r}")


@dataclass(frozen=True)
class MergeConfig:
    """Where the shards are.

    Args:
        shards: The folder that dm2-fast select --shard wrote, which ends in .parts.
        output: Folder to write, which must be new; null for the one that the shards were meant for.
    """

    shards: Path
    output: Path | None = None


def shard_of(text: str) -> tuple[int, int]:
    """(which, of how many) from `2/4`, the first being 1."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard must be i/N with i from 1 to N, as in 2/4, got {text!r}")
    return int(found[1]), int(found[2])

"""What a run does. A value of None means the recipe of the data set, below."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from dm2_fast import plugins, strategies
from dm2_fast.experiment import models
from dm2_fast.experiment.data import npz, sets
from dm2_fast.operations.arguments import meant, number, path, shown, whole
from dm2_fast.round import Ties
from dm2_fast.strategy import AdversarialTraining


@dataclass(frozen=True)
class TrainingConfig:
    """Training from scratch each round; null takes the data set's recipe (the paper's section 6).

    Args:
        epochs: Passes over the labelled set.
        batch_size: Samples per step.
        optimizer: sgd (with momentum 0.9) or adam.
        lr: Learning rate; from four fifths of the epochs on, a tenth of it for sgd.
        weight_decay: L2 penalty.
        augment: flip-crop = random horizontal flip and crop after padding by 4 pixels.
    """

    epochs: int | None = None
    batch_size: int | None = None
    optimizer: Literal["sgd", "adam"] | None = None
    lr: float | None = None
    weight_decay: float | None = None
    augment: Literal["none", "flip-crop"] | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _keep_whole(self, name, 1)
        for name, choices in (("optimizer", ("sgd", "adam")), ("augment", ("none", "flip-crop"))):
            if getattr(self, name) is not None:
                _check_choice(name, getattr(self, name), choices)
        if self.lr is not None:
            _keep(self, "lr", number("lr", self.lr, "positive and finite", lambda value: value > 0))
        if self.weight_decay is not None:
            decay = number("weight_decay", self.weight_decay, "at least 0 and finite", lambda value: value >= 0)
            _keep(self, "weight_decay", decay)


@dataclass(frozen=True)
class AdversarialConfig:
    """Adversarial training of the run, with any strategy. The paper's default epsilon is lost; ours is 4/255.

    Args:
        train: off; round = one twin of each chosen sample, made by the model that chose it (Algorithm 2); step = a
            fresh twin of every sample of a batch at every training step (section 4.1); null = round for dm2-at, off
            for the other strategies.
        epsilon: FGSM step in units of the [0, 1] pixel range; or search, over 1, 2, 4 and 8 / 255, by accuracy under
            FGSM on a held-out tenth of the labelled set (five trainings a round instead of one).
        label: Label in the FGSM loss: the model's predicted one (Algorithm 2) or the true one (section 4.1).
        clean_weight: Weight of the clean loss of a pair; 0.5 is Eq. 14.
    """

    train: AdversarialTraining | None = None
    epsilon: float | Literal["search"] = 4 / 255
    label: Literal["predicted", "true"] = "predicted"
    clean_weight: float = 0.5

    def __post_init__(self) -> None:
        if not (isinstance(self.epsilon, str) and self.epsilon == "search"):
            _keep(self, "epsilon", number("epsilon", self.epsilon, "in [0, 1] or 'search'", _in_unit_range))
        _check_choice("label", self.label, ("predicted", "true"))
        if self.train is not None:
            _check_choice("adversarial.train", self.train, get_args(AdversarialTraining))
        _keep(self, "clean_weight", number("clean_weight", self.clean_weight, "in [0, 1]", _in_unit_range))


@dataclass(frozen=True)
class RunConfig:
    """One active-learning run: initial labels, then rounds of train, evaluate, select, label, and a last training.

    Args:
        dataset: Data set; digits comes with scikit-learn, the others are read from data_dir; or an .npz file of your
            own (arrays x, y, x_test, y_test, and layout, nchw or nhwc; -1 in y is a row without a label).
        dataset_sha256: SHA-256 of the .npz file, as config.yaml records it; a file of another is refused.
        data_dir: Folder of the torchvision data sets.
        download: Let torchvision download a missing data set into data_dir.
        model: Network; null takes the data set's; or a function of your own, called with those of channels, size and
            classes that it names.
        dropout: Where the network has dropout: before its head; or blocks = behind every block too, as bald and
            entropy-bayesian want it.
        features: An .npy file (n, d) with features of the training samples that do not come from the model, learned
            without labels, say, for strategies that look at them (prob-cover.features=own).
        strategy: How the samples to label are chosen; or a function or `Strategy` of your own.
        oracle: Who labels them: the data set, or a person who fills in the label column of to_label.csv between two
            calls of the same command (file).
        initial: Labels drawn at random before the first training; null is the recipe's, or 0 where the data set has
            labels for some rows and none for others, and the run starts from those.
        budget: Labels per round.
        rounds: Rounds of selection; there is one training more.
        pool: Use only this many training samples, drawn at random.
        test: Use only this many test samples, drawn at random.
        candidates: Let each round choose from this many of the unlabelled samples, drawn anew; null for all of them.
        ties: Which of equal scores is chosen: that of the lower row, or at random, by a draw of each row.
        seed: Key of everything random.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        threads: CPU threads; null leaves them as they are.
        prepare: auto = networks are prepared for inference; on a GPU they run as CUDA graphs, batches are copied ahead
            and the labelled set stays there; or off = none of this.
        eval_epsilon: FGSM step of the reported accuracy under FGSM, in units of the [0, 1] pixel range; with 0, FGSM
            does not run, and this accuracy is the clean one.
        eval_attacked: Test samples, drawn at random, on which the last model is attacked by more than FGSM; 0 for none.
        attack: pgd = PGD-20 with eval_epsilon; or autoattack beside it, which takes hours for deep networks on a CPU.
        eval_batch_size: Samples per forward pass of evaluation and selection.
        output: Folder to write; null for one below runs/ that is named after the configuration.
        options: Options of the strategy, a dataclass of its own (`DM2Config(...)` for dm2); None for its defaults.
        adversarial: Adversarial training.
        training: Training recipe.
    """

    dataset: str = "digits"
    dataset_sha256: str | None = None
    data_dir: Path = Path("data")
    download: bool = False
    model: str | None = None
    dropout: models.Dropout = "head"
    features: Path | None = None
    strategy: str = "dm2"
    oracle: Literal["data", "file"] = "data"
    initial: int | None = None
    budget: int | None = None
    rounds: int | None = None
    pool: int | None = None
    test: int | None = None
    candidates: int | None = None
    ties: Ties = "lower"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    prepare: Literal["auto", "off"] = "auto"
    eval_epsilon: float = 4 / 255
    eval_attacked: int = 1000
    attack: Literal["pgd", "autoattack"] = "pgd"
    eval_batch_size: int = 256
    output: Path | None = None
    options: Any = None
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not npz.is_npz(self.dataset):
            _check_choice("dataset", self.dataset, sets.NAMES, " or a file.npz")
        if not plugins.is_plugin(self.strategy):
            strategies.get(self.strategy).checked(self.options)
        if self.model is not None and not plugins.is_plugin(self.model):
            _check_choice("model", self.model, models.NAMES, " or package.module:function")
        for name in ("initial", "budget", "pool", "test", "candidates", "threads", "eval_batch_size"):
            if name == "initial" and self.initial == 0 and npz.is_npz(self.dataset):
                continue  # the labels that there are
            _keep_whole(self, name, 2 if name == "initial" else 1, name != "eval_batch_size")
        _keep_whole(self, "rounds", 0)
        _keep_whole(self, "seed", None, False)
        _keep_whole(self, "eval_attacked", 0, False)
        _check_choice("attack", self.attack, ("pgd", "autoattack"))
        _check_choice("oracle", self.oracle, ("data", "file"))
        _check_choice("ties", self.ties, get_args(Ties))
        _check_choice("prepare", self.prepare, ("auto", "off"))
        _check_choice("dropout", self.dropout, get_args(models.Dropout))
        if self.dropout != "head" and self.model is not None and plugins.is_plugin(self.model):
            raise ValueError(f"dropout={self.dropout!r} is for our models: {self.model} decides about its own")
        _keep(self, "eval_epsilon", number("eval_epsilon", self.eval_epsilon, "in [0, 1]", _in_unit_range))
        for name in ("data_dir", "output", "features"):
            value = getattr(self, name)
            if value is not None or name == "data_dir":
                _keep(self, name, path(name, value))


def _keep(config: Any, name: str, value: Any) -> None:
    """Let a frozen configuration have a value as it is used."""
    object.__setattr__(config, name, value)


def _keep_whole(config: Any, name: str, least: int | None, optional: bool = True) -> None:
    value = getattr(config, name)
    if value is not None or not optional:
        _keep(config, name, whole(name, value, least))


def _check_choice(name: str, value: Any, choices: tuple[str, ...], own: str = "") -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}{own}, got {shown(value)}{meant(value, choices)}")


def _in_unit_range(value: float) -> bool:
    return 0 <= value <= 1


_ADAM = TrainingConfig(epochs=50, batch_size=96, optimizer="adam", lr=1e-3, weight_decay=0.0, augment="none")
_SGD = TrainingConfig(epochs=200, batch_size=128, optimizer="sgd", lr=0.1, weight_decay=5e-4, augment="flip-crop")

_CIFAR10 = {"model": "mobilenet", "initial": 1000, "budget": 1000, "rounds": 6, "training": _SGD}
# Section 6 of the paper. Its learning rate for Adam, its weight decay and its labels per cycle are lost: these are the
# settings of the code base that its experiments presumably grew from. The recipes of the digits and of a file of one's
# own are ours.
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"model": "cnn", "initial": 20, "budget": 20, "rounds": 9, "training": replace(_ADAM, batch_size=32)},
    "mnist": {"model": "cnn", "initial": 20, "budget": 20, "rounds": 9, "training": _ADAM},
    "fashion-mnist": {"model": "cnn", "initial": 20, "budget": 20, "rounds": 9, "training": _ADAM},
    "cifar10": _CIFAR10,
    **dict.fromkeys(("cifar10s", "cifar10-sym", "cifar10-imb", "cifar10c"), _CIFAR10),
    "cifar100": {"model": "mobilenet", "initial": 5000, "budget": 2500, "rounds": 6, "training": _SGD},
    "svhn": {"model": "mobilenet", "initial": 7326, "budget": 3663, "rounds": 6, "training": _SGD},
    "svhnc": {"model": "mobilenet", "initial": 7326, "budget": 3663, "rounds": 6, "training": _SGD},
    "npz": {"model": "cnn", "initial": 20, "budget": 20, "rounds": 9, "training": _ADAM},
}

# Options that came later: with these values, a run is what it was before there were any.
_LATER = {
    "ties": "lower",
    "space": "input",
    "recall": None,
    "batch": "highest",
    "nodes": "hidden",
    "dropout": "head",
    "features": None,
    "prepare": "auto",
    "eval_attacked": 1000,
    "attack": "pgd",
}

# Where a run happens is not part of what it is.
_NOT_IDENTITY = ("data_dir", "download", "device", "threads", "output")


def resolve(config: RunConfig) -> RunConfig:
    """Replace every None that has a recipe, note the content of a data set of the user's, and name the output folder.

    Raises:
        ValueError: dataset_sha256 is that of other content, a function of the user's is not there, or a person cannot
            give the labels that the adversarial training wants.
        TypeError: options are those of another strategy.
        FileNotFoundError: there is no such .npz file.
    """
    strategy = strategies.get(config.strategy)
    if config.model is not None and plugins.is_plugin(config.model):
        plugins.load(config.model)
    own = npz.is_npz(config.dataset)
    digest = npz.sha256(Path(config.dataset)) if own else None
    if config.dataset_sha256 not in (None, digest):
        found = f"the SHA-256 of {config.dataset} is {digest}" if own else f"{config.dataset} is no .npz file"
        raise ValueError(
            f"dataset_sha256 is {config.dataset_sha256}, but {found}: give back the file of then, or leave "
            "dataset_sha256 out"
        )
    recipe = RECIPES["npz" if own else config.dataset]
    training = replace(config.training, **_missing(config.training, asdict(recipe["training"])))
    adversarial = replace(config.adversarial, train=config.adversarial.train or strategy.adversarial)
    if config.oracle == "file" and adversarial.train != "off" and adversarial.label == "true":
        raise ValueError("with oracle='file' nobody knows the true label in time: use adversarial.label='predicted'")
    values = {**recipe, "training": training, "dataset_sha256": digest}
    if own:
        labelled, unlabelled = npz.counts(Path(config.dataset))
        if unlabelled and labelled:
            values["initial"] = 0
        elif unlabelled and not config.initial:
            raise ValueError(
                f"no row of {config.dataset} has a label: give --initial, how many rows are drawn and labelled first"
            )
    config = replace(config, **_missing(config, values), training=training)
    config = replace(config, options=strategy.checked(config.options), adversarial=adversarial)
    if config.output is None:
        name = folder_name(config, f"{config.strategy}-seed{config.seed}", fingerprint(config))
        config = replace(config, output=Path("runs") / name)
    return config


def folder_name(config: RunConfig, what: str, key: str) -> str:
    """What was run, as a name that any file system takes."""
    dataset = Path(config.dataset).stem if npz.is_npz(config.dataset) else config.dataset
    return re.sub(r"[^\w.+-]+", "-", f"{dataset}-{config.model}-{what}-{key}")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """config as plain values, as config.yaml holds them: the options of the strategy stand under its name."""
    values = asdict(config)
    options, group = values.pop("options"), strategies.group(strategies.get(config.strategy))
    if group in values:
        raise ValueError(f"strategy {config.strategy} needs another name: {group} is an option of every run")
    if group is not None:
        values[group] = options
    for name in ("data_dir", "output", "features"):
        values[name] = None if values[name] is None else str(values[name])
    return values


def identity(config: RunConfig | dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides what the run computes."""
    values = dict(config) if isinstance(config, dict) else to_dict(config)
    digest = values.pop("dataset_sha256", None)
    if digest is not None:  # the file may move, its content may not change
        values["dataset"] = f"{Path(values['dataset']).name} ({digest[:12]})"
    values = {name: _but_later(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in _but_later(values).items() if name not in _NOT_IDENTITY and value != {}}


def _but_later(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration under the names of their options, as in `dm2.k`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def fingerprint(config: RunConfig) -> str:
    """Eight characters that differ where `identity` differs."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]


def _missing(config: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    return {f.name: recipe[f.name] for f in fields(config) if f.name in recipe and getattr(config, f.name) is None}

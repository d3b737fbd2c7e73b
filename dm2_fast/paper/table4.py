"""Table 4: the time of one acquisition of each method on one trained model, against the budget and the classes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from dm2_fast import extras, strategies
from dm2_fast.acquire import select_from
from dm2_fast.adversarial import fgsm
from dm2_fast.experiment.config import AdversarialConfig, RunConfig, TrainingConfig, resolve
from dm2_fast.experiment.data.sets import Data, load
from dm2_fast.experiment.folder.files import differences, read_yaml, remove_partial, replacing
from dm2_fast.experiment.loop import fresh_model, shuffled
from dm2_fast.experiment.machine import machine, reproducible, usable_device
from dm2_fast.experiment.training import Labelled, train
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.arguments import whole
from dm2_fast.paper.clock import Clock, Wanted
from dm2_fast.paper.table4_picture import draw
from dm2_fast.paper.timings import Timing, digits, markdown, summarise, write_lines
from dm2_fast.paper.trial import Trial, estimate, try_out
from dm2_fast.round import Round
from dm2_fast.strategy import LOGITS, Pass, Strategy


@dataclass(frozen=True)
class Table4Config:
    """What to time.

    Args:
        table: Which table of the paper; there is one.
        dataset: Data set.
        data_dir: Folder of the torchvision data sets.
        model: Network; null takes the data set's.
        pool: Unlabelled samples, drawn at random.
        labelled: Samples that the model is trained on.
        epochs: Passes over them.
        budgets: Budgets.
        classes: Numbers of classes for the synthetic part of the table.
        methods: Strategies, functions of your own among them; null, or all on the command line, for every one of ours.
        repeats: Timed selections of each kind, after one for warming up.
        limit: Seconds that an acquisition may take: a method whose estimate is over it is named in the table with the
            estimate, and not run; null for no limit. A higher limit on the same folder runs what is below it then.
        seed: Key of everything random.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        threads: CPU threads; null leaves them as they are.
        output: Folder to write; what is there already is not timed again.
    """

    table: Literal["table4"] = "table4"
    dataset: str = "cifar10"
    data_dir: Path = Path("data")
    model: str | None = None
    pool: int = 10_000
    labelled: int = 1000
    epochs: int = 10
    budgets: list[int] = field(default_factory=lambda: [100, 1000, 2500])
    classes: list[int] = field(default_factory=lambda: [10, 100])
    methods: list[str] | None = None
    repeats: int = 3
    limit: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    output: Path = Path("table4")

    def __post_init__(self) -> None:
        for name in ("pool", "labelled", "epochs", "repeats"):
            whole(name, getattr(self, name), 1)
        for name, values, least in (("budgets", self.budgets, 1), ("classes", self.classes, 2)):
            if not values or min(values) < least:
                raise ValueError(f"{name} must be whole numbers of at least {least}, got {values}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit must be positive, got {self.limit}")
        if max(self.budgets) > self.pool:
            raise ValueError(f"budgets must be at most the pool, {self.pool}, got {max(self.budgets)}")
        for method in self.methods or ():
            strategies.get(method)


def table4(config: Table4Config, *, echo: Callable[[str], None] | None = None) -> Path:
    """Time every method, write the table, and return its folder; an interrupted table goes on where it stopped.

    A forward pass is run and timed once, and charged to each method whose strategy names it and whose choice on this
    model needs it; selection is timed alone, after a run that is not counted. The training is not part of any time.

    Raises:
        ValueError: the data set is too small, or a method's name is unknown.
        FileExistsError: output holds the table of other settings.
        MissingExtra: matplotlib or pyyaml is not installed.
    """
    extras.check("run", "the table", "yaml", "matplotlib")
    with reproducible(config.threads):
        return _table4(config, usable_device(config.device), echo or (lambda line: None))


def _table4(config: Table4Config, device: torch.device, echo: Callable[[str], None]) -> Path:
    data = load(config.dataset, config.data_dir)
    if config.labelled + config.pool > len(data.x):
        raise ValueError(
            f"{config.dataset} has {len(data.x)} training samples: too few for --labelled {config.labelled} and "
            f"--pool {config.pool}"
        )
    recipe = resolve(RunConfig(dataset=config.dataset, model=config.model, training=TrainingConfig(config.epochs)))
    folder, budgets = config.output, config.budgets
    methods = {name: strategies.get(name) for name in config.methods or strategies.names()}
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    _check_settings(folder / "settings.yaml", config)

    order = shuffled(torch.arange(len(data.x)), config.seed, "initial")
    labelled, pool = order[: config.labelled], order[config.labelled :][: config.pool].sort().values
    model = _trained(folder / "model.pt", recipe, data, labelled, device)

    real = _real(model, data, labelled, pool, config.seed)
    clock = Clock(folder / "timings.csv", device)
    limit = math.inf if config.limit is None else config.limit
    clock.timings = [t for t in clock.timings if t.part != "estimate" or t.seconds > limit]
    wanted = [Wanted("budget", len(data.classes), budget) for budget in budgets]
    wanted += [Wanted("classes", classes, budgets[len(budgets) // 2]) for classes in config.classes]
    missing = [
        (part, name)
        for part in wanted
        for name in methods
        if not clock.has(part, "estimate", name)
        and not all(clock.has(part, "selection", name, repeat) for repeat in range(config.repeats))
    ]
    trials = {
        name: try_out(
            methods[name], lambda rows, n: _real(model, data, labelled[:n], pool[:rows], config.seed),
            budgets, config.pool, config.labelled, limit,
        )
        for name in dict.fromkeys(name for _, name in missing)
    }  # fmt: skip
    for part, name in list(missing):
        seconds = trials[name].acquisition(part.budget, config.pool, config.labelled)
        if seconds > limit:
            missing.remove((part, name))
            clock.add(Timing(part.axis, part.classes, "estimate", name, part.budget, 0, seconds, 0))
            echo(f"{_place(part, name)} not run: about {digits(seconds)} s, over the limit")
    if missing:
        wanted_trials = [(trials[name], part.budget) for part, name in missing]
        seconds = estimate(wanted_trials, config.pool, config.labelled, config.repeats)
        echo(f"{len(missing)} acquisitions to time, about {max(1, round(seconds / 60))} minutes")
        _time_passes(real, wanted[0], [(methods[name], trials[name]) for _, name in missing], clock)
    of_classes = cache(partial(_synthetic, real, seed=config.seed))
    for part, name in missing:
        state = real if part.axis == "budget" else of_classes(part.classes)
        _time_selection(part, name, methods[name], state, trials[name].needs, config.repeats, clock)
        seconds = median(t.seconds for t in clock.of(part, "selection", name))
        echo(f"{_place(part, name)} selection {seconds:9.3f} s")

    lines = summarise(clock.timings, config.pool)
    position = {(p.axis, p.classes, p.budget, m): i for i, (m, p) in enumerate(product(methods, wanted))}
    lines.sort(key=lambda line: position[line.axis, line.classes, line.budget, line.method])
    text = markdown(lines, _header(config, str(recipe.model), device))
    write_lines(folder / "table4.csv", lines)
    with replacing(folder / "table4.md") as file:
        file.write_text(text)
    draw(folder / "table4.png", lines, f"one acquisition: {config.dataset}, {recipe.model}, pool of {config.pool}")
    echo("\n" + text)
    return folder


def _place(part: Wanted, name: str) -> str:
    return f"{part.axis:<8} {name:<18} B = {part.budget:<6} C = {part.classes:<5}"


def _time_passes(real: Round, part: Wanted, methods: Sequence[tuple[Strategy, Trial]], clock: Clock) -> None:
    """Time every pass that a method needs once; logits first, since they come for nothing with the features."""
    passes = {shared.name: (shared, strategy) for strategy, trial in methods for shared in trial.needs}
    for name in sorted(passes, key=lambda name: name != LOGITS.name):
        if not clock.has(part, "pass", name):
            shared, strategy = passes[name]
            real.seconds = {}
            _, _, peak = clock.measure(partial(shared.run, real, strategy.checked(None)))
            clock.add(Timing(part.axis, part.classes, "pass", name, 0, 0, real.seconds[name], peak))


def _time_selection(
    part: Wanted, name: str, strategy: Strategy, round: Round, needs: Sequence[Pass], repeats: int, clock: Clock
) -> None:
    """Time what is missing of a method's selections, its passes done; and on the real model those of its twins."""
    real, perturbs = part.axis == "budget", strategy.adversarial == "round"
    for shared in needs:
        shared.run(round, strategy.checked(None))
    picked = select_from(round, part.budget, strategy)
    if real and perturbs and not clock.has(part, "pass", "perturb"):
        forward = round.forward
        x = torch.as_tensor(forward.inputs)[picked.indices.cpu()]
        epsilon = float(AdversarialConfig().epsilon)
        _, seconds, peak = clock.measure(lambda: fgsm(forward.model, x, None, epsilon, normalize=forward.normalize))
        clock.add(Timing(part.axis, part.classes, "pass", "perturb", part.budget, 0, seconds, peak))
    charged = "+".join([shared.name for shared in needs] + ["perturb"] * perturbs) if real else ""
    for repeat in range(repeats):
        if not clock.has(part, "selection", name, repeat):
            _, seconds, peak = clock.measure(lambda: select_from(round, part.budget, strategy))
            clock.add(Timing(part.axis, part.classes, "selection", name, part.budget, repeat, seconds, peak, charged))


def _real(model: nn.Module, data: Data, labelled: Tensor, pool: Tensor, seed: int) -> Round:
    forward = ForwardPass(model, data.x[pool], data.normalize)
    return Round(forward, seed, 1, pool.numpy(), data.x[labelled], data.y[labelled])


def _synthetic(real: Round, classes: int, seed: int) -> Round:
    """A linear head with random weights on the features of the real round; it labels the labelled set."""
    x, labelled = real.features.cpu(), real.labelled_features.cpu()
    weight = torch.randn(classes, x.shape[1], generator=torch.Generator().manual_seed(seed))
    weight *= 2 / (x @ weight.T).std()  # logits of a moderately sure model
    linear = nn.Linear(x.shape[1], classes)
    linear.load_state_dict({"weight": weight, "bias": torch.zeros(classes)})
    model = nn.Sequential(nn.Dropout(0.25), linear).to(real.features.device)
    return Round(ForwardPass(model, x), seed, 1, real.ids, labelled, (labelled @ weight.T).argmax(1))


def _trained(file: Path, recipe: RunConfig, data: Data, labelled: Tensor, device: torch.device) -> nn.Module:
    model = fresh_model(recipe, data, device)
    if not file.exists():
        nobody = torch.empty(0, *data.x.shape[1:]), torch.empty(0, dtype=torch.int64)
        part = Labelled(data.x[labelled], data.y[labelled], *nobody)
        train(model, part, recipe.training, data.normalize, recipe.seed, progress=True)
        with replacing(file) as whole:
            torch.save(model.state_dict(), whole)
    try:
        model.load_state_dict(torch.load(file, map_location=device, weights_only=True))
    except Exception as error:  # pickle, zip and torch each have their own
        raise ValueError(f"{file} is damaged: remove it, and the network is trained again") from error
    return model


def _check_settings(file: Path, config: Table4Config) -> None:
    """Write the settings; or refuse a folder of others, since its timings could not be compared."""
    import yaml

    values = asdict(config) | {"methods": config.methods or list(strategies.names())}
    now = {name: str(value) for name, value in values.items() if name not in ("table", "data_dir", "limit", "output")}
    if file.exists():
        different = differences(dict.fromkeys(now, "None") | read_yaml(file), now)
        if different:
            raise FileExistsError(f"{file.parent} holds a table of other settings: {different}")
    elif any(file.parent.iterdir()):
        raise FileExistsError(f"{file.parent} holds something else: name a new folder as --output")
    else:
        with replacing(file) as whole:
            whole.write_text(yaml.safe_dump(now, sort_keys=False))


def _header(config: Table4Config, model: str, device: torch.device) -> list[str]:
    return [
        *machine(device),
        f"{config.dataset}, pool of {config.pool}, {model} trained on {config.labelled} for {config.epochs} epochs, "
        f"seed {config.seed}",
        f"selection: median of {config.repeats} after one more; "
        "a forward pass is timed once and charged to each method that needs it",
    ]

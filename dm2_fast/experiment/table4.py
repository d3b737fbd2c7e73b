"""Table 4: the time of one acquisition of each method on one trained model, against the budget and the classes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from dm2_fast import strategies
from dm2_fast.adversarial import fgsm
from dm2_fast.experiment.config import AdversarialConfig, RunConfig, TrainingConfig, resolve
from dm2_fast.experiment.data import Data, load
from dm2_fast.experiment.devices import reproducible, usable_device
from dm2_fast.experiment.files import replacing
from dm2_fast.experiment.info import machine
from dm2_fast.experiment.loop import fresh_model, shuffled
from dm2_fast.experiment.timings import Timing, draw, markdown, read_timings, summarise, write_lines, write_timings
from dm2_fast.experiment.training import Labelled, train
from dm2_fast.mixing import Recipe
from dm2_fast.scoring import ForwardPass, Uncertainty
from dm2_fast.strategies import Round
from dm2_fast.strategies.bald import BALDConfig
from dm2_fast.strategies.noise_stability import NoiseStabilityConfig, noise

# Rows and budget of the trial runs that tell what each method needs, and about how long it takes.
_TRIALS = ((64, 4), (64, 16), (128, 4))


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
        budgets: Budgets, with commas between.
        classes: Numbers of classes for the synthetic part of the table, with commas between.
        methods: Strategies, with commas between, or all.
        repeats: Timed selections of each kind, after one for warming up.
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
    budgets: str = "100,1000,2500"
    classes: str = "10,100"
    methods: str = "all"
    repeats: int = 3
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    output: Path = Path("table4")

    def __post_init__(self) -> None:
        for name in ("pool", "labelled", "epochs", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("budgets", "classes"):
            text = getattr(self, name)
            if not all(word.strip().isdecimal() and int(word) > 0 for word in text.split(",")):
                raise ValueError(f"{name} must be positive whole numbers with commas between, got {text!r}")
        if min(self.class_numbers) < 2:
            raise ValueError(f"classes must be at least 2, got {min(self.class_numbers)}")
        if max(self.budget_numbers) > self.pool:
            raise ValueError(f"budgets must be at most the pool, {self.pool}, got {max(self.budget_numbers)}")
        for name in self.method_names:
            strategies.get(name)

    @property
    def budget_numbers(self) -> list[int]:
        return [int(word) for word in self.budgets.split(",")]

    @property
    def class_numbers(self) -> list[int]:
        return [int(word) for word in self.classes.split(",")]

    @property
    def method_names(self) -> list[str]:
        return list(strategies.names()) if self.methods == "all" else self.methods.replace(" ", "").split(",")


def table4(config: Table4Config, *, echo: Callable[[str], None] | None = None) -> Path:
    """Time every method, write the table, and return its folder; an interrupted table goes on where it stopped.

    Forward passes that methods share are run and timed once and charged to each method that needs them; selection is
    timed alone, after a run that is not counted. The training is not part of any time.

    Raises:
        ValueError: the data set is too small, or a method's name is unknown.
        FileExistsError: output holds the table of other settings.
    """
    with reproducible(config.threads):
        return _table4(config, usable_device(config.device), echo or (lambda line: None))


def _table4(config: Table4Config, device: torch.device, echo: Callable[[str], None]) -> Path:
    data = load(config.dataset, config.data_dir)
    if config.labelled + config.pool > len(data.x):
        raise ValueError(f"pool must be at most {len(data.x) - config.labelled} beside the labelled, got {config.pool}")
    recipe = resolve(RunConfig(dataset=config.dataset, model=config.model, training=TrainingConfig(config.epochs)))
    folder, methods, budgets = config.output, config.method_names, config.budget_numbers
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.yaml", config)

    order = shuffled(torch.arange(len(data.x)), config.seed, "initial")
    labelled, pool = order[: config.labelled], order[config.labelled :][: config.pool].sort().values
    model = _trained(folder / "model.pt", recipe, data, labelled, device)
    small = partial(_real, model, data, labelled[:64], config=config)
    trials = {method: _trial(method, lambda rows: small(pool[:rows])) for method in methods}
    real = _real(model, data, labelled, pool, config)
    clock = Clock(folder / "timings.csv", device)
    wanted = [Wanted("budget", len(data.classes), budget) for budget in budgets]
    wanted += [Wanted("classes", classes, budgets[len(budgets) // 2]) for classes in config.class_numbers]
    missing = [
        (part, method)
        for part in wanted
        for method in methods
        if not all(clock.has(part, "selection", method, repeat) for repeat in range(config.repeats))
    ]
    if missing:
        needed = {name for _, method in missing for name in trials[method].needs}
        seconds = sum(max(t.passes(config.pool).get(name, 0.0) for t in trials.values()) for name in needed)
        seconds += sum(trials[method].selection(part.budget, config.pool) for part, method in missing) * (
            1 + config.repeats
        )
        echo(f"{len(missing)} acquisitions to time, about {max(1, round(seconds / 60))} minutes")
    of_classes = cache(partial(_synthetic, real, seed=config.seed))
    for part, method in missing:
        state = real if part.axis == "budget" else of_classes(part.classes)
        _time(part, method, state, trials[method].needs, config.repeats, clock)
        seconds = median(t.seconds for t in clock.of(part, "selection", method))
        echo(f"{part.axis:<8} {method:<18} B = {part.budget:<6} C = {part.classes:<5} selection {seconds:9.3f} s")

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


@dataclass(frozen=True)
class Wanted:
    """A part of the table: an axis and a place on it."""

    axis: str
    classes: int
    budget: int


class Clock:
    """Times calls and keeps every timing in a file.

    Args:
        file: timings.csv; what it holds already counts as timed.
        device: Synchronised before and after each call.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        self.file = file
        self.device = device
        self.timings = read_timings(file)

    def of(self, part: Wanted, kind: str, name: str) -> list[Timing]:
        """The timings of a selection, or of a pass (whose budget is 0 if it does not depend on it)."""
        return [
            t
            for t in self.timings
            if (t.axis, t.classes, t.part, t.name) == (part.axis, part.classes, kind, name)
            and t.budget in (0, part.budget)
        ]

    def has(self, part: Wanted, kind: str, name: str, repeat: int = 0) -> bool:
        """Whether this was timed."""
        return any(t.repeat == repeat for t in self.of(part, kind, name))

    def measure(self, call: Callable[[], Any]) -> tuple[Any, float, int]:
        """The result of a call, its seconds, and the most bytes that were in use beyond those before it."""
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = _resident("VmRSS")
        start = perf_counter()
        result = call()
        if on_cuda:
            torch.cuda.synchronize(self.device)
        seconds = perf_counter() - start
        peak = torch.cuda.max_memory_allocated(self.device) if on_cuda else _resident("VmHWM")
        return result, seconds, max(0, peak - before)

    def add(self, timing: Timing) -> None:
        """Keep a timing."""
        self.timings.append(timing)
        write_timings(self.file, self.timings)


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status must hold {name}, got none")


@dataclass(frozen=True)
class _MixedOnce(ForwardPass):
    """A forward pass that scores the mixed samples at the first call only, and tells how long that took."""

    known: dict[Uncertainty, Tensor] = field(default_factory=dict)

    def mixed_uncertainty(self, recipe: Recipe, kind: Uncertainty = "least-confidence") -> Tensor:
        if kind not in self.known:
            self.known[kind] = super().mixed_uncertainty(recipe, kind)
        return self.known[kind]


# The forward passes by the names under which a round, or a choice, keeps their time.
_PASSES: dict[str, Callable[[Round], Any]] = {
    "features": lambda round: round.features,
    "labelled": lambda round: round.labelled_features,
    "dropout": lambda round: round.dropout(BALDConfig().passes),
    "noise": lambda round: noise(round, NoiseStabilityConfig()),
    "mixed": lambda round: strategies.get("dm2")(round, 1, None),
}


@dataclass(frozen=True)
class _Trial:
    """What a method needs, and the seconds of its passes and selections in `_TRIALS`."""

    needs: tuple[str, ...]
    spent: tuple[dict[str, float], ...]
    seconds: tuple[float, ...]

    def passes(self, pool: int) -> dict[str, float]:
        """About the seconds of each pass: a line through few rows and twice as many."""
        few, _, more = self.spent
        return {name: few[name] + max(0.0, more[name] - few[name]) * (pool / 64 - 1) for name in few}

    def selection(self, budget: int, pool: int) -> float:
        """About the seconds of a selection: a line in the rows, and one in the budget that rows make steeper."""
        first, by_budget, by_rows = self.seconds
        rise = max(0.0, by_budget - first) / 12 * (1 + pool / 4096)
        return first + max(0.0, by_rows - first) * (pool / 64 - 1) + rise * (budget - 4)


def _trial(method: str, round_of: Callable[[int], Round]) -> _Trial:
    spent, seconds = [], []
    for rows, budget in ((64, 4), *_TRIALS):  # the first one warms up
        state = round_of(rows)
        picked = strategies.get(method)(state, budget, None)
        mixed = {name: s for name, s in picked.seconds.items() if name == "mixed"}
        spent.append({("features" if name == "logits" else name): s for name, s in (state.seconds | mixed).items()})
        seconds.append(sum(picked.seconds.values()) - sum(mixed.values()))
    order = (*_PASSES, "perturb")
    needs = {*spent[0], *(["perturb"] if method == "dm2-at" else [])}
    return _Trial(tuple(sorted(needs, key=order.index)), tuple(spent[1:]), tuple(seconds[1:]))


def _time(part: Wanted, method: str, round: Round, needs: tuple[str, ...], repeats: int, clock: Clock) -> None:
    """Time what is missing of a method's passes and selections."""
    choose, real = strategies.get(method), part.axis == "budget"
    for name in needs:
        if name == "perturb":
            continue
        done, seconds, peak = clock.measure(partial(_PASSES[name], round))
        if name == "mixed":
            seconds = done.seconds["mixed"]  # without the search for neighbours, which is selection
        if real and not clock.has(part, "pass", name):
            clock.add(Timing(part.axis, part.classes, "pass", name, 0, 0, seconds, peak))
    picked = choose(round, part.budget, None)
    if real and "perturb" in needs and not clock.has(part, "pass", "perturb"):
        forward = round.forward
        x = torch.as_tensor(forward.inputs)[picked.indices.cpu()]
        epsilon = AdversarialConfig().epsilon
        _, seconds, peak = clock.measure(
            lambda: fgsm(forward.model, x, None, float(epsilon), normalize=forward.normalize)
        )
        clock.add(Timing(part.axis, part.classes, "pass", "perturb", part.budget, 0, seconds, peak))
    for repeat in range(repeats):
        if not clock.has(part, "selection", method, repeat):
            _, seconds, peak = clock.measure(lambda: choose(round, part.budget, None))
            passes = "+".join(needs) if real else ""
            clock.add(Timing(part.axis, part.classes, "selection", method, part.budget, repeat, seconds, peak, passes))


def _real(model: nn.Module, data: Data, labelled: Tensor, pool: Tensor, config: Table4Config) -> Round:
    forward = _MixedOnce(model, data.x[pool], data.normalize)
    return Round(forward, config.seed, 1, pool.numpy(), data.x[labelled], data.y[labelled])


def _synthetic(real: Round, classes: int, seed: int) -> Round:
    """A linear head with random weights on the features of the real round; it labels the labelled set."""
    x, labelled = real.features.cpu(), real.labelled_features.cpu()
    weight = torch.randn(classes, x.shape[1], generator=torch.Generator().manual_seed(seed))
    weight *= 2 / (x @ weight.T).std()  # logits of a moderately sure model
    linear = nn.Linear(x.shape[1], classes)
    linear.load_state_dict({"weight": weight, "bias": torch.zeros(classes)})
    model = nn.Sequential(nn.Dropout(0.25), linear).to(real.features.device)
    return Round(_MixedOnce(model, x), seed, 1, real.ids, labelled, (labelled @ weight.T).argmax(1))


def _trained(file: Path, recipe: RunConfig, data: Data, labelled: Tensor, device: torch.device) -> nn.Module:
    model = fresh_model(recipe, data, device)
    if not file.exists():
        nobody = torch.empty(0, *data.x.shape[1:]), torch.empty(0, dtype=torch.int64)
        part = Labelled(data.x[labelled], data.y[labelled], *nobody)
        train(model, part, recipe.training, data.normalize, recipe.seed, progress=True)
        with replacing(file) as whole:
            torch.save(model.state_dict(), whole)
    model.load_state_dict(torch.load(file, map_location=device, weights_only=True))
    return model


def _check_settings(file: Path, config: Table4Config) -> None:
    """Write the settings; or refuse a folder of others, since its timings could not be compared."""
    now = {name: str(value) for name, value in asdict(config).items() if name not in ("table", "data_dir", "output")}
    if file.exists():
        before = yaml.safe_load(file.read_text())
        different = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if different:
            raise FileExistsError(
                f"output must be a folder of the same settings, got {file.parent}, which differs in "
                + "; ".join(f"{name} ({before.get(name)} there, {now.get(name)} here)" for name in different)
            )
    elif any(file.parent.iterdir()):
        raise FileExistsError(f"output must be new, empty or the folder of a table, got {file.parent}")
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

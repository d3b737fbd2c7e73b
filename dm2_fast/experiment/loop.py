"""The loop: initial labels, then train, evaluate, select, label, repeat, and a last training (Algorithms 1 and 2)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dm2_fast import draws
from dm2_fast.acquire import stage
from dm2_fast.experiment import models, plugins
from dm2_fast.experiment.config import RunConfig, resolve, strategy_options
from dm2_fast.experiment.data import Data, load
from dm2_fast.experiment.folder import RoundResult, RunFolder
from dm2_fast.experiment.training import evaluate
from dm2_fast.experiment.twins import Twins, train_round
from dm2_fast.scoring import ForwardPass
from dm2_fast.strategies import Round


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: Where its files are.
        rounds: One entry per training.
        chosen: Rows of the training set; entry r holds those labelled just before training r.
        model: The last trained model.
    """

    folder: Path
    rounds: list[RoundResult]
    chosen: list[Tensor]
    model: nn.Module


def run(config: RunConfig, *, echo: Callable[[str], None] | None = None) -> Result:
    """Run active learning as configured and write the run folder.

    Args:
        config: What to do; None values take the data set's recipe.
        echo: Called with each line of the report as it is known; `print`, say.

    Raises:
        ValueError: the pool or the test set is too small for what is asked.
        FileNotFoundError: the data set is not there.
        FileExistsError: the output folder belongs to another configuration.
    """
    config = resolve(config)
    with _threads(config.threads), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return _run(config, echo or (lambda line: None))


def _run(config: RunConfig, echo: Callable[[str], None]) -> Result:
    device = _device(config.device)
    data = load(config.dataset, config.data_dir, config.download)
    pool = _subset("pool", len(data.x), config.pool, config.seed)
    test = _subset("test", len(data.x_test), config.test, 0)  # the same for every seed
    initial, budget, rounds = _sizes(config, len(pool))
    chosen = [_shuffled(pool, config.seed, "initial")[:initial]]
    twins = Twins()

    folder = RunFolder.create(config)
    folder.add_selected(0, chosen[0], data.y)
    echo(f"{config.strategy} on {data.name} with {config.model}, seed {config.seed}, {device}, pool of {len(pool)}")
    echo("round  labelled  accuracy  under FGSM    loss  seconds")
    results: list[RoundResult] = []
    while True:
        r, seconds = len(results), dict[str, float]()
        with stage(seconds, "train", device):
            labelled = torch.cat(chosen)
            model, epsilon = train_round(lambda: _fresh(config, data, device), labelled, twins, data, config, r)
        with stage(seconds, "evaluate", device):
            x, y = data.x_test[test], data.y_test[test]
            evaluation = evaluate(
                model, x, y, data.normalize, config.eval_epsilon, config.eval_batch_size, progress=True
            )
        if r < rounds:
            unlabelled = pool[~torch.isin(pool, labelled)]
            forward = ForwardPass(
                model, data.x[unlabelled], data.normalize, batch_size=config.eval_batch_size, progress=True
            )
            state = Round(forward, config.seed, r + 1, unlabelled, data.x[labelled], data.y[labelled])
            picked = plugins.strategy(config.strategy)(state, budget, strategy_options(config))
            seconds |= state.seconds | picked.seconds
            rows = unlabelled[picked.indices.cpu()]
            if config.strategy == "dm2-at" and config.adversarial.when == "round":
                with stage(seconds, "perturb", device):
                    twins.add(model, rows, data, config)
            chosen.append(rows)
            folder.add_selected(r + 1, rows, data.y, picked)
            folder.draw_sheet(r + 1, data, state, picked, config.dm2)
        results.append(RoundResult(r, len(labelled), evaluation, epsilon, seconds))
        folder.add_round(results[-1])
        echo(
            f"{r:>5}  {len(labelled):>8}  {evaluation.accuracy:>8.2%}  {evaluation.accuracy_fgsm:>10.2%}  "
            f"{evaluation.loss:>6.3f}  {sum(seconds.values()):>7.1f}"
        )
        if r == rounds:
            folder.draw_curve(results)
            return Result(folder.path, results, chosen, model)


def _fresh(config: RunConfig, data: Data, device: torch.device) -> nn.Module:
    """The network as it is before every training: the same weights each round."""
    channels, *size = data.x.shape[1:]
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        model = models.build(str(config.model), channels, (size[0], size[1]), len(data.classes))
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _sizes(config: RunConfig, pool: int) -> tuple[int, int, int]:
    """(initial, budget, rounds), checked against the pool."""
    initial, budget, rounds = (int(value or 0) for value in (config.initial, config.budget, config.rounds))
    if initial + rounds * budget > pool:
        raise ValueError(
            f"pool must hold initial + rounds * budget = {initial} + {rounds} * {budget} samples, got {pool}"
        )
    return initial, budget, rounds


def _subset(name: str, n: int, size: int | None, seed: int) -> Tensor:
    """size rows of n, drawn at random, in rising order; all of them for None."""
    if size is not None and size > n:
        raise ValueError(f"{name} must be at most {n} for this data set, got {size}")
    return _shuffled(torch.arange(n), seed, name)[:size].sort().values


def _shuffled(rows: Tensor, seed: int, purpose: str) -> Tensor:
    return rows[torch.from_numpy(draws.uniform(seed, 0, rows.numpy(), purpose)).argsort(stable=True)]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be auto, cpu or a usable GPU, got {name!r}") from error
    return device


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(wanted or before)
        yield
    finally:
        torch.set_num_threads(before)

"""The loop: initial labels, then train, evaluate, select, label, repeat, and a last training (Algorithms 1 and 2)."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dm2_fast import draws, extras, plugins, strategies
from dm2_fast.acquire import select_from
from dm2_fast.experiment import models
from dm2_fast.experiment.attacks import accuracies_under_attack
from dm2_fast.experiment.config import RunConfig, resolve
from dm2_fast.experiment.data.own_features import read_features
from dm2_fast.experiment.data.sets import Data, load
from dm2_fast.experiment.events import Told, event_of
from dm2_fast.experiment.folder.checkpoint import TrainingFile
from dm2_fast.experiment.folder.files import replacing
from dm2_fast.experiment.folder.run_folder import RunFolder
from dm2_fast.experiment.machine import reproducible, usable_device
from dm2_fast.experiment.oracle import TO_LABEL, Oracle, ask_function, ask_person, keep_answers, remove_questions
from dm2_fast.experiment.state import RoundResult, State, newest_state, remove_older, save_state
from dm2_fast.experiment.training import evaluate, further_tests
from dm2_fast.experiment.twins import train_companions, train_round
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.arguments import shown
from dm2_fast.round import Round
from dm2_fast.stage import stage
from dm2_fast.strategy import Strategy
from dm2_fast.threads import guarding
from dm2_fast.words import count


@dataclass(frozen=True)
class Result:
    """A run, finished or waiting for labels.

    Attributes:
        folder: Where its files are.
        rounds: One entry per training.
        chosen: Rows of the training set; entry r holds those labelled (or to be labelled) before training r.
        model: The last trained model; None while labels are missing.
        to_label: The file that waits for labels; None for a finished run.
    """

    folder: Path
    rounds: list[RoundResult]
    chosen: list[Tensor]
    model: nn.Module | None
    to_label: Path | None = None


def run(
    config: RunConfig,
    *,
    oracle: Oracle | None = None,
    echo: Callable[[str], None] | None = None,
    callbacks: Sequence[Told] = (),
) -> Result:
    """Run active learning as configured and write the run folder; an interrupted run goes on where it stopped.

    Args:
        config: What to do; None values take the data set's recipe.
        oracle: Labels the chosen samples in place of the data set: called with the numbers of their rows (B,) and
            their images (B, ...), returns a class number for each.
        echo: Called with each line of the report as it is known; `print`, say.
        callbacks: Functions called with a `RoundEvent` after every round, once its files are written; those of a run
            that goes on hear of the rounds that are there first. What one raises ends the run, and the round is kept.

    Returns:
        The finished run; or, with config.oracle = "file", how far it came until labels are needed.

    Raises:
        ValueError: the pool or the test set is too small for what is asked, or a label is wrong.
        FileNotFoundError: the data set is not there.
        FileExistsError: the output folder belongs to another configuration, or another process works in it.
        MissingExtra: matplotlib or pyyaml is not installed.
    """
    extras.check("run", "a run", "yaml", "matplotlib")
    if config.attack == "autoattack":
        extras.check("robust", "--attack autoattack", "pyautoattack")
    config = resolve(config)
    if oracle is not None and config.oracle == "file":
        raise ValueError("pass oracle= or set config.oracle='file', not both")
    wrong = [callback for callback in callbacks if not callable(callback)]
    if wrong:
        raise TypeError(f"callbacks must be functions of a RoundEvent, got {shown(wrong[0])}")
    device = usable_device(config.device)
    with guarding(device), reproducible(config.threads):
        return _run(config, device, oracle, echo or (lambda line: None), callbacks)


def _run(
    config: RunConfig,
    device: torch.device,
    oracle: Oracle | None,
    echo: Callable[[str], None],
    callbacks: Sequence[Told],
) -> Result:
    data = load(config.dataset, config.data_dir, config.download)
    if config.features is not None:
        data = replace(data, own_features=read_features(config.features, len(data.x)))
    pool = subset("pool", len(data.x), config.pool, config.seed)
    test = subset("test", len(data.x_test), config.test, 0)  # the same for every seed
    known, unknown = _known(pool, data)
    missing = int((data.y[pool] < 0).sum())
    if missing and oracle is None and config.oracle == "data" and (config.rounds or config.initial):
        raise ValueError(f"{missing} rows have no label: add --oracle file, or pass oracle= to dm2_fast.run")
    initial, _, rounds = _sizes(config, len(unknown))
    with RunFolder.open(config) as folder:
        model, state = None, newest_state(folder.checkpoints)
        if state is not None and len(state.results) > rounds:
            model = _load_model(folder.model, fresh_model(config, data, device))
            if model is None:
                state = newest_state(folder.checkpoints, rounds)
            else:  # the process may have been killed between its last state and this
                remove_older(folder.checkpoints, state)
                TrainingFile(folder.training).remove()
        if state is not None and state.finished and len(state.results) <= rounds:  # more rounds than it had
            state = newest_state(folder.checkpoints, len(state.results) - 1)
        if state is None:
            state = State([torch.cat([known, shuffled(unknown, config.seed, "initial")[:initial]])], [None])
        if not state.waiting:
            remove_questions(folder.path)
        candidates = "" if config.candidates is None else f", {count(config.candidates, 'candidate')} a round"
        echo(f"{_title(config)}, {device}, pool of {len(pool)}{candidates}")
        echo("round  labelled  accuracy  under FGSM    loss  seconds")

        def tell(r: int, new: bool) -> None:
            echo(_line(state.results[r]))
            for callback in callbacks:
                callback(event_of(config, folder.path, state, data, r, new))

        for r in range(len(state.results)):
            tell(r, new=False)

        while True:
            if state.waiting:
                labels = _answers(config, oracle, folder.path, state.chosen[-1], data, known)
                if labels is None:
                    folder.write_tables(state, data.ids)
                    return Result(folder.path, state.results, state.chosen, None, folder.path / TO_LABEL)
                state.answer(labels)
                if len(torch.cat(state.chosen)) < 2:
                    raise ValueError(f"training needs at least two labels: label more rows in {folder.path / TO_LABEL}")
                if (folder.path / TO_LABEL).exists():
                    keep_answers(folder.path, len(state.results))
                save_state(folder.checkpoints, state)
                folder.write_tables(state, data.ids)
                remove_questions(folder.path)
            if len(state.results) > rounds:
                return Result(folder.path, state.results, state.chosen, model)
            with plugins.naming(config.model, f"images of shape {tuple(data.x.shape[1:])}"):
                model = _round(config, oracle, data, pool, test, folder, state, device, echo)
            tell(len(state.results) - 1, new=True)


def _round(
    config: RunConfig,
    oracle: Oracle | None,
    data: Data,
    pool: Tensor,
    test: Tensor,
    folder: RunFolder,
    state: State,
    device: torch.device,
    echo: Callable[[str], None],
) -> nn.Module:
    """Train, evaluate and, but for the last time, select; save the state and return the model."""
    r, last, seconds = len(state.results), len(state.results) == config.rounds, dict[str, float]()
    labelled = torch.cat(state.chosen)
    if oracle is not None or config.oracle == "file":
        data = _with_labels(data, state)
    unlabelled = pool[~torch.isin(pool, torch.cat([labelled, *state.skipped]))]
    strategy = strategies.get(config.strategy)
    with stage(seconds, "train", device):
        file = TrainingFile(folder.training)
        model, part, epsilon = train_round(
            lambda: _fresh(config, strategy, data, device), labelled, unlabelled, state.twins, data, config, r, file
        )
    with stage(seconds, "evaluate", device):
        x, y = data.x_test[test], data.y_test[test]
        size, prepare = config.eval_batch_size, config.prepare
        evaluation = evaluate(model, x, y, data.normalize, config.eval_epsilon, size, progress=True, prepare=prepare)
        evaluation.others.update(further_tests(model, data, test, size, prepare))
    if last and config.eval_attacked:
        with stage(seconds, "attack", device):
            attacked = shuffled(torch.arange(len(x)), 0, "test")[: config.eval_attacked]
            evaluation.others.update(
                accuracies_under_attack(
                    model, x[attacked], y[attacked], data.normalize, config.eval_epsilon, config.attack,
                    config.eval_batch_size, seed=config.seed, progress=True,
                )
            )  # fmt: skip
    if not last:
        number = 0 if strategy.companions is None else strategy.companions(config.options)
        with stage(seconds, "companions", device) if number else nullcontext():
            companions = train_companions(
                lambda seed: fresh_model(replace(config, seed=seed), data, device),
                number, labelled, state.twins, data, config, r, epsilon, file,
            )  # fmt: skip
        if config.candidates is not None and config.candidates < len(unlabelled):
            unlabelled = shuffled(unlabelled, config.seed, "candidates", r + 1)[: config.candidates].sort().values
        forward = ForwardPass(
            model, data.x[unlabelled], data.normalize, batch_size=config.eval_batch_size, progress=True,
            prepare=config.prepare,
        )  # fmt: skip
        inputs, labels = data.x[labelled], data.y[labelled]
        own = None if data.own_features is None else (data.own_features[unlabelled], data.own_features[labelled])
        asked = Round(
            forward, config.seed, r + 1, unlabelled, inputs, labels, part, ties=config.ties, companions=companions,
            remembered=state.remembered, own_features=own,
        )  # fmt: skip
        picked = select_from(asked, int(config.budget or 0), strategy, config.options)
        seconds |= picked.seconds
        if r == 0 and picked.prepared is not None and picked.prepared.startswith("off: "):
            echo(f"the model runs as it is, since it cannot be prepared, which costs speed: {picked.prepared[5:]}")
        rows = unlabelled[picked.indices.cpu()]
        state.chosen.append(rows)
        state.scores.append(None if picked.scores is None else picked.scores[picked.indices].cpu())
        if config.adversarial.train == "round":
            if config.adversarial.label == "true":
                state.labels.append(_ask(oracle, rows, data))
                data = _with_labels(data, state)
            with stage(seconds, "perturb", device):
                state.twins.add(model, rows, data, config)
        folder.draw_sheet(r + 1, data, unlabelled, picked)
    state.results.append(RoundResult(r, len(labelled), evaluation, epsilon, seconds))
    folder.write_tables(state, data.ids)
    if last:
        folder.draw_curve(state.results, _title(config))
        with replacing(folder.model) as partial:
            torch.save(model.state_dict(), partial)
    save_state(folder.checkpoints, state)
    if last:
        file.remove()
    return model


def _title(config: RunConfig) -> str:
    return f"{config.strategy} on {config.dataset} with {config.model}, seed {config.seed}"


def _ask(oracle: Oracle | None, rows: Tensor, data: Data) -> Tensor:
    return data.y[rows] if oracle is None else ask_function(oracle, rows, data)


def _known(pool: Tensor, data: Data) -> tuple[Tensor, Tensor]:
    """The rows that a run starts from, which have labels where others have none, and the other rows of the pool."""
    has_label = data.y[pool] >= 0
    return (pool[:0], pool) if bool(has_label.all()) else (pool[has_label], pool[~has_label])


def _answers(
    config: RunConfig, oracle: Oracle | None, folder: Path, rows: Tensor, data: Data, known: Tensor
) -> Tensor | None:
    """The labels of rows, -1 for a row that is skipped; None while a person is asked for those that nobody knows."""
    asked = ~torch.isin(rows, known)
    labels = data.y[rows]
    if bool(asked.any()):
        given = ask_person(folder, rows[asked], data) if config.oracle == "file" else _ask(oracle, rows[asked], data)
        if given is None:
            return None
        labels[asked] = given
    return labels


def _with_labels(data: Data, state: State) -> Data:
    """data as far as the oracle has labelled it; -1 elsewhere."""
    y = torch.full_like(data.y, -1)
    y[torch.cat(state.chosen[: len(state.labels)])] = torch.cat(state.labels)
    return replace(data, y=y)


def _load_model(file: Path, model: nn.Module) -> nn.Module | None:
    """The model with the weights of the finished run; None, with a warning, if they are damaged or gone."""
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception:  # pickle, zip and torch each have their own
        warnings.warn(f"{file} is damaged or missing; the last training is repeated", stacklevel=4)
        return None
    return model


def _line(result: RoundResult) -> str:
    e = result.evaluation
    return (
        f"{result.round:>5}  {result.labelled:>8}  {e.accuracy:>8.2%}  {e.accuracy_fgsm:>10.2%}  "
        f"{e.loss:>6.3f}  {sum(result.seconds.values()):>7.1f}"
    )


def _fresh(
    config: RunConfig, strategy: Strategy, data: Data, device: torch.device
) -> tuple[nn.Module, nn.Module | None]:
    """The network before a training, and what the strategy trains beside it, both the same each round."""
    model = fresh_model(config, data, device)
    if strategy.part is None:
        return model, None
    samples = ForwardPass(model, data.x[:2], data.normalize, batch_size=2).first_rows()
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        assert isinstance(samples, Tensor)
        return model, strategy.part(model, samples, config.options).to(device)


def fresh_model(config: RunConfig, data: Data, device: torch.device) -> nn.Module:
    """The network as it is before every training: the same weights each round."""
    channels, *size = data.x.shape[1:]
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        model = models.build(str(config.model), channels, (size[0], size[1]), len(data.classes), config.dropout)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _sizes(config: RunConfig, pool: int) -> tuple[int, int, int]:
    """(initial, budget, rounds), checked against the pool."""
    initial, budget, rounds = (int(value or 0) for value in (config.initial, config.budget, config.rounds))
    if initial + rounds * budget > pool:
        raise ValueError(
            f"pool must hold initial + rounds * budget = {initial} + {rounds} * {budget} samples, got {pool}"
        )
    if config.candidates is not None and config.candidates < budget:
        raise ValueError(f"candidates must be at least the budget, {budget}, got {config.candidates}")
    return initial, budget, rounds


def subset(name: str, n: int, size: int | None, seed: int) -> Tensor:
    """size rows of n, drawn at random, in rising order; all of them for None."""
    if size is not None and size > n:
        raise ValueError(f"{name} must be at most {n} for this data set, got {size}")
    return shuffled(torch.arange(n), seed, name)[:size].sort().values


def shuffled(rows: Tensor, seed: int, purpose: str, round: int = 0) -> Tensor:
    """rows in an order that each row's own draw decides."""
    return rows[torch.from_numpy(draws.uniform(seed, round, rows.numpy(), purpose)).argsort(stable=True)]

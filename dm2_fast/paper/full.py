"""The full track: networks trained from scratch, by the loop of `dm2-fast run`."""

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from dm2_fast.experiment import models
from dm2_fast.experiment.config import RunConfig, resolve
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.loop import fresh_model, run
from dm2_fast.experiment.machine import usable_device
from dm2_fast.experiment.training import Labelled, evaluate, train
from dm2_fast.paper.clock import measured
from dm2_fast.paper.curves import Curve, hash_of
from dm2_fast.paper.protocol import merged, run_config

_NOT_SELECTION = ("train", "evaluate", "perturb", "attack")
_ROWS = 256


def full_config(cell: dict[str, Any], method: dict[str, Any], seed: int, data_dir: Path, device: str) -> RunConfig:
    """The run of a method in a cell."""
    return run_config(merged(cell, method), seed=seed, data_dir=data_dir, device=device)


def full_curve(
    cell: str, method: str, values: dict[str, Any], options: dict[str, Any],
    seed: int, data_dir: Path, device: str, runs: Path,
) -> Curve:  # fmt: skip
    """One run in a folder below runs, which goes on if it was interrupted, as a curve."""
    config = replace(full_config(values, options, seed, data_dir, device), output=runs / f"{cell}-{method}-{seed}")
    result, seconds, peak = measured(lambda: run(config), usable_device(device))
    rounds = result.rounds
    measures = {
        "accuracy": tuple(r.evaluation.accuracy for r in rounds),
        "accuracy_fgsm": tuple(r.evaluation.accuracy_fgsm for r in rounds),
    }
    for name in rounds[-1].evaluation.others:
        measures[name] = tuple(r.evaluation.others[name] for r in rounds if name in r.evaluation.others)
    selecting = sum(s for r in rounds for name, s in r.seconds.items() if name not in _NOT_SELECTION)
    spent = sum(s for r in rounds for s in r.seconds.values())
    return Curve(
        cell, method, seed, tuple(r.labelled for r in rounds), measures, hash_of(result.chosen),
        seconds=max(seconds, spent), selection_seconds=selecting, peak_mb=peak / 1e6,
    )  # fmt: skip


def seconds_of(cell: dict[str, Any], method: dict[str, Any], data_dir: Path, device: str) -> float:
    """About how long a curve takes: from one epoch of its training and one batch of its test.

    A selection is taken for two forward passes over its candidates, which is what DM2 needs.
    """
    config = resolve(full_config(cell, method, 0, data_dir, device))
    initial, budget, rounds = (int(value or 0) for value in (config.initial, config.budget, config.rounds))
    batch = config.training.batch_size or 1
    step, test, pool, tested = _speeds(
        config.dataset, str(config.model), config.dropout, batch, config.eval_epsilon, data_dir, device
    )
    labels = sum(initial + r * budget for r in range(rounds + 1))
    twins = {"off": 1.0, "round": 2.0, "step": 3.5}[config.adversarial.train or "off"]
    tries = 5 if config.adversarial.epsilon == "search" and config.adversarial.train != "off" else 1
    candidates = min(config.candidates or pool, config.pool or pool)
    tests = min(config.test or tested, tested)
    attacked = 20 * min(config.eval_attacked, tests)
    training = labels * (config.training.epochs or 0) * step * twins * tries
    return training + ((rounds + 1) * tests + attacked + rounds * candidates / 2) * test


@lru_cache
def _speeds(
    dataset: str, model: str, dropout: models.Dropout, batch: int, epsilon: float, data_dir: Path, device: str
) -> tuple[float, float, int, int]:
    """Seconds of training a sample once, and of testing one, clean and under FGSM; training and test samples.

    The further test sets count as samples without an attack, a quarter each.
    """
    config = resolve(RunConfig(dataset=dataset, model=model, dropout=dropout, data_dir=data_dir))
    data, where = load(dataset, data_dir), usable_device(device)
    n = min(len(data.x), batch)
    nobody = torch.empty(0, *data.x.shape[1:]), torch.empty(0, dtype=torch.int64)
    rows = Labelled(data.x[:n], data.y[:n].clamp(min=0), *nobody)
    once = replace(config.training, epochs=1)
    seconds = []
    network = fresh_model(config, data, where)
    for _ in range(2):
        start = time.perf_counter()
        train(network, rows, once, data.normalize, 0)
        seconds.append(time.perf_counter() - start)
    few = slice(0, min(_ROWS, len(data.x_test)))
    start = time.perf_counter()
    evaluate(network, data.x_test[few], data.y_test[few], data.normalize, epsilon)
    test = (time.perf_counter() - start) / few.stop
    return min(seconds) / n, test, len(data.x), round(len(data.x_test) * (1 + len(data.tests) / 4))

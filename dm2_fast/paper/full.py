"""The full track: networks trained from scratch, by the loop of `dm2-fast run`."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dm2_fast.experiment.config import RunConfig, resolve
from dm2_fast.experiment.data.sets import Data, load
from dm2_fast.experiment.loop import fresh_model, run
from dm2_fast.experiment.machine import reproducible, usable_device
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
    """About how long a curve takes: from one step of its training and one batch of its test.

    A selection is taken for two forward passes over its candidates, which is what DM2 needs.
    """
    config = resolve(full_config(cell, method, 0, data_dir, device))
    data, where = load(config.dataset, config.data_dir), usable_device(device)
    initial, budget, rounds = (int(value or 0) for value in (config.initial, config.budget, config.rounds))
    with reproducible(config.threads):
        step, test = _step(config, data, where), _test(config, data, where)
    labels = sum(initial + r * budget for r in range(rounds + 1))
    twins = 1.0 if config.adversarial.train == "off" else 2.0 if config.adversarial.train == "round" else 3.5
    tries = 5 if config.adversarial.epsilon == "search" and config.adversarial.train != "off" else 1
    pool = min(config.candidates or len(data.x), config.pool or len(data.x))
    tests = (config.test or len(data.x_test)) * (1 + len(data.tests))
    training = labels * (config.training.epochs or 0) * step * twins * tries
    return training + (rounds + 1) * tests * test + rounds * pool * 2 * test / 4


def _step(config: RunConfig, data: Data, device: torch.device) -> float:
    """Seconds of training a sample once."""
    n = min(len(data.x), config.training.batch_size or 1)
    model = fresh_model(config, data, device)
    nobody = torch.empty(0, *data.x.shape[1:]), torch.empty(0, dtype=torch.int64)
    rows = Labelled(data.x[:n], data.y[:n].clamp(min=0), *nobody)
    once = replace(config.training, epochs=1)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        train(model, rows, once, data.normalize, 0)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / n


def _test(config: RunConfig, data: Data, device: torch.device) -> float:
    """Seconds of testing a sample, clean and under FGSM."""
    model = fresh_model(config, data, device)
    x, y = data.x_test[:_ROWS], data.y_test[:_ROWS]
    start = time.perf_counter()
    evaluate(model, x, y, data.normalize, config.eval_epsilon, config.eval_batch_size)
    return (time.perf_counter() - start) / len(x)

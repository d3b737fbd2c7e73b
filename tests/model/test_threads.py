"""Calls from several threads return the bits of calls in turn, and leave all as it was."""

import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dm2_fast
from dm2_fast import strategies, threads
from dm2_fast.experiment import TrainingConfig
from dm2_fast.experiment.machine import reproducible
from dm2_fast.model.passes import ForwardPass

AT_ONCE = 6


class Net(nn.Module):
    """Convolutions with BatchNorm and dropout, whose statistics a forward pass in training mode would change."""

    def __init__(self, seed: int, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2)
        )
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale * self.body(x).flatten(1))


class Noisy(Net):
    """Draws from torch's random state in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1)


def pool(m: int = 90) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (m, 3, 8, 8), np.uint8))


def of_model(model: nn.Module) -> list[object]:
    """Everything that a call might leave changed."""
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    tensors = [(p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()]
    return [modules, [b.clone() for b in model.buffers()], tensors]


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def calls(model: nn.Module) -> dict[str, Callable[[], object]]:
    x, y = pool(), torch.arange(90) % 5

    def choose(**options: object) -> object:
        picked = dm2_fast.select(model, x, 7, options=dm2_fast.DM2Config(k=4), batch_size=32, head="head", **options)
        return picked.indices, picked.scores, picked.neighbours

    return {
        "select": choose,
        "select off": lambda: choose(prepare="off"),
        "select bfloat16": lambda: choose(autocast=torch.bfloat16),
        "fgsm": lambda: dm2_fast.fgsm(model, x, None, 4 / 255, batch_size=32),
        "fgsm of y": lambda: dm2_fast.fgsm(model, x, y, 8 / 255),
    }


def at_once(works: list[Callable[[], object]]) -> list[object]:
    """What they return, begun together in threads of their own."""
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> object:
        gate.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as executor:
        return list(executor.map(run, works))


@pytest.mark.parametrize("make", [Net, Noisy])
def test_any_calls_on_one_model(make: type[Net]) -> None:
    model = make(0).train()
    model.body[1].eval()  # a mode of its own
    torch.manual_seed(5)
    named = calls(model)
    want = {name: call() for name, call in named.items()}
    before, state, count = of_model(model), torch.get_rng_state(), torch.get_num_threads()
    names = [name for name in named for _ in range(AT_ONCE // 2)]
    for name, got in zip(names, at_once([named[name] for name in names]), strict=True):
        assert same(got, want[name]), name
    assert same(of_model(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == count
    assert threads._in_another(torch.get_num_threads) == count


def test_models_that_share_modules() -> None:
    one, other = Net(0).train(), Net(1)
    other.body = one.body
    works = [call for model in (one, other) for call in calls(model).values()]
    want = [work() for work in works]
    before = of_model(one), of_model(other)
    assert same(at_once(works), want)
    assert same((of_model(one), of_model(other)), before)


def test_a_model_of_the_caller_runs_while_others_are_prepared() -> None:
    mine, done = Net(9).eval(), threading.Event()
    x = pool(4) / 255
    want = mine(x).detach()

    def run() -> int:
        turns = 0
        while not done.is_set() or turns < 50:
            assert torch.equal(mine(x).detach(), want)
            turns += 1
        return turns

    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(run)
        for seed in range(8):
            assert ForwardPass(Net(seed), pool()).prepared().note.startswith("1 BatchNorm folded")
        done.set()
        assert running.result() >= 50


@torch.fx.wrap
def turned(x: Tensor) -> Tensor:
    """What no tracer can look into."""
    return x.flip(1) if x.sum() > 0 else x


class Wrapped(Net):
    """Uses a marked function, and calls it from another thread while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            rows = torch.tensor([[1.0, 2.0]])
            with ThreadPoolExecutor(1) as other:
                assert other.submit(turned, rows).result().tolist() == [[2, 1]]
        return self.head(turned(self.body(x).flatten(1)))


def test_functions_that_are_marked_for_tracers_are_the_same_for_other_threads() -> None:
    before = turned
    model = Wrapped(0).eval()
    forward = ForwardPass(model, pool())
    assert not forward.prepared().note.startswith("off")
    assert turned is before
    with torch.no_grad():
        expected = model(pool() / 255)
    torch.testing.assert_close(forward.logits(), expected, atol=1e-5, rtol=0)
    picked = dm2_fast.select(model, pool(), 5)
    with ThreadPoolExecutor(4) as executor:
        for again in executor.map(lambda _: dm2_fast.select(model, pool(), 5), range(8)):
            assert torch.equal(again.scores, picked.scores)
    assert turned is before


def test_read_only_pools_leave_the_filters_of_warnings(recwarn: pytest.WarningsRecorder) -> None:
    x = np.random.default_rng(0).random((60, 9), np.float32)
    x.flags.writeable = False
    before = list(warnings.filters)
    neighbours = at_once([lambda: dm2_fast.knn(x, 3)] * AT_ONCE)
    assert all(same(found, neighbours[0]) for found in neighbours)
    assert warnings.filters == before
    assert not recwarn.list


@pytest.mark.parametrize("name", ["uncertain-gcn", "prob-cover", "alpha-mix", "bald", "noise-stability", "badge"])
def test_strategies(name: str) -> None:
    model = Net(2).train()
    labelled, labels = pool(20), torch.arange(20) % 5

    def choose() -> object:
        picked = dm2_fast.select(model, pool(), 6, name, labelled=labelled, labels=labels, batch_size=40)
        return picked.indices, picked.scores

    want, before, count = choose(), of_model(model), torch.get_num_threads()
    assert all(same(got, want) for got in at_once([choose] * 4))
    assert same(of_model(model), before)
    assert threads._in_another(torch.get_num_threads) == count


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vaal", strategies.vaal.VAALConfig(latent=4, width=4, epochs=2)),
        ("ll4al", strategies.ll4al.LL4ALConfig(epochs=2)),
    ],
)
def test_parts_that_are_trained_in_a_call(name: str, options: object) -> None:
    model = Net(2).train()
    labelled, labels = pool(20), torch.arange(20) % 5

    def choose(seed: int) -> object:
        picked = dm2_fast.select(
            model, pool(40), 6, name, options, labelled=labelled, labels=labels, batch_size=40, seed=seed
        )
        return picked.indices, picked.scores

    works = [partial(choose, seed) for seed in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want, before, state = [work() for work in works], of_model(model), torch.get_rng_state()
        assert same(at_once(works), want)
    assert same(of_model(model), before)
    assert same(torch.get_rng_state(), state)


def test_runs(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="a run needs the extra run")
    sizes = {"initial": 20, "budget": 5, "rounds": 1, "pool": 60, "test": 50}
    few = dm2_fast.RunConfig(model="cnn", strategy="bald", dropout="blocks", training=TrainingConfig(epochs=2), **sizes)

    def run(name: str, seed: int) -> object:
        done = dm2_fast.run(replace(few, seed=seed, threads=1 + seed % 2, output=tmp_path / name / str(seed)))
        return [r.evaluation for r in done.rounds], done.chosen

    before, count = torch.get_rng_state(), torch.get_num_threads()
    want = [run("alone", seed) for seed in range(3)]
    assert same(at_once([partial(run, "together", seed) for seed in range(3)]), want)
    assert same(torch.get_rng_state(), before)
    assert threads._in_another(torch.get_num_threads) == torch.get_num_threads() == count


def test_a_run_uses_its_threads_in_its_own_thread_only() -> None:
    count = torch.get_num_threads()
    with reproducible(count + 1):
        assert torch.get_num_threads() == count + 1
        assert threads._in_another(torch.get_num_threads) == count
    assert torch.get_num_threads() == count


class Drawn(Dataset):
    """Samples that are drawn from torch's random state."""

    def __len__(self) -> int:
        return 90

    def __getitem__(self, row: int) -> Tensor:
        time.sleep(1e-4)  # another thread draws meanwhile, if it may
        return torch.rand(3, 8, 8)


def test_a_dataset_that_draws_beside_a_model_that_draws() -> None:
    noisy, plain = Noisy(0), Net(1)
    works = [
        lambda: dm2_fast.select(noisy, pool(), 5, "entropy", batch_size=8).scores,
        lambda: dm2_fast.select(plain, Drawn(), 5, "entropy", batch_size=8).scores,
    ] * 3
    state = torch.get_rng_state()
    want = [work() for work in works]
    assert same(at_once(works), want)
    assert same(torch.get_rng_state(), state)


def test_gradients_of_a_model_that_is_attacked_meanwhile() -> None:
    class Slow(Net):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(1e-3)
            return super().forward(x)

    model = Slow(0)
    works = [
        lambda: dm2_fast.fgsm(model, pool(), None, 4 / 255, batch_size=8),
        lambda: dm2_fast.select(model, pool(), 5, "ent-gn", batch_size=8, prepare="off").scores,
    ] * 3
    want = [work() for work in works]
    assert same(at_once(works), want)


def test_an_error_in_one_call_is_not_seen_in_another() -> None:
    model = Net(0).train()
    before = of_model(model)

    def fails() -> object:
        with pytest.raises(RuntimeError):
            dm2_fast.fgsm(model, torch.rand(4, 2, 8, 8), None, 0.1)  # too few channels
        return None

    call = calls(model)["select off"]
    want = call()
    found = at_once([fails, call] * 3)
    assert all(same(got, want) for got in found[1::2])
    assert same(of_model(model), before)


def test_each_keeps_the_order_and_ends_at_an_error() -> None:
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise ValueError("three")
        return i

    assert list(threads.each(lambda i: i * i, range(50), 3)) == [i * i for i in range(50)]
    results = threads.each(work, range(10**4), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 10**4
    assert list(threads.each(lambda _: torch.get_num_threads(), range(9), 4)) == [1] * 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_locks_and_threads_of_its_own() -> None:
    list(threads.each(lambda i: i, range(9), 3))
    with threads.guarding(torch.device("cpu")):
        child = os.fork()
        if child == 0:
            found = []
            thread = threading.Thread(target=lambda: threads.guarding(torch.device("cpu")).__enter__())
            thread.start()
            thread.join(200)
            found = list(threads.each(lambda i: i, range(9), 3))
            os._exit(0 if found == list(range(9)) and not thread.is_alive() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

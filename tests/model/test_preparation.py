import copy
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dm2_fast import DM2Config, Round, select, select_from
from dm2_fast.model.passes import ForwardPass


def trained(model: nn.Module, shape: tuple[int, ...] = (3, 12, 12), seed: int = 0) -> Any:
    """The model with BatchNorm weights and statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
        model.train()
        for _ in range(2):
            model(torch.rand(8, *shape, generator=generator))
    return model.eval()


class Net(nn.Module):
    """Convolutions with BatchNorm and every kind of activation; a convolution that two paths use; one used twice."""

    def __init__(self, **norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, **norm), nn.ReLU6())
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8, **norm) for _ in range(2))
        self.both = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8, **norm)
        self.same = nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular")
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1, dilation=2)
        self.head = nn.Linear(12, 4)
        nn.init.normal_(self.head.weight, std=2)

    def features(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.silu(self.norms[0](self.twice(x)))
        x = torch.relu(self.norms[1](self.twice(x)))
        shared = self.both(x)
        x = self.norm(shared) + shared.relu()
        x = F.hardswish(self.same(x))
        return F.relu(self.down(x), inplace=True).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.fixture
def model() -> Net:
    net = trained(Net())
    with torch.no_grad():
        net.first[1].weight.mul_(60)  # values beyond the 6 of ReLU6
    return net


@pytest.fixture
def pool() -> Tensor:
    return torch.randint(0, 256, (83, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def assert_like_plain(ours: Tensor, plain: Tensor) -> None:
    assert ours.dtype == plain.dtype
    assert (ours - plain).abs().max() <= 1e-4 * plain.abs().max()
    assert plain.std(0).max() > 0  # rows that differ


@pytest.mark.parametrize("double", [False, True])
def test_a_prepared_model_gives_the_features_and_logits_of_plain_eval(model: Net, pool: Tensor, double: bool) -> None:
    x = pool.double() / 255 if double else pool.float() / 255
    model = model.double() if double else model
    with torch.no_grad():
        expected = model.features(x)
    forward = ForwardPass(model, x if double else pool, head="head")
    assert forward.prepared().note.startswith(
        f"3 BatchNorm folded, {'' if double else '5 convolutions packed, '}channels"
    )
    features, logits = forward.features_and_logits()
    assert_like_plain(features, expected)
    assert_like_plain(logits, model.head(expected).detach())
    assert torch.equal(forward.logits(), logits)


class Operators(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.called.append(str(operator))
        return operator(*args, **kwargs or {})


def changed_in_between(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    x = x - 0.5
    convolved = b(x)
    return F.relu(x, inplace=True) + convolved


def added_to_what_is_used_again(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    kept = x * 2
    once = a(x)
    kept.add_(once)
    return kept * kept


def used_twice(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    convolved = a(x)
    return (convolved + x) * convolved


SUMS = {
    "residual": (lambda x, a, b: F.relu(b(F.relu(a(x))) + x), ["binary"]),
    "residual in place": (lambda x, a, b: a(x).add_(x).relu_(), ["binary"]),
    "linear": (lambda x, a, b: x + b(a(x)), ["binary"]),
    "of two convolutions": (lambda x, a, b: F.relu(torch.add(a(x), b(x.square()))), ["binary"]),
    "relu6": (lambda x, a, b: F.relu6(a(x) + x), ["binary", "hardtanh"]),
    "of a part": (lambda x, a, b: x * F.relu(b(a(x)) + x), ["binary", "mul"]),
    "not twice the same": (lambda x, a, b: (lambda y: y + y)(a(x)), ["add"]),
    "not broadcast": (lambda x, a, b: a(x) + x.mean((2, 3), keepdim=True), ["add"]),
    "not scaled": (lambda x, a, b: torch.add(a(x), x, alpha=3), ["add"]),
    "not a number": (lambda x, a, b: a(x) + 1, ["add"]),
    "not double": (lambda x, a, b: (a(x) + x.double()).float(), ["add"]),
    "not changed in between": (changed_in_between, ["add", "relu_"]),
    "not added to another": (added_to_what_is_used_again, ["add_", "mul"]),
    "not used twice": (used_twice, ["add", "mul"]),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_convolution_adds_what_is_added_to_it(name: str, pool: Tensor) -> None:
    function, operators = SUMS[name]

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
            self.head = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(function(x, self.a, self.b).mean((2, 3)))

    net = Summed().eval()
    forward = ForwardPass(net, pool)
    assert "convolutions packed" in forward.prepared().note
    x = pool.float() / 255
    with torch.no_grad():
        assert_like_plain(forward.logits(), net(x))
        with Operators() as seen:
            forward.prepared().run(x[:32])
    called = {operator.removeprefix("aten.").split(".")[-1 if "binary" in operator else 0] for operator in seen.called}
    assert called & {"binary", "add", "add_", "mul", "relu", "relu_", "hardtanh"} == set(operators)


FAMILIES = {
    "resnet18": "",
    "mobilenet_v2": "",
    "mobilenet_v3_small": "",
    "shufflenet_v2_x0_5": "",
    "squeezenet1_1": "classifier.1",
    "densenet121": "",
    "efficientnet_b0": "",
    "mnasnet0_5": "",
    "regnet_y_400mf": "",
    "swin_t": "",
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # small batches
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_classifiers_keep_their_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nn.init, "trunc_normal_", lambda w, std=0.02, **_: nn.init.normal_(w, 0, std)
    )  # the exact one is slow
    torch.manual_seed(0)
    net = trained(torchvision.models.get_model(name, num_classes=10), (3, 64, 64))
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    forward = ForwardPass(net, x, head=FAMILIES[name] or None, batch_size=3)
    assert not forward.prepared().note.startswith("off")
    features, logits = forward.features_and_logits()
    with torch.no_grad():
        expected = net(x)
    assert_like_plain(logits, expected)
    if not FAMILIES[name]:
        head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        assert_like_plain(head(features).detach(), expected)


def test_results_do_not_depend_on_threads_or_batch_size(model: Net, pool: Tensor) -> None:
    first = ForwardPass(model, pool).features_and_logits()
    before = torch.get_num_threads()
    for options in ({"num_threads": 1}, {"num_threads": 3}, {"batch_size": 32}, {"batch_size": 57}):
        again = ForwardPass(model, pool, **options).features_and_logits()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), options
    assert torch.get_num_threads() == before
    try:
        torch.set_num_threads(before + 1)
        assert torch.equal(ForwardPass(model, pool).logits(), first[1])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_model_with_many_weights_for_little_arithmetic_takes_more_rows_at_a_time(pool: Tensor) -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(432, 64), nn.ReLU(), nn.Linear(64, 4))
    assert ForwardPass(layers, pool).prepared().rows == 128
    assert ForwardPass(layers, pool, batch_size=50).prepared().rows == 50
    assert ForwardPass(trained(Net()), pool).prepared().rows == 32


def test_select_says_what_was_prepared_and_picks_the_same(model: Net, pool: Tensor) -> None:
    ours = select(model, pool, 9)
    assert ours.prepared == "3 BatchNorm folded, 5 convolutions packed, channels_last, 32 rows at a time"
    plain = select(model, pool, 9, prepare="off")
    assert plain.prepared == "off"
    torch.testing.assert_close(ours.scores, plain.scores, atol=1e-6, rtol=0)
    assert not torch.equal(ours.scores, plain.scores)
    assert ours.indices.tolist() == plain.indices.tolist()
    state = Round(ForwardPass(model, pool))
    assert select_from(state, 5, "entropy").prepared == ours.prepared
    assert select_from(state, 5, "dm2").prepared == ours.prepared
    least = select_from(state, 9, "least-confidence")
    assert torch.equal(select(model, pool, 9, options=DM2Config.published(lam=1.0)).scores, least.scores)


def test_a_round_prepares_once_and_again_when_the_model_has_changed(model: Net, pool: Tensor) -> None:
    forward = ForwardPass(model, pool)
    first, logits = forward.prepared(), forward.logits()
    assert forward.over(pool[:3]).prepared() is first
    assert torch.equal(forward.over(pool[:3]).logits(), logits[:3])
    with torch.no_grad():
        model.first[1].running_var.mul_(4)
        expected = model(pool.float() / 255)
    assert_like_plain(forward.logits(), expected)
    with torch.no_grad():
        model.head.weight = nn.Parameter(model.head.weight * 2)
        expected = model(pool.float() / 255)
    assert_like_plain(forward.logits(), expected)
    assert forward.prepared() is not first
    assert forward.prepared() is forward.prepared()


def wrapped(forward, model: nn.Module) -> nn.Module:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.inner, x)

    return Wrapped()


def hooked(model: nn.Module) -> nn.Module:
    model.first[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


def uncopyable(model: nn.Module) -> nn.Module:
    model.scale = model.head.weight.sum()
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m: wrapped(lambda inner, x: inner(x) if x.mean() > 0 else inner(-x), m), "symbolically traced"),
        (lambda m: wrapped(lambda inner, x: inner(x - x.mean(0)), m), "features would differ by"),
        (lambda m: wrapped(lambda inner, x: inner(x) * (1 + torch.rand(1)), m), "logits would differ by"),
        (lambda m: Net(track_running_stats=False).eval(), "features would differ by"),
        (lambda m: wrapped(lambda inner, x: inner(x.view(int(x.shape[0]), 3, 12, 12)), m), "Proxy"),
        (lambda m: m.bfloat16(), "half precision"),
        (hooked, "first.0 has hooks"),
        (uncopyable, "deepcopy"),
    ],
)
def test_a_model_that_cannot_be_prepared_runs_as_it_is_and_says_so(model: Net, pool: Tensor, make, reason: str) -> None:
    net = make(model)
    head = "inner.head" if hasattr(net, "inner") else "head"
    torch.manual_seed(0)
    forward = ForwardPass(net, pool, head=head, batch_size=83)
    assert forward.prepared().note.startswith("off: ")
    assert reason in forward.prepared().note
    torch.manual_seed(0)
    features, logits = forward.features_and_logits()
    torch.manual_seed(0)
    with torch.no_grad():
        expected = net(pool.to(next(net.parameters()).dtype) / 255)
    if "logits" not in reason:  # the model draws random numbers
        torch.testing.assert_close(logits, expected)
    assert features.shape == (83, 12)
    torch.manual_seed(0)
    assert select(net, pool, 3, head=head, batch_size=83).prepared == forward.prepared().note


def test_a_model_without_a_head_is_prepared_for_its_logits(pool: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 12), nn.Flatten()).eval()
    forward = ForwardPass(net, pool)
    assert forward.prepared().note == "1 convolutions packed, channels_last, 128 rows at a time"
    with torch.no_grad():
        assert_like_plain(forward.logits(), net(pool.float() / 255))
    with pytest.raises(ValueError, match="model must have a linear layer"):
        forward.features_and_logits()


def test_optional_arguments_keep_their_defaults(model: Net, pool: Tensor) -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor, double: bool = True, scale: Tensor | None = None) -> Tensor:
            logits = self.inner(x)
            if scale is not None:
                logits = logits * scale
            return 2 * logits if double else logits

    forward = ForwardPass(Optional().eval(), pool)
    assert not forward.prepared().note.startswith("off")
    with torch.no_grad():
        assert_like_plain(forward.logits(), 2 * model(pool.float() / 255))


def out_of_memory(kind: str) -> Exception:
    if kind == "cuda":
        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "python":
        return MemoryError()
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(1 << 60, dtype=torch.uint8)
    return raised.value


@pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
@pytest.mark.parametrize("most", [11, 1])
def test_a_batch_that_does_not_fit_is_halved_with_one_warning(model: Net, pool: Tensor, kind: str, most: int) -> None:
    error = out_of_memory(kind)
    sizes = []

    def small(inner: nn.Module, x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > most:
            raise error
        return inner(x)

    forward = ForwardPass(wrapped(small, model), pool, batch_size=32, prepare="off", head="inner.head")
    size = 8 if most == 11 else 1
    with pytest.warns(UserWarning, match="at a time, now") as raised:
        features, logits = forward.features_and_logits()
    assert len(raised) == 1
    assert str(raised[0].message).startswith(f"not enough memory for 32 rows at a time, now {size}: ")
    assert raised[0].filename == __file__
    assert sizes.count(32) == 1
    assert set(sizes[-3:]) == {size}
    with torch.no_grad():
        torch.testing.assert_close(features, model.features(pool.float() / 255))
        torch.testing.assert_close(logits, model(pool.float() / 255))


def test_a_row_that_does_not_fit_alone_is_an_error(model: Net, pool: Tensor) -> None:
    def never(inner: nn.Module, x: Tensor) -> Tensor:
        raise out_of_memory("cuda")

    def other(inner: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        ForwardPass(wrapped(never, model), pool).logits()
    with pytest.raises(RuntimeError, match="something else"):
        ForwardPass(wrapped(other, model), pool).logits()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes before Python 3.11")
def test_an_exception_of_the_model_keeps_its_traceback_and_names_the_rows(model: Net, pool: Tensor) -> None:
    def fail(inner: nn.Module, x: Tensor) -> Tensor:
        if bool((x == 1).all()):
            raise ArithmeticError("boom")
        return inner(x)

    pool[37:45] = 255
    with pytest.raises(ArithmeticError, match="boom") as raised:
        ForwardPass(wrapped(fail, model), pool[:43], batch_size=1).logits()
    assert raised.value.__notes__ == ["model ran on rows 37 to 37, a batch of shape (1, 3, 12, 12)"]
    assert "in fail" in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("prepare", ["auto", "off"])
def test_autocast_is_an_option_and_that_of_the_caller_holds_in_every_thread(
    model: Net, pool: Tensor, prepare: str
) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(pool.float() / 255)
    forward = ForwardPass(model, pool, prepare=prepare, autocast=torch.bfloat16)
    assert "packed" not in forward.prepared().note
    features, logits = forward.features_and_logits()
    assert features.dtype in (torch.float32, torch.bfloat16)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.02)
    plain = ForwardPass(model, pool, prepare=prepare)
    exact = plain.logits()
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain.logits(), logits)
    assert torch.equal(plain.logits(), exact)
    assert select(model, pool, 3, autocast=torch.bfloat16, prepare=prepare).scores.dtype == torch.float32


def test_pools_that_are_not_in_memory_are_read_by_one_thread_at_a_time(model: Net, pool: Tensor) -> None:
    class OneReader:
        def __init__(self, data: np.ndarray) -> None:
            self.data, self.shape, self.reading = data, data.shape, threading.Lock()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            assert self.reading.acquire(blocking=False)
            time.sleep(0.001)
            self.reading.release()
            return self.data[rows]

    ours = ForwardPass(model, OneReader(pool.numpy()), batch_size=4, num_threads=4).logits()
    assert torch.equal(ours, ForwardPass(model, pool, batch_size=4).logits())


def test_preparation_leaves_the_model_and_the_random_state_alone(model: Net, pool: Tensor) -> None:
    model.train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(model, pool, 3)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prepare": "on"}, "prepare must be 'auto' or 'off', got 'on'"),
        ({"autocast": torch.float32}, "autocast must be None, torch.float16 or torch.bfloat16, got torch.float32"),
    ],
)
def test_wrong_options_are_named(model: Net, pool: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(model, pool, 3, **options)

"""What a GPU does beside the plain path gives the bits of the plain path: with the CPU in its place, streams that do
nothing until they have to, and graphs that compute again."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dm2_fast.model import feed, graph, limits, passes, preparation, shared
from dm2_fast.model import outputs as checked
from dm2_fast.model.feed import fed
from dm2_fast.model.graph import Graphed
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.mix import Recipe
from dm2_fast.round import Round


class Stream:
    """A stream that runs as late as it may."""

    def __init__(self, device: object = None) -> None:
        self.work: list[Callable[[], object]] = []
        self.done = 0

    def run(self, end: int) -> None:
        while self.done < end:
            self.done += 1
            self.work[self.done - 1]()

    def finish(self) -> None:
        self.run(len(self.work))

    def wait_event(self, event: "Event") -> None:
        if event.at is not None:
            stream, end = event.at
            self.work.append(lambda: stream.run(end))

    def wait_stream(self, other: "Stream") -> None:
        end = len(other.work)
        self.work.append(lambda: other.run(end))


class Event:
    at: tuple[Stream, int] | None = None

    def record(self, stream: Stream) -> None:
        self.at = stream, len(stream.work)

    def synchronize(self) -> None:
        if self.at is not None:
            self.at[0].run(self.at[1])


class Graph:
    """A graph of what a `Graphed` runs, computed again and written to where it was captured."""

    def replay(self) -> None:
        for graphed in MADE:
            if getattr(graphed, "_graph", None) is self:
                for mine, new in zip(graphed._results, graphed._run(graphed.input), strict=True):
                    mine.copy_(new)


MADE: list[Graphed] = []


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A stand-in for torch.cuda; what is copied without blocking waits in the current stream."""
    main, current, copy, made = Stream(), threading.local(), Tensor.copy_, Graphed.__init__

    @contextmanager
    def stream(here: Stream) -> Iterator[None]:
        before = getattr(current, "stream", main)
        current.stream = here
        yield
        current.stream = before

    def later(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not non_blocking:
            return copy(self, source)
        getattr(current, "stream", main).work.append(lambda: copy(self, source))
        return self

    @contextmanager
    def capture(graph: Graph, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"  # the feed works in another
        yield

    fake = SimpleNamespace(
        main=main, Stream=Stream, Event=Event, stream=stream, graph=capture, CUDAGraph=Graph,
        current_stream=lambda device=None: main,
    )  # fmt: skip
    for module in (feed, graph):
        monkeypatch.setattr(module, "cuda", fake)
    monkeypatch.setattr(Tensor, "copy_", later)
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    monkeypatch.setattr(Graphed, "__init__", lambda self, run: MADE.append(self) or made(self, run))
    yield fake
    MADE.clear()


CPU = torch.device("cpu")


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_batches_arrive_whole_and_in_order_however_late_copies_and_kernels_run(
    cuda: SimpleNamespace, count: int, in_place: bool
) -> None:
    made: list[int] = []

    def make(start: int, out: Tensor | None) -> Tensor:
        made.append(start)
        batch = torch.full((4, 3), float(start))
        return batch if out is None or not in_place else out.fill_(start)

    used: list[Tensor] = []
    for number, batch in enumerate(fed(make, range(0, 4 * count, 4), CPU)):
        assert len(made) <= number + 2  # one ahead
        cuda.main.work.append(lambda batch=batch: used.append(batch.clone()))
    cuda.main.finish()
    assert made == list(range(0, 4 * count, 4))
    assert torch.equal(torch.stack(used), torch.arange(0.0, 4 * count, 4)[:, None, None].expand(-1, 4, 3))


def test_the_first_copy_waits_for_what_had_the_memory_before(cuda: SimpleNamespace) -> None:
    streams, done = list[Stream](), list[bool]()
    cuda.Stream = lambda device: streams.append(Stream()) or streams[0]
    cuda.main.work.append(lambda: done.append(True))
    next(fed(lambda start, out: torch.ones(3), range(1), CPU))
    streams[0].finish()
    assert done == [True]


def test_an_error_of_the_pool_comes_with_its_batch(cuda: SimpleNamespace) -> None:
    def make(start: int, out: Tensor | None) -> Tensor:
        if start == 8:
            raise OSError("the disk is gone")
        return torch.full((2,), float(start))

    batches = fed(make, range(0, 16, 4), CPU)
    for start in (0, 4):
        batch = next(batches)
        cuda.main.finish()
        assert batch.tolist() == [start, start]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_graph_is_replayed_from_the_second_batch_of_a_shape_on(cuda: SimpleNamespace) -> None:
    ran: list[tuple[int, ...]] = []

    def run(batch: Tensor) -> tuple[Tensor, Tensor]:
        ran.append(tuple(batch.shape))
        return batch * 2, batch.sum(1, keepdim=True)

    graphed = Graphed(run)
    for seed, rows in enumerate([3, 4, 4, 4, 3, 4, 3, 3]):
        batch = torch.rand(rows, 5, generator=torch.Generator().manual_seed(seed))
        if seed == 5:
            assert graphed.input is not None
            batch = graphed.input.copy_(batch)  # written there by the caller
        twice, total = graphed(batch)
        assert torch.equal(twice, batch * 2)
        assert torch.equal(total, batch.sum(1, keepdim=True))
    assert graphed.input is not None
    assert graphed.input.shape == (4, 5)
    # plain; plain; warm-up and capture; replayed; plain; replayed; plain; plain
    assert ran == [(3, 5), (4, 5), (4, 5), (4, 5), (4, 5), (3, 5), (4, 5), (3, 5), (3, 5)]


RESULTS: list[Tensor] = []


def wrong_value(graph: Graph) -> None:
    RESULTS[-1].add_(2.0**-20)


def refused(graph: Graph) -> None:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize(
    ("replay", "why"), [(wrong_value, "other values than the model"), (refused, "not permitted when .* capturing$")]
)
def test_a_graph_that_is_not_the_model_is_told_once_and_not_used(
    cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, replay: Any, why: str
) -> None:
    monkeypatch.setattr(Graph, "replay", replay)

    def run(batch: Tensor) -> tuple[None, Tensor]:
        RESULTS.append(batch * 2)
        return None, RESULTS[-1]

    graphed = Graphed(run)
    x = torch.rand(4, 5)
    assert torch.equal(graphed(x)[1], x * 2)
    with pytest.warns(UserWarning, match=f"runs without a CUDA graph, .*{why}"):
        assert torch.equal(graphed(x)[1], x * 2)
    for _ in range(2):  # a warning would be an error
        assert torch.equal(graphed(x)[1], x * 2)
    assert graphed.input is None


def test_values_that_are_no_numbers_do_not_speak_against_a_graph(cuda: SimpleNamespace) -> None:
    graphed = Graphed(lambda batch: (None, batch / 0))
    for _ in range(2):
        graphed(torch.zeros(4, 5))
    assert graphed.input is not None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


POOL = torch.randint(0, 256, (43, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def as_on_a_gpu(cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The paths of a GPU with the CPU in its place: a kernel runs when it is called, and what it waits for before."""
    prepare, outputs = preparation.prepare, checked.outputs

    def prepared(*arguments: Any, **options: Any) -> Any:
        found = prepare(*arguments, **options)
        return replace(found, run=Graphed(found.run), threads=False)

    def after(*arguments: Any) -> Any:
        cuda.main.finish()
        return outputs(*arguments)

    monkeypatch.setattr(shared, "prepare", prepared)
    monkeypatch.setattr(passes, "outputs", after)
    for module in (passes, shared):
        monkeypatch.setattr(module, "on_gpu", lambda device: True)
    monkeypatch.setattr(shared, "room", lambda device, memory: 10**9)
    return cuda


def everything(pool: Any, rows: Tensor | None = None, **options: Any) -> list[Tensor]:
    """Features, logits, and the scores of mixtures, in batches of ten."""
    forward = ForwardPass(
        Net().eval(), pool, (0.5, (0.2, 0.3, 0.4)), batch_size=10, rows=rows, num_threads=1, **options
    )
    m = len(forward)
    indices = torch.randint(0, m, (m, 3), generator=torch.Generator().manual_seed(1))
    recipe = Recipe(indices, None, torch.linspace(0, 1, m, dtype=torch.float64))
    return [*forward.features_and_logits(), forward.logits(), forward.mixed_uncertainty(recipe)]


@pytest.mark.parametrize("rows", [None, torch.arange(41, 2, -1)])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "array"])
def test_a_pool_on_the_host_gives_the_bits_of_the_plain_path(
    as_on_a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kind: str, rows: Tensor | None
) -> None:
    pool: Any = POOL.numpy() if kind == "array" else POOL if kind == "uint8" else POOL.to(getattr(torch, kind)) / 255
    got = everything(pool, rows)
    assert len(MADE) == 1
    assert MADE[0].input is not None
    assert len(as_on_a_gpu.main.work) > 3 * 5  # every batch has been waited for
    monkeypatch.setattr(ForwardPass, "_ahead", lambda *arguments: None)
    monkeypatch.setattr(Graphed, "__call__", lambda self, batch: self._run(batch))
    for one, other in zip(got, everything(pool, rows), strict=True):
        assert torch.equal(one, other)


def test_a_pool_on_the_device_is_mixed_into_the_graph(
    as_on_a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = everything(POOL)
    monkeypatch.setattr(ForwardPass, "_ahead", lambda *arguments: None)
    call, straight = Graphed.__call__, []
    monkeypatch.setattr(
        Graphed, "__call__", lambda self, batch: straight.append(batch is self.input) or call(self, batch)
    )
    for one, other in zip(everything(POOL), want, strict=True):
        assert torch.equal(one, other)
    assert straight == [False, False] + [True] * 13  # one, the one that is captured, and 3 passes of 5 in all


def test_nothing_of_this_happens_to_a_model_that_runs_as_it_is(as_on_a_gpu: SimpleNamespace) -> None:
    want = everything(POOL)
    as_on_a_gpu.main.work.clear()
    MADE.clear()
    for one, other in zip(everything(POOL, prepare="off"), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not as_on_a_gpu.main.work
    assert not MADE


@pytest.mark.parametrize("when", ["first", "third"])
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_copied_ahead_any_more(
    as_on_a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    want, outputs, calls = everything(POOL), vars(passes)["outputs"], list[int]()

    def short(run: Any, batch: Tensor, *arguments: Any) -> Any:
        calls.append(len(batch))
        if len(batch) > 5 and len(calls) >= (1 if when == "first" else 3):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs(run, batch, *arguments)

    monkeypatch.setattr(passes, "outputs", short)
    forward = ForwardPass(Net().eval(), POOL, (0.5, (0.2, 0.3, 0.4)), batch_size=10, num_threads=1)
    with pytest.warns(UserWarning, match="not enough memory for 10 rows at a time, now 5: CUDA out of memory"):
        features, logits = forward.features_and_logits()
    assert calls[2 if when == "third" else 0 :] == [10] + [5] * (9 if when == "first" else 5)
    torch.testing.assert_close(features, want[0])
    torch.testing.assert_close(logits, want[1])


def test_labelled_features_go_where_those_of_the_pool_are() -> None:
    asked = Round(ForwardPass(Net().eval(), POOL[10:], batch_size=10), labelled=POOL[:10])
    assert asked.labelled_features.device.type == "cpu"
    asked._kept["features", None] = asked.features.to("meta"), asked.logits
    assert asked.labelled_features.device.type == "meta"


def test_features_stay_on_the_device_while_they_fit() -> None:
    # 1,000 rows of 512 float32 and 10 logits, twice, features once more, and the lists of the search
    assert limits.wanted(1000, 2048, 40) == 1000 * (2 * 2088 + 2048 + 2048)


def test_room_is_what_is_free_or_less_where_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        mem_get_info=lambda device: (5 * 10**9, 8 * 10**9),
        memory_reserved=lambda device: 3 * 10**9,
        memory_allocated=lambda device: 10**9,
    )
    monkeypatch.setattr(limits, "cuda", fake)
    assert limits.room(CPU) == 7 * 10**9
    assert limits.room(CPU, "2GB") == 2 * 10**9
    assert limits.room(CPU, "9GB") == 7 * 10**9


def test_features_that_do_not_fit_go_to_the_host_for_the_rest_of_the_round(
    as_on_a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(shared, "room", lambda device, memory: asked.append(memory) or 43 * 2100)
    moved: list[int] = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: moved.append(len(self)) or cpu(self))
    forward = ForwardPass(Net().eval(), POOL, batch_size=10, num_threads=1, memory="1GB")
    with pytest.warns(UserWarning, match="features stay in the memory of the host, .* and 9.03e-05 GB are free"):
        forward.features_and_logits()
    assert asked == ["1GB"]
    assert moved == [10, 10, 10, 10, 10, 10, 10, 10, 3, 3]
    moved.clear()
    forward.logits()
    assert forward.through(Net().eval())._shared.on_host
    assert len(moved) >= 10
    moved.clear()
    ForwardPass(Net().eval(), POOL, batch_size=10, prepare="off", memory="1GB").features_and_logits()
    assert not moved

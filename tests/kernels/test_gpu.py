"""On a GPU only: the shipped tiles at sizes that no interpreter reaches, and the rest of an acquisition. `make gpu`
runs these, and all tests named triton, which without a GPU run interpreted."""

from typing import Any

import pytest
import torch
from oracle import assert_knn_close
from torch import Tensor, nn

import dm2_fast
import dm2_fast.ops
from dm2_fast import strategies
from dm2_fast.experiment import training
from dm2_fast.experiment.config import TrainingConfig
from dm2_fast.experiment.training import Labelled, train
from dm2_fast.model import shared
from dm2_fast.model.graph import Graphed
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.mix import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "d", "k"), [(1, 3, 1), (1500, 512, 10), (2001, 100, 64), (700, 17, 200), (5000, 3, 33)])
def test_neighbours_equal_the_oracle(m: int, d: int, k: int, dtype: torch.dtype) -> None:
    x, queries = normal(m, d, dtype=dtype), normal(300, d, dtype=dtype, seed=1)
    k = min(k, m)
    got = dm2_fast.knn(x.cuda(), k, queries=queries.cuda())
    assert_knn_close(*got, x, k, queries=queries)


def test_equal_rows_are_at_distance_zero_and_ties_go_to_the_lower_index() -> None:
    x = normal(40, 100)[torch.arange(2000) % 40]
    distances, indices = dm2_fast.knn(x.cuda(), 5)
    assert (distances == 0).all()
    first = torch.arange(2000)[:, None] % 40 + 40 * torch.arange(6)
    want = [[j for j in row if j != i][:5] for i, row in enumerate(first.tolist())]
    assert indices.tolist() == want


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_parts_of_the_rows_and_repetition_do_not_change_a_bit(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from dm2_fast.kernels import knn as launcher

    x = normal(3000, 64).cuda()
    want = dm2_fast.knn(x, 20)
    monkeypatch.setitem(launcher.__globals__, "_parts", lambda *arguments: parts)
    for got, expected in zip(dm2_fast.knn(x, 20), want, strict=True):
        assert torch.equal(got, expected)


def test_mixtures_of_pixels_have_the_bits_of_the_cpu() -> None:
    pool = torch.randint(0, 256, (500, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = torch.randint(0, 500, (500, 10), generator=torch.Generator().manual_seed(1))
    options = {"normalize": ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))}
    assert torch.equal(
        dm2_fast.mix(pool.cuda(), indices, 0.3, **options).cpu(), dm2_fast.mix(pool, indices, 0.3, **options)
    )


@pytest.mark.parametrize("kind", ["least-confidence", "entropy", "margin"])
@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_scores_of_a_linear_probe_equal_those_of_the_cpu(classes: int, kind: str) -> None:
    x, weight, bias = normal(3000, 200), normal(classes, 200, seed=1) / 14, normal(classes, seed=2)
    indices = torch.randint(0, 3000, (3000, 10), generator=torch.Generator().manual_seed(3))
    want = dm2_fast.linear_probe(x.double(), indices, 0.5, weight.double(), bias.double(), kind).float()
    got = dm2_fast.linear_probe(x.cuda(), indices, 0.5, weight.cuda(), bias.cuda(), kind).cpu()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
    logits = x @ weight.T
    torch.testing.assert_close(dm2_fast.uncertainty(logits.cuda(), kind).cpu(), dm2_fast.uncertainty(logits, kind))


def test_operations_compile_into_one_graph() -> None:
    compiled = torch.compile(lambda x: torch.ops.dm2_fast.knn(x * 2, 5)[0] + 1, fullgraph=True)
    x = normal(500, 32).cuda()
    torch.testing.assert_close(compiled(x), dm2_fast.knn(x, 5)[0] + 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.more = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 64, 3)
        self.drop, self.head = nn.Dropout(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.more(self.norm(self.conv(x)).relu()).relu()
        return self.head(self.drop(x.mean((2, 3))))


class Asking(Net):
    """Asks the device for a number on the way, which cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0 * x.sum().item())


POOL = torch.randint(0, 256, (1050, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def passes(pool: Any, model: nn.Module | None = None, **options: Any) -> tuple[ForwardPass, list[Tensor]]:
    """Features, logits, and the scores of mixtures, in batches of 100."""
    forward = ForwardPass((model or Net()).eval().cuda(), pool, (0.5, (0.2, 0.3, 0.4)), batch_size=100, **options)
    indices = torch.randint(0, len(POOL), (len(POOL), 5), generator=torch.Generator().manual_seed(1))
    recipe = Recipe(indices, None, torch.linspace(0, 1, len(POOL), dtype=torch.float64))
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return forward, [*forward.features_and_logits(), forward.logits(), forward.mixed_uncertainty(recipe)]


@pytest.mark.parametrize("where", ["host", "device", "array"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_graphs_and_copies_ahead_do_not_change_a_bit(
    where: str, autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = {"host": POOL, "device": POOL.cuda(), "array": POOL.numpy()}[where]
    forward, got = passes(pool, autocast=autocast)
    run = forward.prepared().run
    assert isinstance(run, Graphed)
    assert run.input is not None
    monkeypatch.setattr(ForwardPass, "_ahead", lambda *arguments: None)
    monkeypatch.setattr(Graphed, "__call__", lambda self, batch: self._run(batch))
    for one, other in zip(got, passes(pool, autocast=autocast)[1], strict=True):
        assert torch.equal(one, other)


def test_a_model_that_cannot_be_captured_runs_without_a_graph_and_says_so() -> None:
    with pytest.warns(UserWarning, match="the model runs without a CUDA graph"):
        forward, got = passes(POOL, Asking())
    assert forward.note is not None
    assert not forward.note.startswith("off")
    for one, other in zip(got, passes(POOL)[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("room", [0, 10**12])
@pytest.mark.parametrize("name", [name for name in strategies.names() if strategies.get(name).part is None])
@pytest.mark.filterwarnings("ignore:features stay in the memory of the host")
def test_every_strategy_chooses_wherever_the_features_are(
    name: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "room", lambda device, memory: room)
    picked = dm2_fast.select(
        Net().eval().cuda(), POOL[20:220], 10, name, labelled=POOL[:20], labels=torch.arange(20) % 10,
        companions=[Net().eval().cuda()], batch_size=100,
    )  # fmt: skip
    assert len(set(picked.indices.tolist())) == 10
    if picked.distances is not None:
        assert picked.distances.device.type == ("cpu" if room == 0 else "cuda")


def test_features_that_fit_into_the_memory_asked_for_are_searched_on_the_device() -> None:
    want, got = (dm2_fast.select(Net().eval().cuda(), POOL, 10, memory=memory) for memory in (None, "1GB"))
    assert got.distances is not None
    assert got.distances.device.type == "cuda"
    assert torch.equal(got.indices, want.indices)


@pytest.mark.parametrize("augment", ["none", "flip-crop"])
def test_training_on_what_stays_on_the_device_learns_the_same(augment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = POOL[:100], torch.arange(100) % 10
    labelled = Labelled(x, y, x[[7, 2]].float() / 255, torch.tensor([7, 2]))
    config = TrainingConfig(epochs=2, batch_size=32, optimizer="sgd", lr=0.01, weight_decay=0.0, augment=augment)
    weights, homes = [], []
    home = training._home
    monkeypatch.setattr(training, "_home", lambda *given: homes.append(home(*given)) or homes[-1])
    for prepare in ("auto", "off"):
        model = Net().cuda()
        train(model, labelled, config, (0.5, 0.25), 3, prepare=prepare)
        weights.append(model.head.weight.detach())
    assert [where.type for where in homes] == ["cuda"]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-3)

import subprocess
import sys
import warnings

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn

import dm2_fast
from dm2_fast import DM2Config, Round, draws, select, select_from, strategies
from dm2_fast.model.head import find_head
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.mix import recipe


class Net(nn.Module):
    """A small network with everything that could be disturbed: BatchNorm, dropout, a linear layer before the head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(216, 12)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(self.hidden(self.norm(self.conv(x)).relu().flatten(1)).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 6, 6))  # BatchNorm statistics that are not the initial ones
        net.head.weight *= 4  # scores that differ
    return net


@pytest.fixture
def pool() -> Tensor:
    return torch.randint(0, 256, (45, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def plain_inputs(pool: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZE)
    return (pool.float() / 255 - mean) / std


def naive_scores(model: Net, pool: Tensor, k: int, metric: str, mix: str, lam: float, score: str) -> np.ndarray:
    """Algorithm 1 by hand: float64 neighbours, whole-pool mixing, softmax."""
    model = model.eval()
    with torch.no_grad():
        features = model.features(plain_inputs(pool)).double().numpy()
        distances, neighbours = oracle.knn(features, k, metric)
        distances = distances.astype(np.float64)
        weights = np.full(distances.shape, 1 / k)
        if mix == "random":
            drawn = (draws.uniform(7, 3, np.arange(len(pool)), "neighbour") * k).astype(int)
            weights = np.eye(k)[drawn]
        if mix == "weighted":
            weights = 1 / distances / (1 / distances).sum(1, keepdims=True)
        x = pool.double().numpy() / 255
        mixed = lam * x + (1 - lam) * np.einsum("mk,mkchw->mchw", weights, x[neighbours])
        mean, std = (np.array(values)[:, None, None] for values in NORMALIZE)
        p = model(torch.from_numpy((mixed - mean) / std).float()).double().softmax(1).numpy()
    ranked = np.sort(p, 1)
    return {
        "least-confidence": 1 - p.max(1), "entropy": -(p * np.log(p)).sum(1), "margin": ranked[:, -2] - ranked[:, -1],
    }[score]  # fmt: skip


@pytest.mark.parametrize("score", ["least-confidence", "entropy", "margin"])
@pytest.mark.parametrize("mix", ["mean", "random", "weighted"])
@pytest.mark.parametrize("metric", ["literal", "rms", "l1", "l2"])
def test_select_is_algorithm_1(model: Net, pool: Tensor, metric: str, mix: str, score: str) -> None:
    config = DM2Config.published(metric=metric, k=4, mix=mix, lam=0.3, score=score)
    picked = select(model, pool, 9, options=config, normalize=NORMALIZE, seed=7, round=3, batch_size=16)
    expected = naive_scores(model, pool, 4, metric, mix, 0.3, score)
    np.testing.assert_allclose(picked.scores, expected, atol=2e-6)
    order = picked.scores.sort(descending=True, stable=True).indices
    assert picked.indices.tolist() == order[:9].tolist()
    assert picked.neighbours.shape == (45, 4)
    assert set(picked.seconds) == {"features", "neighbours", "mixed", "choose"}


@pytest.mark.parametrize("inputs", ["uint8", "float"])
@pytest.mark.parametrize("mix", ["mean", "random", "weighted"])
def test_lam_1_is_exactly_least_confidence(model: Net, pool: Tensor, mix: str, inputs: str) -> None:
    data = pool if inputs == "uint8" else pool.float() / 255
    forward = ForwardPass(model, data, NORMALIZE, batch_size=16)
    least = select_from(Round(forward), 45, "least-confidence")
    picked = select(model, data, 45, options=DM2Config.published(mix=mix, lam=1.0), normalize=NORMALIZE, batch_size=16)
    assert torch.equal(picked.scores, least.scores)
    assert torch.equal(picked.indices, least.indices)
    mixed = select(model, data, 45, options=DM2Config.published(mix=mix, lam=0.5), normalize=NORMALIZE, batch_size=16)
    assert not torch.equal(mixed.scores, least.scores)


def test_baselines_score_the_softmax_of_the_plain_samples(model: Net, pool: Tensor) -> None:
    state = Round(ForwardPass(model, pool, NORMALIZE, batch_size=16))
    with torch.no_grad():
        p = model.eval()(plain_inputs(pool)).double().softmax(1).sort(dim=1, descending=True).values
    expected = {
        "least-confidence": 1 - p[:, 0],
        "entropy": -(p * p.log()).sum(1),
        "margin": p[:, 1] - p[:, 0],
    }
    for name, scores in expected.items():
        picked = select_from(state, 7, name)
        torch.testing.assert_close(picked.scores.double(), scores, atol=2e-6, rtol=0)
        assert picked.indices.tolist() == picked.scores.sort(descending=True, stable=True).indices[:7].tolist()


def test_random_draws_without_replacement_by_row(model: Net, pool: Tensor) -> None:
    forward = ForwardPass(model, pool)
    every = select_from(Round(forward, seed=3), 45, "random")
    assert sorted(every.indices.tolist()) == list(range(45))
    part = Round(ForwardPass(model, pool[10:]), seed=3, row_ids=np.arange(10, 45))
    ranked = [row for row in every.indices.tolist() if row >= 10]
    assert (select_from(part, 35, "random").indices + 10).tolist() == ranked
    other = select_from(Round(forward, seed=4), 45, "random")
    assert other.indices.tolist() != every.indices.tolist()
    counts = np.zeros(45)
    for seed in range(200):
        counts[select_from(Round(forward, seed=seed), 9, "random").indices] += 1
    assert abs(counts - 40).max() < 25  # binomial(200, 1/5): 4.4 standard deviations


def test_strategies_have_their_paper_names() -> None:
    assert strategies.names() == (
        "random", "least-confidence", "entropy", "margin", "bald", "entropy-bayesian", "coreset", "uncertain-gcn",
        "core-gcn", "badge", "prob-cover", "alpha-mix", "noise-stability", "batchbald", "ent-gn", "exp-gn", "qbc",
        "cluster-margin", "isal", "ll4al", "vaal", "dm2", "dm2-at",
    )  # fmt: skip
    with pytest.raises(ValueError, match="strategy must be one of random, .*, got 'dm3'"):
        strategies.get("dm3")


@pytest.mark.parametrize("training", [True, False])
def test_select_leaves_model_and_random_state_untouched(model: Net, pool: Tensor, training: bool) -> None:
    model.train(training)
    model.norm.train(not training)  # a mode of its own
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    select(model, pool, 3, options=DM2Config.published(mix="random", lam="beta"), normalize=NORMALIZE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_select_cleans_up_after_an_exception_in_the_model(pool: Tensor, model: Net) -> None:
    calls = []

    def fail_later(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("boom")

    model.train()
    handle = model.conv.register_forward_pre_hook(fail_later)
    with pytest.raises(RuntimeError, match="boom"):
        select(model, pool, 3, batch_size=16)
    handle.remove()
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("mix", ["mean", "random", "weighted"])
@pytest.mark.parametrize("lam", [0.4, "beta"])
def test_picks_do_not_depend_on_threads_backend_or_batches(model: Net, pool: Tensor, mix: str, lam: float) -> None:
    config = DM2Config.published(k=5, mix=mix, lam=lam)
    first = select(model, pool, 10, options=config, normalize=NORMALIZE, batch_size=16)
    for num_threads in (1, 3):
        again = select(model, pool, 10, options=config, normalize=NORMALIZE, batch_size=16, num_threads=num_threads)
        assert torch.equal(again.scores, first.scores)
        assert torch.equal(again.indices, first.indices)
    for options in ({"batch_size": 7}, {"backend": "torch"}):
        other = select(model, pool, 10, options=config, normalize=NORMALIZE, **options)
        assert torch.equal(other.neighbours, first.neighbours)
        torch.testing.assert_close(other.scores, first.scores, atol=1e-6, rtol=0)


def test_a_row_scores_the_same_whatever_stands_beside_it(model: Net, pool: Tensor) -> None:
    whole = ForwardPass(model, pool, NORMALIZE, batch_size=8).logits()
    part = ForwardPass(model, pool[:5], NORMALIZE, batch_size=8).logits()
    assert torch.equal(part, whole[:5])


def test_interpreted_triton_serves_the_whole_acquisition(model: Net, pool: Tensor) -> None:
    if torch.cuda.is_available():
        model, pool = model.cuda(), pool.cuda()
    first = select(
        model, pool[:12], 4, options=DM2Config.published(k=3), normalize=NORMALIZE, backend="torch", batch_size=12
    )
    second = select(
        model, pool[:12], 4, options=DM2Config.published(k=3), normalize=NORMALIZE, backend="triton", batch_size=12
    )
    torch.testing.assert_close(second.scores, first.scores, atol=1e-6, rtol=0)


def test_draws_follow_the_row_and_the_round(model: Net, pool: Tensor) -> None:
    config = DM2Config.published(mix="random", lam="beta", k=5)
    ids = np.arange(45) + 1000

    def scores(seed: int, round: int, row_ids: object) -> Tensor:
        picked = select(model, pool, 5, options=config, normalize=NORMALIZE, seed=seed, round=round, row_ids=row_ids)
        assert picked.scores is not None
        return picked.scores

    first = scores(1, 2, ids)
    assert torch.equal(scores(1, 2, torch.arange(1000, 1045)), first)
    for other in ((1, 3, ids), (2, 2, ids), (1, 2, None)):
        assert not torch.equal(scores(*other), first)


@pytest.mark.parametrize("config", [DM2Config.published(mix="random", k=5), DM2Config.published(lam="beta", k=5)])
def test_dm2_s_draws_are_those_of_its_round(model: Net, pool: Tensor, config: DM2Config) -> None:
    ids = np.arange(45) + 1000
    for round in (0, 3):
        picked = select(model, pool, 5, options=config, seed=1, round=round, row_ids=ids)
        assert picked.mixture is not None
        wanted = recipe(
            picked.distances, picked.neighbours, config.mix, config.lam, config.alpha, seed=1, round=round, row_ids=ids
        )
        assert torch.equal(torch.as_tensor(picked.mixture.lam), torch.as_tensor(wanted.lam))
        assert torch.equal(picked.mixture.indices, wanted.indices)


def test_offset_skips_the_highest_scores(model: Net, pool: Tensor) -> None:
    every = select(model, pool, 45, options=DM2Config.published(k=3), normalize=NORMALIZE)
    offset = select(model, pool, 10, options=DM2Config.published(k=3, offset=20), normalize=NORMALIZE)
    assert offset.indices.tolist() == every.indices[20:30].tolist()


@pytest.mark.filterwarnings("ignore:45 rows have the same score")
def test_equal_scores_go_to_the_lower_row(pool: Tensor) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean((2, 3)))

    assert select(Constant(), pool, 6, options=DM2Config.published()).indices.tolist() == list(range(6))


class OnlyIntegerArrays:
    """A pool that can do no more than DESIGN asks: len, shape and rising integer-array indexing."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.shape = data, data.shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        assert isinstance(rows, np.ndarray)
        assert (np.diff(rows) > 0).all()
        return self.data[rows]


def test_pools_of_every_kind_give_the_same_picks(model: Net, pool: Tensor, tmp_path) -> None:
    first = select(model, pool, 5, options=DM2Config.published(k=3), normalize=NORMALIZE)
    file = tmp_path / "pool.npy"
    np.save(file, pool.numpy())
    kinds = [pool.numpy(), np.load(file, mmap_mode="r"), OnlyIntegerArrays(pool.numpy())]
    for inputs in kinds:
        picked = select(model, inputs, 5, options=DM2Config.published(k=3), normalize=NORMALIZE)
        assert torch.equal(picked.scores, first.scores)
    last = select(
        model,
        pool.contiguous(memory_format=torch.channels_last),
        5,
        options=DM2Config.published(k=3),
        normalize=NORMALIZE,
    )
    torch.testing.assert_close(last.scores, first.scores, atol=1e-6, rtol=0)


def test_a_small_pool_clamps_k_and_says_so(model: Net, pool: Tensor) -> None:
    with pytest.warns(UserWarning, match="k=10 is clamped to 3: the pool has 4 rows"):
        picked = select(model, pool[:4], 2, options=DM2Config.published())
    assert picked.neighbours.shape == (4, 3)
    with pytest.warns(UserWarning, match="k=10 is clamped to 0: the pool has 1 row$"):
        alone = select(model, pool[:1], 1, options=DM2Config.published(), normalize=NORMALIZE)
    assert alone.neighbours.shape == (1, 0)
    assert torch.equal(alone.scores, ForwardPass(model, pool[:1], NORMALIZE).uncertainty(
        ForwardPass(model, pool[:1], NORMALIZE).logits(), "least-confidence"))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(model, pool[:4], 2, options=DM2Config.published(k=3))


def test_feature_vectors_are_mixed_like_images(model: Net) -> None:
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(5))
    head = nn.Linear(7, 3)
    picked = select(head, x, 4, options=DM2Config.published(k=2, lam=0.25))
    _, neighbours = oracle.knn(x.double().numpy(), 2, "literal")
    mixed = 0.25 * x.double() + 0.75 * x.double()[torch.from_numpy(neighbours)].mean(1)
    expected = 1 - (mixed @ head.weight.double().T + head.bias.double()).softmax(1).amax(1)
    torch.testing.assert_close(picked.scores.double(), expected, atol=1e-6, rtol=0)


def test_half_precision_models_are_served(pool: Tensor, model: Net) -> None:
    exact = select(model, pool, 5, options=DM2Config.published(k=3), normalize=NORMALIZE)
    half = select(model.bfloat16(), pool, 5, options=DM2Config.published(k=3), normalize=NORMALIZE)
    assert half.scores.dtype == torch.float32
    torch.testing.assert_close(half.scores, exact.scores, atol=0.15, rtol=0)


def test_the_head_is_the_last_linear_layer_executed_whose_output_is_the_logits(model: Net) -> None:
    batch = torch.rand(2, 3, 6, 6)

    class Outer(nn.Module):
        """The head is registered first and executed last."""

        def __init__(self) -> None:
            super().__init__()
            self.classify = nn.Linear(5, 3)
            self.inner = nn.Linear(108, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.classify(self.inner(x.flatten(1)))

    outer = Outer().eval()
    assert find_head(model.eval(), batch) is model.head
    assert find_head(outer, batch) is outer.classify
    assert find_head(outer, batch, "inner") is outer.inner
    assert find_head(outer, batch, outer.inner) is outer.inner


class NoHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 5, 6)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten(self.body(x))


def test_a_named_module_gives_its_flattened_input_as_features(pool: Tensor) -> None:
    features, logits = ForwardPass(NoHead(), pool, head="body").features_and_logits()
    assert features.shape == (45, 108)
    assert logits.shape == (45, 5)


class Returning(nn.Module):
    def __init__(self, value) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor):
        return self.value(x)


def nan_in_row(row: int) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.where(x[:, :1, 0, 0] == row, torch.nan, x.mean((2, 3))))

    return Model()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": 0}, ValueError, r"budget must be in \[1, 45\] for a pool of 45 rows, got 0"),
        ({"pool": torch.utils.data.TensorDataset(torch.zeros(0, 3, 6, 6))}, ValueError, "pool has no rows"),
        ({"budget": 46}, ValueError, r"budget must be in \[1, 45\] for a pool of 45 rows, got 46"),
        ({"options": DM2Config(offset=40)}, ValueError, r"offset must be at most 35 for budget 10 of 45 rows, got 40"),
        ({"pool": torch.zeros(0, 3, 6, 6)}, ValueError, r"inputs must be a non-empty \(m, ...\) pool.*\(0, 3"),
        ({"pool": torch.zeros(45)}, ValueError, r"inputs must be a non-empty \(m, ...\) pool, got shape \(45,\)"),
        ({"pool": torch.zeros(45, 3, 6, 6, dtype=torch.int32)}, TypeError, "inputs must be uint8 or floating point"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, triton, cpp, torch, got 'cuda'"),
        ({"row_ids": np.arange(44)}, ValueError, r"row_ids must be 45 integers, got shape \(44,\)"),
        ({"normalize": ((0.1, 0.2), (1.0, 1.0))}, ValueError, "normalize must give 1 or 3 values of mean, got 2"),
        ({"normalize": (0.5, 0.0)}, ValueError, "normalize must be finite with positive std"),
        ({"head": "nothing"}, ValueError, "head must name a module of the model, got 'nothing'"),
        ({"head": nn.Linear(1, 1)}, ValueError, "head must be a module of the model, got a Linear"),
        ({"model": NoHead()}, ValueError, r"model must have a linear layer whose output is the logits.*head=.*body"),
        ({"model": Returning(lambda x: x)}, ValueError, r"model must return \(n, C\) logits.*\(256, 3, 6, 6\)"),
        ({"model": Returning(lambda x: x[:, 0, 0, :1])}, ValueError, r"at least two classes, got shape \(256, 1\)"),
        ({"model": Returning(lambda x: (x, x))}, TypeError, r"model must return a tensor of .* logits, got a tuple"),
        ({"model": nan_in_row(37), "pool": torch.arange(45.0).view(-1, 1, 1, 1).expand(45, 3, 6, 6)},
         ValueError, "logits of the model must be finite, got NaN or infinity in row 37"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(model: Net, pool: Tensor, change: dict, error: type, message: str) -> None:
    arguments = {"model": model, "pool": pool, "budget": 10} | change
    with pytest.raises(error, match=message):
        select(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 1.5}, r"lam must be in \[0, 1\] or 'beta', got 1.5"),
        ({"lam": -0.1}, r"lam must be in \[0, 1\] or 'beta', got -0.1"),
        ({"lam": float("nan")}, r"lam must be in \[0, 1\] or 'beta', got nan"),
        ({"lam": "gamma"}, r"lam must be in \[0, 1\] or 'beta', got 'gamma'"),
        ({"alpha": 0.0}, "alpha must be positive and finite, got 0.0"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"offset": -1}, "offset must be at least 0, got -1"),
        ({"metric": "cosine"}, "metric must be one of literal, rms, l1, l2, got 'cosine'"),
        ({"mix": "max"}, "mix must be one of mean, random, weighted, got 'max'"),
        ({"score": "gap"}, "score must be one of least-confidence, entropy, margin, got 'gap'"),
        ({"batch": "random"}, "batch must be one of highest, kmeans, spread, got 'random'"),
    ],
)
def test_wrong_options_are_named_at_the_door(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DM2Config(**options)


def test_the_core_loads_only_torch_and_numpy() -> None:
    heavy = ("triton", "torchvision", "sklearn", "scipy", "matplotlib", "jsonargparse", "yaml", "dm2_fast.experiment")
    code = f"import sys, dm2_fast; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_unknown_attributes_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'dm2_fast' has no attribute 'nothing'"):
        _ = dm2_fast.nothing

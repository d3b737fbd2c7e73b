"""On a GPU only: the shipped tiles at sizes that no interpreter reaches. `make gpu` runs these, and all tests named
triton, which without a GPU run interpreted."""

import pytest
import torch
from oracle import assert_knn_close
from torch import Tensor

import dm2_fast
import dm2_fast.ops

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

"""`dm2_fast.knn` against the plain C++ loop over float32 rows, on every kind of rows: it should hardly be slower.

    python benches/knn_kinds.py [--features FILE.npy] [--rows M] [--numbers N] [--dims D ...] [--metrics NAME ...]
        [--kinds NAME ...]

Both find the k nearest in turn, several times. The plain loop does so for Q query rows among all rows; its seconds are
scaled by M / Q, and its answers must be those of dm2_fast.knn, bit for bit. Rows of many dimensions are fewer: at most
N numbers in all. Prints medians: wall seconds, their ratio,
and the ratio of CPU seconds, which other work on the machine disturbs less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import dm2_fast
from dm2_fast.experiment.machine import header
from dm2_fast.operations import cpp
from dm2_fast.operations.knn import Metric, weights

Generator = np.random.Generator


def gauss(rng: Generator, m: int, d: int) -> np.ndarray:
    return rng.standard_normal((m, d), np.float32)


def relu(rng: Generator, m: int, d: int) -> np.ndarray:
    x: np.ndarray = np.maximum(gauss(rng, m, 16) @ gauss(rng, 16, d) / 4 + gauss(rng, m, d) / 2 - 1, 0)
    return x


def clusters(rng: Generator, m: int, d: int) -> np.ndarray:
    return relu(rng, 64, d)[rng.integers(0, 64, m)] + gauss(rng, m, d) / 100


def constant(rng: Generator, m: int, d: int) -> np.ndarray:
    return np.ones((m, d), np.float32)


def duplicates(rng: Generator, m: int, d: int) -> np.ndarray:
    return relu(rng, m // 100, d)[rng.integers(0, m // 100, m)]


def outlier(rng: Generator, m: int, d: int) -> np.ndarray:
    x = relu(rng, m, d)
    x[m // 2, d // 2] = 1e9
    return x


def scales(rng: Generator, m: int, d: int) -> np.ndarray:
    x: np.ndarray = relu(rng, m, d) * rng.choice(np.array([1e-35, 1e-18, 1, 1e18, 1e35], np.float32), (m, 1))
    return x


def zero_rows(rng: Generator, m: int, d: int) -> np.ndarray:
    return relu(rng, m, d) * (rng.random((m, 1)) < 0.7)


def every_other_column(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((len(x), 2 * x.shape[1]), x.dtype)
    wide[:, ::2] = x
    return wide[:, ::2]


# name: (rows, what the search is given)
KINDS: dict[str, tuple[Callable[[Generator, int, int], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "Gaussian noise": (gauss, np.asarray),
    "sparse ReLU": (relu, np.asarray),
    "tight clusters": (clusters, np.asarray),
    "constant rows": (constant, np.asarray),
    "100 copies of each row": (duplicates, np.asarray),
    "one giant outlier": (outlier, np.asarray),
    "tiny and huge rows": (scales, np.asarray),
    "30 % zero rows": (zero_rows, np.asarray),
    "float16": (relu, lambda x: x.astype(np.float16)),
    "every other column": (relu, every_other_column),
    "column-major": (relu, np.asfortranarray),
    "queries": (relu, np.asarray),
}


def real(file: Path) -> Callable[[Generator, int, int], np.ndarray]:
    """Random rows of the file, their columns added up with random signs to d dimensions; none where that cannot be."""

    def rows(rng: Generator, m: int, d: int) -> np.ndarray:
        x: np.ndarray = np.load(file)
        if x.shape[1] % d:
            return x[:0]
        signs = np.array([-1, 1] if d < x.shape[1] else [1], np.float32)
        x = x[rng.permutation(len(x))[:m]] * rng.choice(signs, x.shape[1])
        summed: np.ndarray = x.reshape(len(x), d, -1).sum(2, dtype=np.float32)
        return summed

    return rows


def clock(call: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, x: np.ndarray, held: np.ndarray, metric: Metric, args: argparse.Namespace) -> None:
    m, k = len(x), args.k
    asked = np.random.default_rng(1).permutation(m)[: args.sample]
    queries = None
    if name == "queries":  # a tenth of the rows, moved a little, against the others
        queries, x = x[: m // 10] * np.float32(1.01) + np.float32(1e-3), x[m // 10 :]
        held, asked = x, asked[asked < len(queries)]
    of = x if queries is None else queries
    rows, some = torch.from_numpy(x.astype(held.dtype).astype(np.float32)), torch.from_numpy(asked)
    everyone = torch.arange(len(x))
    ids = some if queries is None else torch.full((len(some),), -1)

    def unit(rows: Tensor) -> Tensor:
        norm = rows.double().norm(dim=1)
        return torch.where(norm > 0, 1 / norm, 0).float()

    plain_rows = (
        rows
        if name != "tiny and huge rows"
        else torch.from_numpy(np.ldexp(x, -np.frexp(np.abs(x).max(1, keepdims=True))[1]))
    )
    plain_asked = plain_rows[some] if queries is None else torch.from_numpy(queries)[some]
    scale, asked_scale = unit(plain_rows), unit(plain_asked)
    answers = []

    def ours() -> None:
        distances, indices = dm2_fast.knn(held, k, metric, queries=queries)
        answers.append((distances[some], indices[some]))

    def plain() -> None:
        best = torch.full((len(some), k), torch.inf), torch.full((len(some), k), torch.iinfo(torch.int64).max)
        w = weights(metric, x.shape[1])
        cpp.knn(plain_asked, asked_scale, ids, plain_rows, scale, everyone, *best, *w, levels="plain")
        answers.append(best)

    times = [clock(ours) + clock(plain) for _ in range(args.repeats)]
    for answer in answers:
        assert all(torch.equal(*pair) for pair in zip(answer, answers[0], strict=True)), f"{name}: not equal"
    scaled = len(of) / len(some)
    wall = statistics.median(t[0] for t in times), scaled * statistics.median(t[2] for t in times)
    ratio = scaled * statistics.median(t[2] / t[0] for t in times)
    cpu = scaled * statistics.median(t[3] / t[1] for t in times)
    shape = f"{name} | {metric} | {m} | {x.shape[1]}"
    print(f"| {shape} | {wall[0]:.2f} | {wall[1]:.2f} | {ratio:.2f} | {cpu:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=Path("data/cifar10_features.npy"))
    parser.add_argument("--rows", type=int, default=20000, metavar="M")
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 512, 4096, 16384, 65536])
    parser.add_argument("--numbers", type=int, default=2**27, metavar="N")
    parser.add_argument("--metrics", nargs="+", default=["literal", "rms", "l1", "l2"])
    parser.add_argument("--kinds", nargs="+", default=["real features", *KINDS])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--sample", type=int, default=1000, metavar="Q", help="query rows of the plain loop")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(header(torch.device("cpu")))
    kinds = {"real features": (real(args.features), np.asarray)} | KINDS
    print(
        f"at most {args.rows} rows, k = {args.k}, {torch.get_num_threads()} threads; "
        f"plain loop on {args.sample} query rows\n"
    )
    print("| kind | metric | rows | d | seconds | plain loop | ratio | in CPU seconds |\n|" + " --- |" * 8)
    for name in args.kinds:
        make, hold = kinds[name]
        for d in args.dims:
            x = make(np.random.default_rng(0), min(args.rows, args.numbers // d), d)
            for metric in args.metrics if len(x) else ():
                compare(name, x, hold(x), metric, args)


if __name__ == "__main__":
    main()

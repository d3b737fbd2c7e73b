"""What a user could run instead of `dm2_fast.knn`, on the same rows in one run.

    python benches/knn_peers.py --features FILE.npy [--k K] [--rows M] [--sample Q] [--num-threads N] [--device cuda]
    python benches/knn_peers.py --gauss M D

Prints seconds, their ratio to ours, peak memory beyond the features, and recall against ours. Ours searches for all
rows, median of three runs where these take less than a minute; the others for Q query rows among all rows, once, and
their seconds are scaled by M / Q. Each runs in its own process.
"""

import argparse
import importlib.util
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from process import in_fresh_process
from torch import Tensor

import dm2_fast
from dm2_fast.experiment.machine import header
from dm2_fast.operations.knn import weights
from dm2_fast.paper.clock import measured

Answer = tuple[np.ndarray, np.ndarray]
LARGEST = np.iinfo(np.int64).max
device = torch.device("cpu")  # or that of --device


def on_device(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x).to(device)


def ours(x: np.ndarray, queries: np.ndarray, k: int) -> Answer:
    distances, indices = dm2_fast.knn(on_device(x), k)
    return distances.cpu().numpy()[queries], indices.cpu().numpy()[queries]


def plain(x: np.ndarray, queries: np.ndarray, k: int) -> Answer:
    """The plain C++ loop, every pair of a query and a row."""
    from dm2_fast.operations import cpp

    rows, asked = torch.from_numpy(x), torch.from_numpy(queries)
    scale = (1 / rows.double().norm(dim=1)).float()
    ids = torch.arange(len(x))
    best = torch.full((len(queries), k), torch.inf), torch.full((len(queries), k), LARGEST)
    w = weights("literal", x.shape[1])
    cpp.knn(rows[asked], scale[asked], asked, rows, scale, ids, *best, *w, levels="plain")
    return best[0].numpy(), best[1].numpy()


def _nearest(distances: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distances[torch.arange(len(queries), device=queries.device), queries] = torch.inf
    return distances.topk(k, largest=False)


def cdist(x: np.ndarray, queries: np.ndarray, k: int) -> Answer:
    rows, d = F.normalize(on_device(x)), x.shape[1]
    found = []
    for part in on_device(queries).split(500):
        l1 = torch.cdist(rows[part], rows, p=1)
        l2 = torch.cdist(rows[part], rows, p=2, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(_nearest((l1 + l2) / (2 * d), part, k))
    return torch.cat([f[0] for f in found]).cpu().numpy(), torch.cat([f[1] for f in found]).cpu().numpy()


def faiss_l1(x: np.ndarray, queries: np.ndarray, k: int) -> Answer:
    """The 4 k + 1 nearest by L1, then the exact distance of those."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    rows, d = F.normalize(torch.from_numpy(x)), x.shape[1]
    index = faiss.IndexFlat(d, faiss.METRIC_L1)
    if device.type == "cuda":
        index = faiss.index_cpu_to_all_gpus(index)  # of a faiss that was built for GPUs
    index.add(rows.numpy())
    _, near = index.search(rows[queries].numpy(), 4 * k + 1)
    found = []
    for query, ids in zip(torch.from_numpy(queries), torch.from_numpy(near), strict=True):
        difference = rows[query] - rows[ids]
        distance = (difference.abs().sum(1) + difference.norm(dim=1)) / (2 * d)
        distance[ids == query] = torch.inf
        best = distance.topk(k, largest=False)
        found.append((best.values, ids[best.indices]))
    return torch.stack([f[0] for f in found]).numpy(), torch.stack([f[1] for f in found]).numpy()


def _compiled() -> tuple[Any, Any]:
    """The distance of two rows by numba, for usearch and for the loop in numba."""
    import numba

    @numba.njit(fastmath=True)  # type: ignore[untyped-decorator]
    def distance(a: Any, b: Any, d: Any) -> Any:
        l1 = numba.float32(0)
        l2 = numba.float32(0)
        for t in range(d):
            difference = a[t] - b[t]
            l1 += abs(difference)
            l2 += difference * difference
        return (l1 + np.sqrt(l2)) / (2 * d)

    return numba, distance


def usearch_exact(x: np.ndarray, queries: np.ndarray, k: int) -> Answer:
    from usearch.index import CompiledMetric, MetricKind, MetricSignature, search

    numba, distance = _compiled()
    d = x.shape[1]
    pointer = numba.types.CPointer(numba.types.float32)

    @numba.cfunc(numba.types.float32(pointer, pointer))  # type: ignore[untyped-decorator]
    def metric(a: Any, b: Any) -> Any:
        return distance(numba.carray(a, (d,)), numba.carray(b, (d,)), d)

    rows = F.normalize(torch.from_numpy(x)).numpy()
    compiled = CompiledMetric(pointer=metric.address, kind=MetricKind.L2sq, signature=MetricSignature.ArrayArray)
    matches = search(rows, rows[queries], k + 1, compiled, exact=True, threads=torch.get_num_threads())
    keep = matches.keys != queries[:, None].astype(matches.keys.dtype)
    keep[keep.all(1), -1] = False  # more than k copies of the query before itself
    return matches.distances[keep].reshape(-1, k), matches.keys[keep].reshape(-1, k).astype(np.int64)


def numba_loop(x: np.ndarray, queries: np.ndarray, k: int) -> Answer:
    numba, distance = _compiled()

    @numba.njit(parallel=True)  # type: ignore[untyped-decorator]
    def all_distances(rows: Any, asked: Any, out: Any) -> None:
        for q in numba.prange(len(asked)):
            for j in range(len(rows)):
                out[q, j] = distance(rows[asked[q]], rows[j], rows.shape[1])

    rows = F.normalize(torch.from_numpy(x)).numpy()
    out = np.empty((len(queries), len(x)), np.float32)
    all_distances(rows, queries, out)
    best = _nearest(torch.from_numpy(out), torch.from_numpy(queries), k)
    return best[0].numpy(), best[1].numpy()


def keops(x: np.ndarray, queries: np.ndarray, k: int) -> Answer:
    from pykeops.torch import LazyTensor

    rows, d, asked = F.normalize(on_device(x)), x.shape[1], on_device(queries)
    difference = LazyTensor(rows[asked][:, None]) - LazyTensor(rows[None])
    distance = (difference.abs().sum(-1) + (difference**2).sum(-1).sqrt()) / (2 * d)
    values, ids = distance.Kmin_argKmin(k + 1, dim=1)
    keep = ids != asked[:, None]
    keep[keep.all(1), -1] = False
    return values[keep].reshape(-1, k).cpu().numpy(), ids[keep].reshape(-1, k).cpu().numpy()


def sklearn_manhattan(x: np.ndarray, queries: np.ndarray, k: int) -> Answer:
    from sklearn.neighbors import NearestNeighbors

    rows = F.normalize(torch.from_numpy(x)).numpy()
    model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric="manhattan", n_jobs=torch.get_num_threads())
    distances, ids = model.fit(rows).kneighbors(rows[queries])
    return distances[:, 1:], ids[:, 1:]


# name, function, the package it needs, and whether it runs on a GPU
PEERS: tuple[tuple[str, Callable[[np.ndarray, np.ndarray, int], Answer], str, bool], ...] = (
    ("dm2_fast.knn", ours, "dm2_fast", True),
    ("plain C++ loop", plain, "dm2_fast", False),
    ("torch.cdist x 2 + topk", cdist, "torch", True),
    ("faiss METRIC_L1 top 4k + re-rank", faiss_l1, "faiss", True),
    ("usearch exact, compiled metric", usearch_exact, "usearch", False),
    ("numba", numba_loop, "numba", False),
    ("pykeops", keops, "pykeops", True),
    ("scikit-learn, manhattan only", sklearn_manhattan, "sklearn", False),
)


def load(args: argparse.Namespace) -> np.ndarray:
    if args.gauss:
        m, d = map(int, args.gauss)
        return np.random.default_rng(0).standard_normal((m, d), np.float32)
    x: np.ndarray = np.load(args.features)
    return np.ascontiguousarray(x[: args.rows], dtype=np.float32)


def run(index: int, args: argparse.Namespace, queries: np.ndarray) -> tuple[float, int, Answer]:
    """Run one peer on a few rows to warm up, then for the clock: seconds, peak memory and its answer."""
    global device
    torch.set_num_threads(args.num_threads)
    device, peer = torch.device(args.device), PEERS[index][1]
    x = load(args)
    peer(x[:2000], np.arange(16), min(args.k, 100))  # compile, start threads
    times: list[float] = []
    peaks: list[int] = []
    while not times or (peer is ours and len(times) < 3 and sum(times) < 40):
        answer, seconds, peak = measured(lambda: peer(x, queries, args.k), device)
        times.append(seconds)
        peaks.append(peak)
    return statistics.median(times), max(peaks), answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=Path("data/cifar10_features.npy"))
    parser.add_argument("--gauss", type=int, nargs=2, metavar=("M", "D"), help="Gaussian noise instead of a file")
    parser.add_argument("--rows", type=int, help="the first rows only")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--sample", type=int, default=1000, help="query rows of the peers")
    parser.add_argument("--num-threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cuda, for those that run on a GPU")
    args = parser.parse_args()
    print(header(torch.device(args.device)))
    m, d = load(args).shape
    queries = np.sort(np.random.default_rng(1).choice(m, min(m, args.sample), replace=False))
    where = platform.machine() if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    print(f"{m} x {d}, k = {args.k}, {args.num_threads} threads, {where}, torch {torch.__version__};")
    print(f"peers on {len(queries)} query rows, seconds scaled to all\n")
    print("| | seconds | times ours | peak memory, MB | recall |\n| --- | --- | --- | --- | --- |")
    mine: tuple[float, np.ndarray] | None = None
    for index, (name, peer, package, on_gpu) in enumerate(PEERS):
        if args.device != "cpu" and not on_gpu:
            continue
        if importlib.util.find_spec(package) is None:
            print(f"| {name} | not installed | | | |", flush=True)
            continue
        try:
            seconds, memory, (_, ids) = in_fresh_process(run, index, args, queries)
        except Exception as error:
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            print(f"| {name} | cannot run: {reason} | | | |", flush=True)
            continue
        seconds *= 1 if peer is ours else m / len(queries)
        mine = mine or (seconds, ids)
        recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(ids, mine[1], strict=True)]) / args.k
        print(f"| {name} | {seconds:.2f} | {seconds / mine[0]:.1f} | {memory / 2**20:.0f} | {recall:.4f} |", flush=True)


if __name__ == "__main__":
    main()

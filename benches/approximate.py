"""Approximate neighbours against the exact search and against what a user could run instead, at equal recall.

    python benches/approximate.py --features FILE.npy [--rows M ...] [--mix] [--recall R] [--peers] [--without-exact]
                                  [--num-threads N]
    python benches/approximate.py --kinds           # every kind of rows of knn_kinds.py reaches the recall, or is exact
    python benches/approximate.py --picks --features FILE.npy   # what the recall does to the choice of DM2

Prints CPU seconds, their ratio to those of the exact search, recall@10 on 1,000 rows other than those of the audit, and
peak memory beyond the features, for each row. Each method runs in its own process, in turn, so that all see the same
machine; norms are counted everywhere, compiling and loading are not. The peers search by L1, and what
they find is put in order by the distance itself, which is not counted.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from knn_kinds import KINDS
from process import in_fresh_process
from shards import rows_of

import dm2_fast
from dm2_fast import DM2Config, Neighbours
from dm2_fast.experiment.machine import header
from dm2_fast.operations.audit import recall_of
from dm2_fast.operations.knn import Metric
from dm2_fast.paper.clock import measured

K = 10
Found = tuple[np.ndarray, str]  # neighbours of the sample, and a word on how


def exact(x: np.ndarray, sample: np.ndarray, args: argparse.Namespace) -> Found:
    return dm2_fast.knn(x, K, num_threads=args.num_threads)[1].numpy()[sample], ""


def ours(x: np.ndarray, sample: np.ndarray, args: argparse.Namespace) -> Found:
    index = Neighbours(x, recall=args.recall, num_threads=args.num_threads)
    found = index.graph(K)[1].numpy()[sample]
    assert index.audit is not None
    return found, index.audit.why


def pynndescent(neighbours: int) -> Callable[..., Found]:
    def search(x: np.ndarray, sample: np.ndarray, args: argparse.Namespace) -> Found:
        from pynndescent import NNDescent

        rows = F.normalize(torch.from_numpy(x)).numpy()
        graph = NNDescent(
            rows, metric="manhattan", n_neighbors=neighbours + 1, random_state=0, n_jobs=args.num_threads
        ).neighbor_graph
        return graph[0][sample], ""

    return search


def faiss_hnsw(x: np.ndarray, sample: np.ndarray, args: argparse.Namespace) -> Found:
    """Its CPU seconds are those of building and of the sample's search; the word says what all rows' search adds."""
    import faiss

    faiss.omp_set_num_threads(args.num_threads)
    rows = F.normalize(torch.from_numpy(x)).numpy()
    index = faiss.IndexHNSWFlat(x.shape[1], 16, faiss.METRIC_L1)
    index.hnsw.efSearch = 32
    index.add(rows)
    start = time.process_time()
    found = index.search(rows[sample], K + 4)[1]
    return found, f"search of all rows: {(time.process_time() - start) * len(x) / len(sample):.1f} more"


METHODS: tuple[tuple[str, Callable[..., Found], str], ...] = (
    ("exact engine", exact, ""),
    ("dm2_fast, recall", ours, ""),
    ("pynndescent, 15 neighbours", pynndescent(15), "pynndescent"),
    ("pynndescent, 20 neighbours", pynndescent(20), "pynndescent"),
    ("pynndescent, 25 neighbours", pynndescent(25), "pynndescent"),
    ("faiss HNSW, L1", faiss_hnsw, "faiss"),
)


def drawn(rows: int) -> np.ndarray:
    """1,000 rows, ascending, other than those of the audit."""
    return np.sort(np.random.default_rng(99).choice(rows, 1000, replace=False))


def recall_of_some(
    rows: torch.Tensor, some: np.ndarray, found: np.ndarray, k: int, metric: Metric = "literal"
) -> float:
    """The recall of the neighbours that were found of some rows, and more; a row that found itself is left out."""
    nearest = []
    for row, near in zip(some.tolist(), found, strict=True):
        ids = torch.from_numpy(near[near != row].astype(np.int64))
        nearest.append(dm2_fast.pairwise(rows[[row]], rows[ids], metric=metric)[0].sort().values[:k])
    truth = Neighbours(rows, metric).of(torch.from_numpy(some), k)[0]
    return float(recall_of(torch.stack(nearest), truth).mean())


def measure(index: int, m: int, args: argparse.Namespace) -> tuple[float, float, float, str]:
    """CPU seconds, recall, bytes a row beyond the features, and a word on how."""
    torch.set_num_threads(args.num_threads)
    x = rows_of(args.features, m, args.mix).numpy()
    sample = drawn(m)
    search = METHODS[index][1]
    if METHODS[index][2] == "pynndescent":
        search(x[:3000], sample[:0], args)  # compiles
    start = time.process_time()
    (found, word), _, memory = measured(lambda: search(x, sample, args))
    seconds = time.process_time() - start
    return seconds, recall_of_some(torch.from_numpy(x), sample, found, K), memory / m, word


def table(args: argparse.Namespace) -> None:
    print(
        "| rows | d | method | CPU s | of exact | recall@10 | bytes a row | how |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    most, d = np.load(args.features, mmap_mode="r").shape
    for m in args.rows or [most]:
        first = None
        for index, (name, search, package) in enumerate(METHODS):
            if package and not (args.peers and importlib.util.find_spec(package)):
                continue
            if search is exact and args.without_exact:
                continue
            seconds, recall, memory, word = in_fresh_process(measure, index, m, args)
            first = first or seconds
            label = f"{name} {args.recall}" if name.endswith("recall") else name
            of_exact = "" if args.without_exact else f"1/{first / seconds:.1f}"
            cells = m, d, label, f"{seconds:.1f}", of_exact, f"{recall:.4f}", f"{memory:.0f}", word
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def kinds(args: argparse.Namespace) -> None:
    print("| rows | path | recall of all rows | bound | CPU s |\n| --- | --- | --- | --- | --- |")
    for name, (make, held) in KINDS.items():
        if name == "queries":
            continue
        x = held(make(np.random.default_rng(0), args.kind_rows, 128))
        index = Neighbours(x, recall=args.recall, num_threads=args.num_threads)
        start = time.process_time()
        distances = index.graph(K)[0]
        seconds = time.process_time() - start
        recall = float(recall_of(distances, dm2_fast.knn(x, K, num_threads=args.num_threads)[0]).mean())
        assert index.audit is not None
        print(f"| {name} | {index.audit.path} | {recall:.4f} | {index.audit.bound:.4f} | {seconds:.1f} |", flush=True)
        assert recall >= args.recall, name


def picks(args: argparse.Namespace) -> None:
    """The overlap of what DM2 chooses from the features, with a random linear head, at several recalls."""
    x = np.ascontiguousarray(np.load(args.features, mmap_mode="r")[: (args.rows or [100_000])[0]], dtype=np.float32)
    torch.manual_seed(0)
    head, budget = torch.nn.Linear(x.shape[1], 10), len(x) // 50
    head.weight.data *= 4 / head.weight.data.norm(dim=1, keepdim=True)
    want = set(dm2_fast.select(head, x, budget, options=DM2Config.published()).indices.tolist())
    print("| recall asked | recall | overlap with the exact choice |\n| --- | --- | --- |")
    for recall in (0.5, 0.8, 0.9, 0.95, 0.98):
        got = dm2_fast.select(head, x, budget, options=DM2Config.published(recall=recall))
        assert got.audit is not None
        overlap = len(want & set(got.indices.tolist())) / budget
        print(f"| {recall} | {got.audit.recall:.4f} ({got.audit.path}) | {overlap:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", help="the first rows only, one table for each number")
    parser.add_argument("--mix", action="store_true", help="so many averages of two random rows instead")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--peers", action="store_true", help="also what is installed of pynndescent and faiss")
    parser.add_argument("--without-exact", action="store_true", help="leave out the exact search, which takes longest")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--kind-rows", type=int, default=60_000)
    parser.add_argument("--picks", action="store_true")
    parser.add_argument("--num-threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    print(header(torch.device("cpu")))
    if args.kinds:
        kinds(args)
    elif args.features is None:
        parser.error("--features is missing")
    elif args.picks:
        picks(args)
    else:
        table(args)


if __name__ == "__main__":
    main()

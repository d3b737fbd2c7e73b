"""Neighbours over several processes, and within less memory, against one process: CPU seconds of all of them, seconds,
and megabytes that one process sends.

    python benches/shards.py --features FILE.npy [--mix] [--rows M ...] [--processes P ...] [--memory SIZE ...]
                             [--recall R]

With --recall they are approximate, else exact. Each process has one thread; the graphs are compared, bit for bit. With
--mix the rows are averages of two random ones. With --memory they are read from a file that is mapped.
"""

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from process import in_fresh_process

import dm2_fast
from dm2_fast.distributed import ring
from dm2_fast.distributed.group import Group
from dm2_fast.experiment.machine import header


def rows_of(file: Path, rows: int, mix: bool) -> torch.Tensor:
    """The first rows of a file, or so many averages of two of its rows."""
    x = np.load(file, mmap_mode="r")
    if not mix:
        assert rows <= len(x), f"{file} has {len(x)} rows: use --mix"
        return torch.from_numpy(np.array(x[:rows], np.float32))
    pairs = np.random.default_rng(rows).integers(0, len(x), (rows, 2))
    base = np.array(x, np.float32)
    return torch.from_numpy((base[pairs[:, 0]] + base[pairs[:, 1]]) / 2)


def work(rank: int, size: int, port: int, args: argparse.Namespace, rows: int, pipe: Connection) -> None:
    """One process: its CPU seconds, seconds, bytes sent, and the graph of its rows."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    x = rows_of(args.features, rows, args.mix)[rows * rank // size : rows * (rank + 1) // size].clone()
    moved, start, concatenate = 0, Group.start, Group.concatenate

    def counted(self: Group, sent, to, received, source):  # type: ignore[no-untyped-def]
        nonlocal moved
        moved += sum(t.numel() * t.element_size() for t in sent)
        return start(self, sent, to, received, source)

    def counted_to_all(self: Group, rows, counts=None):  # type: ignore[no-untyped-def]
        nonlocal moved
        moved += (size - 1) * rows.numel() * rows.element_size()
        return concatenate(self, rows, counts)

    ring.knn(x[:1000], args.k, recall=args.recall)  # loads what torch loads when it is first asked, and connects
    Group.start, Group.concatenate = counted, counted_to_all  # type: ignore[method-assign]
    dist.barrier()
    cpu, wall = time.process_time(), time.perf_counter()
    found = ring.knn(x, args.k, recall=args.recall)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    pipe.send((cpu, wall, moved, [t.numpy() for t in found]))
    dist.destroy_process_group()


def within(file: Path, k: int, recall: float | None, memory: str) -> tuple[float, float, list[np.ndarray]]:
    """CPU seconds, seconds, and the graph."""
    torch.set_num_threads(1)
    x = np.load(file, mmap_mode="r")
    dm2_fast.knn(np.array(x[:1000]), k)
    cpu, wall = time.process_time(), time.perf_counter()
    found = dm2_fast.knn(x, k, recall=recall, memory=memory)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu, wall, [part.numpy().copy() for part in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--mix", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--memory", nargs="*", default=[], metavar="SIZE")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--recall", type=float)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header(torch.device("cpu")))
    print("| rows | search | CPU s of all | of one | s | MB sent by one |")
    print("|---|---|---|---|---|---|")
    for rows in args.rows:
        x = rows_of(args.features, rows, args.mix)
        dm2_fast.knn(x[:1000], args.k)
        cpu, wall = time.process_time(), time.perf_counter()
        expected = dm2_fast.knn(x, args.k, recall=args.recall)
        alone, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(f"| {rows} | `dm2_fast.knn` | {alone:.1f} | | {wall:.1f} | |", flush=True)
        for memory in args.memory:
            with tempfile.TemporaryDirectory() as folder:
                np.save(Path(folder, "x.npy"), x.numpy())
                cpu, wall, graph = in_fresh_process(within, Path(folder, "x.npy"), args.k, args.recall, memory)
            assert all(np.array_equal(part, want.numpy()) for part, want in zip(graph, expected, strict=True))
            print(f"| {rows} | memory={memory} | {cpu:.1f} | {cpu / alone:.2f} | {wall:.1f} | |", flush=True)
        del x
        for size in args.processes:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            context = multiprocessing.get_context("spawn")
            pipes = [context.Pipe(duplex=False) for _ in range(size)]
            workers = [
                context.Process(target=work, args=(rank, size, port, args, rows, sender))
                for rank, (_, sender) in enumerate(pipes)
            ]
            for worker in workers:
                worker.start()
            found = [receiver.recv() for receiver, _ in pipes]
            for worker in workers:
                worker.join()
            for part, want in enumerate(expected):
                assert np.array_equal(np.concatenate([graph[part] for *_, graph in found]), want.numpy())
            cpu = sum(one[0] for one in found)
            wall, moved = (max(one[i] for one in found) for i in (1, 2))
            ratio = f"{cpu / alone:.2f}"
            sent = f"{moved / 1e6:.0f}"
            print(f"| {rows} | {size} processes | {cpu:.1f} | {ratio} | {wall:.1f} | {sent} |", flush=True)


if __name__ == "__main__":
    main()

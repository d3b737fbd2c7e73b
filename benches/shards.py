"""Exact neighbours over several processes against one process: CPU seconds of all of them, seconds, bytes moved.

    python benches/shards.py --features FILE.npy [--mix] [--rows M ...] [--processes P ...]

Each process has one thread; the graphs are compared, bit for bit. With --mix the rows are averages of two random ones.
"""

import argparse
import multiprocessing
import os
import resource
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import dm2_fast
from dm2_fast.distributed import ring
from dm2_fast.distributed.group import Group


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
    """One process: its CPU seconds, seconds, bytes sent, largest memory, and the graph of its rows."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    x = rows_of(args.features, rows, args.mix)[rows * rank // size : rows * (rank + 1) // size].clone()
    moved, start = 0, Group.start

    def counted(self: Group, sent, to, received, source):  # type: ignore[no-untyped-def]
        nonlocal moved
        moved += sum(t.numel() * t.element_size() for t in sent)
        return start(self, sent, to, received, source)

    Group.start = counted  # type: ignore[method-assign]
    dist.barrier()
    cpu, wall = time.process_time(), time.perf_counter()
    found = ring.knn(x, args.k)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send((cpu, wall, moved, peak, [t.numpy() for t in found]))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--mix", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("-k", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| rows | processes | CPU s of all | of one | s | MB sent by one | MB of memory of one |")
    print("|---|---|---|---|---|---|---|")
    for rows in args.rows:
        x = rows_of(args.features, rows, args.mix)
        cpu, wall = time.process_time(), time.perf_counter()
        expected = dm2_fast.knn(x, args.k)
        alone, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(f"| {rows} | `dm2_fast.knn` | {alone:.1f} | | {wall:.1f} | | |", flush=True)
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
            wall, moved, memory = (max(one[i] for one in found) for i in (1, 2, 3))
            ratio = f"{cpu / alone:.2f}"
            print(
                f"| {rows} | {size} | {cpu:.1f} | {ratio} | {wall:.1f} | {moved / 1e6:.0f} | {memory:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()

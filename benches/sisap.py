"""Approximate neighbours of rows that have the shape of a task of SISAP's challenge: unit rows, nearest by dot product.

    python benches/sisap.py [--rows M] [--width D] [--latent L] [-k K] [--recall R ...] [--num-threads N]

The order by dot product is that of `metric="l2"`. The data of the tasks are not here: the rows are normal in L
dimensions, put into D at random, float16. So the seconds say what the shape costs, not the data: the recall that a
number of meetings reaches depends on how the rows lie. Recall is that of 1,000 rows other than those of the audit.
"""

import argparse
import time

import torch
from approximate import drawn, recall_of_some
from process import in_fresh_process

import dm2_fast
from dm2_fast import Neighbours
from dm2_fast.experiment.machine import header
from dm2_fast.paper.clock import measured

Found = tuple[float, float, float, float, str]


def unit_rows(rows: int, width: int, latent: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(latent, width, generator=generator)
    x = torch.empty(rows, width, dtype=torch.float16)
    for part in x.split(100_000):
        made = torch.randn(len(part), latent, generator=generator) @ spread
        part.copy_(made / made.norm(dim=1, keepdim=True))
    return x


def search(args: argparse.Namespace, recall: float) -> Found:
    """Seconds, CPU seconds, the recall, bytes a row beyond the rows, and what the audit says."""
    torch.set_num_threads(args.num_threads)
    x = unit_rows(args.rows, args.width, args.latent)
    index: list[Neighbours] = []

    def graph() -> torch.Tensor:
        index.append(Neighbours(x, metric="l2", recall=recall))
        return index[0].graph(args.k)[1]

    dm2_fast.knn(x[:2000], args.k, "l2")  # start threads
    start = time.process_time()
    found, seconds, memory = measured(graph)
    cpu, audit = time.process_time() - start, index[0].audit
    assert audit is not None
    some = drawn(len(x))
    reached = recall_of_some(x, some, found.numpy()[some], args.k, "l2")
    return seconds, cpu, reached, memory / len(x), f"{audit.path}: {audit.why}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--latent", type=int, default=24)
    parser.add_argument("-k", type=int, default=15)
    parser.add_argument("--recall", type=float, nargs="+", default=[0.8, 0.95])
    parser.add_argument("--num-threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    print(header(torch.device("cpu")))
    print("| rows | d | k | recall asked | reached | seconds | CPU s | bytes a row | how |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for recall in args.recall:
        seconds, cpu, reached, memory, how = in_fresh_process(search, args, recall)
        cells = args.rows, args.width, args.k, recall, f"{reached:.4f}", f"{seconds:.1f}", f"{cpu:.1f}", f"{memory:.0f}"
        print(f"| {' | '.join(map(str, cells))} | {how} |", flush=True)


if __name__ == "__main__":
    main()

"""One choice by several processes, each of which runs the model on a part of the pool.

torchrun --nproc-per-node 2 examples/several_processes.py
"""

import numpy as np
import torch
import torch.distributed as dist

import dm2_fast


def main() -> None:
    dist.init_process_group("gloo")  # with GPUs "cpu:gloo,cuda:nccl", and model.cuda(...)
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # the same model everywhere
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    pool = np.random.default_rng(0).integers(0, 256, (2000, 1, 8, 8), dtype=np.uint8)  # or np.load(..., mmap_mode="r")
    picked = dm2_fast.distributed.select(model, pool, budget=20)

    features = torch.randn(500, 32)  # the rows that this process has
    _, neighbours = dm2_fast.distributed.knn(features, 10)  # numbers among all 500 * size rows
    if rank == 0:
        print(f"{picked}; {len(neighbours)} of {500 * size} rows have their neighbours here")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""What each process of a group does in the tests of several processes."""

import os
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

PROCESSES = 4


def serve(rank: int, port: int, pipe: Connection) -> None:
    """Join the group, then run what comes through the pipe, until it is None."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    groups = [dist.new_group(list(range(size))) for size in range(1, PROCESSES + 1)]
    while True:
        asked = pipe.recv()
        if asked is None:
            break
        work, size, arguments = asked
        try:
            pipe.send((work(groups[size - 1], *arguments), None))
        except Exception as error:
            pipe.send((None, error))
    dist.destroy_process_group()

"""The processes of a torch.distributed group: what they tell each other, and what happens where one of them ends."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Lost(RuntimeError):
    """Another process of the group has ended."""


class Group:
    """The processes among which the rows of a pool are divided, in the order of their ranks.

    All of them must call the same methods in the same order. Only collectives and send and receive are used.

    Args:
        group: A group of torch.distributed; None for all processes.

    Raises:
        RuntimeError: there is no group.
    """

    def __init__(self, group: Any = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "there is no process group: start the program with torchrun and call "
                "torch.distributed.init_process_group(), or call dm2_fast itself for one process"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def gather_objects(self, value: T) -> list[T]:
        """What each process passed."""
        found: list[Any] = [None] * self.size
        with _noticing():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def agree(self, work: Callable[[], T]) -> T:
        """What work returns here; where it fails in any process, the first of these errors in all of them."""
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        for other in self.gather_objects(_sendable(error)):
            if other is not None:
                raise error if error is not None and repr(error) == repr(other) else other
        return result  # type: ignore[return-value]

    def concatenate(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """The rows of all processes, (sum of n, ...), by rank; counts: how many each has, if known."""
        counts = counts or self.gather_objects(len(rows))
        most = max(counts)
        own = rows.new_zeros(most, *rows.shape[1:])
        own[: len(rows)] = rows
        parts = [torch.empty_like(own) for _ in counts]
        with _noticing():
            dist.all_gather([_bytes(part) for part in parts], _bytes(own), group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def broadcast(self, values: Tensor, source: int) -> Tensor:
        """values of the process `source`, which all others overwrite."""
        with _noticing():
            dist.broadcast(values, self._global(source), group=self.group)
        return values

    def start(self, sent: Sequence[Tensor], to: int, received: Sequence[Tensor], source: int) -> list[Any]:
        """Begin to send tensors to a process and to fill others from a process; `finish` waits for both."""
        to, source = self._global(to), self._global(source)
        steps = [dist.P2POp(dist.isend, _bytes(x), to, self.group) for x in sent if x.numel()]
        steps += [dist.P2POp(dist.irecv, _bytes(x), source, self.group) for x in received if x.numel()]
        with _noticing():
            return list(dist.batch_isend_irecv(steps)) if steps else []

    def finish(self, works: list[Any]) -> None:
        """Wait until what `start` began is done."""
        with _noticing():
            for work in works:
                work.wait()

    def exchange(self, sent: Sequence[Tensor]) -> list[Tensor]:
        """Send one tensor to each process, (n, ...) of equal dtype and width, and return what each sent here."""
        counts = self.gather_objects([len(x) for x in sent])
        received = [sent[0].new_empty(counts[source][self.rank], *sent[0].shape[1:]) for source in range(self.size)]
        received[self.rank] = sent[self.rank]
        for step in range(1, self.size):
            to, source = (self.rank + step) % self.size, (self.rank - step) % self.size
            self.finish(self.start([sent[to].contiguous()], to, [received[source]], source))
        return received


def _bytes(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor, since not every dtype can be sent."""
    return x.view(-1).view(torch.uint8)


def _sendable(error: Exception | None) -> Exception | None:
    """error, if it survives the way to another process, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def _noticing() -> Iterator[None]:
    """Say in one sentence that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise Lost("another process has ended") from error

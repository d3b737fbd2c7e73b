"""A torch Dataset as a pool: each sample is read and decoded once, and kept for all passes of a round."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dm2_fast import threads
from dm2_fast.model.together import Together
from dm2_fast.operations.arguments import shown, whole
from dm2_fast.operations.arrays import as_tensor
from dm2_fast.progress import tqdm

MEMORY = 2**31  # bytes of decoded samples that are kept in memory; more are kept in a temporary file
_READ_TOGETHER = 16  # samples that a worker reads before it hands them over
_MOST_TOGETHER = 256  # of small ones
_SMALL = 2**15  # numbers that torch copies in one thread
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # what holds them, by bytes of a value


class DatasetPool:
    """The samples of a map-style torch Dataset, each read once, when the first is needed, and kept from then on: in
    memory while they fit, else in a temporary file without a name, which no interruption leaves behind.

    Args:
        dataset: Gives a tensor, or a tuple or dict with it, for each row number.
        entries: Which entries of a tuple or dict are the inputs of the model; None for the first.
        num_workers: Processes that read; 0 reads in this one.
        memory: Bytes that may be kept in memory.
        progress: Show a progress bar on a terminal.
        name: What an error calls the data set.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        entries: Sequence[str | int] | None = None,
        num_workers: int = 0,
        memory: int = MEMORY,
        progress: bool = False,
        name: str = "pool",
    ) -> None:
        if entries is not None and (isinstance(entries, str) or len(entries) == 0):
            raise ValueError(f"entries must be a tuple of names, such as ('image',), got {shown(entries)}")
        self.dataset, self.entries, self.num_workers = dataset, entries, whole("num_workers", num_workers, 0)
        self.memory, self.progress, self.name = whole("memory", memory, 0), progress, name
        self.samples: Tensor | Together | None = None

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, ...), for which the samples are read."""
        return tuple(self.read().shape)

    def __getitem__(self, rows: Any) -> Any:
        samples = self.read()
        if isinstance(samples, Together):
            raise TypeError("samples with several inputs are no array; read them with .batch")
        return np.asarray(samples[rows])

    def read(self) -> Tensor | Together:
        """All samples; they are read by the first call.

        Raises:
            ValueError: the samples differ in shape or dtype; the message names the row.
            TypeError: a sample is no tensor.
            RuntimeError: the data set raised; the message names the row and says what it raised.
            OSError: there is no room for the samples, or a process that reads ended.
        """
        if self.samples is None:
            self.samples = self.joined(self.part(range(len(self))))
        return self.samples

    def joined(self, tensors: "dict[str | int, Tensor]") -> Tensor | Together:
        """What the samples are, from their inputs by name."""
        if self.entries is None:
            return next(iter(tensors.values()))
        by_name = all(isinstance(entry, str) for entry in self.entries)
        return Together({str(key): value for key, value in tensors.items()} if by_name else tuple(tensors.values()))

    def part(self, rows: range) -> "dict[str | int, Tensor]":
        """The inputs of some samples by name, one after another; nothing where there are no rows. Raises as `read`."""
        if len(self) == 0:
            raise ValueError(f"{self.name} must hold at least one sample, got an empty {type(self.dataset).__name__}")
        stores: dict[str | int, _Store] = {}
        turns = _Turns(rows)
        loader: DataLoader[Any] = DataLoader(
            _Named(self.dataset, self.entries, self.name),
            batch_sampler=turns,
            num_workers=self.num_workers,
            collate_fn=_as_read,
            generator=torch.Generator().manual_seed(0),  # its own: the random state of the caller stays as it is
        )
        with (
            threads.guarding(torch.device("cpu")),  # a Dataset may draw from torch's random state, as models do
            torch.random.fork_rng([]),
            ExitStack() as files,
            tqdm(desc="read", total=len(rows), leave=False, disable=None if self.progress else True) as bar,
        ):
            for parts in self._batches(loader):
                if isinstance(parts, _Failure):
                    raise parts.error()
                for key, samples in parts.items():
                    if key not in stores:
                        stores[key] = _Store(samples[0], rows, self.memory // len(parts), files)
                    stores[key].add(samples, self.name if len(parts) == 1 else f"{self.name}[{key!r}]")
                firsts = [samples[0] for samples in parts.values()]
                bar.update(len(samples))
                turns.size = max(_READ_TOGETHER, min(_MOST_TOGETHER, _SMALL // max(1, *(s.numel() for s in firsts))))
            return {key: store.tensor() for key, store in stores.items()}

    def _batches(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """What the processes read.

        Raises:
            OSError: one of them ended.
        """
        try:
            yield from loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(
                f"a process that reads {self.name} ended before it was done, which happens where memory or /dev/shm is "
                "short: read with fewer workers, or with 0, in this process"
            ) from error


class _Turns:
    """The rows in order, in batches whose size may change on the way."""

    def __init__(self, rows: range) -> None:
        self.rows, self.size = rows, _READ_TOGETHER

    def __iter__(self) -> Iterator[list[int]]:
        start = self.rows.start
        while start < self.rows.stop:
            rows = list(range(start, min(self.rows.stop, start + self.size)))
            start += len(rows)
            yield rows


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a data set, as it crosses from one process to another."""

    kind: str
    message: str

    def error(self) -> Exception:
        return {"TypeError": TypeError, "ValueError": ValueError}.get(self.kind, RuntimeError)(self.message)


class _Named(Dataset[Any]):
    """The inputs in the samples of a data set, by name; a mistake names its row."""

    def __init__(self, dataset: Dataset[Any], entries: Sequence[str | int] | None, name: str) -> None:
        self.dataset, self.entries, self.name = dataset, entries, name

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, rows: Sequence[int]) -> "dict[str | int, Tensor | list[Tensor]] | _Failure":
        samples: list[Any] = []
        together = getattr(self.dataset, "__getitems__", None)  # as DataLoader asks, where there is one
        asked = f"rows {rows[0]} to {rows[-1]}"
        try:
            if callable(together):
                samples = list(together(rows))
            else:
                for row in rows:
                    samples.append(self.dataset[row])
        except Exception as error:
            said = f": {error}" if str(error) else ""
            asked = asked if callable(together) else f"row {row}"
            return _Failure("RuntimeError", f"{self.name} raised {type(error).__name__} when asked for {asked}{said}")
        if len(samples) != len(rows):
            return _Failure("ValueError", f"{self.name} returned {len(samples)} samples when asked for {asked}")
        stacked = _small_tensors(samples) if self.entries is None else None
        if stacked is not None:
            return {0: stacked}
        named = []
        try:
            for row, sample in zip(rows, samples, strict=True):
                found, others = self._inputs(row, sample)
                named.append({key: self._tensor(row, value, others) for key, value in found.items()})
        except (TypeError, ValueError) as error:
            return _Failure(type(error).__name__, str(error))
        return {key: _together([inputs[key] for inputs in named]) for key in named[0]}

    def _inputs(self, row: int, sample: Any) -> tuple[dict[str | int, Any], list[str | int]]:
        """The inputs of the model in a sample, and the names of its other entries that are arrays."""
        if not isinstance(sample, (Mapping, tuple, list)):
            if self.entries is not None:
                raise TypeError(f"row {row} of {self.name} is {shown(sample)} without entries: leave entries out")
            return {0: sample}, []
        if len(sample) == 0:
            raise ValueError(f"row {row} of {self.name} is empty: its first entry must be a tensor")
        held = dict(sample) if isinstance(sample, Mapping) else dict(enumerate(sample))
        if self.entries is None:
            key = next(iter(held))
            return {key: held[key]}, [name for name in held if isinstance(held[name], (Tensor, np.ndarray))]
        missing = [entry for entry in self.entries if entry not in held]
        if missing:
            raise ValueError(
                f"row {row} of {self.name} has no entry {missing[0]!r}: it has {', '.join(map(repr, held))}"
            )
        return {entry: held[entry] for entry in self.entries}, []

    def _tensor(self, row: int, value: Any, others: list[str | int]) -> Tensor:
        if isinstance(value, (Tensor, np.ndarray)):
            if isinstance(value, Tensor) and type(value) is not Tensor:  # an image of torchvision, say
                value = value.detach().as_subclass(Tensor)
            found = as_tensor(value, f"row {row} of {self.name}").cpu()
            if found.element_size() in _BITS:
                return found
            raise TypeError(f"row {row} of {self.name} holds {_dtype(found.dtype)}: pass real numbers")
        remedy = "give the data set a transform that makes a tensor of it"
        if others and self.entries is None:
            remedy = f"{remedy}, or name the inputs, such as entries={tuple(others)}"
        elif isinstance(value, str):
            remedy = "give the data set the tokens as a tensor, or name the inputs with entries="
        raise TypeError(f"row {row} of {self.name} is {shown(value)}: {remedy}")


def _as_read(samples: Any) -> Any:
    return samples


def _small_tensors(samples: Sequence[Any]) -> Tensor | None:
    """The samples, or their first entries, in one tensor, if they are few numbers each: looking at each costs more then
    than reading it. None where they are anything else, or something is wrong with one.
    """
    values = [sample[0] if type(sample) is tuple and sample else sample for sample in samples]
    first = values[0]
    if type(first) is not Tensor or len(values) * first.numel() > _SMALL or first.element_size() not in _BITS:
        return None
    if set(map(type, values)) != {Tensor} or set(map(attrgetter("dtype"), values)) != {first.dtype}:
        return None
    try:  # which refuses other shapes
        with torch.no_grad():
            return as_tensor(torch.stack(values), "samples").cpu()
    except (TypeError, RuntimeError):
        return None


def _together(values: list[Tensor]) -> Tensor | list[Tensor]:
    first = values[0]
    if any(value.shape != first.shape or value.dtype != first.dtype for value in values):
        return values
    return torch.from_numpy(np.stack([_bits(value) for value in values])).view(first.dtype)


def _bits(values: Tensor) -> NDArray[Any]:
    """The values as integers that NumPy copies in this thread: where torch copies a few samples by several threads,
    they wait for each other longer than that takes.
    """
    found: NDArray[Any] = values.view(_BITS[values.element_size()]).numpy()
    return found


class _Store:
    """Samples of one shape as they come, in memory or in a file without a name."""

    def __init__(self, first: Tensor, rows: range, memory: int, files: ExitStack) -> None:
        m, self.first = len(rows), rows.start
        self.m, self.shape, self.dtype, self.filled = m, first.shape, first.dtype, 0
        self.size = m * first.numel() * first.element_size()
        self.held: NDArray[Any] | None = None
        self.file: IO[bytes] | None = None
        if self.size <= memory:
            self.held = np.empty((m, *first.shape), _bits(first).dtype)
        else:
            self.file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115

    def add(self, samples: Tensor | list[Tensor], name: str) -> None:
        """The next samples."""
        for i, sample in enumerate(samples if isinstance(samples, list) else samples[:1]):
            if sample.shape != self.shape or sample.dtype != self.dtype:
                raise ValueError(
                    unlike(
                        name,
                        self.first + self.filled + i,
                        sample.shape,
                        sample.dtype,
                        self.first,
                        self.shape,
                        self.dtype,
                    )
                )
        assert isinstance(samples, Tensor)  # those that differ among themselves differ from the first
        if self.held is not None:
            self.held[self.filled : self.filled + len(samples)] = _bits(samples)
        elif self.file is not None:
            self.file.write(_bits(samples).data)
        self.filled += len(samples)

    def tensor(self) -> Tensor:
        """All of them; what maps the file may outlive it."""
        if self.held is not None:
            return torch.from_numpy(self.held).view(self.dtype)
        assert self.file is not None
        self.file.flush()
        mapped = np.memmap(self.file, np.uint8, "r+", shape=(self.size,))
        return torch.from_numpy(mapped).view(self.dtype).view(self.m, *self.shape)


def unlike(
    name: str, row: int, shape: Sequence[int], dtype: torch.dtype, first: int, other: Sequence[int], kind: torch.dtype
) -> str:
    """That two samples differ, in words."""
    return (
        f"row {row} of {name} is {_described(shape, dtype)}, and row {first} is {_described(other, kind)}: give the "
        f"data set a transform that makes all samples alike, such as "
        f"{'Resize and CenterCrop' if len(other) > 1 else 'padding to one length'}"
    )


def _described(shape: Sequence[int], dtype: torch.dtype) -> str:
    return f"{_dtype(dtype)} of shape {tuple(shape)}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""A torch Dataset as a pool: each sample is read and decoded once, and kept for all passes of a round."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dm2_fast.model.together import Together
from dm2_fast.operations.arrays import as_tensor
from dm2_fast.progress import tqdm

MEMORY = 2**31  # bytes of decoded samples that are kept in memory; more are kept in a temporary file
_READ_TOGETHER = 16  # samples that a worker reads before it hands them over


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
        self.dataset, self.entries, self.num_workers = dataset, entries, num_workers
        self.memory, self.progress, self.name = memory, progress, name
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
        """
        if self.samples is None:
            self.samples = self._read()
        return self.samples

    def _read(self) -> Tensor | Together:
        m = len(self)
        if m == 0:
            raise ValueError(f"{self.name} must hold at least one sample, got an empty {type(self.dataset).__name__}")
        stores: dict[str | int, _Store] = {}
        loader: DataLoader[Any] = DataLoader(
            _Named(self.dataset, self.entries, self.name),
            _READ_TOGETHER,
            num_workers=self.num_workers,
            collate_fn=_stacked,
            generator=torch.Generator().manual_seed(0),  # its own: the random state of the caller stays as it is
        )
        with torch.random.fork_rng([]), ExitStack() as files:
            for parts in tqdm(loader, "read", leave=False, disable=None if self.progress else True):
                if isinstance(parts, _Failure):
                    raise parts.error()
                for key, samples in parts.items():
                    if key not in stores:
                        stores[key] = _Store(samples[0], m, self.memory // len(parts), files)
                    stores[key].add(samples, self.name if len(parts) == 1 else f"{self.name}[{key!r}]")
            tensors = {key: store.tensor() for key, store in stores.items()}
        if self.entries is None:
            return next(iter(tensors.values()))
        by_name = all(isinstance(entry, str) for entry in self.entries)
        return Together({str(key): value for key, value in tensors.items()} if by_name else tuple(tensors.values()))


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

    def __getitem__(self, row: int) -> "dict[str | int, Tensor] | _Failure":
        try:
            sample = self.dataset[row]
        except Exception as error:
            said = f": {error}" if str(error) else ""
            return _Failure("RuntimeError", f"{self.name} raised {type(error).__name__} when asked for row {row}{said}")
        try:
            return {key: self._tensor(row, value) for key, value in self._inputs(row, sample).items()}
        except (TypeError, ValueError) as error:
            return _Failure(type(error).__name__, str(error))

    def _inputs(self, row: int, sample: Any) -> dict[str | int, Any]:
        if not isinstance(sample, (Mapping, tuple, list)):
            if self.entries is not None:
                kind = type(sample).__name__
                raise TypeError(f"row {row} of {self.name} is a {kind} without entries: leave entries out")
            return {0: sample}
        if len(sample) == 0:
            raise ValueError(f"row {row} of {self.name} is empty: its first entry must be a tensor")
        held = dict(sample) if isinstance(sample, Mapping) else dict(enumerate(sample))
        if self.entries is None:
            key = next(iter(held))
            return {key: held[key]}
        missing = [entry for entry in self.entries if entry not in held]
        if missing:
            raise ValueError(
                f"row {row} of {self.name} has no entry {missing[0]!r}: it has {', '.join(map(repr, held))}"
            )
        return {entry: held[entry] for entry in self.entries}

    def _tensor(self, row: int, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, np.ndarray):
            return as_tensor(value, f"row {row} of {self.name}")
        remedy = "give the data set a transform that makes a tensor of it"
        if isinstance(value, str):
            remedy = "give the data set the tokens as a tensor, or name the inputs with entries="
        raise TypeError(f"row {row} of {self.name} is a {type(value).__module__}.{type(value).__name__}: {remedy}")


def _stacked(samples: Sequence[Any]) -> "dict[str | int, Tensor | list[Tensor]] | _Failure":
    """The samples that a worker read, together where their shapes agree."""
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return {key: _together([sample[key] for sample in samples]) for key in samples[0]}


def _together(values: list[Tensor]) -> Tensor | list[Tensor]:
    alike = all(value.shape == values[0].shape and value.dtype == values[0].dtype for value in values)
    return torch.stack(values) if alike else values


class _Store:
    """Samples of one shape as they come, in memory or in a file without a name."""

    def __init__(self, first: Tensor, m: int, memory: int, files: ExitStack) -> None:
        self.m, self.shape, self.dtype, self.filled = m, first.shape, first.dtype, 0
        self.size = m * first.numel() * first.element_size()
        self.held: Tensor | None = None
        self.file: IO[bytes] | None = None
        if self.size <= memory:
            self.held = torch.empty(m, *first.shape, dtype=first.dtype)
        else:
            self.file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115

    def add(self, samples: Tensor | list[Tensor], name: str) -> None:
        """The next samples."""
        for i, sample in enumerate(samples):
            if sample.shape != self.shape or sample.dtype != self.dtype:
                raise ValueError(
                    f"row {self.filled + i} of {name} is {_described(sample.shape, sample.dtype)}, and row 0 is "
                    f"{_described(self.shape, self.dtype)}: give the data set a transform that makes all samples "
                    "alike, such as Resize and CenterCrop"
                )
        together = samples if isinstance(samples, Tensor) else torch.stack(samples)
        if self.held is not None:
            self.held[self.filled : self.filled + len(together)] = together
        elif self.file is not None:
            self.file.write(together.contiguous().flatten().view(torch.uint8).numpy().data)
        self.filled += len(together)

    def tensor(self) -> Tensor:
        """All of them; what maps the file may outlive it."""
        if self.held is not None:
            return self.held
        assert self.file is not None
        self.file.flush()
        mapped = np.memmap(self.file, np.uint8, "r+", shape=(self.size,))
        return torch.from_numpy(mapped).view(self.dtype).view(self.m, *self.shape)


def _described(shape: Sequence[int], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} of shape {tuple(shape)}"

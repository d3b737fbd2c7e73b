import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import dm2_fast
from dm2_fast import DM2Config, select
from dm2_fast.model.dataset_pool import DatasetPool
from dm2_fast.model.pools import open_pool

M = 45
IMAGES = torch.randint(0, 256, (M, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Counted(Dataset[Any]):
    """A data set that counts how often each row is read."""

    def __init__(self, samples: Any, kind: str = "tensor") -> None:
        self.samples, self.kind, self.reads = samples, kind, Counter[int]()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        self.reads[row] += 1
        sample = self.samples[row]
        return {"tensor": sample, "tuple": (sample, row), "dict": {"image": sample, "label": row}}[self.kind]


def net(inputs: int = 108) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        model[3].weight.mul_(8)
    return model


def same(a: dm2_fast.Picked, b: dm2_fast.Picked) -> None:
    assert torch.equal(a.indices, b.indices)
    assert a.scores is not None
    assert b.scores is not None
    assert torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
@pytest.mark.parametrize("memory", [2**31, 0])
def test_a_data_set_gives_what_its_array_gives_and_each_sample_is_read_once(kind: str, memory: int) -> None:
    samples = Counted(IMAGES, kind)
    picked = select(net(), DatasetPool(samples, memory=memory), 9, options=DM2Config(k=5))
    same(picked, select(net(), IMAGES, 9, options=DM2Config(k=5)))
    assert samples.reads == Counter(range(M))
    assert next(iter(picked.seconds)) == "read"


def test_a_strategy_that_looks_at_nothing_reads_nothing() -> None:
    samples = Counted(IMAGES)
    select(net(), samples, 9, "random", labelled=Counted(IMAGES))
    assert not samples.reads


def test_labelled_samples_may_be_a_data_set_too() -> None:
    some = Counted(IMAGES[:7], "tuple")
    first = select(net(), Counted(IMAGES[7:]), 9, "coreset", labelled=some)
    assert torch.equal(first.indices, select(net(), IMAGES[7:], 9, "coreset", labelled=IMAGES[:7]).indices)
    assert some.reads == Counter(range(7))


def test_workers_read_the_same_in_the_same_order() -> None:
    pool = DatasetPool(TensorDataset(IMAGES), num_workers=2)
    assert torch.equal(pool.read(), IMAGES)  # type: ignore[arg-type]


def test_reading_starts_no_operation_that_waits_for_other_threads() -> None:
    seen: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(str(func))
            return func(*args, **(kwargs or {}))

    images = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8)  # torch would copy 16 by several threads
    with Watch():
        read = DatasetPool(Counted(images)).read()
    assert torch.equal(read, images)  # type: ignore[arg-type]
    assert not seen & {"aten.stack.default", "aten.cat.default", "aten.copy_.default", "aten.clone.default"}


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_every_dtype_and_stride_come_as_they_are(dtype: torch.dtype, workers: int) -> None:
    values = (IMAGES > 100) if dtype == torch.bool else IMAGES.to(dtype)
    turned = values.permute(0, 2, 3, 1)  # not contiguous, like images in channels_last
    read = DatasetPool(TensorDataset(turned), num_workers=workers).read()
    assert isinstance(read, Tensor)
    assert read.dtype == dtype
    assert torch.equal(read, turned)


@pytest.mark.parametrize("workers", [0, 2])
def test_small_samples_are_read_many_together(workers: int) -> None:
    rows = torch.randn(1000, 5, generator=torch.Generator().manual_seed(2))
    for kind in ("tensor", "tuple", "dict"):
        samples = Counted(rows, kind)
        assert torch.equal(DatasetPool(samples, num_workers=workers).read(), rows)  # type: ignore[arg-type]
        assert workers or set(samples.reads.values()) == {1}
    ragged = [*rows[:600], torch.zeros(4), *rows[600:]]
    with pytest.raises(ValueError, match=r"row 600 of pool is float32 of shape \(4,\), and row 0 is float32"):
        DatasetPool(Counted(ragged), num_workers=workers).read()
    strange = [*rows[:600], torch.zeros(5).to_sparse(), *rows[600:]]
    with pytest.raises(TypeError, match="row 600 of pool must be a dense tensor"):
        DatasetPool(Counted(strange), num_workers=workers).read()


def test_a_data_set_that_stops_early_is_named() -> None:
    class Stops(Counted):
        def __getitem__(self, row: int) -> Any:
            if row == 500:
                raise StopIteration
            return super().__getitem__(row)

    with pytest.raises(RuntimeError, match="pool raised StopIteration when asked for row 500"):
        DatasetPool(Stops(torch.zeros(600, 3))).read()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_reads_many_at_once_is_asked_for_many(workers: int) -> None:
    class Many(Counted):
        def __getitem__(self, row: int) -> Any:
            raise AssertionError("asked for one")

        def __getitems__(self, rows: list[int]) -> Any:
            found = [super(Many, self).__getitem__(row) for row in rows]
            if 90 in rows and len(self) == 100:
                raise OSError("the server is gone")
            return found[1:] if 90 in rows and len(self) == 99 else found

    rows = torch.randn(1000, 5, generator=torch.Generator().manual_seed(2))
    for kind in ("tensor", "tuple", "dict"):
        samples = Many(rows, kind)
        assert torch.equal(DatasetPool(samples, num_workers=workers).read(), rows)  # type: ignore[arg-type]
        assert workers or set(samples.reads.values()) == {1}
    with pytest.raises(RuntimeError, match=r"^pool raised OSError when asked for rows \d+ to 99: the server is gone"):
        DatasetPool(Many(rows[:100]), num_workers=workers).read()
    with pytest.raises(ValueError, match=r"^pool returned \d\d samples when asked for rows \d\d to 98"):
        DatasetPool(Many(rows[:99]), num_workers=workers).read()


def test_large_samples_beside_small_ones_are_read_a_few_together() -> None:
    samples = TensorDataset(torch.zeros(600, 40_000, dtype=torch.uint8), torch.arange(600))
    sizes = []

    class Seen(DatasetPool):
        def _batches(self, loader: Any) -> Any:
            for parts in super()._batches(loader):
                sizes.append(len(parts[0]))
                yield parts

    Seen(samples, entries=(0, 1)).read()
    assert max(sizes) < 100


def test_images_of_torchvision_and_parameters_are_tensors() -> None:
    tv_tensors = pytest.importorskip("torchvision.tv_tensors", reason="torchvision is in the extra run")
    for wrap in (tv_tensors.Image, lambda x: torch.nn.Parameter(x.float())):
        read = DatasetPool(Counted([wrap(image) for image in IMAGES])).read()
        assert type(read) is Tensor
        assert not read.requires_grad
        assert torch.equal(read, IMAGES.to(read.dtype))
    with pytest.raises(TypeError, match="row 0 of pool holds complex128: pass real numbers"):
        DatasetPool(Counted(IMAGES.to(torch.complex128))).read()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_a_temporary_file_keeps_every_bit_and_has_no_name(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = IMAGES.to(dtype)
    read = DatasetPool(Counted(values), memory=values.nbytes - 1).read()
    assert isinstance(read, Tensor)
    assert read.dtype == dtype
    assert torch.equal(read, values)
    assert not os.listdir(tmp_path)


def test_samples_are_kept_in_memory_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    DatasetPool(Counted(IMAGES), memory=IMAGES.nbytes).read()
    with pytest.raises(TypeError, match="not callable"):
        DatasetPool(Counted(IMAGES), memory=IMAGES.nbytes - 1).read()


class Ending(Counted):
    def __getitem__(self, row: int) -> Any:
        os._exit(1)


def test_a_reader_that_ends_is_told_of_in_one_sentence() -> None:
    with pytest.raises(OSError, match="a process that reads pool ended before it was done, .* read with fewer workers"):
        DatasetPool(Ending(IMAGES), num_workers=1).read()


def test_random_transforms_draw_from_the_caller_s_state_and_leave_it_as_it_was() -> None:
    class Noisy(Counted):
        def __getitem__(self, row: int) -> Tensor:
            return torch.rand(3)

    torch.manual_seed(4)
    before = torch.get_rng_state()
    expected = torch.stack([torch.rand(3) for _ in range(M)])
    torch.set_rng_state(before)
    first = DatasetPool(Noisy(IMAGES)).read()
    assert torch.equal(first, expected)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, DatasetPool(Noisy(IMAGES)).read())  # type: ignore[arg-type]


class Failing(Counted):
    def __getitem__(self, row: int) -> Any:
        if row == 17:
            raise OSError("image file is truncated")
        return super().__getitem__(row)


class Ragged(Counted):
    def __getitem__(self, row: int) -> Any:
        return torch.zeros(3, 6, 6 + (row == 17))


class RaggedTokens(Counted):
    def __getitem__(self, row: int) -> Any:
        return torch.zeros(6 + (row == 17))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(IMAGES)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (Failing(IMAGES), RuntimeError, "pool raised OSError when asked for row 17: image file is truncated"),
        (
            Ragged(IMAGES),
            ValueError,
            "row 17 of pool is float32 of shape (3, 6, 7), and row 0 is float32 of shape (3, 6, 6): give the data set "
            "a transform that makes all samples alike, such as Resize and CenterCrop",
        ),
        (
            RaggedTokens(IMAGES),
            ValueError,
            "row 17 of pool is float32 of shape (7,), and row 0 is float32 of shape (6,): give the data set a "
            "transform that makes all samples alike, such as padding to one length",
        ),
        (
            Counted([object()]),
            TypeError,
            "row 0 of pool is an object: give the data set a transform that makes a",
        ),
        (Counted(["a", "b"]), TypeError, "row 0 of pool is 'a': give the data set the tokens as a tensor"),
        (Counted([()]), ValueError, "row 0 of pool is empty: its first entry must be a tensor"),
        (Counted([]), ValueError, "pool must hold at least one sample, got an empty Counted"),
    ],
)
def test_a_sample_that_is_no_tensor_is_named_by_its_row(
    samples: Any, error: type[Exception], message: str, workers: int
) -> None:
    with pytest.raises(error) as caught:
        DatasetPool(samples, num_workers=workers).read()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (DataLoader(TensorDataset(IMAGES)), "pool is a DataLoader: pass its data set, loader.dataset"),
        (Stream(), "pool is an IterableDataset, which gives no sample by its row: pass a map-style Dataset"),
        ([{"a": IMAGES[0]}], "pool is a list of samples: pass a map-style Dataset of them, or an array of each input"),
        ([IMAGES[0], IMAGES[1]], "pool is a list: make one array of it with torch.stack(...) or numpy.stack(...)"),
        (iter(IMAGES), "pool is a .*: pass a tensor, an array, or a map-style torch Dataset"),
        ("images", "pool is a name: pass a Dataset that reads the files, such as torchvision.datasets.ImageFolder"),
        (["a.jpg"], "pool is a list of names: pass a Dataset that reads the files"),
        (None, "pool is None: pass a tensor, an array, or a map-style torch Dataset"),
        (type("Endless", (Dataset,), {})(), "pool has no length: give its class, Endless, a method __len__"),
        ({"image": [1, 2]}, "pool\\['image'\\] is a list: a dict as a pool holds the inputs of the model"),
    ],
)
def test_what_is_no_pool_gets_an_error_with_the_remedy(pool: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message.replace("(...)", ".*")):
        select(net(), pool, 3)


class Stored:
    """An array on disk as h5py gives it: distinct rows in rising order, and nothing else."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if not isinstance(rows, np.ndarray) or rows.ndim != 1 or (np.diff(rows) <= 0).any():
            raise TypeError("Indexing elements must be in increasing order")
        return self.values[rows]


class Chunked:
    """As zarr 3 gives it: no length, and the byte order is said."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        values = self.values[rows]
        said = values.dtype.newbyteorder("<" if sys.byteorder == "little" else ">")
        return values.view(said)


@pytest.mark.parametrize("kind", [Stored, Chunked])
@pytest.mark.parametrize("strategy", ["dm2", "random", "entropy", "coreset", "badge", "alpha-mix", "noise-stability"])
def test_arrays_on_disk_are_pools(kind: Any, strategy: str) -> None:
    images = IMAGES.float().numpy()
    labels = torch.arange(10) % 4
    picked, expected = (
        select(net(), make(images), 9, strategy, labelled=make(images[:10]), labels=labels, batch_size=16)
        for make in (kind, np.asarray)
    )
    assert torch.equal(picked.indices, expected.indices)
    if expected.scores is not None:
        same(picked, expected)


@pytest.mark.parametrize("kind", [Stored, Chunked])
def test_arrays_on_disk_are_mixed_and_may_stand_together(kind: Any) -> None:
    x, neighbours = IMAGES.numpy(), torch.tensor([[3, 3], [40, 0], [0, 0]])
    rows = torch.tensor([7, 7, 1])
    mixed = dm2_fast.mix(kind(x), neighbours, 0.3, rows=rows)
    assert torch.equal(mixed, dm2_fast.mix(x, neighbours, 0.3, rows=rows))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(216, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(torch.cat([a.flatten(1), b.flatten(1)], 1) / 255)

    first, second = x.astype(np.float32), x[::-1].astype(np.float32)
    options = DM2Config(k=3, space="features")
    same(
        select(Both(), (kind(first), kind(second)), 5, options=options),
        select(Both(), (first, second), 5, options=options),
    )
    with pytest.raises(TypeError, match=f"x is a {kind.__name__}: read it into memory with .:."):
        dm2_fast.knn(kind(first), 3)


def test_entries_belong_to_a_data_set() -> None:
    with pytest.raises(TypeError, match="entries= belongs to a Dataset, and pool is a Tensor: leave entries out"):
        select(net(), IMAGES, 3, entries=(0,))
    for entries in ("image", ()):
        with pytest.raises(ValueError, match="entries must be a tuple of names, such as .'image',., got"):
            select(net(), Counted(IMAGES, "dict"), 3, entries=entries)
    first = [(row, image) for row, image in enumerate(IMAGES)]
    with pytest.raises(TypeError, match=r"row 0 of pool is 0: .*, or name the inputs, such as entries=\(1,\)"):
        select(net(), Counted(first), 3)
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        select(net(), Counted(IMAGES), 3, num_workers=-1)
    with pytest.raises(
        ValueError, match="memory must be a number of bytes, or a text such as 4GB or 500MB, got 'much'"
    ):
        select(net(), Counted(IMAGES), 3, memory="much")
    with pytest.raises(ValueError, match="row 0 of pool has no entry 'mask': it has 'image', 'label'"):
        select(net(), Counted(IMAGES, "dict"), 3, entries=("image", "mask"))


def test_a_table_is_its_numbers() -> None:
    class Table:
        def to_numpy(self) -> np.ndarray:
            return IMAGES.flatten(1).float().numpy()

    assert open_pool(Table()).shape == (M, 108)


def test_nothing_is_left_when_the_process_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, torch\n"
        "from torch.utils.data import TensorDataset\n"
        "from dm2_fast.model.dataset_pool import DatasetPool\n"
        "DatasetPool(TensorDataset(torch.zeros(50, 9)), memory=0).read()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == -9
    assert not list(tmp_path.iterdir())

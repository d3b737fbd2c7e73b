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


def test_random_transforms_draw_from_the_caller_s_state_and_leave_it_as_it_was() -> None:
    class Noisy(Counted):
        def __getitem__(self, row: int) -> Tensor:
            return torch.rand(3)

    torch.manual_seed(4)
    before = torch.get_rng_state()
    first = DatasetPool(Noisy(IMAGES)).read()
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
            Counted([object()]),
            TypeError,
            "row 0 of pool is a builtins.object: give the data set a transform that makes a",
        ),
        (Counted(["a", "b"]), TypeError, "row 0 of pool is a builtins.str: give the data set the tokens as a tensor"),
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
        ([IMAGES[0], IMAGES[1]], "pool is a list: make one array of it with torch.stack(...) or numpy.stack(...)"),
        (iter(IMAGES), "pool is a .*: pass a tensor, an array, or a map-style torch Dataset"),
        ("images", "pool is 'images': pass a tensor, an array, or a map-style torch Dataset"),
        ({"image": [1, 2]}, "pool\\['image'\\] is a list: a dict as a pool holds the inputs of the model"),
    ],
)
def test_what_is_no_pool_gets_an_error_with_the_remedy(pool: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message.replace("(...)", ".*")):
        select(net(), pool, 3)


def test_entries_belong_to_a_data_set() -> None:
    with pytest.raises(TypeError, match="entries= belongs to a Dataset, and pool is a Tensor: leave entries out"):
        select(net(), IMAGES, 3, entries=(0,))
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

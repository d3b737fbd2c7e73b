"""Forward passes over a pool: features and logits (Eq. 3), and the uncertainty of mixed samples (Eqs. 8-10)."""

import math
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dm2_fast import threads
from dm2_fast.model.batches import make_batch
from dm2_fast.model.dataset_pool import DatasetPool
from dm2_fast.model.feed import fed
from dm2_fast.model.from_arrays import NoModel
from dm2_fast.model.functions import FunctionModel
from dm2_fast.model.graph import Graphed
from dm2_fast.model.head import check_model, evaluating, find_head, inferring, model_device, on_gpu
from dm2_fast.model.kept_outputs import KeptOutputs, Outputs, joined
from dm2_fast.model.limits import first_line, out_of_memory
from dm2_fast.model.outputs import inputs_as_features, outputs
from dm2_fast.model.pools import Pool, read, sparing, unmixable
from dm2_fast.model.preparation import Prepared, plain
from dm2_fast.model.shared import Shared
from dm2_fast.model.together import Batch, Together
from dm2_fast.operations.arguments import one_of, shown, whole
from dm2_fast.operations.arrays import ArrayLike, as_tensor
from dm2_fast.operations.backends import MOST_THREADS, NAMES
from dm2_fast.operations.mapped import release, releasing
from dm2_fast.operations.mix import Normalize, Recipe
from dm2_fast.operations.multilabel import Over, check_over
from dm2_fast.operations.probabilities import refuse_probabilities
from dm2_fast.operations.uncertainty import Uncertainty, uncertainty
from dm2_fast.progress import tqdm

Step = TypeVar("Step")

_SCORED = 2**24  # logits at a time


@dataclass(frozen=True)
class ForwardPass:
    """How a pool runs through a model. The model, its mode, its BatchNorm statistics and the random state come back
    untouched, and the result of a row does not depend on the rows beside it: all batches have one shape.

    What runs is a copy of the model, prepared for inference when the first pass begins (see preparation.py), and
    prepared anew when the model's parameters or buffers have been changed since (other than through `.data`).

    Args:
        model: Returns (n, C) logits for a batch of n samples.
        inputs: The pool, (m, ...), as in `dm2_fast.mix`; several arrays that belong together; or a data set.
        normalize: (mean, std) per channel, applied after scaling uint8 to [0, 1] and after mixing.
        head: The module whose input is the feature vector, or its dotted name; None to find it (see `find_head`).
        batch_size: The most rows per forward pass; a prepared model takes fewer at a time on a CPU, and a batch for
            which there is not enough memory is halved, with a warning.
        backend, num_threads, progress: As in `dm2_fast.knn`.
        prepare: "auto", or "off" to run the model as it is, without what is done for a GPU (graph.py, feed.py).
        autocast: torch.float16 or torch.bfloat16, to run the model under `torch.autocast`.
        multilabel, these_are_logits: As in `dm2_fast.uncertainty`.
        rows: Which rows of the pool run, (n,) int64, in this order; None for all of them.
        memory: A budget as in `dm2_fast.knn`; of mapped files, only what is in use then takes memory. None: no limit.

    Raises:
        ValueError: the pool is empty, batch_size < 1, or prepare, autocast or multilabel is none of the above.
    """

    model: nn.Module
    inputs: Pool
    normalize: Normalize | None = None
    head: str | nn.Module | None = None
    batch_size: int = 256
    backend: str = "auto"
    num_threads: int | None = None
    progress: bool = False
    prepare: Literal["auto", "off"] = "auto"
    autocast: torch.dtype | None = None
    multilabel: Over | None = None
    these_are_logits: bool = False
    rows: Tensor | None = None
    memory: int | str | None = None
    _shared: Shared = field(default_factory=Shared, repr=False, compare=False)

    def __post_init__(self) -> None:
        threads.threads_of_torch()
        check_model(self.model)
        if not isinstance(self.inputs, DatasetPool):  # that is read when it is needed
            _ = self.pool
        if self.head is not None and not isinstance(self.head, (str, nn.Module)):
            raise TypeError(f"head must be a module of the model or its name, got {shown(self.head)}")
        object.__setattr__(self, "batch_size", whole("batch_size", self.batch_size, 1, 2**31 - 1))
        one_of("backend", self.backend, NAMES)
        if self.num_threads is not None:
            object.__setattr__(self, "num_threads", whole("num_threads", self.num_threads, 1, MOST_THREADS))
        if not isinstance(self.prepare, str) or self.prepare not in ("auto", "off"):
            raise ValueError(f"prepare must be 'auto' or 'off', got {shown(self.prepare)}")
        kinds = (torch.float16, torch.bfloat16)
        if self.autocast is not None and not (isinstance(self.autocast, torch.dtype) and self.autocast in kinds):
            raise ValueError(f"autocast must be None, torch.float16 or torch.bfloat16, got {shown(self.autocast)}")
        check_over(self.multilabel)

    def __len__(self) -> int:
        return len(self.inputs) if self.rows is None else len(self.rows)

    @cached_property
    def pool(self) -> ArrayLike | Together:
        """The samples; those of a data set are read when this is first asked for."""
        pool = read(self.inputs)
        if isinstance(pool, (Tensor, np.ndarray)):
            as_tensor(pool, "inputs")
        if len(pool.shape) < 2 or 0 in pool.shape:
            raise ValueError(f"inputs must be a non-empty (m, ...) pool, got shape {tuple(pool.shape)}")
        if isinstance(pool, Together) and self.normalize is not None:
            raise ValueError("normalize belongs to a pool of one array of images: normalize each input before, instead")
        return pool

    @cached_property
    def _mixed_from(self) -> ArrayLike | Together:
        """The pool as it is read here and there."""
        return self.pool if self.memory is None else sparing(self.pool)

    def over(self, inputs: Pool) -> "ForwardPass":
        """The same pass over other inputs, through the same prepared model."""
        return replace(self, inputs=inputs, rows=None)

    def through(self, model: nn.Module) -> "ForwardPass":
        """The same pass through another model, prepared for itself."""
        return replace(self, model=model, head=None, _shared=Shared(on_host=self._shared.on_host))

    def features_and_logits(self) -> tuple[Tensor, Tensor]:
        """Return the features f (m, d), Eq. 3: the input of the head, flattened; and the logits (m, C).

        Where the model is its own head, the features are the inputs themselves, without a copy: not to be written to.

        Raises:
            ValueError, TypeError: the model has no head, or does not return finite (n, C) logits and features.
        """
        if self.head in (None, self.model) and self.normalize is None:
            own = inputs_as_features(self.model, self.pool, self.rows, self.memory)
            if own is not None:
                return own, self.logits()
        return self._outputs("features", features=True)

    def logits(self) -> Tensor:
        """Return the logits (m, C).

        Raises:
            ValueError, TypeError: the model does not return finite (n, C) logits.
        """
        return self._outputs("logits")[1]

    def mixed_uncertainty(
        self, recipe: Recipe, kind: Uncertainty = "least-confidence", rows: Tensor | None = None
    ) -> Tensor:
        """Mix every row by the recipe and return the uncertainty (m,) of the mixtures, Eqs. 7-10.

        Args:
            recipe: What each of the rows is mixed with.
            kind: As in `dm2_fast.uncertainty`.
            rows: Mix these rows of the pool, (n,) int64, and return (n,).

        Raises:
            ValueError, TypeError: the model does not return finite (n, C) logits.
        """
        return self.uncertainty(self._outputs("mixed", recipe, rows=rows)[1], kind)

    def _outputs(
        self, name: str, recipe: Recipe | None = None, features: bool = False, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(features, logits) of what runs, in mapped files within a budget; the logits twice without features."""
        m = len(self if rows is None else rows)
        if self.memory is not None and m > 0 and model_device(self.model).type == "cpu":
            kept = KeptOutputs(m, features)
            self._run(name, recipe, features, rows, kept.take)
            found, logits = kept.features, kept.logits
        else:
            found, logits = joined(self._run(name, recipe, features, rows), features)
        if self.multilabel is None and not self.these_are_logits:
            refuse_probabilities(logits, "the outputs of the model")
        return found, logits

    def batches(
        self, name: str, size: int | None = None, rows: Tensor | None = None
    ) -> Iterator[tuple[Batch, int, int]]:
        """The rows that run, or others of the pool, in batches of one shape: each with the number of its first row, and
        with how many of its rows count; those behind only fill it."""
        size, rows = size or self.batch_size, self.rows if rows is None else rows
        m = len(self.inputs) if rows is None else len(rows)
        for start in self._bar(range(0, m, size), name, -(-m // size)):
            number = start if rows is None else int(rows[start])
            yield self._batch(None, start, size, self.num_threads, some=rows), number, min(size, m - start)

    def first_rows(self) -> Batch:
        """A batch of the first two rows (one, of a batch_size of one), as the model takes it."""
        return self._batch(None, 0, min(2, self.batch_size))

    def take(self, rows: Tensor) -> Batch:
        """These rows of the pool, (n,) int64, as the model takes them."""
        return self._batch(None, 0, len(rows), self.num_threads, some=rows)

    def uncertainty(self, logits: Tensor, kind: Uncertainty) -> Tensor:
        """`uncertainty` with the backend and threads of this pass, of logits that were checked where they were made."""
        scores = []
        for some in logits.split(max(1, _SCORED // logits.shape[1])):
            scores.append(uncertainty(some, kind, multilabel=self.multilabel, these_are_logits=True, **self.compute))
            if self.memory is not None:
                release(logits)
        return torch.cat(scores)

    def prepared(self) -> Prepared:
        """What runs in place of the model; its note says what was done, or why nothing was."""
        if self.prepare == "off":
            return Prepared("off", plain(self.model, None))
        unfit = "a function runs as it is" if isinstance(self.model, FunctionModel) else unmixable(self.pool)
        if unfit is not None:
            return self._shared.keep(Prepared(f"off: {unfit}", plain(self.model, None)))
        few = partial(self._batch, None, 0)
        return self._shared.prepared_model(self.model, self.head, few, self.batch_size, self._autocast())

    @property
    def unit(self) -> int:
        """Rows that are not divided between processes, so that all batches are those of one process."""
        return math.lcm(self.batch_size, self.prepared().rows or 1)

    @property
    def _least_classes(self) -> int:
        """The fewest logits that a sample may have."""
        return 2 if self.multilabel is None else 1

    @property
    def compute(self) -> dict[str, Any]:
        """backend and num_threads, as the operations take them."""
        return {"backend": self.backend, "num_threads": self.num_threads}

    @property
    def note(self) -> str | None:
        """What `prepared` did, or would say; None while nothing has run."""
        if self.prepare == "off":
            return "off"
        prepared = self._shared.prepared
        return None if prepared is None or isinstance(self.model, NoModel) else prepared.note

    def _autocast(self) -> torch.dtype | None:
        """The dtype of autocast: ours, or that of the caller, which does not reach other threads by itself."""
        device = model_device(self.model).type
        if self.autocast is None and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.autocast

    def _run(
        self, name: str, recipe: Recipe | None, features: bool = False, rows: Tensor | None = None,
        each: Callable[[Outputs], Outputs] = list,
    ) -> Outputs:  # fmt: skip
        """(features, logits) of the plain or mixed pool, or of some rows, in parts; no features are logits instead.
        each: What is kept of each part, in order."""
        rows = self.rows if rows is None else rows
        if rows is not None and len(rows) == 0:  # the shapes of what there is nothing of
            one = None if recipe is None else Recipe(rows.new_zeros(1, 0), None, torch.ones(1))
            return [(first[:0], second[:0]) for first, second in self._run(name, one, features, rows.new_zeros(1))]
        device, autocast, m = model_device(self.model), self._autocast(), len(self.inputs if rows is None else rows)
        engine = self.prepared()
        if features and engine.head is None:
            engine = Prepared(engine.note, self._features)
        size = limit = engine.rows or self.batch_size
        starts, shortage = range(0, m, size), ""
        ahead = self._ahead(engine, recipe, starts, rows)
        read = [] if self.memory is None else [self.pool, *([recipe.indices, recipe.weights] if recipe else [])]
        give_back = [releasing(x) for x in read]

        def run(start: int) -> Outputs:
            nonlocal limit, shortage
            parts, end = [], min(start + size, m)
            with inferring(device, autocast):
                while start < end:
                    count = limit
                    try:
                        if ahead is not None and count == size:
                            batch: Batch = next(ahead)
                        else:
                            of_mix = 1 if engine.threads else self.num_threads
                            into = engine.run.input if isinstance(engine.run, Graphed) else None
                            batch = self._batch(recipe, start, count, of_mix, engine.channels_last, rows, into)
                        keep = min(count, end - start)
                        number = start if rows is None else int(rows[start])
                        found = outputs(engine.run, batch, number, keep, self._least_classes, features)
                        if features and start == 0 and self.prepare == "auto":
                            self._shared.look_for_room(m, *found, self.memory)
                        parts.append((found[0].cpu(), found[1].cpu()) if self._shared.on_host else found)
                        for of_file in give_back:
                            of_file()
                    except (RuntimeError, MemoryError) as error:
                        if count == 1 or not out_of_memory(error):
                            raise
                        limit, shortage = min(limit, count // 2), first_line(error)
                    else:
                        start += count
            return parts

        if engine.threads:  # a copy, so that no call waits for another, and no operator for another thread
            workers = self.num_threads or threads.threads_of_torch()
            with closing(threads.each(run, starts, workers)) as found:
                parts = [each(some) for some in self._bar(found, name, len(starts))]
        else:
            with evaluating(self.model), nullcontext() if ahead is None else closing(ahead):
                parts = [each(some) for some in self._bar(map(run, starts), name, len(starts))]
        if limit < size:
            warnings.warn(f"not enough memory for {size} rows at a time, now {limit}: {shortage}", stacklevel=4)
        return [part for some in parts for part in some]

    def _ahead(
        self, engine: Prepared, recipe: Recipe | None, starts: range, rows: Tensor | None
    ) -> Generator[Tensor, None, None] | None:
        """The batches of a pool on the host for a prepared model on a GPU, copied beside its work; None elsewhere."""
        device, pool = model_device(self.model), self.pool
        if not on_gpu(device) or engine.rows is None or (isinstance(pool, Tensor) and pool.device.type != "cpu"):
            return None
        make = partial(self._batch, recipe, size=starts.step, some=rows, device=torch.device("cpu"))
        workers = self.num_threads or threads.threads_of_torch()
        return fed(partial(make, num_threads=workers, channels_last=engine.channels_last), starts, device)

    def _bar(self, steps: Iterable[Step], name: str, total: int) -> Iterable[Step]:
        return tqdm(steps, name, total, leave=False, disable=None if self.progress else True)  # type: ignore[no-any-return]

    def _features(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """(features, logits) of a batch from the model as it is, whose head is found first."""
        if isinstance(self.model, FunctionModel):
            return self.model.features_and_logits(batch)
        if self._shared.head is None:
            self._shared.head = find_head(self.model, batch, self.head)
        return plain(self.model, self._shared.head)(batch)

    def _batch(
        self,
        recipe: Recipe | None,
        start: int,
        size: int,
        num_threads: int | None = None,
        channels_last: bool = False,
        some: Tensor | None = None,
        out: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Batch:
        """Size rows of the plain or mixed pool (or of some of its rows) from start on, see `make_batch`."""
        pool = self.pool if recipe is None else self._mixed_from
        return make_batch(
            self.model, pool, recipe, start, size, self._shared.lock, channels_last, some, out, device,
            normalize=self.normalize, backend=self.backend, num_threads=num_threads,
        )  # fmt: skip

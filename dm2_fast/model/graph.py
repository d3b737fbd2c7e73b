"""A prepared model on a GPU, whose kernels one CUDA graph launches where batches of one shape come again."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, cuda

from dm2_fast.model.limits import first_line


class Graphed:
    """Run a model, and from the second batch of a shape on replay the CUDA graph of its kernels.

    Before the graph is used, what it gives is compared with what the model gives, bit for bit. A model that cannot be
    captured, or whose graph gives something else, runs as before, with one warning.

    Args:
        run: From a batch to features (or None) and logits, by the same kernels for every batch of one shape.

    Attributes:
        input: What the graph reads, once there is one: a batch may be written there. What it returns is written anew by
            the next batch.
    """

    def __init__(self, run: Callable[[Tensor], tuple[Tensor | None, Tensor]]) -> None:
        self.input: Tensor | None = None
        self._run, self._refused = run, False
        self._shape: torch.Size | None = None

    def __call__(self, batch: Tensor) -> tuple[Tensor | None, Tensor]:
        again, self._shape = batch.shape == self._shape, batch.shape
        if self.input is None and again and not self._refused:
            return self._captured(batch)
        if self.input is None or batch.shape != self.input.shape:
            return self._run(batch)
        if batch is not self.input:
            self.input.copy_(batch)
        self._graph.replay()
        return self._results

    def _captured(self, batch: Tensor) -> tuple[Tensor | None, Tensor]:
        """Capture the graph, and return what the model gives for the batch."""
        main, side, own = cuda.current_stream(), cuda.Stream(), batch.clone()
        side.wait_stream(main)
        with cuda.stream(side):  # lazy initialisation, which cannot be captured
            expected = self._run(own)
        main.wait_stream(side)
        try:
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may copy meanwhile
                results = self._run(own)
            graph.replay()
            if not all(map(_same, results, expected)):
                raise RuntimeError("it gives other values than the model")
        except RuntimeError as error:
            self._refused = True
            warnings.warn(
                f"the model runs without a CUDA graph, which may be slower: {first_line(error)}", stacklevel=2
            )
        else:
            self.input, self._graph, self._results = own, graph, results
        return expected


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two results have the same bits, or are both NaN."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)

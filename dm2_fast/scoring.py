"""Forward passes over a pool: features and logits (Eq. 3), and the uncertainty of mixed samples (Eqs. 8-10)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dm2_fast import backends
from dm2_fast.arrays import ArrayLike, as_tensor, name_rows
from dm2_fast.mixing import Normalize, Recipe, mix

Uncertainty: TypeAlias = Literal["least-confidence", "entropy", "margin"]

_CHECKED_ELEMENTS = 2**19  # at a time, so that looking for NaN takes no memory to speak of


def uncertainty(
    logits: Tensor, kind: Uncertainty = "least-confidence", *, backend: str = "auto", num_threads: int | None = None
) -> Tensor:
    """Turn logits into one uncertainty per row, without storing the softmax.

    Specifically, with `p = logits.softmax(1)`, this computes `1 - p.amax(1)` ("least-confidence", Eqs. 9-10),
    `-(p * p.log()).sum(1)` ("entropy", in nats), or `-(p1 - p2)` of the two largest values ("margin"). The terms that
    would cancel are left out of the sums, so that a confident row still has a value of its own.

    Args:
        logits: (n, C), C >= 2, float16 | bfloat16 | float32 | float64; -inf is a class of probability zero.
        kind: "least-confidence", "entropy" or "margin".
        backend, num_threads: As in `dm2_fast.knn`.

    Returns:
        (n,) float32 (float64 for float64 logits); larger is more uncertain.

    Raises:
        ValueError: logits are not (n, C), hold NaN or +infinity, or kind is unknown.
        TypeError: the dtype is not listed above.
        RuntimeError: a forced backend cannot run on logits.
    """
    if kind not in get_args(Uncertainty):
        raise ValueError(f"kind must be one of {', '.join(get_args(Uncertainty))}, got {kind!r}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (n, C) with at least two classes, got shape {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    logits = logits.detach()
    bad = torch.nonzero(~logits.amax(1).isfinite())[:, 0].tolist() if len(logits) else []
    if bad:
        raise ValueError(f"logits must be finite or -infinity, got NaN or infinity in {name_rows(bad)}")
    module = backends.resolve(backend, logits)
    options = backends.thread_options(module, num_threads)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty(len(logits), dtype=dtype, device=logits.device)
    if len(logits):
        module.uncertainty(logits, kind, out, **options)
    return out


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, without gradients, and leave its mode and the random state as they were."""
    device = model_device(model)
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def model_device(model: nn.Module) -> torch.device:
    """The device that the model computes on."""
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def model_dtype(model: nn.Module) -> torch.dtype:
    """The floating-point dtype that the model computes in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def check_logits(logits: object) -> Tensor:
    """logits, if they are an (n, C) tensor of scores; an error that says what the model returned otherwise."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return a tensor of (n, C) logits, got {type(logits).__name__}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"model must return (n, C) logits with at least two classes, got shape {tuple(logits.shape)}")
    return logits


def find_head(model: nn.Module, batch: Tensor, head: str | nn.Module | None = None) -> nn.Module:
    """Find the module whose input is the feature vector f: the last linear layer executed whose output is the logits.

    Args:
        model: In eval mode.
        batch: One batch that the model takes.
        head: The module, or its dotted name, when the caller knows it.

    Raises:
        ValueError: there is no such layer, or head is not a module of model.
    """
    if head is not None:
        named = dict(model.named_modules())
        if isinstance(head, str) and head not in named:
            raise ValueError(f"head must name a module of the model, got {head!r}")
        module = named[head] if isinstance(head, str) else head
        if all(module is not other for other in named.values()):
            raise ValueError(f"head must be a module of the model, got {type(module).__name__}")
        return module
    executed: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output: executed.append((module, output)))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        logits = check_logits(model(batch))
    finally:
        for hook in hooks:
            hook.remove()
    for module, output in reversed(executed):
        if output.shape == logits.shape and torch.equal(output.nan_to_num(), logits.nan_to_num()):
            return module
    layers = [name for name, module in model.named_modules() if not list(module.children())]
    raise ValueError(
        "model must have a linear layer whose output is the logits, got none; "
        f"name the module whose input is the feature vector with head=... (last ones: {', '.join(layers[-4:])})"
    )


@dataclass(frozen=True)
class ForwardPass:
    """How a pool runs through a model. The model, its mode, its BatchNorm statistics and the random state come back
    untouched, and the result of a row does not depend on the rows beside it: all batches have one shape.

    Args:
        model: Returns (n, C) logits for a batch of n samples.
        inputs: The pool, (m, ...), as in `dm2_fast.mix`.
        normalize: (mean, std) per channel, applied after scaling uint8 to [0, 1] and after mixing.
        head: The module whose input is the feature vector, or its dotted name; None to find it (see `find_head`).
        batch_size: Rows per forward pass.
        backend, num_threads, progress: As in `dm2_fast.knn`.

    Raises:
        ValueError: the pool is empty or batch_size < 1.
    """

    model: nn.Module
    inputs: ArrayLike
    normalize: Normalize | None = None
    head: str | nn.Module | None = None
    batch_size: int = 256
    backend: str = "auto"
    num_threads: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if len(self.inputs.shape) < 2 or 0 in self.inputs.shape:
            raise ValueError(f"inputs must be a non-empty (m, ...) pool, got shape {tuple(self.inputs.shape)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def over(self, inputs: ArrayLike) -> "ForwardPass":
        """The same pass over other inputs."""
        return replace(self, inputs=inputs)

    def features_and_logits(self) -> tuple[Tensor, Tensor]:
        """Return the features f (m, d), Eq. 3: the input of the head, flattened; and the logits (m, C).

        Where the model is its own head, the features are the inputs themselves, without a copy: not to be written to.

        Raises:
            ValueError, TypeError: the model has no head, or does not return finite (n, C) logits and features.
        """
        own = self._inputs_as_features()
        if own is not None:
            return own, self.logits()
        features: list[Tensor] = []
        logits: list[Tensor] = []
        captured: list[Tensor] = []
        hook = None
        with evaluating(self.model):
            try:
                for start, keep, batch in self._batches("features", None):
                    if hook is None:
                        head = find_head(self.model, batch, self.head)
                        hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].flatten(1)))
                    captured.clear()
                    out = self._logits(start, keep, batch)
                    if not captured or len(captured[-1]) != len(batch):
                        raise ValueError(
                            f"head must see one row per sample, got {[tuple(f.shape) for f in captured]} "
                            f"for {len(batch)} samples"
                        )
                    _check_finite("features", captured[-1][:keep], start)
                    features.append(captured[-1][:keep].clone())
                    logits.append(out)
            finally:
                if hook is not None:
                    hook.remove()
        return torch.cat(features), torch.cat(logits)

    def _inputs_as_features(self) -> Tensor | None:
        """The inputs, where a forward pass would only copy them: a linear model that takes them as they are; else None.

        Raises:
            ValueError: they are not finite.
        """
        if not (isinstance(self.model, nn.Linear) and self.head in (None, self.model) and self.normalize is None):
            return None
        if not isinstance(self.inputs, (Tensor, np.ndarray)) or len(self.inputs.shape) != 2:
            return None
        features = as_tensor(self.inputs, "inputs")
        if features.dtype != model_dtype(self.model) or features.device != model_device(self.model):
            return None
        step = max(1, _CHECKED_ELEMENTS // features.shape[1])
        for start in range(0, len(features), step):
            _check_finite("features", features[start : start + step], start)
        return features

    def logits(self) -> Tensor:
        """Return the logits (m, C).

        Raises:
            ValueError, TypeError: the model does not return finite (n, C) logits.
        """
        with evaluating(self.model):
            return torch.cat([self._logits(*batch) for batch in self._batches("logits", None)])

    def mixed_uncertainty(self, recipe: Recipe, kind: Uncertainty = "least-confidence") -> Tensor:
        """Mix every row by the recipe and return the uncertainty (m,) of the mixtures, Eqs. 7-10.

        Raises:
            ValueError, TypeError: the model does not return finite (n, C) logits.
        """
        with evaluating(self.model):
            return torch.cat([self.uncertainty(self._logits(*b), kind) for b in self._batches("mixed", recipe)])

    def softmax_moments(self, passes: int, use: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """Run the model itself several times, and return the mean of the softmax p and the mean entropy of p.

        Specifically, with p[t] the softmax of pass t, this computes `p.mean(0)` (m, C) and
        `torch.special.entr(p).sum(2).mean(0)` (m,), both float64, without storing p. The pool is read once.

        Args:
            passes: Passes over each batch.
            use: Called with the pass's number before each.
        """
        means, entropies = [], []
        with evaluating(self.model):
            for start, keep, batch in self._batches("passes", None):
                mean = entropy = torch.zeros((), dtype=torch.float64)
                for number in range(passes):
                    use(number)
                    p = self._logits(start, keep, batch).double().softmax(1)
                    mean = mean + p / passes
                    entropy = entropy + torch.special.entr(p).sum(1) / passes
                means.append(mean)
                entropies.append(entropy)
        return torch.cat(means), torch.cat(entropies)

    def first_batch(self) -> Tensor:
        """The first batch of the pool, as the model takes it."""
        return next(self._batches("first", None))[2]

    def uncertainty(self, logits: Tensor, kind: Uncertainty) -> Tensor:
        """`uncertainty` with the backend and threads of this pass."""
        return uncertainty(logits, kind, backend=self.backend, num_threads=self.num_threads)

    def _logits(self, start: int, keep: int, batch: Tensor) -> Tensor:
        logits = check_logits(self.model(batch))
        if len(logits) != len(batch):
            raise ValueError(f"model must return one row per sample, got {len(logits)} rows for {len(batch)} samples")
        _check_finite("logits", logits[:keep].amax(1, keepdim=True), start)
        return logits[:keep].clone()

    def _batches(self, name: str, recipe: Recipe | None) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (first row, rows that count, batch) of the plain or mixed pool, as the model takes it.

        The last batch is filled with copies of the last row: a batch of another shape may round differently.
        """
        device, dtype = model_device(self.model), model_dtype(self.model)
        m, size = len(self.inputs), self.batch_size
        for start in tqdm(range(0, m, size), desc=name, leave=False, disable=None if self.progress else True):
            rows = torch.arange(start, start + size).clamp(max=m - 1)
            neighbours, lam, weights = torch.empty(size, 0, dtype=torch.int64), torch.tensor(1.0), None
            if recipe is not None:
                neighbours, lam = recipe.indices[rows].cpu(), recipe.lam[rows].cpu()
                weights = None if recipe.weights is None else recipe.weights[rows].cpu()
            batch = mix(
                self.inputs,
                neighbours,
                lam,
                weights=weights,
                rows=rows,
                normalize=self.normalize,
                backend=self.backend,
                num_threads=self.num_threads,
            )
            yield start, min(size, m - start), batch.to(device, dtype)


def _check_finite(name: str, values: Tensor, start: int) -> None:
    bad = (start + torch.nonzero(~values.isfinite().all(1))[:, 0]).tolist()
    if bad:
        raise ValueError(f"{name} of the model must be finite, got NaN or infinity in {name_rows(bad)}")

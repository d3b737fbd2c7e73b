"""Perturbations by the sign of the gradient, in one step or many, and the loss over pairs (Eqs. 12-16)."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import draws
from dm2_fast.model.head import check_logits, check_model, evaluating, model_device, model_dtype
from dm2_fast.model.limits import first_line, out_of_memory
from dm2_fast.operations.arguments import number, whole
from dm2_fast.operations.arrays import as_floats, as_integers, as_samples
from dm2_fast.operations.mix import Normalize, channel_statistics
from dm2_fast.progress import tqdm
from dm2_fast.threads import threads_of_torch


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    epsilon: float,
    *,
    normalize: Normalize | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """Perturb samples by epsilon along the sign of the loss gradient (Eqs. 12-13, 15-16).

    Specifically, with x in [0, 1] (uint8 is divided by 255) and `z = model((x - mean) / std)`, this computes
    `(x + epsilon * grad(cross_entropy(z, y), x).sign()).clamp(0, 1)`. epsilon and the clipping are in pixel space
    whatever the normalisation; a sample of which the model is certain is perturbed like any other. The model runs in
    eval mode; it, its gradients, its BatchNorm statistics and the random state come back untouched.

    Args:
        model: Returns (n, C) logits for a batch of n normalised samples.
        x: Samples, (n, C, ...): uint8, or floating point in [0, 1].
        y: Classes, (n,) int64; None for the model's predicted labels (Algorithm 2, line 10).
        epsilon: Largest change of a pixel, at least 0, in units of the [0, 1] range.
        normalize: (mean, std), numbers or one per channel.
        batch_size: Rows per pass.
        progress: Show a progress bar on a terminal.

    Returns:
        (n, C, ...) in [0, 1], on the device of x: float32 for uint8 x, else the dtype of x.

    Raises:
        ValueError: epsilon < 0, x is empty or outside [0, 1], y does not fit, or the model returns no (n, C) logits.
        TypeError: x is neither uint8 nor floating point, or y is not int64.
    """
    attack = _Attack(model, x, y, epsilon, normalize)

    def attacked(rows: slice) -> Tensor:
        start = attack.pixels[rows]
        return attack.stepped(start, attack.slope(start, attack.given(rows))[1], attack.epsilon)

    return attack.in_batches(attacked, batch_size, "fgsm", progress)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    epsilon: float,
    *,
    steps: int = 20,
    restarts: int = 1,
    step_size: float | None = None,
    seed: int = 0,
    normalize: Normalize | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """Perturb samples by projected gradient ascent on the loss within epsilon in every pixel (Madry et al. 2018).

    Specifically, with x, z and the loss as in `fgsm`, each restart repeats
    `x_adv = (x_adv + step_size * grad(loss, x_adv).sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)` for its steps,
    and of all that it comes by, the result is what has the highest loss. The first start is x itself, and what FGSM
    makes of it is looked at too, so the loss is never below that of `fgsm`; the others are drawn uniformly within
    epsilon, keyed by (seed, restart, row).

    Args:
        model, x, y, epsilon, normalize, batch_size, progress: As in `fgsm`; the labels that the model predicts are
            those of x.
        steps: Steps of each restart.
        restarts: Starts, at least 1.
        step_size: None for 2.5 * epsilon / steps, with which a straight way is longer than epsilon.
        seed: Key of the draws.

    Returns:
        (n, C, ...) in [0, 1], as `fgsm`.

    Raises:
        ValueError, TypeError: As `fgsm`; or steps, restarts or step_size is out of range.
    """
    attack = _Attack(model, x, y, epsilon, normalize)
    steps, restarts, seed = whole("steps", steps, 1), whole("restarts", restarts, 1), whole("seed", seed)
    if step_size is None:
        step_size = 2.5 * attack.epsilon / steps
    size = number("step_size", step_size, "at least 0 and finite", lambda value: value >= 0)

    def attacked(rows: slice) -> Tensor:
        x = attack.pixels[rows]
        labels = attack.given(rows)
        if labels is None:
            labels = attack.predicted(x)
        low, high = x - attack.epsilon, x + attack.epsilon
        best, best_loss = x, torch.full((len(x),), -torch.inf, device=attack.device, dtype=torch.float64)

        def looked_at(candidate: Tensor, loss: Tensor) -> None:
            nonlocal best, best_loss
            better = loss.double() > best_loss
            best_loss = torch.where(better, loss.double(), best_loss)
            best = torch.where(better.to(x.device).view(-1, *(1,) * (x.ndim - 1)), candidate, best)

        for restart in range(restarts):
            here = x
            if restart:
                drawn = [
                    draws.generator(seed, restart, "attack", row).uniform(-1, 1, tuple(x.shape[1:]))
                    for row in range(rows.start, rows.start + len(x))
                ]
                noise = torch.from_numpy(np.stack(drawn)).to(x.device, x.dtype)
                here = (x + attack.epsilon * noise).clamp(0, 1)
            for step in range(steps + 1):
                loss, gradient = attack.slope(here, labels)
                looked_at(here, loss)
                if step == 0 and restart == 0:
                    whole_step = attack.stepped(here, gradient, attack.epsilon)
                    looked_at(whole_step, attack.slope(whole_step, labels)[0])
                if step < steps:
                    here = attack.stepped(here, gradient, size).clamp(low, high).clamp(0, 1)
        return best

    return attack.in_batches(attacked, batch_size, "pgd", progress)


class _Attack:
    """What the attacks share: checked arguments, the gradient of the loss in the pixels, and batches."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor | None, epsilon: float, normalize: Normalize | None
    ) -> None:
        threads_of_torch()
        check_model(model)
        self.model = model
        self.epsilon = number("epsilon", epsilon, "at least 0 and finite", lambda value: value >= 0)
        self.pixels = to_pixels(x)
        if y is not None:
            y = as_integers(y, "y")
            if y.shape != x.shape[:1]:
                raise ValueError(f"y must have shape ({len(x)},), got {tuple(y.shape)}")
        self.y = y
        self.device, self.dtype = model_device(model), model_dtype(model)
        self.mean, self.std = _broadcast(normalize, self.pixels, self.device, self.dtype)

    def given(self, rows: slice) -> Tensor | None:
        """The classes of rows on the model's device, if they were given."""
        return None if self.y is None else self.y[rows].to(self.device)

    def predicted(self, pixels: Tensor) -> Tensor:
        """The classes that the model predicts."""
        with torch.no_grad():
            return self._logits(pixels.to(self.device, self.dtype)).argmax(1)

    def _logits(self, inputs: Tensor) -> Tensor:
        return check_logits(self.model((inputs - self.mean) / self.std))

    def slope(self, pixels: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """A number per row that rises with the loss of its label, or of what is predicted; and its gradient."""
        inputs = pixels.to(self.device, self.dtype).requires_grad_()
        with torch.enable_grad():
            logits = self._logits(inputs)
            labels = logits.detach().argmax(1) if labels is None else labels
            if labels.min() < 0 or labels.max() >= logits.shape[1]:
                raise ValueError(
                    f"y must be in [0, {logits.shape[1] - 1}], got {labels.min().item()} to {labels.max().item()}"
                )
            # The cross-entropy is softplus(u), which rises with u: its gradient has the same sign, but rounds to
            # zero for a confident row where that of u does not.
            own = logits.gather(1, labels[:, None])
            u = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1, keepdim=True) - own
            (gradient,) = torch.autograd.grad(u.sum(), inputs)
        return u.detach()[:, 0], gradient.to(pixels.device)

    def stepped(self, pixels: Tensor, gradient: Tensor, size: float) -> Tensor:
        """pixels, moved by size along the sign of the gradient and clipped to [0, 1]."""
        return (pixels + size * gradient.sign().to(pixels.dtype)).clamp(0, 1)

    def in_batches(self, attacked: Callable[[slice], Tensor], batch_size: int, name: str, progress: bool) -> Tensor:
        """What attacked returns for slices of the rows, at most batch_size long, halved where memory is short."""
        batch_size = whole("batch_size", batch_size, 1, 2**31 - 1)
        parts: list[Tensor] = []
        done, size, shortage, n = 0, batch_size, "", len(self.pixels)
        bar = tqdm(total=n, desc=name, leave=False, disable=None if progress else True)
        with evaluating(self.model), _frozen(self.model), bar:
            while done < n:
                try:
                    parts.append(attacked(slice(done, done + size)))
                except (RuntimeError, MemoryError) as error:
                    if size == 1 or not out_of_memory(error):
                        raise
                    size, shortage = size // 2, first_line(error)
                else:
                    done += len(parts[-1])
                    bar.update(len(parts[-1]))
        if size < batch_size:
            warnings.warn(f"not enough memory for {batch_size} rows at a time, now {size}: {shortage}", stacklevel=3)
        return torch.cat(parts)


def to_pixels(x: Tensor) -> Tensor:
    """x in [0, 1]: uint8 is divided by 255, floating point is checked."""
    x = as_samples(x, "x")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must be a non-empty (n, ...) batch, got shape {tuple(x.shape)}")
    if x.dtype == torch.uint8:
        return x.float() / 255
    low, high = x.min().item(), x.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"x must be in [0, 1] (pass normalize= for a model of normalised inputs), got [{low}, {high}]")
    return x


def pair_loss(clean: Tensor, adversarial: Tensor, y: Tensor, twins: Tensor, clean_weight: float = 0.5) -> Tensor:
    """The combined loss of a batch in which some rows have an adversarial twin (Eq. 14).

    Specifically, with the cross-entropies `c = CE(clean, y)` and `a = CE(adversarial, y[twins])` per row, this is
    the mean over the batch of `w * c + (1 - w) * a` where there is a twin and of `c` where there is none.

    Args:
        clean: Logits of the batch, (n, C).
        adversarial: Logits of the twins, (t, C).
        y: True classes of the batch, (n,) int64.
        twins: The row of the batch that each twin belongs to, (t,) int64, distinct.
        clean_weight: w in [0, 1]; 0.5 is Eq. 14.

    Raises:
        ValueError: shapes do not match or clean_weight is outside [0, 1].
    """
    clean_weight = number("clean_weight", clean_weight, "in [0, 1]", lambda value: 0 <= value <= 1)
    for name, logits in (("clean", clean), ("adversarial", adversarial)):
        if as_floats(logits, name).ndim != 2 or logits.shape[1:] != clean.shape[1:]:
            raise ValueError(f"{name} must be logits (n, C) of the classes of clean, got shape {tuple(logits.shape)}")
    y, twins = as_integers(y, "y"), as_integers(twins, "twins")
    if y.ndim != 1 or twins.ndim != 1:
        raise ValueError(f"y and twins must be 1-D, got {y.ndim}-D and {twins.ndim}-D")
    if len(y) != len(clean) or len(twins) != len(adversarial):
        raise ValueError(
            f"y and twins must match the logits, got {len(y)} labels for {len(clean)} rows "
            f"and {len(twins)} twins for {len(adversarial)} rows"
        )
    for name, rows, most in (("y", y, clean.shape[1]), ("twins", twins, len(clean))):
        if len(rows) and not (rows.min() >= 0 and rows.max() < most):
            raise ValueError(f"{name} must be in [0, {most - 1}], got {rows.min().item()} to {rows.max().item()}")
    loss = F.cross_entropy(clean, y, reduction="none")
    if len(twins):
        twin_loss = F.cross_entropy(adversarial, y[twins], reduction="none")
        loss = loss.index_put((twins,), clean_weight * loss[twins] + (1 - clean_weight) * twin_loss)
    return loss.mean()


def _broadcast(
    normalize: Normalize | None, x: Tensor, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(mean, std) shaped to act on dimension 1 of x; (0, 1) for None."""
    mean, std = channel_statistics(normalize if normalize is not None else (0.0, 1.0), x.shape[1])
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return mean.to(device, dtype).view(shape), std.to(device, dtype).view(shape)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Switch the parameters' gradients off: only the input's is wanted."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)

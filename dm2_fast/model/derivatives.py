"""A model's derivatives in its parameters: of each sample on its own, along a direction, and of a whole loss."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from dm2_fast.model.functions import logits_in, rows_of, run_module
from dm2_fast.model.head import check_labels, check_logits, evaluating, model_device
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.together import Batch
from dm2_fast.threads import guarding

Direction: TypeAlias = dict[str, Tensor]

_ELEMENTS = 2**26  # of the gradients of several samples that are there at once


class Derivatives:
    """The model over a pool as a function of its trained parameters, in eval mode. The model itself is untouched.

    Args:
        forward: The model, a module of torch, and the pool.
        matrices: Only the parameters of more than one dimension.

    Raises:
        ValueError: no such parameter is trained.
    """

    def __init__(self, forward: ForwardPass, matrices: bool = False) -> None:
        self.forward, self.model = forward, _Logits(forward.model)
        with guarding(model_device(forward.model)):  # another call may have frozen it
            self.parameters = {
                name: parameter.detach()
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad and (parameter.ndim > 1 or not matrices)
            }
        if not self.parameters:
            raise ValueError("no parameter of the model has a gradient: call model.requires_grad_() before")

    def norms(self, slopes: Callable[[Tensor], Tensor]) -> Tensor:
        """For each sample and loss, the norms of the gradients in the parameter tensors, summed; (m, L) float64.

        Specifically, with J the Jacobian of a sample's logits in a tensor and s one of its slopes, this is the sum of
        `(J.T @ s).norm()` over the tensors.

        Args:
            slopes: From the logits (C,) of a sample to the derivatives of L losses in them, (L, C).
        """

        def of_one(sample: Batch) -> Tensor:
            logits, pull = vjp(  # type: ignore[misc]  # of two, without has_aux
                lambda parameters: self._logits(parameters, _each(sample, lambda x: x[None]))[0], self.parameters
            )
            norms = [
                torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in pull(slope)[0].values()]).sum()
                for slope in slopes(logits)
            ]
            return torch.stack(norms)

        total = sum(parameter.numel() for parameter in self.parameters.values())
        size = max(1, min(self.forward.batch_size, _ELEMENTS // total))
        with evaluating(self.forward.model):
            found = [vmap(of_one)(batch)[:keep] for batch, _, keep in self.forward.batches("gradients", size)]
        return torch.cat(found)

    def along(self, direction: Direction, losses: Callable[[Tensor], Tensor]) -> Tensor:
        """The derivative of each sample's loss along a direction of the parameters, gradient times direction; (m,).

        Args:
            direction: A tensor for each of the parameters.
            losses: From logits (n, C) to the loss of each, (n,).
        """

        def derivatives(batch: Batch) -> Tensor:
            def weighted(parameters: Direction, weights: Tensor) -> Tensor:
                return (weights * losses(self._logits(parameters, batch))).sum()

            def slope(weights: Tensor) -> Tensor:  # linear in the weights: its gradient has each sample's own
                return _dot(grad(weighted)(self.parameters, weights), direction)

            n = rows_of(batch)
            return grad(slope)(torch.ones(n, device=model_device(self.model)))  # type: ignore[no-any-return]

        with evaluating(self.forward.model):
            return torch.cat([derivatives(batch)[:keep] for batch, _, keep in self.forward.batches("gradients")])

    def gradient(self, labels: Tensor) -> Direction:
        """The gradient of the mean cross-entropy of the pool, whose classes are labels (m,)."""
        total = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        with evaluating(self.forward.model):
            left = labels
            for batch, _, keep in self.forward.batches("gradients"):
                found = grad(partial(self._loss, batch, left[:keep]))(self.parameters)
                left = left[keep:]
                for name, gradient in found.items():
                    total[name] += gradient * keep / len(labels)
        return total

    def hessian_times(self, direction: Direction, labels: Tensor, rows: Tensor) -> Direction:
        """The Hessian of the mean cross-entropy of some rows (n,) of the pool, times a direction."""

        def slope(parameters: Direction, batch: Batch) -> Tensor:
            return _dot(grad(partial(self._loss, batch, labels[rows]))(parameters), direction)

        with evaluating(self.forward.model):
            return grad(slope)(self.parameters, self.forward.take(rows))  # type: ignore[no-any-return]

    def _loss(self, batch: Batch, labels: Tensor, parameters: Direction) -> Tensor:
        """The mean cross-entropy of the first rows of a batch, as many as there are labels."""
        logits = self._logits(parameters, batch)[: len(labels)]
        check_labels(labels, logits.shape[1])
        return F.cross_entropy(logits, labels.to(logits.device))

    def _logits(self, parameters: Direction, batch: Batch) -> Tensor:
        return check_logits(functional_call(self.model, parameters, (batch,)))


def _dot(one: Direction, other: Direction) -> Tensor:
    return torch.stack([(one[name] * other[name]).sum() for name in one]).sum()


class _Logits(nn.Module):
    """A model that returns its logits as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Any:
        return logits_in(run_module(self.model, batch))


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch with every input changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: change(part) for name, part in batch.items()}
    return tuple(change(part) for part in batch)

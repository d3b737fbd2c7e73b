"""VAAL: the samples that a discriminator tells from the labelled ones by their latent codes (Sinha et al. 2019)."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import threads
from dm2_fast.model.head import evaluating, model_device
from dm2_fast.operations.arguments import number, whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategy import FEATURES, Pass, Strategy
from dm2_fast.training_part import TrainingStep, shuffled_batches, train_alone

LR, VAE_STEPS = 5e-4, 2  # of both; VAE_STEPS for each of the discriminator
_HIDDEN = 512  # units of the discriminator, and of an auto-encoder of vectors
_BATCH = 64  # of a training in a call


@dataclass(frozen=True)
class VAALConfig:
    """Options of vaal; the defaults are the authors', but for the width, 128 there.

    Args:
        latent: Dimensions of the latent code.
        beta: Weight of the divergence of the codes from the prior, the mean over their dimensions.
        adversary: Weight of deceiving the discriminator.
        width: Channels behind the first layer of the auto-encoder; each further layer doubles them.
        epochs: Passes over the labelled set where the parts are trained in a call of select; a run trains them as long
            as the network.
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    latent: int = 32
    beta: float = 1.0
    adversary: float = 1.0
    width: int = 32
    epochs: int = 100
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        for name in ("latent", "width", "epochs"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        for name in ("beta", "adversary"):
            number(name, getattr(self, name), "at least 0 and finite", lambda value: value >= 0)


class AutoEncoder(nn.Module):
    """A variational auto-encoder of samples of one shape: of images by convolutions, of others by two layers."""

    def __init__(self, shape: tuple[int, ...], options: VAALConfig) -> None:
        super().__init__()
        levels = min(4, int(math.log2(min(shape[1:]))) - 1) if len(shape) == 3 else 0
        if levels < 1:
            size = math.prod(shape)
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, _HIDDEN), nn.ReLU())
            out = _HIDDEN
            back = [nn.Linear(options.latent, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, size), nn.Unflatten(1, shape)]
        else:
            channels = [shape[0], *(options.width * 2**level for level in range(levels))]
            sizes = [shape[1:]]
            there: list[nn.Module] = []
            for before, after in pairwise(channels):
                there += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
                sizes.append(tuple(side // 2 for side in sizes[-1]))
            self.encoder = nn.Sequential(*there, nn.Flatten())
            out = channels[-1] * math.prod(sizes[-1])
            back = [nn.Linear(options.latent, out), nn.Unflatten(1, (channels[-1], *sizes[-1]))]
            for level in range(levels, 0, -1):
                (h, w), (height, width) = sizes[level], sizes[level - 1]
                odd = (height - 2 * h, width - 2 * w)
                last = level == 1
                back.append(nn.ConvTranspose2d(channels[level], channels[level - 1], 4, 2, 1, odd, bias=last))
                back += [] if last else [nn.BatchNorm2d(channels[level - 1]), nn.ReLU()]
        self.mean, self.log_variance = nn.Linear(out, options.latent), nn.Linear(out, options.latent)
        self.decoder = nn.Sequential(*back)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the codes, (n, latent) each."""
        hidden = self.encoder(x.to(self.mean.weight.dtype))
        return self.mean(hidden), self.log_variance(hidden)

    def loss(self, x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """The means of the squared error and, times beta, of the divergence from the prior; and the codes' means."""
        mean, log_variance = self.encode(x)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return F.mse_loss(self.decoder(code), x.to(mean.dtype)) + beta * divergence, mean


class VAAL(nn.Module):
    """The auto-encoder, the discriminator, and their optimizers: Adam (lr 5e-4) for each."""

    def __init__(self, shape: tuple[int, ...], options: VAALConfig) -> None:
        super().__init__()
        self.options = options
        self.vae = AutoEncoder(shape, options)
        self.discriminator = nn.Sequential(
            nn.Linear(options.latent, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)
        )
        self.optimizers = tuple(torch.optim.Adam(p.parameters(), LR) for p in (self.vae, self.discriminator))

    def get_extra_state(self) -> Any:
        """The state of the optimizers, which a checkpoint keeps with the weights."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def set_extra_state(self, state: Any) -> None:
        """Take up the state of the optimizers."""
        for optimizer, saved in zip(self.optimizers, state, strict=True):
            optimizer.load_state_dict(saved)

    def loss(self, step: TrainingStep) -> Tensor:
        """Train both parts a little: two steps of the auto-encoder, one of the discriminator; nothing is added.

        On the labelled samples of the step and as many unlabelled ones, drawn for each step, the auto-encoder learns to
        reconstruct both and to have both called labelled; the discriminator, to tell them apart by their codes' means.
        """
        if step.left:
            for _ in range(VAE_STEPS):
                unlabelled = step.unlabelled(len(step.inputs))
                self._update(0, self.vae_loss(step.inputs, unlabelled))
            unlabelled = step.unlabelled(len(step.inputs))
            self._update(1, self.discriminator_loss(step.inputs, unlabelled))
        return torch.zeros((), device=step.inputs.device)

    def vae_loss(self, labelled: Tensor, unlabelled: Tensor) -> Tensor:
        """What the auto-encoder minimises."""
        total: Tensor = torch.zeros((), device=labelled.device)
        for x in (labelled, unlabelled):
            loss, mean = self.vae.loss(x, self.options.beta)
            total = total + loss + self.options.adversary * F.softplus(-self.discriminator(mean)).mean()
        return total

    def discriminator_loss(self, labelled: Tensor, unlabelled: Tensor) -> Tensor:
        """What the discriminator minimises: the cross-entropy of calling labelled 1 and unlabelled 0."""
        with torch.no_grad():
            means = [self.vae.encode(x)[0] for x in (labelled, unlabelled)]
        is_labelled, is_not = (self.discriminator(mean) for mean in means)
        return F.softplus(-is_labelled).mean() + F.softplus(is_not).mean()

    def _update(self, which: int, loss: Tensor) -> None:
        self.zero_grad()
        loss.backward()
        self.optimizers[which].step()
        self.zero_grad()

    def unlabelled_logits(self, x: Tensor) -> Tensor:
        """The logit of each sample being unlabelled, (n,)."""
        return -self.discriminator(self.vae.encode(x)[0])[:, 0]  # type: ignore[no-any-return]


def part(model: nn.Module, samples: Tensor, options: VAALConfig) -> VAAL:
    """What is trained beside a network that takes such samples.

    Raises:
        TypeError: they are integers, or several inputs.
    """
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        raise TypeError("vaal reconstructs samples, so they must be one array of images or other measurements")
    return VAAL(tuple(samples.shape[1:]), options)


def choose(round: Round, budget: int, options: VAALConfig) -> Picked:
    """Choose the budget rows that the discriminator is surest are unlabelled.

    A run trains the parts beside the network, which they do not change. In a call of select they are trained on the
    pool and the labelled set, in batches of 64, with a warning. The model itself is not asked.

    Raises:
        TypeError: samples are integers, or several inputs.
        ValueError: in a call, there is no labelled set.
    """
    scores = codes(round, options)
    with round.stage("choose"):
        return Picked(choose_batch(round, scores, budget, options.batch), scores)


def trained(round: Round, options: VAALConfig) -> VAAL:
    """The parts of the run, or ones that are trained now."""

    def run(seed: int) -> VAAL:
        pool, labelled = round.forward, round.over_labelled
        n, m = len(labelled.inputs), len(round)
        warnings.warn(
            f"vaal trains its auto-encoder and discriminator in this call, {options.epochs} passes over {n} labelled "
            "samples; dm2-fast run trains them beside the network",
            stacklevel=2,
        )

        def steps(generator: torch.Generator) -> Iterator[TrainingStep]:
            def draw(number: int) -> Tensor:
                return pool.take(torch.randint(m, (number,), generator=generator))  # type: ignore[return-value]

            for epoch, rows in shuffled_batches(n, _BATCH, options.epochs, generator):
                inputs, nothing = labelled.take(rows), torch.zeros(len(rows), 1)
                yield TrainingStep(epoch, options.epochs, inputs, nothing[:, 0], nothing, draw, left=m)  # type: ignore[arg-type]

        device = model_device(pool.model)
        with threads.seeded(seed, device):
            made = part(pool.model, pool.first_rows(), options).to(device)  # type: ignore[arg-type]
        return train_alone(made, steps, LR, seed)  # type: ignore[return-value]

    return round.trained_part("auto-encoder", replace(options, batch="highest"), run)  # type: ignore[return-value]


def codes(round: Round, options: VAALConfig) -> Tensor:
    """The logit of each row being unlabelled, (m,)."""
    parts = trained(round, options)

    def run() -> Tensor:
        with evaluating(parts):
            batches = round.forward.batches("codes")
            return torch.cat([parts.unlabelled_logits(batch)[:keep] for batch, _, keep in batches])  # type: ignore[arg-type]

    return round.once("codes", replace(options, batch="highest"), run)


TRAINING = Pass("auto-encoder", trained)
CODES = Pass("codes", codes)
STRATEGY = Strategy("vaal", choose, VAALConfig, passes=(TRAINING, CODES, FEATURES), part=part)

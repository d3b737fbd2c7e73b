"""Training from scratch and evaluation (Eqs. 1-2, 14), with the recipes of the paper's section 6."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast.adversarial import fgsm, pair_loss, to_pixels
from dm2_fast.experiment.config import AdversarialConfig, TrainingConfig
from dm2_fast.experiment.data.sets import Data
from dm2_fast.experiment.folder.checkpoint import TrainingFile
from dm2_fast.model.blocks import watching
from dm2_fast.model.head import on_gpu
from dm2_fast.model.limits import room
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.mix import Normalize, mix
from dm2_fast.progress import tqdm
from dm2_fast.strategy import TrainingPart, TrainingStep

Prepare: TypeAlias = Literal["auto", "off"]


@dataclass(frozen=True)
class Labelled:
    """The labelled set.

    Attributes:
        x, y: Images (n, C, H, W) uint8 and classes (n,).
        twins: Adversarial images, (t, C, H, W) float32 in [0, 1].
        twin_of: The row of x that each twin belongs to, (t,) int64, distinct.
    """

    x: Tensor
    y: Tensor
    twins: Tensor
    twin_of: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> "Labelled":
        """The same on a device."""
        return Labelled(*(part.to(device) for part in (self.x, self.y, self.twins, self.twin_of)))

    def subset(self, rows: Tensor) -> "Labelled":
        """The rows, in this order, with their twins."""
        position = torch.full((len(self),), -1)
        position[rows] = torch.arange(len(rows))
        kept = position[self.twin_of] >= 0
        return Labelled(self.x[rows], self.y[rows], self.twins[kept], position[self.twin_of[kept]])


@dataclass(frozen=True)
class Evaluation:
    """Test results: accuracy and accuracy under FGSM in [0, 1], and the mean cross-entropy.

    Attributes:
        others: Accuracy under further attacks (`accuracy_pgd`) and on further test sets, by name.
    """

    accuracy: float
    accuracy_fgsm: float
    loss: float
    others: dict[str, float] = field(default_factory=dict)


def train(
    model: nn.Module,
    labelled: Labelled,
    config: TrainingConfig,
    normalize: Normalize,
    seed: int,
    *,
    adversarial: AdversarialConfig | None = None,
    step_epsilon: float | None = None,
    part: nn.Module | None = None,
    unlabelled: Tensor | None = None,
    file: TrainingFile | None = None,
    progress: bool = False,
    prepare: Prepare = "auto",
) -> None:
    """Train the model in place on the labelled set; with twins, on the combined loss of Eq. 14.

    Args:
        model: On its device.
        labelled: What to learn from; on the CPU.
        config: A complete recipe (no None).
        normalize: (mean, std) of the pixels.
        seed: Key of the order, the augmentation and the dropout. The caller's random state comes back untouched.
        adversarial: Weight of the clean loss, and label of the FGSM at every step.
        step_epsilon: Make a fresh twin of every sample at every step, with this epsilon.
        part: What a strategy trains beside the model (see `dm2_fast.strategy.TrainingPart`), on the model's device.
        unlabelled: Samples that the part may look at, like labelled.x.
        file: Where the training is kept while it goes on, and taken up again; the result is the same.
        progress: Show a progress bar on a terminal.
        prepare: "off" leaves the labelled set on the CPU and copies every batch; "auto" takes it to the model's device
            if it fits in half of what is free there.
    """
    if config.epochs is None or config.batch_size is None or config.lr is None or config.weight_decay is None:
        raise ValueError(f"the recipe lacks a value, resolve the configuration first: {config}")
    adversarial = adversarial or AdversarialConfig()
    device = next(model.parameters()).device
    trained = nn.ModuleList([model] if part is None else [model, part])
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(trained.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.Adam(trained.parameters(), config.lr, weight_decay=config.weight_decay)
    home = _home(labelled, device) if prepare == "auto" else torch.device("cpu")
    labelled = labelled.to(home)
    twin = torch.full((len(labelled),), -1, device=home)
    twin[labelled.twin_of] = torch.arange(len(labelled.twin_of), device=home)
    decay_from = config.epochs * 4 // 5 if config.optimizer == "sgd" else config.epochs

    reads: tuple[str, ...] = getattr(part, "reads", ())
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with forked, watching(model, reads) as outputs:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        start = 0 if file is None else _take_up(file, trained, optimizer, generator)
        trained.train()

        def draw(n: int) -> Tensor:
            if unlabelled is None or len(unlabelled) == 0:
                raise ValueError("the strategy's part in training wants unlabelled samples, but none are left")
            rows = torch.randint(len(unlabelled), (n,), generator=generator)
            shift = _Shift.draw(n, generator) if config.augment == "flip-crop" else None
            return _normalized(_augmented(to_pixels(unlabelled[rows]), shift), normalize).to(device)

        bar = tqdm(desc="train", total=config.epochs, initial=start, leave=False, disable=None if progress else True)
        for epoch in range(start, config.epochs):
            if epoch == decay_from:
                for group in optimizer.param_groups:
                    group["lr"] = config.lr / 10
            for rows in _batches(len(labelled), config.batch_size, generator):
                shift = _Shift.draw(len(rows), generator).to(home) if config.augment == "flip-crop" else None
                rows = rows.to(home)
                y = labelled.y[rows].to(device)
                pixels = _augmented(to_pixels(labelled.x[rows]), shift)
                if step_epsilon is None:
                    paired = torch.nonzero(twin[rows] >= 0)[:, 0]
                    pair_shift = None if shift is None else shift.of(paired)
                    twins = _augmented(labelled.twins[twin[rows[paired]]], pair_shift)
                else:
                    paired = torch.arange(len(rows), device=home)
                    label = y if adversarial.label == "true" else None
                    twins = fgsm(model, pixels, label, step_epsilon, normalize=normalize)
                inputs = _normalized(torch.cat([pixels, twins]), normalize).to(device)
                logits = model(inputs)
                clean, attacked = logits[: len(rows)], logits[len(rows) :]
                loss = pair_loss(clean, attacked, y, paired.to(device), adversarial.clean_weight)
                if part is not None:
                    read = {name: output[: len(rows)] for name, output in outputs.items()}
                    left = 0 if unlabelled is None else len(unlabelled)
                    step = TrainingStep(epoch, config.epochs, inputs[: len(rows)], y, clean, draw, read, left)
                    loss = loss + cast(TrainingPart, part).loss(step)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            bar.update()
            if file is not None and (file.due() or epoch + 1 == config.epochs):
                file.save(
                    {
                        "epochs": epoch + 1,
                        "model": trained.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "generator": generator.get_state(),
                        "random": torch.get_rng_state(),
                        "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
                    }
                )
        bar.close()


def _home(labelled: Labelled, device: torch.device) -> torch.device:
    """Where the labelled set stays while a model on a device is trained."""
    needed = sum(part.numel() * part.element_size() for part in (labelled.x, labelled.twins))
    return device if on_gpu(device) and needed <= room(device) // 2 else torch.device("cpu")


def _take_up(
    file: TrainingFile, trained: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> int:
    """Put everything back as the file has it and return the epochs that are done; 0 if there is nothing."""
    saved = file.load()
    if saved is None:
        return 0
    trained.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    generator.set_state(saved["generator"])
    torch.set_rng_state(saved["random"])
    if saved["random_cuda"] is not None:
        torch.cuda.set_rng_state(saved["random_cuda"], next(trained.parameters()).device)
    return int(saved["epochs"])


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    normalize: Normalize,
    epsilon: float,
    batch_size: int = 256,
    *,
    progress: bool = False,
    prepare: Prepare = "auto",
) -> Evaluation:
    """Test the model on clean images and on images perturbed by FGSM with the true label.

    With epsilon 0 these are the clean images, and FGSM does not run.
    """
    forward = ForwardPass(model, x, normalize, batch_size=batch_size, progress=progress, prepare=prepare)
    logits = forward.logits().cpu()
    attacked = logits
    if epsilon:
        x_adv = fgsm(model, x, y, epsilon, normalize=normalize, batch_size=batch_size, progress=progress)
        attacked = forward.over(x_adv).logits().cpu()
    return Evaluation(
        accuracy=(logits.argmax(1) == y).double().mean().item(),
        accuracy_fgsm=(attacked.argmax(1) == y).double().mean().item(),
        loss=F.cross_entropy(logits.double(), y).item(),
    )


def further_tests(
    model: nn.Module, data: Data, rows: Tensor, batch_size: int = 256, prepare: Prepare = "auto"
) -> dict[str, float]:
    """Accuracy on these rows of each further test set of the data, by name.

    Where they are corruptions, `corruption_error` is the mean error over all of them and their severities.
    """
    found = {}
    for name, test in data.tests.items():
        forward = ForwardPass(model, test.images(rows), data.normalize, batch_size=batch_size, prepare=prepare)
        logits = forward.logits().cpu()
        found[name] = (logits.argmax(1) == data.y_test[rows]).double().mean().item()
    corrupted = [accuracy for name, accuracy in found.items() if data.tests[name].corruption]
    if corrupted:
        found["corruption_error"] = 1 - sum(corrupted) / len(corrupted)
    return found


def _batches(n: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """A shuffled pass. A single sample left over joins the batch before it: BatchNorm cannot train on one."""
    parts = list(torch.split(torch.randperm(n, generator=generator), size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _normalized(pixels: Tensor, normalize: Normalize) -> Tensor:
    """pixels with normalised channels: `mix` without neighbours, the arithmetic that every forward pass uses."""
    nobody = torch.empty(len(pixels), 0, dtype=torch.int64)
    return mix(pixels, nobody, 1.0, normalize=normalize)


@dataclass(frozen=True)
class _Shift:
    """Augmentation of each image: flip it or not, then move it by up to 4 pixels."""

    flip: Tensor
    down: Tensor
    right: Tensor

    PAD = 4

    @classmethod
    def draw(cls, n: int, generator: torch.Generator) -> "_Shift":
        flip = torch.rand(n, generator=generator) < 0.5
        down, right = torch.randint(0, 2 * cls.PAD + 1, (2, n), generator=generator)
        return cls(flip, down, right)

    def to(self, device: torch.device) -> "_Shift":
        return _Shift(self.flip.to(device), self.down.to(device), self.right.to(device))

    def of(self, rows: Tensor) -> "_Shift":
        return _Shift(self.flip[rows], self.down[rows], self.right[rows])


def _augmented(pixels: Tensor, shift: _Shift | None) -> Tensor:
    if shift is None or len(pixels) == 0:
        return pixels
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (shift.PAD,) * 4)
    columns = torch.arange(width, device=pixels.device).expand(n, width)
    columns = shift.right[:, None] + torch.where(shift.flip[:, None], width - 1 - columns, columns)
    lines = shift.down[:, None] + torch.arange(height, device=pixels.device)
    images = torch.arange(n, device=pixels.device)[:, None, None]
    return padded[images, :, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

"""What a run tells its callbacks after every round, and the callback that keeps it for TensorBoard."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dm2_fast import extras
from dm2_fast.experiment.config import RunConfig, to_dict
from dm2_fast.experiment.data.sets import Data
from dm2_fast.experiment.state import State


@dataclass(frozen=True)
class RoundEvent:
    """A round of `dm2_fast.run` that is done: plain values, whatever the experiment tracker.

    Attributes:
        folder: The folder of the run.
        config: What the run does, as its config.yaml has it.
        round: 0 for the training on the initial labels.
        labelled: Size of the labelled set of this training.
        metrics: accuracy, accuracy_fgsm and loss on the test set, and the accuracies that were asked for beside these;
            epsilon, with adversarial training.
        seconds: Wall time of each stage, the selection after this training included.
        rows: Rows of the training set chosen after this training, in order of choice; none after the last.
        scores: The scores that they were chosen by; None where the strategy has none.
        ids: What the user calls these rows; None where they have numbers only.
        pictures: Files that show what was chosen; after the last training, the learning curve.
        new: Whether this call of `run` trained it; False for the rounds that were there when an interrupted or a
            finished run went on.
    """

    folder: Path
    config: dict[str, Any]
    round: int
    labelled: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    rows: list[int]
    scores: list[float] | None
    ids: list[str] | None
    pictures: list[Path]
    new: bool


Told = Callable[[RoundEvent], object]


def event_of(config: RunConfig, folder: Path, state: State, data: Data, round: int, new: bool) -> RoundEvent:
    """What is known of a round whose training is over."""
    result, last = state.results[round], round == config.rounds
    metrics = dict(vars(result.evaluation))
    metrics |= metrics.pop("others")
    if result.epsilon is not None:
        metrics["epsilon"] = result.epsilon
    rows: list[int] = [] if last else state.chosen[round + 1].tolist()
    scores = None if last else state.scores[round + 1]
    picture = folder / ("curve.png" if last else f"round_{round + 1:02d}.png")
    return RoundEvent(
        folder,
        to_dict(config),
        round,
        result.labelled,
        metrics,
        dict(result.seconds),
        rows,
        None if scores is None else scores.tolist(),
        None if data.ids is None else [data.ids[row] for row in rows],
        [picture] if picture.exists() else [],
        new,
    )


class TensorBoard:
    """A callback of `dm2_fast.run` that writes numbers and pictures for TensorBoard into the run's own folder.

    Their step is the number of labels. What an interrupted run wrote there before is superseded.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self) -> None:
        extras.check("tensorboard", "--tensorboard", "tensorboard")
        self._folder: Path | None = None
        self._writer: Any = None

    def __call__(self, event: RoundEvent) -> None:
        """Write one round."""
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard import SummaryWriter

        if self._folder != event.folder:
            if self._writer is not None:
                self._writer.close()
            self._folder = event.folder
            self._writer = SummaryWriter(str(event.folder / "tensorboard"), purge_step=0)
        for name, value in event.metrics.items():
            self._writer.add_scalar(name, value, event.labelled)
        for stage, seconds in event.seconds.items():
            self._writer.add_scalar(f"seconds/{stage}", seconds, event.labelled)
        if event.scores:
            self._writer.add_histogram("scores of the chosen", np.array(event.scores), event.labelled)
        for picture in event.pictures:
            name = "learning curve" if picture.stem == "curve" else "chosen"
            with Image.open(picture) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(name, pixels, event.labelled, dataformats="HWC")
        self._writer.flush()

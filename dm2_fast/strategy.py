"""How a strategy describes itself: its name, its choice, its options, the passes it needs, its part in training."""

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

from torch import Tensor, nn

from dm2_fast.operations.arguments import shown
from dm2_fast.round import Picked, Round
from dm2_fast.training_part import TrainingPart, TrainingStep

__all__ = [
    "DROPOUT", "FEATURES", "LABELLED", "LOGITS", "SAMPLED", "AdversarialTraining", "Pass", "Strategy", "TrainingPart",
    "TrainingStep",
]  # fmt: skip

AdversarialTraining = Literal["off", "round", "step"]


@dataclass(frozen=True)
class Pass:
    """A computation over the pool that strategies share: a round keeps its result, and Table 4 charges its time.

    Attributes:
        name: Where `Round.seconds` has its time, as in `round.once(name, ...)`.
        run: Called with a round and the options of the strategy; runs it, unless the round has the result already.
    """

    name: str
    run: Callable[[Round, Any], object]


LOGITS = Pass("logits", lambda round, options: round.only_logits)
FEATURES = Pass("features", lambda round, options: round.features)
LABELLED = Pass("labelled", lambda round, options: round.labelled_features)
DROPOUT = Pass("dropout", lambda round, options: round.dropout(options.passes))
SAMPLED = Pass("sampled", lambda round, options: round.sampled(options.passes))


@dataclass(frozen=True)
class Strategy:
    """An acquisition strategy.

    Attributes:
        name: Lower-case words with hyphens; its options are `--name.option` on the command line.
        choose: Called with a round, the budget and the options; returns what it chose. The budget is in [1, m].
        options: Frozen dataclass of the options, all with defaults and described in its docstring; None without any.
        passes: The shared passes that it reads. Each belongs to one name; what a model does not need is not charged.
        part: What is trained beside the network (a `TrainingPart`), if anything: called with the fresh network, two
            samples as it takes them, and the options, before each training, every time with the same random state.
        companions: How many other networks a run trains on the labelled set for it, from the options; none without.
        adversarial: The adversarial training of a run that does not say which.
        in_parts: Whether choose may run in several processes at once, each with a part of the pool: it then sees the
            other parts through `round.share` only.
    """

    name: str
    choose: Callable[[Round, int, Any], Picked]
    options: type[Any] | None = None
    passes: tuple[Pass, ...] = (LOGITS, FEATURES, LABELLED)
    part: Callable[[nn.Module, Tensor, Any], nn.Module] | None = None
    companions: Callable[[Any], int] | None = None
    adversarial: AdversarialTraining = "off"
    in_parts: bool = False

    def __post_init__(self) -> None:
        if self.options is not None and not (isinstance(self.options, type) and is_dataclass(self.options)):
            raise TypeError(f"options of strategy {self.name} must be a dataclass, got {self.options!r}")

    def checked(self, options: object) -> Any:
        """options, if they are those of this strategy; the defaults for None."""
        if options is None:
            return None if self.options is None else self.options()
        if self.options is None:
            raise TypeError(f"strategy {self.name} has no options: leave options out")
        if not isinstance(options, self.options):
            raise TypeError(f"options of strategy {self.name} are a {self.options.__name__}, got {shown(options)}")
        return options

"""What a strategy may look at (`Round`), what it returns (`Picked`), and the clock of its stages."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast import draws
from dm2_fast.model.behind_head import behind
from dm2_fast.model.blocks import block_means
from dm2_fast.model.dataset_pool import DatasetPool
from dm2_fast.model.derivatives import Derivatives
from dm2_fast.model.dropout import dropout_tail, sampled_dropout
from dm2_fast.model.from_arrays import NoModel, given
from dm2_fast.model.functions import FunctionModel, torch_module
from dm2_fast.model.head import evaluating, find_head, model_device
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.pools import Pool
from dm2_fast.model.repeated import softmax_moments, softmaxes
from dm2_fast.model.together import Together
from dm2_fast.operations.arguments import shown, whole
from dm2_fast.operations.arrays import ArrayLike
from dm2_fast.operations.multilabel import Over
from dm2_fast.operations.uncertainty import Uncertainty
from dm2_fast.picked import (
    Picked,
    check_budget,
    check_labels,
    check_names,
    check_picked,
    check_row_ids,
    highest,
    reaching,
)
from dm2_fast.share import Share, Whole
from dm2_fast.stage import stage
from dm2_fast.traps import warn_of_ties

__all__ = ["Picked", "Round", "check_budget", "check_names", "check_picked", "check_row_ids", "highest", "stage"]

T = TypeVar("T")
Ties: TypeAlias = Literal["lower", "random"]


@dataclass
class Round:
    """One acquisition round: the trained model, the unlabelled pool, the labelled set, and the key of the random draws.

    What strategies share is computed when it is first read, and kept.

    Args:
        forward: The model and the pool, and how they are run.
        seed, round, row_ids: Key of every random draw; row_ids (m,) defaults to 0, 1, 2, ...
        labelled: Inputs of the labelled set, (n, ...), for the strategies that look at it.
        labels: Their classes, (n,) integers from 0 on.
        part: What the strategy trained beside the network (see `dm2_fast.Strategy`), as it is after the training; None
            where the model was trained without it.
        ties: Which of equal scores is chosen: that of the lower row, or at random, by a draw of each row.
        names: What the user calls the rows, (m,), all different; None for nothing but their numbers.
        companions: Other networks that were trained for the same labels.
        remembered: What the strategy keeps from one round to the next: tensors, numbers, texts, and dicts of these.
        own_features: Features of the pool (m, e) and of the labelled set (n, e) that do not come from the model.
        share: Which rows of a larger pool these are; None for all of it.

    Attributes:
        seconds: Wall time of each stage so far.
    """

    forward: ForwardPass
    seed: int = 0
    round: int = 0
    row_ids: NDArray[np.int64] | Tensor | None = None
    labelled: Pool | None = None
    labels: Tensor | None = None
    part: nn.Module | None = None
    names: Sequence[Any] | None = None
    ties: Ties = "lower"
    companions: Sequence[nn.Module] = ()
    remembered: dict[str, Any] = field(default_factory=dict)
    own_features: tuple[Tensor, Tensor] | None = None
    share: Share = None  # type: ignore[assignment]
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    _kept: dict[tuple[str, Hashable], Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.ties, str) or self.ties not in ("lower", "random"):
            raise ValueError(f"ties must be lower or random, got {shown(self.ties)}")
        if not isinstance(self.forward, ForwardPass):
            raise TypeError(f"forward must be a ForwardPass, got {shown(self.forward)}")
        self.seed, self.round = whole("seed", self.seed), whole("round", self.round)
        self.share = self.share or Whole(len(self.forward))
        self.labels = check_labels(self.labels, None if self.labelled is None else len(self.labelled))

    @classmethod
    def from_arrays(
        cls,
        features: Any = None,
        logits: Any = None,
        probabilities: Any = None,
        labelled_features: Any = None,
        labels: Any = None,
        head: nn.Linear | tuple[Any, Any] | Callable[[Tensor], Any] | None = None,
        *,
        ids: Sequence[Any] | None = None,
        row_ids: NDArray[np.int64] | Tensor | None = None,
        ties: Ties = "lower",
        seed: int = 0,
        round: int = 0,
        multilabel: Over | None = None,
        these_are_logits: bool = False,
        batch_size: int | None = None,
        backend: str = "auto",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> "Round":
        """A round without a model, for `dm2_fast.select_from`: what is given is what strategies may look at.

        A strategy that needs more says what it lacks before anything is computed. DM2 mixes the features and runs the
        head on the mixtures, so it needs features and head.

        Args:
            features: (m, d), float16 to float64, or integers that a float holds exactly.
            logits: (m, C) outputs of the model before the softmax; not needed with a head.
            probabilities: The same after the softmax, as `predict_proba` gives them, in place of logits.
            labelled_features: (n, d), like features, for the strategies that compare with the labelled set.
            labels: Their classes, (n,) integers.
            head: (weight, bias) of the linear layer that reads the features, such as (`coef_`, `intercept_`) of
                scikit-learn, see `dm2_fast.model.linear_head`; or the layer; or a function from (n, d) features to
                (n, C) logits, `lambda x: dm2_fast.logits_of(classifier.predict_proba(x))` for any classifier.
            ids, row_ids, ties, seed, round, multilabel, these_are_logits: As in `dm2_fast.select`.
            batch_size, backend, num_threads, progress: Likewise; None is 4 MB of features.

        Raises:
            ValueError: the arrays do not fit each other, or nothing is given.
            TypeError: one is no array of numbers.
        """
        arrays = given(features, logits, probabilities, labelled_features, head, multilabel, these_are_logits)
        forward = ForwardPass(
            arrays.model, arrays.pool, None, None, batch_size or arrays.batch_size, backend, num_threads, progress,
            multilabel=multilabel, these_are_logits=these_are_logits,
        )  # fmt: skip
        names = check_names(ids, len(arrays.pool))
        made = cls(forward, seed, round, row_ids, arrays.labelled_features, labels, names=names, ties=ties)
        made._kept.update(arrays.passes())
        return made

    def __len__(self) -> int:
        return len(self.forward)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The rows' ids, (m,)."""
        return check_row_ids(self.row_ids, len(self))

    @property
    def features(self) -> Tensor:
        """Features f of the pool, (m, d): the input of the head (Eq. 3). The logits come with them.

        Raises:
            ValueError: the model has no head.
        """
        features: Tensor | None = self.once("features", None, self.forward.features_and_logits)[0]
        if features is None:
            raise ValueError("this strategy compares features: pass features= to Round.from_arrays")
        return features

    @property
    def logits(self) -> Tensor:
        """Logits of the unmixed samples, (m, C); the features are kept with them where the model has a head."""
        if ("features", None) not in self._kept and not self._has_features:
            return self.only_logits
        logits: Tensor | None = self.once("features", None, self.forward.features_and_logits)[1]
        if logits is None and not isinstance(self.forward.model, NoModel):
            return self.once("logits", None, self.forward.logits)
        if logits is None:
            raise ValueError(
                "this strategy reads the model's outputs: pass logits=, probabilities= or head= to Round.from_arrays"
            )
        return logits

    @property
    def _has_features(self) -> bool:
        """Whether the pass that gives the logits gives features too."""
        if isinstance(self.forward.model, FunctionModel):
            return self.forward.model.both(self.forward.first_rows())[0] is not None
        if self.forward.head is not None:
            return True
        try:
            _ = self.head
        except ValueError:
            return False
        return True

    @property
    def only_logits(self) -> Tensor:
        """The same logits for a strategy that never reads features: these are not kept, if nobody has read them yet."""
        if ("features", None) in self._kept:
            return self.logits
        return self.once("logits", None, self.forward.logits)

    @cached_property
    def head(self) -> nn.Module:
        """The module whose input the features are."""
        _ = self.samples
        with evaluating(self.forward.model):
            return find_head(self.forward.model, self.forward.first_rows(), self.forward.head)

    @cached_property
    def behind_head(self) -> ForwardPass:
        """The pass of the features through the head alone; see `behind` for what is refused."""
        head = self.head
        return self.forward if head is self.forward.model else behind(self.forward, head, self.features, self.logits)

    @property
    def labelled_features(self) -> Tensor:
        """Features of the labelled set, (n, d).

        Raises:
            ValueError: the round has no labelled set.
        """
        if ("labelled", None) not in self._kept:
            _ = self.over_labelled  # says what is missing before anything is read
        labelled = self.once("labelled", None, lambda: self.over_labelled.features_and_logits()[0])
        pool: Tensor | None = self._kept.get(("features", None), (None,))[0]
        return labelled if pool is None else labelled.to(pool.device)

    @property
    def over_labelled(self) -> ForwardPass:
        """The forward pass over the labelled set; a ValueError if the round has none."""
        if self.labelled is None or len(self.labelled) == 0:
            argument = "labelled_features= with" if isinstance(self.forward.model, NoModel) else "labelled= with"
            raise ValueError(f"this strategy compares with labelled samples: pass {argument} at least one")
        return self.forward.over(self.labelled)

    def dropout(self, passes: int) -> tuple[Tensor, Tensor]:
        """Mean of the softmax p (m, C) and mean entropy of p (m,) over passes with dropout on, both float64.

        See `dm2_fast.model.dropout.sampled_dropout` for what a pass is. Where dropout only stands before the head, the
        passes start from the features.

        Raises:
            ValueError: the model runs no dropout layer.
        """
        with self._dropout() as use:
            return self.once("dropout", passes, lambda: softmax_moments(self._dropout_forward, passes, use))

    def sampled(self, passes: int) -> Tensor:
        """The softmax of each pass of `dropout`, (m, passes, C) float64: pass t is the same network for every row."""
        with self._dropout() as use:
            return self.once("sampled", passes, lambda: softmaxes(self._dropout_forward, passes, use))

    @contextmanager
    def _dropout(self) -> Iterator[Callable[[int], None]]:
        self.one_class()
        with sampled_dropout(self._dropout_forward.model, self.seed, self.round) as use:
            yield use

    @cached_property
    def _dropout_forward(self) -> ForwardPass:
        """The part of the forward pass that dropout can change."""
        forward = self.forward
        with evaluating(forward.model):
            tail = dropout_tail(forward.model, forward.first_rows())
        if tail is None or tail[1] is not self.head or len(self) == 0:
            return forward
        return replace(forward.through(tail), inputs=self.features, normalize=None, rows=None)

    def derivatives(self, matrices: bool = False, labelled: bool = False) -> Derivatives:
        """The model over the pool, or over the labelled set, as a function of its parameters."""
        return Derivatives(self.over_labelled if labelled else self.forward, matrices)

    def block_means(self, names: Sequence[str], labelled: bool = False) -> list[Tensor]:
        """What modules of the model return for each row of the pool, or of the labelled set, see `block_means`."""
        forward = self.over_labelled if labelled else self.forward
        return self.once("blocks", (tuple(names), labelled), lambda: block_means(forward, names))

    def trained_part(self, name: str, key: Hashable, train: Callable[[int], nn.Module]) -> nn.Module:
        """What the run trained beside the network; without that, what train makes of a seed, once with this key."""
        if self.part is not None:
            return self.part
        seed = int(draws.generator(self.seed, self.round, "part").integers(2**31))
        return self.once(name, key, lambda: train(seed))

    def once(self, name: str, key: Hashable, run: Callable[[], T]) -> T:
        """What run returns, computed for the first caller with this name and key; its time is seconds[name]."""
        if (name, key) not in self._kept:
            _ = self.samples
            with self.stage(name):
                self._kept[name, key] = self.share.once(name, key, run)
        result: T = self._kept[name, key]
        return result

    @property
    def samples(self) -> ArrayLike | Together:
        """The samples of the pool; those of a data set are read when this is first asked for."""
        if isinstance(self.forward.inputs, DatasetPool) and self.forward.inputs.samples is None:
            with self.stage("read"):
                _ = self.forward.pool
        return self.forward.pool

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to seconds[name], less that of the stages within it."""
        outer, self.seconds = self.seconds, {}
        spent: dict[str, float] = {}
        try:
            with stage(spent, name, model_device(self.forward.model)):
                yield
        finally:
            within, self.seconds = self.seconds, outer
            for inner, seconds in within.items():
                outer[inner] = outer.get(inner, 0.0) + seconds
        outer[name] = outer.get(name, 0.0) + spent[name] - sum(within.values())

    def check_model(self) -> None:
        """Raise a ValueError unless there is a model that runs: a round made from arrays without a head has none."""
        if isinstance(self.forward.model, NoModel):
            _ = self.head

    def module(self, who: str) -> nn.Module:
        """The model, for a strategy of this name that looks into it: see `torch_module` for what is refused."""
        self.check_model()
        return torch_module(self.forward.model, who)

    def one_class(self) -> None:
        """Raise unless the model gives each sample one class, by a softmax.

        Raises:
            ValueError: its outputs are labels of their own.
        """
        if self.forward.multilabel is not None:
            raise ValueError(
                "this strategy takes one class per sample, by a softmax: with multilabel, use dm2, least-confidence, "
                "entropy, margin, or one that compares features only"
            )

    def most_uncertain(self, budget: int, kind: Uncertainty) -> Picked:
        """Choose the budget most uncertain unmixed samples."""
        logits = self.only_logits
        with self.stage("choose"):
            scores = self.forward.uncertainty(logits, kind)
            return Picked(self.highest(scores, budget), scores)

    def highest(self, scores: Tensor, budget: int, offset: int = 0) -> Tensor:
        """`ranked`, with a warning where much of the choice is decided by the numbers of the rows."""
        every = self.share.gather(scores)
        chosen = self.ranked(every, budget, offset)
        if self.ties == "lower":
            warn_of_ties(every, chosen, offset)
        return chosen

    def ranked(self, scores: Tensor, budget: int, offset: int = 0) -> Tensor:
        """The rows of the budget highest of all scores after skipping offset of them, ties as `ties` says (Eq. 11)."""
        if self.ties == "random":
            rows = reaching(scores, offset + budget)
            ids = self.share.gather(torch.from_numpy(self.ids))[rows.cpu()].numpy()
            draw = torch.from_numpy(draws.uniform(self.seed, self.round, ids, "ties"))
            rows = rows[draw.argsort(stable=True).to(rows.device)]
            return rows[highest(scores[rows], budget, offset)]
        return highest(scores, budget, offset)

"""CoreGCN: k-center greedy on the hidden features of a graph network (Caramalau et al. 2021).

The network is that of uncertain-gcn; its hidden features are `relu(A @ X @ W1 + b1)`.
"""

from dataclasses import dataclass

from dm2_fast.operations.nearest import nearest_squared
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.graph_network import label_scores
from dm2_fast.strategies.k_center import k_center_greedy
from dm2_fast.strategy import FEATURES, LABELLED, Strategy


@dataclass(frozen=True)
class CoreGCNConfig:
    """Options of core-gcn; the default is the authors'.

    Args:
        lam: Weight of the unlabelled nodes in the loss of the graph network.
    """

    lam: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.lam < float("inf"):
            raise ValueError(f"lam must be positive and finite, got {self.lam}")


def choose(round: Round, budget: int, options: CoreGCNConfig) -> Picked:
    """Choose budget rows, each the farthest, by hidden features, from all labelled or chosen; no score of their own."""
    features, labelled = round.features, round.labelled_features
    compute = round.forward.compute
    with round.stage("choose"):
        _, hidden = label_scores(features, labelled, options.lam, round.seed, round.round, compute["num_threads"])
        pool, centres = hidden[: len(round)], hidden[len(round) :]
        indices = k_center_greedy(pool, budget, nearest_squared(pool, centres, **compute), **compute)
    return Picked(indices, None)


STRATEGY = Strategy("core-gcn", choose, CoreGCNConfig, passes=(FEATURES, LABELLED))

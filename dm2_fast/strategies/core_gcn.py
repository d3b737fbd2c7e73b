"""CoreGCN: k-center greedy on the hidden features of a graph network (Caramalau et al. 2021).

The network is that of uncertain-gcn; its hidden features are `relu(A @ X @ W1 + b1)`.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from dm2_fast.operations.arguments import number, one_of
from dm2_fast.operations.nearest import nearest_squared
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.graph_network import label_logits
from dm2_fast.strategies.k_center import k_center_greedy
from dm2_fast.strategy import FEATURES, LABELLED, Strategy


@dataclass(frozen=True)
class CoreGCNConfig:
    """Options of core-gcn; the default of lam is the authors'.

    Args:
        lam: Weight of the unlabelled nodes in the loss of the graph network.
        nodes: Where rows are far from each other: among the hidden features, as the paper says; or joined = these and
            the node's logit beside them, as the authors' code has it.
    """

    lam: float = 1.2
    nodes: Literal["hidden", "joined"] = "hidden"

    def __post_init__(self) -> None:
        one_of("nodes", self.nodes, ("hidden", "joined"))
        number("lam", self.lam, "positive and finite", lambda value: value > 0)


def choose(round: Round, budget: int, options: CoreGCNConfig) -> Picked:
    """Choose budget rows, each the farthest, by those features, from all labelled or chosen; no score of their own."""
    features, labelled = round.features, round.labelled_features
    compute = round.forward.compute
    with round.stage("choose"):
        logits, hidden = label_logits(features, labelled, options.lam, round.seed, round.round, compute["num_threads"])
        if options.nodes == "joined":
            hidden = torch.cat([hidden, logits[:, None]], 1)
        pool, centres = hidden[: len(round)], hidden[len(round) :]
        indices = k_center_greedy(pool, budget, nearest_squared(pool, centres, **compute), **compute)
    return Picked(indices, None)


STRATEGY = Strategy("core-gcn", choose, CoreGCNConfig, passes=(FEATURES, LABELLED))

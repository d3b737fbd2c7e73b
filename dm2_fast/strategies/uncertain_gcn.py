"""UncertainGCN: the rows that a graph network can tell from the labelled ones least (Caramalau et al. 2021).

The graph network gives each row the probability `s = sigmoid(A @ relu(A @ X @ W1 + b1) @ W2 + b2)` of being labelled. X
are the features of unit norm, pool and labelled, and A smooths them over the graph of their inner products.
"""

from dataclasses import dataclass

from dm2_fast.operations.arguments import number
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategies.graph_network import label_scores
from dm2_fast.strategy import FEATURES, LABELLED, Strategy


@dataclass(frozen=True)
class UncertainGCNConfig:
    """Options of uncertain-gcn; the defaults are the authors'.

    Args:
        lam: Weight of the unlabelled nodes in the loss of the graph network.
        margin: Choose the rows whose score, the probability of being labelled, is nearest to this, in [0, 1].
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    lam: float = 1.2
    margin: float = 0.1
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        number("lam", self.lam, "positive and finite", lambda value: value > 0)
        number("margin", self.margin, "in [0, 1]", lambda value: 0 <= value <= 1)


def choose(round: Round, budget: int, options: UncertainGCNConfig) -> Picked:
    """Choose the rows with the highest scores `-abs(s - margin)`, ties to the lower row."""
    features, labelled = round.features, round.labelled_features
    with round.stage("choose"):
        s, _ = label_scores(features, labelled, options.lam, round.seed, round.round, round.forward.num_threads)
        scores = -(s[: len(round)] - options.margin).abs()
        indices = choose_batch(round, scores, budget, options.batch)
    return Picked(indices, scores)


STRATEGY = Strategy("uncertain-gcn", choose, UncertainGCNConfig, passes=(FEATURES, LABELLED))

"""CoreSet: k-center greedy on the features, with the labelled set as first centres (Sener and Savarese 2018)."""

from dm2_fast.operations.nearest import nearest_squared
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.k_center import k_center_greedy
from dm2_fast.strategy import FEATURES, LABELLED, Strategy


def choose(round: Round, budget: int, options: None) -> Picked:
    """Choose budget rows of the pool, each the farthest from everything labelled or chosen; it has no options.

    The features are not normalised; rows have no score of their own.
    """
    features, centres = round.features, round.labelled_features
    compute = round.forward.compute
    with round.stage("choose"):
        distances = nearest_squared(features, centres, **compute)
        indices = k_center_greedy(features, budget, distances, share=round.share, **compute)
    return Picked(indices, None)


STRATEGY = Strategy("coreset", choose, passes=(FEATURES, LABELLED), in_parts=True)

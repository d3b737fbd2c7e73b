"""CoreSet: k-center greedy on the features, with the labelled set as first centres (Sener and Savarese 2018)."""

from dm2_fast.acquire import Picked, check_budget, stage
from dm2_fast.scoring import model_device
from dm2_fast.strategies.k_center import k_center_greedy, nearest_squared
from dm2_fast.strategies.round import Round


def choose(round: Round, budget: int, options: None = None) -> Picked:
    """Choose budget rows of the pool, each the farthest from everything labelled or chosen; it has no options.

    The features are not normalised; rows have no score of their own.
    """
    check_budget(budget, len(round))
    features, centres = round.features, round.labelled_features
    seconds: dict[str, float] = {}
    with stage(seconds, "choose", model_device(round.forward.model)):
        threads = round.forward.num_threads
        indices = k_center_greedy(features, budget, nearest_squared(features, centres, threads), threads)
    return Picked(indices, None, seconds=seconds)

"""The row nearest to the centre of each k-means cluster."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dm2_fast import extras
from dm2_fast.threads import clustering


def nearest_to_centres(
    features: Tensor,
    clusters: int,
    seed: int,
    who: str,
    *,
    weights: Tensor | None = None,
    sample: Tensor | None = None,
    iterations: int = 20,
) -> Tensor:
    """The row of each k-means cluster of the L2-normalised features that is nearest to its centre, ties to the lower.

    k-means is scikit-learn's, one start (n_init=1) from the centres of its k-means++.

    Args:
        features: (n, d).
        clusters: How many; where n is no more than that, all rows are returned.
        seed: Of k-means++.
        who: What needs scikit-learn, as a message names it.
        weights: (n,), at least 0; what each row counts. None for 1 each.
        sample: The rows that k-means++ looks for centres among; None for all.
        iterations: Most of k-means.

    Returns:
        Rows in the order of their clusters, fewer than clusters where rows repeat.
    """
    with extras.needed("strategies", who):
        from sklearn.cluster import KMeans, kmeans_plusplus
        from sklearn.exceptions import ConvergenceWarning

    n = len(features)
    if n <= clusters:
        return torch.arange(n)
    x = F.normalize(features.detach().float()).cpu().numpy()
    w = None if weights is None else weights.double().cpu().numpy()
    first = np.arange(n) if sample is None else sample.numpy()
    with clustering(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        of_first = None if w is None else w[first]
        centres, _ = kmeans_plusplus(x[first], clusters, sample_weight=of_first, random_state=seed)
        means = KMeans(clusters, init=centres, n_init=1, max_iter=iterations).fit(x, sample_weight=w)
    x -= means.cluster_centers_[means.labels_]
    distances = np.square(x, out=x).sum(1)
    order = np.lexsort((distances, means.labels_))
    return torch.from_numpy(order[np.unique(means.labels_[order], return_index=True)[1]])

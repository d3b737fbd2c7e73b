"""Average linkage along the edges of a graph: the two clusters at the least mean distance are merged, in turn."""

import heapq

import numpy as np
from numpy.typing import NDArray


def average_linkage(
    edges: tuple[NDArray[np.int64], NDArray[np.int64]], lengths: NDArray[np.float64], rows: int, count: int
) -> NDArray[np.int64]:
    """Merge rows along edges (i, j) of the given lengths until count clusters are left, or none has an edge; (rows,).

    The distance of a cluster to the merge of two others is the mean of its distances to both, weighted by their sizes,
    or that to the one of them with which it has an edge. The answer names one row of each row's cluster; of equal
    distances, that of the lower names comes first. The cluster with fewer neighbours joins the other, so each of e
    edges is moved at most log2(e) times and memory grows with e.
    """
    near: list[dict[int, float]] = [{} for _ in range(rows)]  # distance of a cluster to each that it has an edge with
    for i, j, length in zip(*(side.tolist() for side in edges), lengths.tolist(), strict=True):
        if i != j:
            near[i][j] = near[j][i] = length
    heap = [(length, i, j) for i, found in enumerate(near) for j, length in found.items() if i < j]
    heapq.heapify(heap)
    size, joined, left = [1] * rows, list(range(rows)), rows
    while left > count and heap:
        length, a, b = heapq.heappop(heap)
        if near[a].get(b) != length:  # changed or merged since
            continue
        if len(near[a]) < len(near[b]):
            a, b = b, a
        moved, near[b] = near[b], {}
        del moved[a], near[a][b]
        for c, length in moved.items():
            known = near[a].get(c)
            if known is not None:
                length = (size[a] * known + size[b] * length) / (size[a] + size[b])
            del near[c][b]
            near[a][c] = near[c][a] = length
            heapq.heappush(heap, (length, min(a, c), max(a, c)))
        size[a] += size[b]
        joined[b] = a
        left -= 1
    return _ends(joined)


def _ends(joined: list[int]) -> NDArray[np.int64]:
    """For each row, the one at the end of its chain of merges."""
    ends = np.array(joined, np.int64)
    while not np.array_equal(ends[ends], ends):
        ends = ends[ends]
    return ends

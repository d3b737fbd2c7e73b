"""A join of lists against plain Python: which rows meet, and what each list keeps of it."""

import numpy as np
import pytest

from dm2_fast import _C

MOST_HOLDERS = 64


def around(frozen: np.ndarray) -> list[dict[int, bool]]:
    """The places around each, and whether each was there at an earlier join."""
    lists = [{int(entry) >> 1: bool(entry & 1) for entry in line if entry != 2**32 - 1} for line in frozen]
    found = [{place: True, **own} for place, own in enumerate(lists)]
    holders = [0] * len(lists)
    for holder, own in enumerate(lists):
        for place, old in own.items():
            holders[place] += 1
            if holders[place] <= MOST_HOLDERS:
                found[place][holder] = found[place].get(holder, False) or old
    return found


def joined(frozen: np.ndarray, codes: np.ndarray) -> list[list[int]]:
    """The lists after a join."""
    met: list[set[int]] = [{int(entry) >> 1 for entry in line if entry != 2**32 - 1} for line in frozen]
    for group in around(frozen):
        for one, one_is_old in group.items():
            met[one] |= {other for other, old in group.items() if other != one and not (old and one_is_old)}
    return [
        sorted(others, key=lambda other: (np.abs(codes[place] - codes[other]).sum(), other))[: frozen.shape[1]]
        for place, others in enumerate(met)
    ]


@pytest.mark.parametrize("kind", ["clusters", "equal rows", "a star"])
def test_the_rows_around_a_row_meet_each_other(kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (20, 32))[rng.integers(0, 20, 400)] // 2 + rng.integers(0, 128, (400, 32))
    if kind == "equal rows":
        rows[:150] = rows[0]
    if kind == "a star":  # its middle is a neighbour of more rows than meet there
        rows[:] = 100
        rows[np.arange(1, 400), rng.integers(0, 32, 399)] += rng.integers(-90, 90, 399)
    rows = rows.astype(np.uint8)
    index = _C.IndexFloat(rows, rows, 32, num_threads=1)
    index.make_cells(num_threads=1)
    codes = rows[index.places()].astype(int)
    graph = _C.GraphFloat(index, np.arange(400), 4)
    graph.probe(0, 1, num_threads=1)
    frozen = graph.freeze()
    for _ in range(3):
        want = joined(frozen, codes)
        places, entries = graph.join(frozen, num_threads=2)
        assert len(places) == len(entries) == 0
        before, frozen = frozen >> 1, graph.freeze()
        assert (frozen >> 1).tolist() == want
        assert ((frozen & 1) == (frozen[:, :, None] >> 1 == before[:, None]).any(2)).all()

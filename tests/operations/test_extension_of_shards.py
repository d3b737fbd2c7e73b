"""`dm2_fast._C` by itself: frames and shards stay within arrays and lose no neighbour, whatever they are given."""

import pickle

import numpy as np
import pytest

from dm2_fast import _C

F, IDS = np.float32, np.int64
M, D, K = 40, 70, 3


def rows(m: int = M, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, D), F)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, F)


def not_aligned(x: np.ndarray) -> np.ndarray:
    moved = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


def frame(**changed):
    given = {"sample": rows(), "distances": ones(4), "w1": 0.5, "w2": 0.5, "num_threads": 2}
    return _C.frame(**given | changed)


def shard(m: int = M, seed: int = 0, **changed):
    given = {"rows": rows(m, seed), "scale": ones(m), "ids": np.arange(m), "num_threads": 2}
    return _C.ShardFloat(**{"frame": frame()} | given | changed)


def best(m: int = M, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    return np.full((m, k), np.inf, F), np.zeros((m, k), IDS)


def meet(one, other, *, w1=0.5, w2=0.5, part=0, parts=1, **changed):
    given = dict(zip(("distances", "indices"), best(), strict=True))
    given |= dict(zip(("other_distances", "other_indices"), best(), strict=True))
    given |= changed
    _C.ShardFloat.meet(one, other=other, **given, w1=w1, w2=w2, part=part, parts=parts, num_threads=2)
    return given


WRONG_FRAME = {
    "rows of one dimension": ({"sample": ones(9)}, "sample must be 2-D"),
    "no dimension": ({"sample": ones(9, 0)}, "sample must be 2-D"),
    "no distance": ({"distances": ones(0)}, "first rows of the sample"),
    "more distances than rows": ({"distances": ones(M + 1)}, "first rows of the sample"),
    "too many rows": ({"sample": ones(65535, 1)}, "fewer than 65535"),
    "a NaN distance": ({"distances": np.full(4, np.nan, F)}, "must not be NaN"),
    "a distance below every limit": ({"distances": np.full(4, -np.inf, F)}, "must not be NaN or negative"),
    "a NaN weight": ({"w1": np.nan}, "must be finite"),
    "an infinite weight": ({"w2": np.inf}, "must be finite"),
    "a negative weight": ({"w1": -1.0}, "too many features"),
    "not aligned": ({"sample": not_aligned(rows())}, "aligned"),
    "distances that are not aligned": ({"distances": not_aligned(ones(4))}, "aligned"),
    "strided rows": ({"sample": rows()[::2]}, "incompatible"),
    "whole numbers": ({"sample": np.ones((M, D), IDS)}, "incompatible"),
    "an unknown instruction set": ({"isa": "mmx"}, "isa must be"),
}


@pytest.mark.parametrize("name", WRONG_FRAME)
def test_a_frame_that_would_leave_an_array(name):
    changed, message = WRONG_FRAME[name]
    with pytest.raises((ValueError, TypeError), match=message):
        frame(**changed)


WRONG_SHARD = {
    "no frame": ({"frame": None}, "incompatible"),
    "a frame of nothing": ({"frame": _C.Frame.__new__(_C.Frame)}, "Unable to cast"),
    "another dimension": ({"rows": ones(M, D + 1)}, "folds are damaged"),
    "many more dimensions": ({"rows": ones(M, 2 * D)}, "like those of the frame"),
    "no rows": ({"rows": ones(0, D), "scale": ones(0), "ids": np.arange(0)}, "one value per row"),
    "short ids": ({"ids": np.arange(M - 1)}, "one value per row"),
    "a short scale": ({"scale": ones(M - 1)}, "scale must be"),
    "rows of one dimension": ({"rows": ones(M)}, "2-D"),
    "rows that are not aligned": ({"rows": not_aligned(rows())}, "aligned"),
    "a scale that is not aligned": ({"scale": not_aligned(ones(M))}, "aligned"),
    "ids that are not aligned": ({"ids": not_aligned(np.arange(M))}, "aligned"),
    "whole numbers": ({"rows": np.ones((M, D), IDS)}, "rows must be floats"),
    "swapped bytes": ({"rows": rows().astype(">f4")}, "rows must be floats"),
    "short ids of another kind": ({"ids": np.arange(M, dtype=np.int32)}, "incompatible"),
    "no codes": ({"codes": np.zeros(0, np.uint8)}, "those of these rows"),
    "codes of other rows": ({"codes": shard(M - 1).codes()}, "those of these rows"),
    "codes that are a number": ({"codes": 3}, "those of these rows"),
}


@pytest.mark.parametrize("name", WRONG_SHARD)
def test_a_shard_that_would_leave_an_array(name):
    changed, message = WRONG_SHARD[name]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        shard(**changed)


def places(codes: np.ndarray) -> np.ndarray:
    return codes[: 8 * M].view(IDS)


def errors(codes: np.ndarray) -> np.ndarray:
    return codes[-4 * M :].view(F)


@pytest.mark.parametrize(
    ("of", "value"), [(places, -1), (places, M), (places, 2**62), (errors, -1.0), (errors, -np.inf)]
)
def test_codes_that_are_damaged(of, value):
    codes = shard().codes()
    of(codes)[3] = value
    with pytest.raises(ValueError, match="codes are damaged"):
        shard(codes=codes)


def test_codes_with_two_places_of_a_row():
    codes = shard().codes()
    places(codes)[3] = places(codes)[4]
    with pytest.raises(ValueError, match="codes are damaged"):
        shard(codes=codes)


def damaged(change) -> object:
    """A frame whose state was changed on the way."""
    folds, grids = frame().__getstate__()
    state = [[[*fold] for fold in folds], [[*grid] for grid in grids]]
    change(*state)
    restored = _C.Frame.__new__(_C.Frame)
    restored.__setstate__((list(map(tuple, state[0])), list(map(tuple, state[1]))))
    return restored


def put(fold: list, part: int, at: int, value: float) -> None:
    fold[part] = fold[part].copy()
    fold[part][at] = value


def first_pair(fold: list) -> int:
    return int(np.flatnonzero(fold[2])[0])


DAMAGED = {
    "a column behind the last": lambda folds, grids: put(folds[0], 0, 5, D),
    "a column far away": lambda folds, grids: put(folds[0], 1, first_pair(folds[0]), 2**31 - 1),
    "a column before the first": lambda folds, grids: put(folds[1], 0, 5, -1),
    "a column twice": lambda folds, grids: put(folds[0], 0, 1, folds[0][0][0]),
    "a sign that is a weight": lambda folds, grids: put(folds[0], 2, first_pair(folds[0]), 2.0),
    "a sign that is NaN": lambda folds, grids: put(folds[0], 2, first_pair(folds[0]), np.nan),
    "a single that has a second": lambda folds, grids: put(folds[0], 2, first_pair(folds[0]), 0.0),
    "a short first": lambda folds, grids: folds[0].__setitem__(0, folds[0][0][:-1]),
    "a short second": lambda folds, grids: folds[0].__setitem__(1, folds[0][1][:-1]),
    "a short sign": lambda folds, grids: folds[1].__setitem__(2, folds[1][2][:0]),
    "one fold less": lambda folds, grids: folds.pop(),
    "no folds": lambda folds, grids: folds.clear(),
    "one fold more": lambda folds, grids: folds.append(folds[-1]),
    "no grids": lambda folds, grids: grids.clear(),
    "five grids": lambda folds, grids: grids.extend([grids[0]] * 5),
    "a short grid": lambda folds, grids: grids[0].__setitem__(2, grids[0][2][:-1]),
    "a first grid that is wide": lambda folds, grids: grids.insert(0, [0, F(1), np.zeros(96, F)]),
    "a grid behind the folds": lambda folds, grids: grids[0].__setitem__(0, 9),
    "a grid before the folds": lambda folds, grids: grids[0].__setitem__(0, -1),
    "no step": lambda folds, grids: grids[0].__setitem__(1, 0.0),
    "a NaN step": lambda folds, grids: grids[0].__setitem__(1, np.nan),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_frame_that_is_damaged(name):
    with pytest.raises(ValueError, match="damaged|like those of the frame"):
        shard(frame=damaged(DAMAGED[name]))


@pytest.mark.parametrize("state", [(), ((), 3), (3, ()), ([()], []), ([], [(0, 1.0)]), ([3], [])])
def test_a_state_that_is_none_of_a_frame(state):
    restored = _C.Frame.__new__(_C.Frame)
    with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
        restored.__setstate__(state)
    with pytest.raises(RuntimeError, match="Unable to cast"):
        restored.__getstate__()


def moved(folds: list, grids: list) -> None:
    for grid in grids:
        grid[2] = grid[2] + F(1e4)
        grid[1] *= 3


def test_a_grid_that_lies_elsewhere_loses_no_neighbour():
    x, y = rows(300), rows(200, 1)
    found = []
    for kept in (frame(), damaged(moved)):
        one, other = shard(300, frame=kept, rows=x), shard(200, frame=kept, rows=y, ids=np.arange(300, 500))
        first, second = best(300), best(200)
        _C.ShardFloat.meet(one, *first, other, *second, 0.5, 0.5, num_threads=2)
        found.append((*first, *second))
    assert all(np.array_equal(*pair) for pair in zip(*found, strict=True))
    assert np.isfinite(found[0][0]).all()


def test_a_frame_and_codes_that_went_to_another_process():
    held = frame()
    again = pickle.loads(pickle.dumps(held))
    one = shard(frame=held)
    other = shard(frame=again, codes=one.codes(), ids=np.arange(M, 2 * M))
    found = meet(one, other)
    assert (found["indices"][:, 0] == np.arange(M, 2 * M)).all()
    assert (found["other_indices"][:, 0] == np.arange(M)).all()


def test_shards_of_other_frames():
    _, grids = frame().__getstate__()
    wide = damaged(lambda folds, grids: grids.append([0, F(1), np.zeros(96, F)]))
    turned = damaged(lambda folds, grids: folds[0].__setitem__(2, -folds[0][2]))
    assert len(wide.__getstate__()[1]) == len(grids) + 1
    for other in (wide, turned, damaged(moved)):
        with pytest.raises(ValueError, match="one frame"):
            meet(shard(), shard(frame=other))


ONE = shard()
NOTHING = _C.ShardFloat.__new__(_C.ShardFloat)
WRONG_MEET = {
    "no part": ({"parts": 0}, "one of the parts"),
    "a part behind the last": ({"part": 2, "parts": 2}, "one of the parts"),
    "a part before the first": ({"part": -1, "parts": 2}, "one of the parts"),
    "more parts than can be counted": ({"part": 2**61, "parts": 2**62}, "one of the parts"),
    "a NaN weight": ({"w1": np.nan}, "must be finite"),
    "a negative weight": ({"w2": -1.0}, "too many features"),
    "fewer rows": ({"distances": best(M - 1)[0]}, "must be \\(rows, k\\)"),
    "more rows": ({"indices": best(M + 1)[1]}, "must be \\(rows, k\\)"),
    "no neighbour": ({"distances": best(k=0)[0], "indices": best(k=0)[1]}, "must be \\(rows, k\\)"),
    "fewer places": ({"indices": best(k=2)[1]}, "must be \\(rows, k\\)"),
    "fewer places of the other": ({"other_indices": best(k=2)[1]}, "must be \\(rows, k\\)"),
    "fewer rows of the other": ({"other_distances": best(M - 1)[0]}, "must be \\(rows, k\\)"),
    "one dimension": ({"distances": ones(M)}, "must be \\(rows, k\\)"),
    "a NaN": ({"distances": np.full((M, K), np.nan, F)}, "must not be NaN"),
    "a NaN of the other": ({"other_distances": np.full((M, K), np.nan, F)}, "must not be NaN"),
    "below every distance": ({"distances": np.full((M, K), -np.inf, F)}, "must not be NaN or negative"),
    "not aligned": ({"distances": not_aligned(best()[0])}, "aligned"),
    "not aligned in the other": ({"other_indices": not_aligned(best()[1])}, "aligned"),
    "doubles": ({"distances": best()[0].astype(float)}, "incompatible"),
    "strided": ({"indices": best(k=2 * K)[1][:, ::2]}, "incompatible"),
}


@pytest.mark.parametrize("name", WRONG_MEET)
def test_a_meeting_that_would_leave_an_array(name):
    changed, message = WRONG_MEET[name]
    with pytest.raises((ValueError, TypeError), match=message):
        meet(shard(), shard(), **changed)


@pytest.mark.parametrize("absent", [None, NOTHING])
def test_shards_that_are_not_there(absent):
    for one, other in ((absent, ONE), (ONE, absent)):
        with pytest.raises((TypeError, RuntimeError), match="incompatible|Unable to cast"):
            meet(one, other)


def test_an_output_that_may_not_be_written():
    found = best()[0]
    found.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        meet(ONE, shard(), distances=found)


def overlapping() -> dict[str, tuple[dict, dict]]:
    """Name: (what a shard has, what a meeting has)."""
    x, scale, ids = rows(), ones(M * K), np.arange(M * K)
    found, who = best()
    both = np.zeros(2 * M * K, IDS)
    return {
        "rows": ({"rows": x}, {"distances": x.reshape(-1)[: M * K].reshape(M, K)}),
        "scale": ({"scale": scale[:M]}, {"distances": scale.reshape(M, K)}),
        "ids": ({"ids": ids[:M]}, {"indices": ids.reshape(M, K)}),
        "rows of the other": ({"rows": x}, {"other_distances": x.reshape(-1)[: M * K].reshape(M, K)}),
        "ids and distances": ({}, {"distances": both[: M * K].view(F)[: M * K].reshape(M, K),
                                   "indices": both[: M * K].reshape(M, K)}),
        "distances": ({}, {"distances": found, "other_distances": found}),
        "indices": ({}, {"indices": who, "other_indices": who}),
        "distances and the other's indices": ({}, {"distances": both.view(F)[: M * K].reshape(M, K),
                                                   "other_indices": both[: M * K].reshape(M, K)}),
    }  # fmt: skip


@pytest.mark.parametrize("name", overlapping())
@pytest.mark.parametrize("first", [True, False])
def test_outputs_that_are_read_or_written_elsewhere(name, first):
    held, given = overlapping()[name]
    one, other = shard(**held), shard(seed=1)
    with pytest.raises(ValueError, match="must not overlap"):
        meet(*((one, other) if first else (other, one)), **given)


def test_a_shard_that_meets_itself_needs_one_output():
    found, who = best()
    ids = shard()
    given = meet(ids, ids, distances=found, indices=who, other_distances=found, other_indices=who)
    assert (given["distances"] < np.inf).all()
    assert (who != np.arange(M)[:, None]).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: _C.IndexFloat.__new__(_C.IndexFloat).places(),
        lambda: NOTHING.codes(),
        lambda: _C.GraphFloat.__new__(_C.GraphFloat).join(num_threads=1),
        lambda: _C.GraphFloat.__new__(_C.GraphFloat).probe(0, 1, num_threads=1),
        lambda: _C.GraphDouble(_C.GraphDouble.__new__(_C.GraphDouble), np.arange(3)),
        lambda: _C.Frame.__new__(_C.Frame).__getstate__(),
    ],
)
def test_objects_that_were_never_made(call):
    with pytest.raises(RuntimeError, match="Unable to cast"):
        call()

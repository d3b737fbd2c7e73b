"""`dm2_fast._C` by itself: whatever it is given, it stays within the arrays, and Ctrl-C ends what takes long."""

import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dm2_fast import _C

F, IDS = np.float32, np.int64
CSRC = Path(__file__).parents[2] / "csrc"


def ones(*shape: int, dtype=F) -> np.ndarray:
    return np.ones(shape, dtype)


def knn(q: int, m: int, d: int, k: int, **changed):
    given = {
        "queries": ones(q, d),
        "query_scale": ones(q),
        "query_ids": np.full(q, -1),
        "rows": ones(m, d),
        "row_scale": ones(m),
        "row_ids": np.arange(m),
        "distances": np.full((q, k), np.inf, F),
        "indices": np.zeros((q, k), IDS),
        "w1": 0.5,
        "w2": 0.5,
        "num_threads": 2,
    } | changed
    _C.knn(**given)
    return given["distances"], given["indices"]


def mix(n: int, m: int, width: int, channels: int, stride: int, **changed):
    given = {
        "inputs": ones(m, width),
        "indices": np.zeros((n, 2), IDS),
        "coefficients": ones(n, 2),
        "mean": ones(channels),
        "std": ones(channels),
        "channel_stride": stride,
        "out": ones(n, width),
        "num_threads": 2,
    } | changed
    _C.mix(**given)
    return given["out"]


@pytest.mark.parametrize("levels", [None, "plain", [64]])
def test_nothing_to_search(levels):
    for q, m in ((0, 5), (5, 0), (0, 0)):
        distances, _ = knn(q, m, 3, 2, levels=levels)
        assert np.isinf(distances).all()
    out = ones(0, 4)
    _C.pairwise(ones(0, 3), ones(0), ones(4, 3), ones(4), out, 0.5, 0.5, num_threads=2)
    far = np.full(4, 9, F)
    _C.lower_to_nearest(ones(4, 3), ones(0, 3), far, num_threads=2)
    assert (far == 9).all()
    _C.lower_to_nearest(ones(4, 0), ones(1, 0), far, num_threads=2)
    assert (far == 0).all()
    assert mix(0, 3, 4, 2, 2).shape == (0, 4)
    _C.uncertainty(ones(0, 3), "entropy", ones(0), num_threads=2)


def not_aligned(x: np.ndarray) -> np.ndarray:
    moved = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


WRONG_KNN = {
    "no dimension": ({"queries": ones(4, 0), "rows": ones(5, 0)}, "at least one dimension"),
    "too many dimensions": ({"rows": np.broadcast_to(F(1), (1, 2**40)), "row_scale": ones(1)}, "fewer than 2\\*\\*31"),
    "no neighbour": ({"distances": ones(4, 0), "indices": ones(4, 0, dtype=IDS)}, "must be \\(queries, k\\)"),
    "fewer places": ({"indices": ones(4, 1, dtype=IDS)}, "must be \\(queries, k\\)"),
    "another dimension": ({"rows": ones(5, 7)}, "same dimension"),
    "a short scale": ({"row_scale": ones(4)}, "scale must be"),
    "a scale without rows": ({"row_scale": np.ones((), F)}, "scale must be"),
    "short ids": ({"row_ids": np.arange(4)}, "one value per row"),
    "rows of one dimension": ({"rows": ones(5)}, "2-D"),
    "NaN as a best": ({"distances": np.full((4, 2), np.nan, F)}, "must not be NaN"),
    "a NaN weight": ({"w1": np.nan}, "must be finite"),
    "swapped bytes": ({"rows": ones(5, 3).astype(">f4")}, "rows must be floats"),
    "swapped halves": ({"rows": ones(5, 3).astype(">f2")}, "rows must be floats"),
    "not aligned": ({"rows": not_aligned(ones(5, 3))}, "aligned"),
    "ids that are not aligned": ({"row_ids": not_aligned(np.arange(5))}, "aligned"),
    "four levels": ({"levels": [32, 64, 96, 128]}, "at most three"),
    "unknown levels": ({"levels": "none"}, "levels must be"),
    "an unknown instruction set": ({"isa": "mmx"}, "isa must be"),
}


@pytest.mark.parametrize("name", WRONG_KNN)
def test_a_search_that_would_leave_an_array(name):
    changed, message = WRONG_KNN[name]
    with pytest.raises((ValueError, TypeError), match=message):
        knn(4, 5, 3, 2, **changed)


def test_outputs_that_are_inputs():
    distances, rows = np.full((6, 3), np.inf, F), ones(6, 3)
    with pytest.raises(ValueError, match="must not overlap"):
        knn(6, 6, 3, 3, distances=distances, rows=distances)
    with pytest.raises(ValueError, match="must not overlap"):
        _C.lower_to_nearest(rows, rows, rows.reshape(-1)[6:12], num_threads=1)
    ids = np.zeros((3, 2), IDS)
    with pytest.raises(ValueError, match="must not overlap"):
        mix(3, 4, 4, 0, 1, indices=ids, out=ids.view(F), mean=ones(0), std=ones(0))
    both = np.zeros(24, F)  # one after the other is apart
    knn(6, 6, 3, 3, distances=both[:18].reshape(6, 3), row_scale=both[18:])


WRONG_MIX = {
    "a row behind the last": ({"indices": np.full((3, 2), 4)}, "rows of inputs"),
    "a row before the first": ({"indices": np.full((3, 2), -1)}, "rows of inputs"),
    "channels that do not fit": ({"channel_stride": 3}, "whole channels"),
    "channels beyond all numbers": ({"channel_stride": 2**62, "mean": ones(4), "std": ones(4)}, "whole channels"),
    "no stride": ({"channel_stride": 0}, "one value per channel"),
    "a short std": ({"std": ones(1)}, "one value per channel"),
    "a short output": ({"out": ones(3, 3)}, "out must be"),
    "an output without channels": ({"out": ones(3, 4, 0)}, "out must be"),
    "strided elements": ({"inputs": ones(4, 8)[:, ::2]}, "dense within a row"),
    "other coefficients": ({"coefficients": ones(3, 1)}, "must be \\(n, terms\\)"),
}


@pytest.mark.parametrize("name", WRONG_MIX)
def test_a_mixture_that_would_leave_an_array(name):
    changed, message = WRONG_MIX[name]
    with pytest.raises((ValueError, TypeError), match=message):
        mix(3, 4, 4, 2, 2, **changed)


def test_rows_without_terms_are_not_counted_beyond_all_numbers():
    rows, empty = 2**59, np.empty(0, F)  # times 32 columns that is 0 again
    none = np.empty((rows, 0), F)
    with pytest.raises(ValueError, match="out must be"):
        mix(0, 3, 32, 0, 1, indices=none.view(np.int32).astype(IDS), coefficients=none, mean=empty, std=empty, out=none)


def test_other_calls_that_would_leave_an_array():
    with pytest.raises(ValueError, match="at least one class"):
        _C.uncertainty(ones(3, 0), "entropy", ones(3), num_threads=1)
    with pytest.raises(ValueError, match="kind must be known"):
        _C.uncertainty(ones(3, 1), "margin", ones(3), num_threads=1)
    with pytest.raises(ValueError, match="kind must be known"):
        _C.uncertainty(ones(3, 4), "surprise", ones(3), num_threads=1)
    with pytest.raises(ValueError, match="out must be"):
        _C.pairwise(ones(3, 2), ones(3), ones(4, 2), ones(4), ones(3, 3), 0.5, 0.5, num_threads=1)
    with pytest.raises(ValueError, match="at least one row"):
        _C.survives(ones(0, 3), ones(0), 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one dimension"):
        _C.survives(ones(3, 0), ones(3), 0.5, 0.5)
    out = ones(3)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        _C.uncertainty(ones(3, 4), "entropy", out, num_threads=1)


def index(m: int = 9, d: int = 3, **changed):
    given: dict[str, Any] = {
        "rows": ones(m, d),
        "scale": ones(m),
        "ids": np.arange(m),
        "w1": 0.5,
        "w2": 0.5,
        "num_threads": 2,
    }
    return _C.IndexFloat(**given | changed)


def search(held, q: int = 4, d: int = 3, k: int = 2, m: int = 9, **changed):
    given = {
        "queries": ones(q, d), "query_scale": ones(q), "query_ids": np.full(q, -1), "row_ids": np.arange(m),
        "distances": np.full((q, k), np.inf, F), "indices": np.zeros((q, k), IDS), "num_threads": 2,
    }  # fmt: skip
    held.search(**given | changed)


WRONG_INDEX = {
    "no rows": ({"rows": ones(0, 3), "scale": ones(0), "ids": np.arange(0)}, "one value per row"),
    "short ids": ({"ids": np.arange(8)}, "one value per row"),
    "a short scale": ({"scale": ones(8)}, "scale must be"),
    "no dimension": ({"rows": ones(9, 0)}, "at least one dimension"),
    "not aligned": ({"rows": not_aligned(ones(9, 3))}, "aligned"),
    "a NaN weight": ({"w2": np.nan}, "must be finite"),
    "a negative weight": ({"w1": -1.0}, "too many features"),
}


@pytest.mark.parametrize("name", WRONG_INDEX)
def test_an_index_that_would_leave_an_array(name):
    changed, message = WRONG_INDEX[name]
    with pytest.raises((ValueError, TypeError), match=message):
        index(**changed)


WRONG_SEARCH = {
    "another dimension": ({"queries": ones(4, 2)}, "same dimension"),
    "short ids of rows": ({"row_ids": np.arange(8)}, "one value per row"),
    "short ids of queries": ({"query_ids": np.arange(3)}, "one value per row"),
    "fewer places": ({"indices": ones(4, 1, dtype=IDS)}, "must be \\(queries, k\\)"),
    "no neighbour": ({"distances": ones(4, 0), "indices": ones(4, 0, dtype=IDS)}, "must be \\(queries, k\\)"),
    "NaN as a best": ({"distances": np.full((4, 2), np.nan, F)}, "must not be NaN"),
    "not aligned": ({"distances": not_aligned(np.full((4, 2), np.inf, F))}, "aligned"),
}


@pytest.mark.parametrize("name", WRONG_SEARCH)
def test_a_search_of_an_index_that_would_leave_an_array(name):
    changed, message = WRONG_SEARCH[name]
    with pytest.raises(ValueError, match=message):
        search(index(), **changed)


def test_outputs_that_an_index_reads():
    rows = ones(9, 3)
    held = index(rows=rows)
    with pytest.raises(ValueError, match="must not overlap"):
        search(held, q=3, k=3, distances=rows[:3])
    graph = _C.GraphFloat(held, np.arange(9), 3)
    with pytest.raises(ValueError, match="must not overlap"):
        graph.nearest(np.arange(3), np.arange(3), rows[:3], np.zeros((3, 3), IDS), num_threads=1)


def test_an_index_of_few_rows_and_of_none_that_are_asked():
    for m in (1, 2, 33):
        held = index(m)
        search(held, m=m)
        search(held, q=0, m=m)
        graph = _C.GraphFloat(held, np.arange(m), 2)
        graph.probe(0, 2**31 - 1, num_threads=2)
        graph.join(num_threads=2)
        distances, indices = np.empty((m, 3), F), np.empty((m, 3), IDS)
        graph.nearest(held.places(), np.arange(m), distances, indices, num_threads=2)
        assert np.isfinite(distances).sum() == m * min(2, m - 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda held: _C.GraphFloat(None, np.arange(9), 3), "incompatible"),
        (lambda held: _C.GraphFloat(_C.IndexFloat.__new__(_C.IndexFloat), np.arange(9), 3), "Unable to cast"),
        (lambda held: _C.GraphFloat(held, np.arange(8), 3), "one value per row"),
        (lambda held: _C.GraphFloat(held, np.arange(9), 0), "slots must be at least 1"),
        (lambda held: _C.GraphFloat(held, np.arange(9), 2**62), "fewer than 2\\*\\*15"),
        (lambda held: _C.GraphFloat(_C.GraphFloat(held, np.arange(9), 3), np.arange(4)), "one value per row"),
        (lambda held: _C.GraphFloat(held, np.arange(9), 3).probe(2, 1, num_threads=1), "ranks must ascend"),
        (lambda held: _C.GraphFloat(held, np.arange(9), 3).probe(0, 2**62, num_threads=1), "fewer than 2\\*\\*31"),
    ],
)
def test_a_graph_that_would_leave_an_array(call, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call(index())


@pytest.mark.parametrize(
    ("places", "lines", "shape", "message"),
    [
        ([0, 9], [0, 1], (2, 2), "places must be those of rows"),
        ([0, -1], [0, 1], (2, 2), "places must be those of rows"),
        ([0, 1], [0, 2], (2, 2), "lines must be those of distances"),
        ([0, 1], [0], (2, 2), "lines must be those of distances"),
        ([0, 1], [0, 1], (3, 2), "must be \\(rows, k\\)"),
    ],
)
def test_neighbours_of_a_graph_that_would_leave_an_array(places, lines, shape, message):
    graph = _C.GraphFloat(index(), np.arange(9), 3)
    best = np.empty(shape, F), np.empty((2, 2), IDS)
    with pytest.raises(ValueError, match=message):
        graph.nearest(np.array(places), np.array(lines), *best, num_threads=1)


def test_a_graph_that_another_thread_extends_is_left_alone():
    x = np.random.default_rng(0).standard_normal((3000, 20)).astype(F)
    graph = _C.GraphFloat(index(rows=x, scale=ones(3000), ids=np.arange(3000)), np.arange(3000), 9)
    nearest = (np.arange(3), np.arange(3), np.empty((3, 2), F), np.empty((3, 2), IDS))
    graph.probe(0, 1, num_threads=1)

    done = threading.Event()

    def extend():
        while not done.is_set():
            with suppress(RuntimeError):  # it is our turn now and then
                graph.join(num_threads=1)

    extender = threading.Thread(target=extend)
    extender.start()
    try:
        for call, message in (
            (lambda: graph.join(num_threads=1), "another thread uses this graph"),
            (lambda: graph.nearest(*nearest, num_threads=1), "another thread extends this graph"),
            (lambda: _C.GraphFloat(graph, np.arange(3000)), "another thread extends this graph"),
        ):
            with pytest.raises(RuntimeError, match=message):
                until_it_raises(call)
    finally:
        done.set()
        extender.join()
    graph.nearest(*nearest, num_threads=1)


def until_it_raises(call):
    while True:
        call()


@pytest.mark.parametrize("levels", [[64], "plain", None])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_numbers_are_neighbours_of_none(wrong, levels):
    x = np.random.default_rng(0).standard_normal((700, 40)).astype(F)
    x[::3, 5] = wrong
    distances, indices = np.full((700, 30), np.inf, F), np.full((700, 30), -1)
    rows = (x, ones(700), np.arange(700))
    _C.knn(*rows, *rows, distances, indices, 0.5, 0.5, num_threads=2, levels=levels)
    assert (distances[1::3] < np.inf).all()
    near = indices[1::3]
    assert (near % 3 != 0).all()


@pytest.mark.parametrize("num_threads", [-(2**31), -1, 0, 2**31 - 1])
def test_any_number_of_threads(num_threads):
    distances, _ = knn(9, 40, 5, 3, num_threads=num_threads)
    assert (distances == 0).all()


LONG = """
import signal, sys, threading, numpy as np
from dm2_fast import _C

x = np.random.default_rng(0).standard_normal((20000, 512), np.float32)
some, one = x[:5000], np.ones(len(x), np.float32)
if sys.argv[1] == "pairwise":
    out = np.zeros((len(x), len(x)), np.float32)
    call = lambda: _C.pairwise(x, one, x, one, out, 0.5, 0.5, num_threads=1)
else:
    out = np.zeros((len(some), 1), np.float32)
    out -= 1e9
    out *= -1
    call = lambda: _C.lower_to_nearest(some, np.broadcast_to(x[-1], (10**7, 512)), out[:, 0], num_threads=1)
before = out[0, -1]

def interrupt():
    while out[0, -1] == before:  # until the call is at work
        pass
    signal.raise_signal(signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
call()
"""


@pytest.mark.slow
@pytest.mark.parametrize("call", ["pairwise", "lower_to_nearest"])
def test_ctrl_c_ends_what_takes_minutes(call):
    run = subprocess.run([sys.executable, "-c", LONG, call], capture_output=True, text=True, check=False)
    assert run.stderr.strip().endswith("KeyboardInterrupt")


def codes(m: int = 9, d: int = 3, cells: bool = True):
    made = _C.IndexFloat(np.zeros((m, 32), np.uint8), np.zeros((m, 32), np.uint8), d, num_threads=1)
    if cells:
        made.make_cells(num_threads=1)
    return made


def part(first=0, last=256):
    return _C.GraphFloat(codes(600), np.arange(600), 3, first, last)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: _C.IndexFloat(np.zeros((9, 31), np.uint8), np.zeros((9, 32), np.uint8), 3, num_threads=1),
            "near must be",
        ),
        (
            lambda: _C.IndexFloat(np.zeros((9, 32), np.uint8), np.zeros((8, 32), np.uint8), 3, num_threads=1),
            "wide must",
        ),
        (
            lambda: _C.IndexFloat(np.zeros((9, 32), np.uint8), np.zeros((9, 32), np.uint8), 33, num_threads=1),
            "wide must",
        ),
        (lambda: codes().make_cells(num_threads=1), "in cells already"),
        (lambda: codes(cells=False).cells(), "in no cells yet"),
        (lambda: _C.GraphFloat(codes(cells=False), np.arange(9), 3), "in no cells yet"),
        (lambda: search(codes()), "no rows to search"),
        (lambda: part(1, 256), "whole cells"),
        (lambda: part(0, 601), "whole cells"),
        (lambda: part(256, 0), "first must not be behind last"),
        (lambda: part().join(num_threads=1), "needs the frozen lists of all"),
        (lambda: part().join(np.zeros((599, 3), np.uint32), num_threads=1), "frozen must be"),
        (lambda: part().join(np.full((600, 3), 1200, np.uint32), num_threads=1), "frozen must name rows"),
        (lambda: part().take(np.array([256]), np.zeros(1, np.uint64)), "places must be those of this part"),
        (lambda: part().take(np.array([0]), np.full(1, 1200, np.uint64)), "entries must name rows"),
        (lambda: part().take(np.array([0]), np.full(1, 2**63, np.uint64)), "entries must name rows"),
        (lambda: part().take(np.array([0]), np.zeros(2, np.uint64)), "as many"),
        (lambda: part().candidates(0, 257), "places must be those of this part"),
        (lambda: part().nearest(np.arange(1), np.arange(1), *found(), num_threads=1), "no rows to measure"),
        (lambda: near([9], [[0]]), "must name rows"),
        (lambda: near([0], [[9]]), "must name rows"),
        (lambda: near([0], [[-2]]), "must name rows"),
        (lambda: near([0, 1], [[0]]), "candidates must be"),
        (lambda: _C.graph_sample(0, 3), "there must be rows"),
    ],
)
def test_parts_of_a_graph_that_would_leave_an_array(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def found():
    return np.empty((1, 2), F), np.empty((1, 2), IDS)


def near(own, candidates):
    given = ones(9, 3), ones(9), np.arange(9), np.array(own), np.array(candidates)
    _C.nearest(*given, 0.5, 0.5, *found(), num_threads=1)


def test_codes_that_do_not_fit_the_rows():
    distances = np.zeros(2, F)
    x = np.random.default_rng(0).standard_normal((40, 5)).astype(F)
    frame = _C.frame(x, distances, 0.5, 0.5, graph=True, num_threads=1)
    space = [np.empty((40, 32), np.uint8) for _ in range(2)]
    _C.encode(x, ones(40), frame, *space, num_threads=1)
    wrong: list[tuple[Any, Any, Any, str]] = [
        (x, space[0][:39], space[1], "a code per row"),
        (x, space[0], space[1][:, :31].copy(), "a code per row"),
        (x, space[0], space[0], "must not overlap"),
        (ones(40, 40), space[0], space[1], "like those of the frame"),
    ]
    for rows, near, wide, message in wrong:
        with pytest.raises(ValueError, match=message):
            _C.encode(rows, ones(40), frame, near, wide, num_threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["sanitize", "limit"])
def test_the_programs_beside_the_extension_compile_without_a_warning(program: str) -> None:
    flags = ["-fsyntax-only", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run(["g++", *flags, CSRC / f"{program}.cpp"], check=True)

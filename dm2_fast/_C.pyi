from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from numpy.typing import NDArray

Array = NDArray[Any]

def isa() -> str: ...
def pairwise(
    queries: Array,
    query_scale: Array,
    rows: Array,
    row_scale: Array,
    out: Array,
    w1: float,
    w2: float,
    *,
    num_threads: int,
) -> None: ...
def knn(
    queries: Array,
    query_scale: Array,
    query_ids: Array,
    rows: Array,
    row_scale: Array,
    row_ids: Array,
    distances: Array,
    indices: Array,
    w1: float,
    w2: float,
    *,
    num_threads: int,
    isa: str = "auto",
    levels: Sequence[int] | Literal["plain"] | None = None,
    report: Callable[[float], object] | None = None,
) -> None: ...
def survives(
    rows: Array,
    scale: Array,
    w1: float,
    w2: float,
    *,
    clip: float = 1.0,
    error: float = 1.0,
    slack: bool = True,
) -> Array: ...

class IndexFloat:
    @overload
    def __init__(
        self,
        rows: Array,
        scale: Array,
        ids: Array,
        w1: float,
        w2: float,
        *,
        num_threads: int,
        isa: str = "auto",
        report: Callable[[float], object] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self, near: Array, wide: Array, d: int, *, num_threads: int, report: Callable[[float], object] | None = None
    ) -> None: ...
    def search(
        self,
        queries: Array,
        query_scale: Array,
        query_ids: Array,
        row_ids: Array,
        distances: Array,
        indices: Array,
        *,
        num_threads: int,
        report: Callable[[float], object] | None = None,
    ) -> None: ...
    def places(self) -> Array: ...
    def make_cells(self, *, num_threads: int, report: Callable[[float], object] | None = None) -> None: ...
    def cells(self) -> Array: ...

class IndexDouble(IndexFloat): ...

class GraphFloat:
    @overload
    def __init__(self, index: IndexFloat, ids: Array, slots: int, first: int = 0, last: int = -1) -> None: ...
    @overload
    def __init__(self, graph: GraphFloat, ids: Array) -> None: ...
    def probe(
        self, start: int, stop: int, *, num_threads: int, report: Callable[[float], object] | None = None
    ) -> tuple[Array, Array]: ...
    def ranks(self, places: Array, others: Array) -> Array: ...
    def freeze(self) -> Array: ...
    def join(
        self, frozen: Array | None = None, *, num_threads: int, report: Callable[[float], object] | None = None
    ) -> tuple[Array, Array]: ...
    def take(self, places: Array, entries: Array) -> None: ...
    def candidates(self, first: int, last: int) -> Array: ...
    def nearest(
        self,
        places: Array,
        lines: Array,
        distances: Array,
        indices: Array,
        *,
        num_threads: int,
        report: Callable[[float], object] | None = None,
    ) -> None: ...

class GraphDouble(GraphFloat): ...

class Frame:
    def __getstate__(self) -> tuple[Any, ...]: ...
    def __setstate__(self, state: tuple[Any, ...]) -> None: ...

def frame(
    sample: Array,
    distances: Array,
    w1: float,
    w2: float,
    *,
    graph: bool = False,
    num_threads: int,
    isa: str = "auto",
) -> Frame: ...
def graph_sample(n: int, d: int) -> tuple[Array, int, int]: ...
def encode(rows: Array, scale: Array, frame: Frame, near: Array, wide: Array, *, num_threads: int) -> None: ...
def nearest(
    rows: Array,
    scale: Array,
    ids: Array,
    own: Array,
    candidates: Array,
    w1: float,
    w2: float,
    distances: Array,
    indices: Array,
    *,
    num_threads: int,
) -> None: ...

class ShardFloat:
    def __init__(
        self, rows: Array, scale: Array, ids: Array, frame: Frame, codes: Array | None = None, *, num_threads: int
    ) -> None: ...
    def codes(self) -> Array: ...
    @staticmethod
    def meet(
        one: ShardFloat,
        distances: Array,
        indices: Array,
        other: ShardFloat,
        other_distances: Array,
        other_indices: Array,
        w1: float,
        w2: float,
        *,
        part: int = 0,
        parts: int = 1,
        num_threads: int,
        report: Callable[[float], object] | None = None,
    ) -> None: ...

class ShardDouble(ShardFloat): ...

def mix(
    inputs: Array,
    indices: Array,
    coefficients: Array,
    mean: Array,
    std: Array,
    channel_stride: int,
    out: Array,
    *,
    num_threads: int,
) -> None: ...
def lower_to_nearest(rows: Array, points: Array, distances: Array, *, num_threads: int) -> None: ...
def uncertainty(logits: Array, kind: str, out: Array, *, num_threads: int) -> None: ...

"""What the neighbours of a large pool take on GPUs that are not here, with the 8-bit filter and without it.

    python benches/gpu_estimate.py --features FILE.npy [--rows M ...] [--target sm_90 ...] [--tiles N] [--lists N]
        [--measure]

The filter's own functions run on these features on the CPU, and say which part of the tiles of pairs is compared and
how long the lists of survivors are: the first from the pairs of N random tiles, the second from the lists of a few of
them against all rows. For more rows than the file has, both are extended by a line through the logarithms of what an
eighth, a quarter, half and all of its rows give. With what static_cost.py counts for each kernel they give the least
time of every phase. Nothing was measured on a GPU; waiting, launches and the host come on top.
"""

import argparse
import importlib
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from dm2_fast.kernels import codes, filtered
from static_cost import DEVICES, cost, kernels
from torch import Tensor

import dm2_fast
from dm2_fast.experiment.machine import header
from dm2_fast.operations.knn import weights

K = 10
BLOCK_D = importlib.import_module("dm2_fast.kernels.knn")._TILE["BLOCK_D"]  # the package has a function of that name
# Of float32 operations, what an SM does of float64 a clock: NVIDIA's architecture papers.
FLOAT64 = {"sm_80": 1 / 2, "sm_86": 1 / 64, "sm_89": 1 / 64, "sm_90": 1 / 2, "sm_100": 1 / 2, "sm_120": 1 / 64}


def thresholds(x: Tensor, order: Tensor, tiles: Tensor, w1: float, w2: float) -> Tensor:
    """The K-th best distance that each row of these tiles finds in the nearest tiles, (n, TILE)."""
    means = filtered._means(x, order)
    count = min(max(filtered._SEEDS, -(-4 * K // codes.TILE)), len(means))
    found = []
    for tile in tiles.tolist():
        nearest = torch.cdist(means[tile, None], means, p=1)[0].topk(count, largest=False).indices
        rows = x[order[_places(tile, len(x))].long()]
        other = x[order[torch.cat([_places(int(near), len(x)) for near in nearest])].long()]
        distance = w1 * torch.cdist(rows, other, p=1)
        distance += w2 * torch.cdist(rows, other, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(distance.sort(dim=1).values[:, K])  # the nearest is the row itself
    return torch.stack(found)


def _places(tile: int, m: int) -> Tensor:
    return torch.arange(tile * codes.TILE, (tile + 1) * codes.TILE).clamp(max=m - 1)


def shares(x: Tensor, tiles: int, lists: int) -> tuple[float, float]:
    """Which part of the tiles of pairs is compared, and how long a list of survivors is, as a part of the rows."""
    m, d = x.shape
    w1, w2 = weights("literal", d)
    x = torch.nn.functional.normalize(x)
    order = codes.partition(x)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(-(-m // codes.TILE), generator=generator)[:tiles].sort().values
    kth = thresholds(x, order, chosen, w1, w2)
    places = torch.stack([_places(tile, m) for tile in chosen.tolist()])
    rows = order[places.flatten()].long()
    l1 = codes.l1_within(kth.flatten(), d, d, BLOCK_D, w1, w2)
    grid = filtered._grid(x[rows], x, l1)
    some = codes.Codes(x[rows], torch.arange(len(rows)), grid)
    reach = codes.reach(l1, some.error, grid.steps)
    pairs = codes.pairs_within(some, some, reach, reach, 0, len(chosen))
    compared = len(pairs) / (len(chosen) * (len(chosen) + 1) / 2)

    step, length = 2**24 // d, 0
    for number in range(0, len(chosen), max(1, len(chosen) // lists)):
        own = slice(number * codes.TILE, (number + 1) * codes.TILE)
        asked = some.codes[own].view(torch.uint8).float()
        for start in range(0, m, step):
            stored, error = grid.encode(x[start : start + step])
            sad = torch.cdist(asked, stored.view(torch.uint8).float(), p=1)
            length += int((sad <= reach[own, None] + codes.margin(error)).any(0).sum())
    return compared, length / m / len(range(0, len(chosen), max(1, len(chosen) // lists)))


def estimate(m: int, d: int, compared: float, listed: float, target: str) -> dict[str, float]:
    """The least seconds of each phase of the search behind the filter, and of the search among all rows."""
    device, tiles = DEVICES[target], -(-m // codes.TILE)
    exact, filtering = (
        cost("knn of lists", kernels()["knn of lists"], target),
        cost("filter", kernels()["filter"], target),
    )
    pairs = 50_000**2  # of the problem that static_cost.py gives the times of
    step, compare = (max(row["seconds"].values()) / pairs / 512 for row in (exact, filtering))
    memory, double = device.gb_per_s * 1e9, device.sms * device.lanes * device.ghz * 1e9 * FLOAT64[target]
    return {
        "order and codes": m * d * (4 * 3 + 1) / memory + m * 32 * 4 * 5 * (tiles - 1).bit_length() / memory,
        "thresholds": m * filtered._SEEDS * codes.TILE * d * step,
        "skipping tiles": 3 * tiles**2 * d / double,
        "comparing codes": compared * m**2 * d * compare,
        "distances of survivors": listed * m**2 * d * step,
        "all rows": m**2 * d * step,
    }


def extended(x: Tensor, m: int, tiles: int, lists: int) -> tuple[float, float]:
    """`shares` of m rows like these, by a line through the logarithms of those of parts of them, which are printed."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    sizes = [len(x) // part for part in (8, 4, 2, 1)]
    found = [shares(x[order[:size].sort().values], tiles, lists) for size in sizes]
    for size, (compared, listed) in zip(sizes, found, strict=True):
        print(
            f"- {size:,} rows: {compared:.1%} of the tiles of pairs are compared, a list holds {listed:.2%} of the rows"
        )
    lines = np.polyfit(np.log(sizes), np.log(np.maximum(found, 1e-9)), 1)
    compared, listed = np.minimum(np.exp(lines[0] * np.log(m) + lines[1]), 1)
    print(
        f"- {m:,} rows by a line through their logarithms, with the slopes {lines[0][0]:.3f} and {lines[0][1]:.3f}:\n"
    )
    return float(compared), float(listed)


def measure(x: Tensor) -> str:
    """What `dm2_fast.knn` takes for these rows on the current CUDA device: median of five, after one that compiles."""
    on_device, times = x.cuda(), []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        dm2_fast.knn(on_device, K)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return f"measured on {torch.cuda.get_device_name()}: {1000 * statistics.median(times[1:]):.3g} ms"


def tell(x: Tensor, m: int, args: argparse.Namespace) -> None:
    """Print the estimate for m rows like those of x."""
    d = x.shape[1]
    how = args.tiles, args.lists
    compared, listed = extended(x, m, *how) if m > len(x) else shares(x[:m], *how)
    print(
        f"{m:,} x {d}, k = {K}: {compared:.1%} of the tiles of pairs are compared, "
        f"a list holds {listed:.2%} of the rows"
    )
    names, table = [], []
    for target in args.target:
        seconds = estimate(m, d, compared, listed, target)
        everything = seconds.pop("all rows")
        names = list(seconds)
        each = " | ".join(f"{1000 * value:.3g}" for value in seconds.values())
        total = sum(seconds.values())
        table.append(
            f"| {target} ({DEVICES[target].name}) | {each} | {1000 * total:.3g} | {1000 * everything:.3g} "
            f"| {everything / total:.1f} |"
        )
    print(f"\n| at least, ms | {' | '.join(names)} | together | all rows | ratio |")
    print("|" + " --- |" * (len(names) + 4))
    print("\n".join(table) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", metavar="M", help="numbers of rows; as many as the file has")
    parser.add_argument("--target", nargs="+", choices=FLOAT64, default=list(FLOAT64))
    parser.add_argument("--tiles", type=int, default=256)
    parser.add_argument("--lists", type=int, default=16)
    parser.add_argument("--measure", action="store_true", help="search on the CUDA device that is there, too")
    args = parser.parse_args()
    print(header(torch.device("cpu")))
    x = torch.from_numpy(np.array(np.load(args.features, mmap_mode="r"), dtype=np.float32))
    for m in args.rows or [len(x)]:
        tell(x, m, args)
    if args.measure:
        print(measure(x))


if __name__ == "__main__":
    main()

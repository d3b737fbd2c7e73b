"""Plain torch, unfused: the portable backend, and what the fused ones are measured against.

Every operation has the same name and the same leading arguments in cpp.py beside this file and in `dm2_fast.kernels`.
Arguments are checked by the callers, so these functions may assume finite values, valid indices and one device.
"""

import torch
from torch import Tensor

TAKES_THREADS = False
WHOLE_PROBLEMS = False

_TILE = 2**25  # differences held at a time
_BATCH = 2**12  # mixtures held at a time


def combine(l1: Tensor, l2_squared: Tensor, w1: float, w2: float) -> Tensor:
    """The distance as `w1 * l1 + w2 * l2_squared.sqrt()`, Eqs. 4-6."""
    # Through double: the vectorised float32 square root of some builds is not correctly rounded.
    return w1 * l1 + w2 * l2_squared.double().sqrt().to(l1.dtype)


def _scaled(rows: Tensor, scale: Tensor) -> Tensor:
    return rows.to(scale.dtype).contiguous() * scale[:, None]  # torch sums in the order of the layout


def pairwise(
    queries: Tensor, query_scale: Tensor, rows: Tensor, row_scale: Tensor, out: Tensor, w1: float, w2: float
) -> None:
    """Write `combine((q - x).abs().sum(-1), (q - x).square().sum(-1), w1, w2)` of all pairs into out (q, m)."""
    x = _scaled(rows, row_scale)
    step = max(1, _TILE // max(1, x.numel()))
    for i in range(0, len(queries), step):
        q = _scaled(queries[i : i + step], query_scale[i : i + step])
        difference = q[:, None, :] - x[None, :, :]
        out[i : i + step] = combine(difference.abs().sum(-1), difference.square().sum(-1), w1, w2)


def knn(
    queries: Tensor,
    query_scale: Tensor,
    query_ids: Tensor,
    rows: Tensor,
    row_scale: Tensor,
    row_ids: Tensor,
    distances: Tensor,
    indices: Tensor,
    w1: float,
    w2: float,
) -> None:
    """Update the running best k (distances, indices), both (q, k) and ascending by (distance, index), with the rows.

    A row whose id is the query's own is left out; equal distances keep the lower id first.
    """
    k = distances.shape[1]
    step = max(1, _TILE // max(1, rows.numel()))
    for i in range(0, len(queries), step):
        part = slice(i, i + step)
        ids = row_ids.expand(len(queries[part]), -1)
        tile = distances.new_empty(ids.shape)
        pairwise(queries[part], query_scale[part], rows, row_scale, tile, w1, w2)
        tile.masked_fill_(ids == query_ids[part, None], torch.inf)
        all_distances = torch.cat([distances[part], tile], dim=1)
        all_ids = torch.cat([indices[part], ids], dim=1)
        all_ids, by_id = all_ids.sort(dim=1, stable=True)
        all_distances, by_distance = all_distances.gather(1, by_id).sort(dim=1, stable=True)
        distances[part] = all_distances[:, :k]
        indices[part] = all_ids.gather(1, by_distance)[:, :k]


def mix(
    inputs: Tensor, indices: Tensor, coefficients: Tensor, mean: Tensor, std: Tensor, channel_stride: int, out: Tensor
) -> None:
    """Write `(coefficients[:, :, None] * inputs[indices]).sum(1)` into out, Eq. 7.

    out is (n, width), or (n, pixels, channels) for inputs whose rows are one channel after another. uint8 inputs are
    divided by 255 afterwards; then each element becomes (. - mean[c]) / std[c] of its channel
    c = element // channel_stride % len(mean), unless mean is empty.
    """
    mixed = torch.zeros(len(out), inputs.shape[1], dtype=coefficients.dtype, device=out.device)
    for t in range(indices.shape[1]):
        mixed += coefficients[:, t, None] * inputs[indices[:, t]].to(mixed.dtype)
    if inputs.dtype == torch.uint8:
        mixed /= 255
    if len(mean):
        channel = torch.arange(mixed.shape[1], device=out.device) // channel_stride % len(mean)
        mixed = (mixed - mean[channel]) / std[channel]
    out.copy_(mixed if out.ndim == 2 else mixed.view(len(out), out.shape[2], out.shape[1]).movedim(1, 2))


def uncertainty(logits: Tensor, kind: str, out: Tensor) -> None:
    """Write `1 - softmax.amax(1)`, the entropy, or minus the margin of the two largest softmax values into out (n,)."""
    z = logits.double()
    ordered = (z - z.amax(1, keepdim=True)).sort(dim=1, descending=True).values
    e = ordered.exp()
    others = e[:, 1:].sum(1)  # the largest term, 1, is left out, so that nothing cancels
    if kind == "least-confidence":
        out.copy_(others / (1 + others))
    elif kind == "entropy":
        moment = torch.where(e > 0, e * ordered, 0).sum(1)
        out.copy_(torch.log1p(others) - moment / (1 + others))
    else:
        out.copy_(torch.expm1(ordered[:, 1]) / (1 + others))


def lower_to_nearest(x: Tensor, points: Tensor, distances: Tensor) -> None:
    """Lower distances (m,) to `(x[:, None] - points).square().sum(-1).amin(1)` where that is less, in place.

    Rows whose distance is 0 or less stay as they are.
    """
    x = x.to(distances.dtype)
    for point in points.to(distances.dtype):
        for i in range(0, len(x), max(1, _TILE // x.shape[1])):
            part = slice(i, i + max(1, _TILE // x.shape[1]))
            found = (x[part] - point).square().sum(1)
            distances[part] = torch.where(distances[part] > 0, found.minimum(distances[part]), distances[part])


def linear_probe(
    features: Tensor, indices: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, kind: str, out: Tensor
) -> None:
    """Write the `uncertainty` of `F.linear((coefficients[:, :, None] * features[indices]).sum(1), weight, bias)` into
    out (r,)."""
    none = coefficients.new_empty(0)
    for i in range(0, len(out), _BATCH):
        part = slice(i, i + _BATCH)
        mixed = coefficients.new_empty(len(out[part]), features.shape[1])
        mix(features, indices[part], coefficients[part], none, none, 1, mixed)
        uncertainty(torch.nn.functional.linear(mixed, weight.to(mixed.dtype), bias.to(mixed.dtype)), kind, out[part])

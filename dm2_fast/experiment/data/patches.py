"""Frozen features of images, learned without labels: k-means on patches (Coates and Ng 2011), and their cache.

Random patches, normalised and whitened, are clustered. Every patch of an image then says how near it is to each centre
(the triangle activation), and the sums over the four quarters of the image are its features; a principal component
analysis of the training images makes them few.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast import draws, extras
from dm2_fast.experiment.folder.files import replacing
from dm2_fast.progress import tqdm
from dm2_fast.threads import clustering

CENTRES, PATCHES, IMAGES = 200, 40_000, 10_000  # k-means; patches it sees; images the components are found on
_BATCH = 128  # images at once; part of the last bits


def frozen_features(x: Tensor, x_test: Tensor, dims: int, cache: Path | None = None) -> tuple[Tensor, Tensor]:
    """Features of training and test images, (n, dims) float32 each, with mean 0 over the training images.

    The first component has a standard deviation of 1, the others their own share of it. Nothing depends on labels; the
    draws are keyed. With a cache, they are read from a file below it that is named after the images' content.

    Args:
        x, x_test: (n, C, H, W) uint8.
        dims: How many; fewer where an image has no more.
        cache: Folder of the files; None for none.
    """
    file = None if cache is None else cache / f"patches-{_digest(x, x_test, dims)}.npz"
    if file is not None and file.exists():
        with np.load(file) as arrays:
            return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["x_test"])
    coder = _Coder(x)
    train, test = coder.encode(x), coder.encode(x_test)
    mean = train.mean(0)
    few = train[torch.from_numpy(_rows(len(train), IMAGES, "pool"))] - mean
    values, vectors = torch.linalg.eigh((few.T @ few).double() / len(few))
    kept = min(dims, len(values))
    vectors = vectors.flip(1)[:, :kept] / values[-1].clamp(min=1e-30).sqrt()
    vectors *= vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # an eigenvector has no sign of its own
    train, test = ((part - mean) @ vectors.float() for part in (train, test))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial, partial.open("wb") as out:
            np.savez(out, x=train.numpy(), x_test=test.numpy())
    return train, test


def _digest(x: Tensor, x_test: Tensor, dims: int) -> str:
    digest = hashlib.sha256(repr((tuple(x.shape), tuple(x_test.shape), dims, CENTRES, PATCHES, IMAGES)).encode())
    for images in (x, x_test):
        digest.update(images.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _rows(n: int, size: int, purpose: str) -> NDArray[np.int64]:
    return np.sort(draws.uniform(0, 0, np.arange(n), purpose).argsort(kind="stable")[:size])


class _Coder:
    """The whitening and the centres that a set of training images leads to."""

    def __init__(self, x: Tensor) -> None:
        with extras.needed("strategies", "k-means features"):
            from sklearn.cluster import KMeans

        small = min(x.shape[2:]) < 16
        self.size, self.stride = (3, 1) if small else (6, 2)
        per_image = math.ceil(PATCHES / len(x))
        images = _rows(len(x), min(len(x), PATCHES), "order")
        patches = []
        generator = torch.Generator().manual_seed(0)
        for part in torch.split(torch.from_numpy(images), 1024):
            each = self._patches(x[part])
            which = torch.randint(each.shape[1], (len(part), per_image), generator=generator)
            patches.append(each[torch.arange(len(part))[:, None], which].flatten(0, 1))
        sample = torch.cat(patches)
        self.mean = sample.mean(0)
        centred = (sample - self.mean).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        self.whiten = ((vectors / (values.clamp(min=0) + 0.1).sqrt()) @ vectors.T).float()
        white = ((sample - self.mean) @ self.whiten).numpy()
        clusters = min(CENTRES, len(np.unique(white, axis=0)))
        with clustering():
            means = KMeans(clusters, n_init=1, max_iter=50, random_state=0).fit(white)
        self.centres = torch.from_numpy(means.cluster_centers_.astype(np.float32))

    def _patches(self, x: Tensor) -> Tensor:
        """(n, patches, C * size * size), each with mean 0 and a deviation of at most 1."""
        patches = F.unfold(x.float(), self.size, stride=self.stride).transpose(1, 2)
        patches = patches - patches.mean(2, keepdim=True)
        return patches / (patches.square().mean(2, keepdim=True) + 10).sqrt()

    def encode(self, x: Tensor) -> Tensor:
        """(n, 4 * centres): the activations summed over each quarter of the image."""
        squared = self.centres.square().sum(1)
        rows, columns = ((side - self.size) // self.stride + 1 for side in x.shape[2:])
        coded = []
        for images in tqdm(torch.split(x, _BATCH), desc="patches", leave=False, disable=None):
            white = (self._patches(images) - self.mean) @ self.whiten
            distances = torch.addmm(squared, white.flatten(0, 1), self.centres.T, alpha=-2)
            distances = (distances + white.flatten(0, 1).square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
            active = (distances.mean(1, keepdim=True) - distances).clamp_(min=0)
            grid = active.view(len(images), rows, columns, -1)
            halves = (grid[:, : rows // 2], grid[:, rows // 2 :])
            quarters = [part for half in halves for part in (half[:, :, : columns // 2], half[:, :, columns // 2 :])]
            coded.append(torch.cat([quarter.sum((1, 2)) for quarter in quarters], 1))
        return torch.cat(coded)

"""Corruptions of small colour images after CIFAR-10-C (Hendrycks and Dietterich 2019): those that need no asset.

Their parameters are those of the published script. The draws are keyed by (corruption, severity, number of the image),
so that an image is the same in any batch and run; so they are in the style of the archive, but not its images.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dm2_fast import draws, extras

Image = NDArray[np.float64]  # (H, W, 3) in [0, 1]
Corruption = Callable[[Image, "tuple[float, ...]", np.random.Generator], Image]


def corrupt(images: NDArray[np.uint8], numbers: NDArray[np.int64], name: str, severity: int) -> NDArray[np.uint8]:
    """Corrupt images.

    Args:
        images: (n, H, W, 3).
        numbers: What each image's draws are keyed by, (n,): its place in the test set.
        name: One of `NAMES`.
        severity: 1 to 5.
    """
    work, parameters = _CORRUPTIONS[name]
    place = NAMES.index(name)
    out = np.empty_like(images)
    for i, number in enumerate(numbers.tolist()):
        generator = draws.generator(0, severity, "corruption", place, number)
        made = work(images[i].astype(np.float64) / 255, parameters[severity - 1], generator)
        out[i] = np.clip(made, 0, 1) * 255  # cut off, as there
    return out


def _gaussian_noise(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    return x + generator.normal(size=x.shape, scale=c[0])


def _shot_noise(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    return generator.poisson(x * c[0]) / c[0]


def _impulse_noise(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    """Salt and pepper: each value becomes 0 or 1 with this probability in all."""
    draw = generator.uniform(size=x.shape)
    return np.where(draw < c[0] / 2, 0.0, np.where(draw < c[0], 1.0, x))


def _speckle_noise(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    return x + x * generator.normal(size=x.shape, scale=c[0])


def _gaussian_blur(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, (c[0], c[0], 0), mode="nearest"))


def _defocus_blur(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    """A disk of this radius, itself smoothed by a Gaussian of 3 x 3."""
    from scipy.ndimage import convolve

    radius, alias = c
    axis = np.arange(-8, 9)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    kernel = convolve(disk / disk.sum(), np.outer(bell, bell) / bell.sum() ** 2, mode="constant")
    return np.asarray(convolve(x, kernel[:, :, None], mode="mirror"))


def _zoom_blur(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    """The mean of the image and its enlargements about the centre by 1, 1.01, ... below this factor."""
    factors = np.arange(1, c[0], 0.01)
    return np.asarray((x + sum(_enlarged(x, factor) for factor in factors)) / (len(factors) + 1))


def _enlarged(x: Image, factor: float) -> Image:
    """The middle of x at this scale, between pixels linear."""
    side = x.shape[0]
    cut = math.ceil(side / factor)
    top = (side - cut) // 2
    from scipy.ndimage import zoom

    larger = zoom(x[top : top + cut, top : top + cut], (factor, factor, 1), order=1)
    trim = (larger.shape[0] - side) // 2
    return np.asarray(larger[trim : trim + side, trim : trim + side])


def _fog(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    amount, decay = c
    brightest = x.max()
    size = 2 ** math.ceil(math.log2(max(x.shape[:2])))
    clouds = _plasma(size, decay, generator)[: x.shape[0], : x.shape[1], None]
    return np.asarray((x + amount * clouds) * (brightest / (brightest + amount)))


def _plasma(size: int, decay: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Clouds (size, size) in [0, 1] by the diamond-square algorithm on a torus; size is a power of two."""
    clouds = np.zeros((size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2
        corners = clouds[0:size:step, 0:size:step]
        square = corners + np.roll(corners, -1, 0)
        square = square + np.roll(square, -1, 1)
        clouds[half::step, half::step] = square / 4 + wibble * generator.uniform(-1, 1, square.shape)
        centres = clouds[half::step, half::step]
        across = centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        clouds[0:size:step, half::step] = across / 4 + wibble * generator.uniform(-1, 1, across.shape)
        down = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)
        clouds[half::step, 0:size:step] = down / 4 + wibble * generator.uniform(-1, 1, down.shape)
        step, wibble = half, wibble / decay
    clouds -= clouds.min()
    return np.asarray(clouds / clouds.max())


def _brightness(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    """V of HSV is raised: all channels keep their ratio."""
    value = x.max(2, keepdims=True)
    raised = np.clip(value + c[0], 0, 1)
    return np.asarray(np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised))


def _saturate(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    """S of HSV becomes a S + b; what has no hue is taken for red."""
    value, delta = x.max(2, keepdims=True), np.ptp(x, axis=2, keepdims=True)
    saturation = np.where(value > 0, delta / np.where(value > 0, value, 1), 0)
    share = np.where(delta > 0, (value - x) / np.where(delta > 0, delta, 1), np.array([0.0, 1.0, 1.0]))
    return np.asarray(value * (1 - np.clip(saturation * c[0] + c[1], 0, 1) * share))


def _contrast(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    mean = x.mean((0, 1), keepdims=True)
    return np.asarray((x - mean) * c[0] + mean)


def _pixelate(x: Image, c: tuple[float, ...], generator: np.random.Generator) -> Image:
    """Made smaller and large again by the box filter of Pillow."""
    with extras.needed("run", "the corruption pixelate"):
        from PIL import Image as Pillow

    height, width = x.shape[:2]
    image = Pillow.fromarray((x * 255).round().astype(np.uint8))
    small = image.resize((int(width * c[0]), int(height * c[0])), Pillow.Resampling.BOX)
    return np.asarray(small.resize((width, height), Pillow.Resampling.BOX)) / 255


_CORRUPTIONS: dict[str, tuple[Corruption, tuple[tuple[float, ...], ...]]] = {
    "gaussian_noise": (_gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": (_shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": (_impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "speckle_noise": (_speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "gaussian_blur": (_gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1.0,))),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "zoom_blur": (_zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1.0, 2), (1.5, 1.75))),
    "brightness": (_brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2.0, 0.1), (2.5, 0.2))),
    "contrast": (_contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "pixelate": (_pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
}
NAMES = tuple(_CORRUPTIONS)  # the place of a name is part of the draws' key: only append
SEVERITIES = (1, 2, 3, 4, 5)
ARCHIVED = (
    *NAMES, "glass_blur", "motion_blur", "snow", "frost", "elastic_transform", "jpeg_compression", "spatter",
)  # fmt: skip

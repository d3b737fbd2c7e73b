"""Networks for small images. Each ends in dropout and a linear head, so that its features are the head's input."""

from torch import Tensor, nn

NAMES = ("cnn", "mobilenet")


class CNN(nn.Module):
    """Two convolutions and a hidden layer of 128 features, for images from 8x8 on."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int, dropout: float = 0.25) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (size[0] // 4) * (size[1] // 4), 128),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def _convolution(inputs: int, outputs: int, stride: int, *, size: int = 3, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class MobileNet(nn.Module):
    """MobileNet v1 (Howard et al. 2017): depthwise 3x3 and pointwise 1x1 convolutions; 1024 features.

    For 32x32 images the first convolution keeps the resolution, where the original halves it.
    """

    # (channels, stride) of the depthwise separable blocks, Table 1 there.
    BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

    def __init__(self, channels: int, classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        layers = _convolution(channels, 32, 1)
        inputs = 32
        for outputs, stride in self.BLOCKS:
            layers += _convolution(inputs, inputs, stride, groups=inputs)
            layers += _convolution(inputs, outputs, 1, size=1)
            inputs = outputs
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def build(name: str, channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """Build a freshly initialised network for (n, channels, *size) images.

    Raises:
        ValueError: name is not one of `NAMES`.
    """
    if name == "cnn":
        return CNN(channels, size, classes)
    if name == "mobilenet":
        return MobileNet(channels, classes)
    raise ValueError(f"model must be one of {', '.join(NAMES)}, got {name!r}")

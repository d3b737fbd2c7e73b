"""Networks for small images. Each is a body, dropout and a linear head, so that its features are the head's input."""

from typing import Literal, TypeAlias

from torch import Tensor, nn, zeros

from dm2_fast import extras, plugins
from dm2_fast.model.head import evaluating, model_device
from dm2_fast.operations.arguments import meant, shown

NAMES = ("cnn", "mobilenet", "resnet18", "resnet34", "vgg16")


class Network(nn.Module):
    """A body that turns images into (n, features), dropout, and a linear head."""

    def __init__(self, body: nn.Module, features: int, classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.body(x)))
        return logits


Dropout: TypeAlias = Literal["head", "blocks"]


def build(name: str, channels: int, size: tuple[int, int], classes: int, dropout: Dropout = "head") -> nn.Module:
    """Build a freshly initialised network for (n, channels, *size) images.

    Args:
        name: One of `NAMES`, or `package.module:function` for a function of the user's, which is called with those of
            channels, size and classes that it names, and returns an `nn.Module` that turns images into (n, classes)
            logits.
        dropout: Before the head only; or blocks = behind every block too, with the same probability, as Monte Carlo
            dropout wants it (Gal and Ghahramani 2016). The weights, and what the network computes without dropout, are
            the same.

    Raises:
        ValueError: name is neither, the images are too small for the network, or the user's function returns
            something else.
    """
    if plugins.is_plugin(name):
        if dropout != "head":
            raise ValueError(f"dropout={dropout!r} is for {', '.join(NAMES)}: model {name} decides about its own")
        model = plugins.model(name, channels=channels, size=size, classes=classes)
        return _checked(model, name, channels, size, classes)
    if name == "cnn":
        if min(size) < 4:
            raise ValueError(f"images must be at least 4x4 for the model cnn, got {size[0]}x{size[1]}")
        network = Network(_cnn(channels, size), 128, classes, dropout=0.25)
    elif name == "mobilenet":
        network = Network(_mobilenet(channels), 1024, classes)
    elif name in ("resnet18", "resnet34"):
        network = Network(_resnet(name, channels), 512, classes)
    elif name == "vgg16":
        network = Network(_vgg16(channels), 512, classes)
    else:
        known = f"{', '.join(NAMES)} or package.module:function"
        raise ValueError(f"model must be one of {known}, got {name!r}{meant(name, NAMES)}")
    if dropout == "blocks":
        _drop_behind_blocks(network.body, network.dropout.p)
    return network


def _drop_behind_blocks(module: nn.Module, rate: float) -> None:
    """Put dropout behind each block: a pooling of cnn and vgg16, a pointwise convolution of mobilenet, a residual block
    of the others."""
    children = list(module.named_children())
    for i, (name, child) in enumerate(children):
        before = children[i - 2][1] if i >= 2 else None
        pointwise = isinstance(child, nn.ReLU) and isinstance(before, nn.Conv2d) and before.kernel_size == (1, 1)
        if isinstance(child, nn.MaxPool2d) or pointwise or type(child).__name__ == "BasicBlock":
            setattr(module, name, nn.Sequential(child, nn.Dropout(rate)))
        else:
            _drop_behind_blocks(child, rate)


def _checked(model: nn.Module, name: str, channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    with evaluating(model), plugins.naming(name, f"images of shape {(channels, *size)}"):
        logits = model(zeros(2, channels, *size, device=model_device(model)))
    got = tuple(logits.shape) if isinstance(logits, Tensor) else shown(logits)
    if got != (2, classes):
        raise ValueError(
            f"model {name} must turn 2 images of {channels}x{size[0]}x{size[1]} into logits of shape (2, {classes}), "
            f"got {got}"
        )
    return model


def _cnn(channels: int, size: tuple[int, int]) -> nn.Module:
    """Two convolutions and a hidden layer of 128 features."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (size[0] // 4) * (size[1] // 4), 128),
        nn.ReLU(),
    )


# (channels, stride) of the depthwise separable blocks, Table 1 of Howard et al. 2017.
_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def _mobilenet(channels: int) -> nn.Module:
    """MobileNet v1 (Howard et al. 2017): depthwise 3x3 and pointwise 1x1 convolutions.

    For 32x32 images the first convolution keeps the resolution, where the original halves it.
    """
    layers = _convolution(channels, 32, 1)
    inputs = 32
    for outputs, stride in _MOBILENET:
        layers += _convolution(inputs, inputs, stride, groups=inputs)
        layers += _convolution(inputs, outputs, 1, size=1)
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _convolution(inputs: int, outputs: int, stride: int, *, size: int = 3, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def _resnet(name: str, channels: int) -> nn.Module:
    """torchvision's ResNet (He et al. 2016); for 32x32 images its first convolution is 3x3 and keeps the resolution,
    and the pooling after it is left out, as in that paper's section on CIFAR-10."""
    with extras.needed("run", f"model {name}"):
        from torchvision.models import resnet18, resnet34

    body: nn.Module = {"resnet18": resnet18, "resnet34": resnet34}[name]()
    body.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    body.maxpool = nn.Identity()
    body.fc = nn.Identity()
    return _initialised(body)


def _vgg16(channels: int) -> nn.Module:
    """The convolutions of torchvision's VGG16 (Simonyan and Zisserman 2015), with BatchNorm like the other deep
    networks here, since the recipe is theirs too. They leave 512 features of a 32x32 image: the original's two hidden
    layers, made for 7x7 maps, are left out."""
    with extras.needed("run", "model vgg16"):
        from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["D"], batch_norm=True)
    layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # the same for 32x32; smaller images do not shrink to nothing
    return _initialised(nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def _initialised(body: nn.Module) -> nn.Module:
    """body, with the initial weights that torchvision gives to the convolutions of these networks."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return body

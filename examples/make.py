"""Makes the files that README and docs speak of: `python examples/make.py [FOLDER]`.

The models are small, and their numbers come from a seed. `int8.onnx` needs onnxruntime, whose quantizer makes
it from `float.onnx`. `nets.py`, which stands beside this file, is copied there too.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """A model in the making; all its numbers come from one seed."""

    def __init__(self, seed: int = 0, scale: float = 0.2) -> None:
        self.rng, self.scale = np.random.default_rng(seed), scale
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def op(self, op: str, inputs: str, output: str, name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs.split(), [output], name=name, **attributes))

    def store(self, name: str, *shape: int, positive: bool = False) -> str:
        values = self.rng.uniform(0.5, 1.5, shape) if positive else self.rng.normal(0, self.scale, shape)
        self.stored.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def bound(self, name: str, value: float) -> None:
        self.stored.append(numpy_helper.from_array(np.float32(value), name))

    def conv(self, x: str, y: str, name: str, shape: tuple[int, ...], **attributes: Any) -> None:
        weight, bias = self.store(f"{name}.weight", *shape), self.store(f"{name}.bias", shape[0])
        self.op("Conv", f"{x} {weight} {bias}", y, name, **attributes)

    def norm(self, x: str, y: str, name: str, channels: int, negative: bool = False) -> None:
        positive = {"scale": not negative, "bias": False, "mean": False, "var": True}
        stored = [self.store(f"{name}.{key}", channels, positive=sign) for key, sign in positive.items()]
        self.op("BatchNormalization", " ".join([x, *stored]), y, name)

    def model(self, shape: tuple[int | str, ...] = (1, 3, 16, 16)) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "example", [x], [y], self.stored)
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model, full_check=True)
        return model


def picture(seed: int = 0) -> onnx.ModelProto:
    """The left half of docs/before-after.svg."""
    net = Net(seed)
    net.conv("x", "a", "conv1", (8, 3, 3, 3), pads=[1] * 4)
    net.conv("x", "b", "conv2", (8, 3, 1, 1))
    net.op("Relu", "a", "c", "relu")
    net.norm("c", "d", "bn1", 8)
    net.op("Add", "d b", "e", "add")
    net.norm("e", "f", "bn2", 8)
    net.op("MaxPool", "f", "g", "pool", kernel_shape=[2, 2], strides=[2, 2])
    net.conv("g", "y", "conv3", (4, 8, 3, 3))
    return net.model()


def stubborn() -> onnx.ModelProto:
    """Before a padded conv, with negative scales between Relu and MaxPool, and behind a conv."""
    net = Net()
    net.norm("x", "a", "first", 3)
    net.conv("a", "b", "conv1", (8, 3, 3, 3), pads=[1] * 4)
    net.op("Relu", "b", "c", "relu")
    net.norm("c", "d", "second", 8, negative=True)
    net.op("MaxPool", "d", "e", "pool", kernel_shape=[2, 2])
    net.conv("e", "f", "conv2", (4, 8, 3, 3))
    net.norm("f", "g", "third", 4)
    net.op("Sigmoid", "g", "y", "sigmoid")
    return net.model()


def preactivated() -> onnx.ModelProto:
    """A batch norm between two ReLUs, and one by the batch's own statistics with a sum behind it."""
    net = Net()
    net.conv("x", "a", "conv1", (8, 3, 3, 3), pads=[1] * 4)
    net.op("Relu", "a", "b", "relu1")
    net.norm("b", "c", "bn1", 8)
    net.op("Relu", "c", "d", "relu2")
    net.conv("d", "e", "conv2", (8, 8, 3, 3), pads=[1] * 4)
    net.norm("e", "f", "bn2", 8)
    net.nodes[-1].output.extend(["new_mean", "new_var"])
    net.nodes[-1].attribute.append(helper.make_attribute("training_mode", 1))
    net.op("Add", "f b", "g", "add")
    net.op("Relu", "g", "y", "relu3")
    return net.model()


def branches() -> onnx.ModelProto:
    """A convolution, a block of three branches, and one that is taken apart into two."""
    net = Net()
    net.conv("x", "a", "stem", (8, 3, 3, 3), pads=[1] * 4)
    net.op("Relu", "a", "b", "relu1")
    net.conv("b", "c", "dense", (8, 8, 3, 3), pads=[1] * 4)
    net.norm("c", "d", "bn1", 8)
    net.conv("b", "e", "point", (8, 8, 1, 1))
    net.norm("e", "f", "bn2", 8)
    net.norm("b", "g", "bn3", 8)
    net.op("Add", "d f", "h", "add1")
    net.op("Add", "h g", "i", "add2")
    net.op("Relu", "i", "j", "relu2")
    net.conv("j", "k", "depthwise", (8, 1, 3, 3), group=8)
    net.conv("k", "y", "last", (4, 8, 1, 1))
    return net.model()


def dead() -> onnx.ModelProto:
    """Three of eight channels have a scale of zero, and one of them a positive shift, before padded convs."""
    net = Net()
    net.conv("x", "a", "conv1", (8, 3, 3, 3), pads=[1] * 4)
    net.norm("a", "b", "bn1", 8)
    scale, shift = (next(t for t in net.stored if t.name == f"bn1.{key}") for key in ("scale", "bias"))
    for tensor, values in ((scale, {1: 0, 4: 0, 6: 0}), (shift, {1: -0.5, 4: 0.25, 6: -0.1})):
        array = numpy_helper.to_array(tensor).copy()
        array[list(values)] = list(values.values())
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    net.op("Relu", "b", "c", "relu1")
    net.conv("c", "d", "depthwise", (8, 1, 3, 3), pads=[1] * 4, group=8)
    net.op("Relu", "d", "e", "relu2")
    net.conv("e", "y", "conv2", (4, 8, 1, 1))
    return net.model()


def uneven() -> onnx.ModelProto:
    """Conv, depthwise conv, Relu6, conv: the depthwise one makes large what the first makes small."""
    net = Net()
    net.conv("x", "a", "conv1", (8, 3, 3, 3))
    net.norm("a", "b", "bn1", 8)
    net.op("Relu", "b", "c", "relu")
    net.conv("c", "d", "conv2", (8, 1, 3, 3), group=8)
    net.norm("d", "e", "bn2", 8)
    net.op("Clip", f"e {net.store('low')} {net.store('high')}", "f", "relu6")
    net.conv("f", "y", "conv3", (4, 8, 1, 1))
    sizes = 2.0 ** np.array([0, -9, -7, -5, -8, -6, -9, -3])
    small, large = sizes[:, None, None, None], 1 / sizes[:, None, None, None]
    factors = {"conv1.weight": small, "conv2.weight": large, "low": 0.0}
    factors |= dict.fromkeys(("conv1.bias", "bn1.bias", "bn1.mean"), sizes)
    for tensor in net.stored:
        value = numpy_helper.to_array(tensor) * factors.get(tensor.name, 1.0)
        value = np.asarray(6.0) if tensor.name == "high" else value
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), tensor.name))
    return net.model()


def plain() -> onnx.ModelProto:
    """A small net without batch norms, to be quantized: Conv, depthwise Conv, ConvTranspose, Gemm, MatMul."""
    net = Net(scale=0.3)
    net.conv("x", "a", "conv", (8, 3, 3, 3), pads=[1] * 4)
    net.op("Relu", "a", "b", "relu")
    net.conv("b", "c", "depthwise", (8, 1, 3, 3), group=8)
    net.bound("low", 0)
    net.bound("high", 6)
    net.op("Clip", "c low high", "d", "relu6")
    weight, bias = net.store("deconv.weight", 8, 6, 2, 2), net.store("deconv.bias", 6)
    net.op("ConvTranspose", f"d {weight} {bias}", "e", "deconv", strides=[2, 2])
    net.op("GlobalAveragePool", "e", "f", "average")
    net.op("Flatten", "f", "g", "flatten")
    net.op("Gemm", f"g {net.store('gemm.weight', 6, 8)} {net.store('gemm.bias', 8)}", "h", "gemm")
    net.op("MatMul", f"h {net.store('matmul.weight', 8, 5)}", "y", "matmul")
    return net.model(("N", 3, 8, 8))


def images(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """From 0 to 1, so that what rounding does to a weight shifts the mean of what it makes."""
    return np.random.default_rng(seed).uniform(0, 1, (count, 3, 8, 8)).astype(np.float32)


def quantize(path: Path, out: Path) -> None:
    """By onnxruntime's static quantizer, QDQ."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[Any] = iter({"x": image[None]} for image in images(16))

        def get_next(self) -> Any:
            return next(self.feeds, None)

    logging.disable(logging.WARNING)
    try:
        quantize_static(
            *(path, out, Reader()),
            quant_format=QuantFormat.QDQ,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
    finally:
        logging.disable(logging.NOTSET)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "model.onnx": picture,
    "other.onnx": lambda: picture(seed=1),
    "stubborn.onnx": stubborn,
    "preactivated.onnx": preactivated,
    "branches.onnx": branches,
    "dead.onnx": dead,
    "uneven.onnx": uneven,
    "float.onnx": plain,
}


def make(folder: Path) -> None:
    """Write all files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in MODELS.items():
        onnx.save(model(), folder / name)
    np.savez(folder / "images.npz", x=images(60, seed=1))
    noise = np.random.default_rng(2).standard_normal((40, 3, 16, 16))
    np.savez(folder / "samples.npz", x=noise.astype(np.float32))
    source = Path(__file__).with_name("nets.py")
    if source.parent != folder.resolve():
        shutil.copy(source, folder)
    try:
        quantize(folder / "float.onnx", folder / "int8.onnx")
    except ImportError:
        print("int8.onnx was not made: it needs onnxruntime")


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

"""The models that the tools measure: a chain, timm's networks, a file of 3 GB.

No trained weights are needed: running statistics, gamma (of both signs) and beta are drawn at random, from a
fixed seed, so that every batch norm does something and every run sees the same file. Half of the gammas are
negative, which is the hardest case; in trained networks few are: 31 of 5,472 in the page orientation model of
the demo, 1 of 856 in PP-OCRv4's recognizer.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools._common import ROOT, command

SEED = 0
HALF, FEW = 0.5, 0.005  # parts of the gammas that are negative


def chain(layers: int, channels: int = 16, kernel: int = 3) -> onnx.ModelProto:
    """Conv (no bias, padded) -> BatchNormalization -> Relu, `layers` times; input [1, channels, 16, 16]."""
    rng = np.random.default_rng(SEED)
    nodes, tensors, x = [], [], "x"
    for i in range(layers):
        weight = rng.standard_normal((channels, channels, kernel, kernel)) / kernel / np.sqrt(channels)
        values = {
            f"conv{i}.weight": weight,
            f"bn{i}.weight": rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels),
            f"bn{i}.bias": rng.standard_normal(channels) * 0.1,
            f"bn{i}.mean": rng.standard_normal(channels) * 0.1,
            f"bn{i}.var": rng.uniform(0.5, 1.5, channels),
        }
        tensors += [numpy_helper.from_array(v.astype(np.float32), name) for name, v in values.items()]
        conv, *parameters = values
        nodes += [
            helper.make_node(
                "Conv", [x, conv], [f"c{i}"], f"conv{i}", kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4
            ),
            helper.make_node("BatchNormalization", [f"c{i}", *parameters], [f"n{i}"], f"bn{i}"),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"),
        ]
        x = f"r{i}"
    shape = [1, channels, 16, 16]
    source, sink = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", x))
    graph = helper.make_graph(nodes, "chain", [source], [sink], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def huge(folder: Path, layers: int = 80, channels: int = 1024) -> Path:
    """The chain, its weights 1024 x 1024 x 3 x 3, in an external file of 3 GB that is written in pieces."""
    rng = np.random.default_rng(SEED)
    model = chain(layers, channels=4)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = channels
    offset = 0
    with open(folder / "huge.data", "wb") as data:
        for tensor in model.graph.initializer:
            small = numpy_helper.to_array(tensor)
            if small.ndim == 1:
                tensor.CopyFrom(numpy_helper.from_array(np.resize(small, channels), tensor.name))
                continue
            weight = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32) / np.float32(96)
            data.write(weight.tobytes())
            tensor.ClearField("raw_data")
            tensor.dims[:] = weight.shape
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in (("location", "huge.data"), ("offset", offset), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(entry))
            offset += weight.nbytes
    path = folder / "huge.onnx"
    path.write_bytes(model.SerializeToString())
    return path


_declared: list[Any] = []  # the declarations live as long as the library that made them


@functools.cache
def import_timm() -> Any:
    """timm, with torchvision installed without its own torch: its operators are then declared here.

    timm imports torchvision, and torchvision describes operators to torch that its compiled half would have
    declared. None of them is used by the networks here.
    """
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)
    _declared.append(library)
    import timm

    return timm


def network(name: str, negative: float = HALF, size: int | None = None) -> tuple[Any, Any]:
    """One of timm's networks for inference, every batch norm randomized, and an input of its own size.

    negative: the part of the gammas that is. size: of the images, where the network does not fix it.
    """
    import torch

    torch.manual_seed(SEED)
    model = import_timm().create_model(name, pretrained=False).eval()
    for module in model.modules():
        if not isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            continue
        with torch.no_grad():
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                if negative == HALF:
                    sign = torch.randint(0, 2, module.weight.shape) * 2 - 1
                else:
                    sign = 1 - 2 * (torch.rand(module.weight.shape) < negative).int()
                module.weight.copy_(torch.empty_like(module.weight).uniform_(0.5, 1.5) * sign)
                module.bias.normal_(0, 0.1)
    shape = model.default_cfg["input_size"]
    if size is not None and not model.default_cfg.get("fixed_input_size"):
        shape = (shape[0], size, size)
    return model, torch.randn(1, *shape)


def export(model: Any, example: Any, raw: Path, default: Path | None = None) -> None:
    """What torch's exporter writes without its optimizer, and with it (as it does by default)."""
    import torch

    raw.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        program = torch.onnx.export(model, (example,), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    _save(program.model, raw)
    if default is not None:
        program.optimize()  # the last step of an export with optimize=True
        _save(program.model, default)


def export_by_itself(name: str, negative: float, *paths: Path, size: int | None = None) -> None:
    """`export` of one of timm's networks, in a process that ends: the exporter keeps much memory."""
    options = [] if size is None else ["--size", size]
    program = command("tools._data.models", name, negative, *paths, *options)
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{name} cannot be exported: {done.stderr.strip().splitlines()[-1:]}")


def fold_constants(source: Path, path: Path) -> None:
    """Only what is constant is computed: every batch norm stays, which is checked."""
    import onnx_ir
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import _constant_folding

    model = onnx_ir.load(source)
    before = batch_norms(model)
    passes = onnx_ir.passes.Sequential(
        common.InlinePass(),
        _constant_folding.FoldConstantsPass(
            shape_inference=True,
            input_size_limit=_constant_folding.DEFAULT_CONSTANT_FOLD_INPUT_SIZE_LIMIT,
            output_size_limit=_constant_folding.DEFAULT_CONSTANT_FOLD_OUTPUT_SIZE_LIMIT,
        ),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )
    passes(model)
    if batch_norms(model) != before:
        raise RuntimeError(f"{source}: folding constants changed the number of batch norms")
    _save(model, path)


def batch_norms(model: Any) -> int:
    """How many an onnx_ir model has, nested graphs included."""
    return sum(node.op_type == "BatchNormalization" for node in model.graph.all_nodes())


def _save(model: Any, path: Path) -> None:
    """Written beside and renamed: a file that is there is complete."""
    import onnx_ir

    beside = path.with_name(f"{path.name}.{os.getpid()}")
    onnx_ir.save(model, beside)
    beside.replace(path)


def main() -> None:
    """What `export_by_itself` starts."""
    parser = argparse.ArgumentParser(description=export.__doc__)
    parser.add_argument("network")
    parser.add_argument("negative", type=float)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--size", type=int)
    arguments = parser.parse_args()
    export(*network(arguments.network, arguments.negative, arguments.size), *arguments.paths)


if __name__ == "__main__":
    main()

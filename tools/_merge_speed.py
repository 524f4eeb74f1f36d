"""A network of timm that is trained with branches: how long one image takes with and without them.

    python tools/_merge_speed.py NETWORK [--seconds N]

prints one line of JSON. One thread, batch 1, in onnxruntime (the file that torch's exporter writes by
default, with all of onnxruntime's optimizations) and in torch (`torch.inference_mode`). All variants of one
runtime live in this process and run in rounds: each once a round, in an order that is drawn anew for every
round. `again` is a copy of the network as it is: what the two differ by is noise.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _models
import onnx
import onnxruntime
import torch
from _torch_speed import in_rounds, summary
from torch import Tensor, nn

import bnfold

RUNTIMES = ("onnxruntime", "torch")
VARIANTS = ("as it is", "again", "folded", "merged", "timm")
LINEAR = ("Conv", "Gemm", "MatMul", "conv2d", "linear", "addmm", "mm")
NORMS = ("BatchNormalization", "batch_norm")
Run = Callable[[Tensor], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network")
    parser.add_argument("--seconds", type=float, default=40.0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    module, x = _models.network(arguments.network)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
    found = {}
    for runtime, make in zip(RUNTIMES, (in_onnxruntime, in_torch), strict=True):
        made = make(module, x)
        seconds, rounds = in_rounds({name: made[name][0] for name in VARIANTS}, x, arguments.seconds)
        variants = {}
        for name in VARIANTS:
            run, ops = made[name]
            variants[name] = {
                "linear": sum(ops[op] for op in LINEAR),
                "batch_norms": sum(ops[op] for op in NORMS),
                "nodes": ops.total(),
                "error": error(run, x, exact),
                **summary(seconds[name]),
            }
        found[runtime] = {"threads": 1, "rounds": rounds, "variants": variants}
    print(json.dumps(found), flush=True)


def reparameterized(module: nn.Module) -> nn.Module:
    """By the switch of the network's own code."""
    _models.import_timm()
    from timm.utils.model import reparameterize_model

    changed: nn.Module = reparameterize_model(copy.deepcopy(module)).eval()
    return changed


def in_onnxruntime(module: nn.Module, x: Tensor) -> dict[str, tuple[Run, collections.Counter[str]]]:
    """The variants as sessions, and how often each operator occurs in the file."""
    with tempfile.TemporaryDirectory() as folder:
        raw, plain, own = (Path(folder) / f"{name}.onnx" for name in ("raw", "plain", "own"))
        _models.export(module, x, raw, plain)
        _models.export(reparameterized(module), x, raw, own)
        models = {"as it is": onnx.load(plain), "again": onnx.load(plain), "timm": onnx.load(own)}
    models["folded"], _ = bnfold.fold_onnx(models["as it is"], merge_branches=False)
    models["merged"], _ = bnfold.fold_onnx(models["as it is"])
    return {name: (session(model), counted(model)) for name, model in models.items()}


def session(model: onnx.ModelProto) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = made.get_inputs()[0].name
    return lambda x: made.run(None, {name: x.numpy()})[0]


def counted(model: onnx.ModelProto) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in model.graph.node)


def in_torch(module: nn.Module, x: Tensor) -> dict[str, tuple[Run, collections.Counter[str]]]:
    """The variants as modules: the network and timm's as they are, and programs as modules."""
    own = reparameterized(module)
    with torch.no_grad():
        program, switched = (torch.export.export(net, (x,)) for net in (module, own))
    programs = {"as it is": program, "again": program, "timm": switched}
    programs["folded"], _ = bnfold.fold_program(program, merge_branches=False)
    programs["merged"], _ = bnfold.fold_program(program)
    modules = {"as it is": module, "again": copy.deepcopy(module), "timm": own}
    modules |= {name: programs[name].module() for name in ("folded", "merged")}
    return {name: (modules[name], called(programs[name])) for name in VARIANTS}


def called(program: Any) -> collections.Counter[str]:
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return collections.Counter(str(node.target).split(".")[-2:][0] for node in calls)


def error(run: Run, x: Tensor, exact: Tensor) -> float:
    """The largest difference from the network in float64, relative to its largest output."""
    with torch.inference_mode():
        found = torch.as_tensor(run(x))
    return float((found.double() - exact).abs().max() / exact.abs().max())


if __name__ == "__main__":
    main()

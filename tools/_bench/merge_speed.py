"""A network of timm that is trained with branches: how long one image takes with and without them.

    python -m tools._bench.merge_speed NETWORK [--seconds N]

prints one line of JSON. One thread, batch 1, in onnxruntime (the file that torch's exporter writes by
default, with all of onnxruntime's optimizations) and in torch (`torch.inference_mode`). All variants of one
runtime live in this process and run in rounds: each once a round, in an order that is drawn anew for every
round. `again` is a copy of the network as it is: what the two differ by is noise.
"""

from __future__ import annotations

import collections
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import bnfold
from tools._bench.torch_speed import begun, in_rounds, summary
from tools._common import session
from tools._data.models import export, import_timm
from tools._peers.torch_peers import error

RUNTIMES = ("onnxruntime", "torch")
VARIANTS = ("as it is", "again", "folded", "merged", "timm")
LINEAR = ("Conv", "Gemm", "MatMul", "conv2d", "linear", "addmm", "mm")
NORMS = ("BatchNormalization", "batch_norm")
Run = Callable[[Tensor], Any]


def main() -> None:
    module, x, exact, budget = begun(__doc__)
    found = {}
    for runtime, make in zip(RUNTIMES, (in_onnxruntime, in_torch), strict=True):
        made = make(module, x)
        seconds, rounds = in_rounds({name: made[name][0] for name in VARIANTS}, x, budget)
        variants = {}
        for name in VARIANTS:
            run, ops = made[name]
            with torch.inference_mode():
                output = torch.as_tensor(run(x))
            variants[name] = {
                "linear": sum(ops[op] for op in LINEAR),
                "batch_norms": sum(ops[op] for op in NORMS),
                "nodes": ops.total(),
                "error": error(output, exact),
                **summary(seconds[name]),
            }
        found[runtime] = {"threads": 1, "rounds": rounds, "variants": variants}
    print(json.dumps(found), flush=True)


def reparameterized(module: nn.Module) -> nn.Module:
    """By the switch of the network's own code."""
    import_timm()
    from timm.utils.model import reparameterize_model

    changed: nn.Module = reparameterize_model(copy.deepcopy(module)).eval()
    return changed


def in_onnxruntime(module: nn.Module, x: Tensor) -> dict[str, tuple[Run, collections.Counter[str]]]:
    """The variants as sessions, and how often each operator occurs in the file."""
    with tempfile.TemporaryDirectory() as folder:
        raw, plain, own = (Path(folder) / f"{name}.onnx" for name in ("raw", "plain", "own"))
        export(module, x, raw, plain)
        export(reparameterized(module), x, raw, own)
        models = {"as it is": onnx.load(plain), "again": onnx.load(plain), "timm": onnx.load(own)}
    models["folded"], _ = bnfold.fold_onnx(models["as it is"], merge_branches=False)
    models["merged"], _ = bnfold.fold_onnx(models["as it is"])
    return {name: (runner(model), counted(model)) for name, model in models.items()}


def runner(model: onnx.ModelProto) -> Run:
    made = session(model.SerializeToString())
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


if __name__ == "__main__":
    main()

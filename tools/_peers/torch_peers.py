"""What bnfold and its peers in torch do with a module: each is given a copy of its own, and an input.

`fuse` of torch.fx and `torch.jit.freeze` find out for themselves what to fold. `fuse_modules` wants names and
gets those that a user with the code at hand would give: every (convolution or linear layer, batch norm) where
the batch norm is called on what the layer gives, each of them is called once, and nothing else reads what is
between them. (A ReLU behind may be named too; to the batch norm it makes no difference.) `torch.jit.freeze`
gets a trace and not a script: every network here can be traced, not every one scripted, and more of a trace
folds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

import bnfold
from tools._peers.left import Left
from tools._peers.torch_left import left, of_module, of_program, of_script

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
NORMS = nn.modules.batchnorm._NormBase
EAGER = "stays in eager mode"  # what bnfold says of a fold that keeps its call, as the identity map


@dataclass(frozen=True)
class Folded:
    """What a tool made: how to run it, what is left, and how many batch norms of it are the identity map."""

    run: Callable[[Tensor], Tensor]
    left: Left
    identity: int = 0


def fold_program(module: nn.Module, x: Tensor) -> Folded:
    folded, _ = bnfold.fold_program(torch.export.export(module, (x,)), verify=False)
    return Folded(folded.module(), left(of_program(folded)))


def fold_module(module: nn.Module, x: Tensor) -> Folded:
    folded, report = bnfold.fold_module(module, x, verify=False)
    identity = sum(EAGER in entry.reason for entry in report.folded)
    return Folded(folded, left(of_module(folded, x)), identity)


def fx_fuse(module: nn.Module, x: Tensor) -> Folded:
    from torch.fx.experimental.optimization import fuse

    folded = fuse(module)
    return Folded(folded, left(of_module(folded, x)))


def fuse_modules(module: nn.Module, x: Tensor) -> Folded:
    from torch.ao import quantization

    pairs = named_pairs(module, x)
    folded = quantization.fuse_modules(module, pairs) if pairs else module
    return Folded(folded, left(of_module(folded, x)))


def freeze(module: nn.Module, x: Tensor) -> Folded:
    frozen = torch.jit.freeze(torch.jit.trace(module, (x,)))
    return Folded(frozen, left(of_script(frozen)))


def error(output: Tensor, exact: Tensor) -> float:
    """The largest difference from the network in float64, relative to its largest output."""
    return float((output.double() - exact).abs().max() / exact.abs().max())


TOOLS: dict[str, Callable[[nn.Module, Tensor], Folded]] = {
    "fold_program": fold_program,
    "fold_module": fold_module,
    "torch.fx fuse": fx_fuse,
    "fuse_modules": fuse_modules,
    "torch.jit.freeze": freeze,
}


def named_pairs(module: nn.Module, x: Tensor) -> list[list[str]]:
    """The names that `fuse_modules` gets, in the order of the calls."""
    calls = [(node, _path(node)) for node in torch.export.export(module, (x,)).graph.nodes]
    times = Counter(path for _, path in calls)
    modules = dict(module.named_modules())
    pairs = []
    for node, path in calls:
        if "batch_norm" not in str(node.target):
            continue
        layer = node.args[0]
        pair = [_path(layer), path]
        known = isinstance(modules[pair[0]], LAYERS) and isinstance(modules[path], NORMS)
        if known and len(layer.users) == 1 and all(times[name] == 1 for name in pair):
            pairs.append(pair)
    return pairs


def _path(node: fx.Node) -> str:
    """The name of the module that makes this call, "" for the outermost."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""

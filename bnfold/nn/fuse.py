"""Merge the addition and the ReLU that follow a batch norm into its call, in a traced module.

1. batch norm -> ReLU: the activation, if nobody else reads the batch norm.
2. batch norm -> addition -> ReLU: the addition too; of two batch norms that are added, the first takes the
   other as its residual.
3. A batch norm that is called more than once stays: its calls may need different things. So does one that
   hooks watch, one that is added into another tensor, and one whose addition comes after a change in place.
"""

from __future__ import annotations

import operator
from collections import Counter

import torch
from torch import fx, nn

from bnfold.errors import explained
from bnfold.nn.batch_norm import Fused

__all__ = ["fused"]

_RELU = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_)
_ADD = (operator.add, operator.iadd, torch.add)


def fused(module: nn.Module) -> fx.GraphModule:
    """The module as a graph with fewer calls; parameters and submodules are shared with it.

    Raises:
        UsageError: torch.fx cannot trace it.
    """
    tracer = _Tracer()
    advice = "Convert it without fuse_activations, or rewrite what depends on data"
    with explained(f"torch.fx cannot trace {type(module).__name__}", advice):
        graph = tracer.trace(module)
    parts = dict(module.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for relu in [node for node in graph.nodes if _is_relu(node, parts)]:
        source = relu.all_input_nodes[0]
        added = source if _is_sum(source) else None
        summands = list(added.all_input_nodes) if added is not None else [source]
        # In place, the first summand becomes the sum, which others of its readers see.
        able = summands[:1] if added is not None and _in_place(added, parts) else summands
        norm = next((node for node in able if _is_free(node, parts, calls)), None)
        if norm is None or (added is not None and _changed_between(norm, added, parts)):
            continue
        if added is not None:
            norm.args = (norm.args[0], *(node for node in summands if node is not norm))
            added.prepend(norm)  # where the other summand is known
            added.replace_all_uses_with(norm)
            graph.erase_node(added)
        part = parts[norm.target]
        assert isinstance(part, Fused)
        part.activation = "relu"
        relu.replace_all_uses_with(norm)
        graph.erase_node(relu)
    graph.lint()
    result = fx.GraphModule(module, graph, type(module).__name__)
    result.train(module.training)
    return result


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Fused) or super().is_leaf_module(m, module_qualified_name)


def _in_place(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    """Whether a call changes, or may change, a tensor that it was given."""
    if node.op == "call_module":
        return bool(getattr(parts[str(node.target)], "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    own = name.endswith("_") and not name.endswith("__")  # relu_
    of_operator = name in ("setitem", "delitem") or (name[:1] == "i" and hasattr(operator, f"__{name}__"))
    flagged = name == "relu" and True in node.args
    return own or of_operator or flagged or "out" in node.kwargs or bool(node.kwargs.get("inplace"))


def _changed_between(norm: fx.Node, added: fx.Node, parts: dict[str, nn.Module]) -> bool:
    """Whether something changes in place, which the batch norm reads, or does not, only where it is now."""
    node = norm.next
    while node is not added:
        if _in_place(node, parts):
            return True
        node = node.next
    return False


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks)


def _is_relu(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        part = parts[str(node.target)]
        return type(part) is nn.ReLU and not _hooked(part)
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in _RELU


def _is_sum(node: fx.Node) -> bool:
    """An addition of two values that differ, which only the ReLU reads."""
    call = node.op == "call_function" and node.target in _ADD
    call = call or (node.op == "call_method" and node.target in ("add", "add_"))
    tensors = len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)
    return call and tensors and not node.kwargs and len(node.users) == 1 and len(node.all_input_nodes) == 2


def _is_free(node: fx.Node, parts: dict[str, nn.Module], calls: Counter[object]) -> bool:
    """A batch norm of this package, called once, as it is, and read once."""
    if node.op != "call_module":
        return False
    part = parts[str(node.target)]
    plain = isinstance(part, Fused) and part.activation is None and not _hooked(part)
    return plain and calls[node.target] == 1 and len(node.users) == 1 and len(node.args) == 1

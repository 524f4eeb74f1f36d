"""Merge the addition and the ReLU that follow a batch norm into its call, in a graph; and the way back.

1. batch norm -> ReLU: the activation, if nobody else reads the batch norm.
2. batch norm -> addition -> ReLU: the addition too; of two batch norms that are added, the first takes the
   other as its residual.
3. A batch norm that is called more than once stays: its calls may need different things. So does one that
   hooks watch, one that is added into another tensor, and one whose addition comes after a change in place.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from bnfold.errors import UsageError
from bnfold.nn.batch_norm import AddActivation, Fused
from bnfold.nn.tracing import hooked

__all__ = ["Rewritten", "merge", "split"]

_RELU = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_)
_ADD = (operator.add, operator.iadd, torch.add)
_MAKE = (nn.modules.conv._ConvNd, nn.Linear)  # what they give has memory of its own


@dataclass
class Rewritten:
    """norms: paths of the batch norms whose calls changed. inside: of the submodules whose code made these
    calls, and would now compute something else.
    """

    norms: list[str] = field(default_factory=list)
    inside: set[str] = field(default_factory=set)


def merge(module: nn.Module, graph: fx.Graph) -> Rewritten:
    """Merge what can be, in the graph and in the batch norms of the module that it was traced from."""
    parts = dict(module.named_modules(remove_duplicate=False))
    called = [parts[str(node.target)] for node in graph.nodes if node.op == "call_module"]
    calls = Counter(inner for part in called for inner in part.modules())
    done = Rewritten()
    for relu in [node for node in graph.nodes if _is_relu(node, parts)]:
        chain = _chain(relu, parts, calls)
        if chain is None:
            continue
        norm, added = chain.norm, chain.added
        done.norms.append(str(norm.target))
        caller = _caller(norm)
        if caller and (added is not None or caller not in _stack(relu)):
            done.inside.add(caller)
        if added is not None:
            norm.args = (norm.args[0], chain.residual)
            added.prepend(norm)  # where the other summand is known
        part = parts[str(norm.target)]
        assert isinstance(part, Fused)
        part.activation = "relu"
        relu.replace_all_uses_with(norm)
        for gone in chain.gone:
            graph.erase_node(gone)
    graph.lint()
    return done


@dataclass
class _Chain:
    """A batch norm with what is merged into it. gone: the calls that go, from the ReLU backward."""

    norm: fx.Node
    gone: list[fx.Node]
    added: fx.Node | None = None
    residual: fx.Node | None = None


def _chain(relu: fx.Node, parts: dict[str, nn.Module], calls: Counter[nn.Module]) -> _Chain | None:
    """What ends in a ReLU, if it begins with a batch norm."""
    source, passed = _source(relu.all_input_nodes[0], parts)
    gone = [relu, *passed]
    if not _is_sum(source):
        return _Chain(source, gone) if _is_free(source, parts, calls) else None
    one, other = source.all_input_nodes
    # In place, the first summand becomes the sum, which others of its readers see.
    for summand, residual in [(one, other)] if _in_place(source, parts) else [(one, other), (other, one)]:
        norm, passed = _source(summand, parts)
        if _is_free(norm, parts, calls) and not _changed_between(norm, source, parts):
            return _Chain(norm, [*gone, source, *passed], source, residual)
    return None


def split(module: nn.Module, graph: fx.Graph) -> Rewritten:
    """The opposite: what a batch norm does behind itself becomes additions and ReLUs in the graph.

    Raises:
        UsageError: the graph does not show all calls of one that does something behind itself.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    own = {part: path for path, part in parts.items() if isinstance(part, (Fused, AddActivation))}
    calls = [(node, parts[str(node.target)]) for node in graph.nodes if node.op == "call_module"]
    shown = {part for _, part in calls if part in own}
    shown -= {inner for _, part in calls if part not in own for inner in part.modules()}
    acting = [part for part in own if part.activation or isinstance(part, AddActivation)]
    if hidden := [own[part] for part in acting if part not in shown]:
        raise UsageError(f"the graph does not show the calls of {', '.join(hidden)}")
    done = Rewritten()
    for node, part in calls:
        if part in own and _split(graph, node, part):
            done.norms.append(own[part])
            done.inside |= {_caller(node)} - {""}
    for parent in {*module.modules()}:
        for name, part in parent._modules.items():
            if isinstance(part, AddActivation):
                parent._modules[name] = nn.Identity().train(part.training)
    for path in done.norms:
        parts[path].activation = None
    graph.lint()
    return done


def _split(graph: fx.Graph, node: Any, part: Any) -> bool:
    """Put what one call does behind its batch norm into the graph, if anything."""
    given = dict(zip(("input", "residual"), node.args, strict=False)) | node.kwargs
    norm = isinstance(part, Fused)
    if norm and given.get("residual") is None and not part.activation:
        return False
    last = node if norm else given["input"]
    new = []
    with graph.inserting_before(node.next):
        if given.get("residual") is not None:
            new.append(last := graph.call_function(operator.add, (last, given["residual"])))
        if part.activation:
            new.append(last := graph.call_function(torch.relu, (last,)))
    node.replace_all_uses_with(last, delete_user_cb=lambda user: user not in new)
    if norm:
        node.args, node.kwargs = (given["input"],), {}
    else:
        graph.erase_node(node)
    return True


def _stack(node: fx.Node) -> list[str]:
    """The submodules whose code made a call, from outside to inside; a call of a submodule is its last."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]


def _caller(node: fx.Node) -> str:
    """The submodule whose code calls this one; "": the root's."""
    return ("", *_stack(node)[:-1])[-1]


def _source(node: fx.Node, parts: dict[str, nn.Module]) -> tuple[fx.Node, list[fx.Node]]:
    """What gives a value, and the calls of `nn.Identity` that hand it on to its only reader, last first."""
    passed = []
    while node.op == "call_module" and len(node.users) == len(node.args) == 1:
        part = parts[str(node.target)]
        if type(part) is not nn.Identity or hooked(part) or not isinstance(node.args[0], fx.Node):
            break
        passed.append(node)
        node = node.args[0]
    return node, passed


def _in_place(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    """Whether a call changes, or may change, a tensor that it was given."""
    if node.op == "call_module":
        part = parts[str(node.target)]
        known = type(part).__module__.startswith("torch.nn.") or isinstance(part, (Fused, AddActivation))
        return not known or any(getattr(inner, "inplace", False) for inner in part.modules())
    name = str(getattr(node.target, "__name__", node.target))
    own = name.endswith("_") and not name.endswith("__")  # relu_
    of_operator = name in ("setitem", "delitem") or (name[:1] == "i" and hasattr(operator, f"__{name}__"))
    flagged = name == "relu" and True in node.args
    return own or of_operator or flagged or "out" in node.kwargs or bool(node.kwargs.get("inplace"))


def _changed_between(norm: fx.Node, added: fx.Node, parts: dict[str, nn.Module]) -> bool:
    """Whether something changes in place, which the batch norm reads, or does not, only where it is now."""
    x = norm.all_input_nodes[0]
    if x.op == "call_module" and isinstance(parts[str(x.target)], _MAKE) and len(x.users) == 1:
        return False  # nobody else has that tensor
    node = norm.next
    while node is not added:
        if _in_place(node, parts):
            return True
        node = node.next
    return False


def _is_relu(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        part = parts[str(node.target)]
        return type(part) is nn.ReLU and not hooked(part)
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in _RELU


def _is_sum(node: fx.Node) -> bool:
    """An addition of two values that differ, which only the ReLU reads."""
    call = node.op == "call_function" and node.target in _ADD
    call = call or (node.op == "call_method" and node.target in ("add", "add_"))
    tensors = len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)
    return call and tensors and not node.kwargs and len(node.users) == 1 and len(node.all_input_nodes) == 2


def _is_free(node: fx.Node, parts: dict[str, nn.Module], calls: Counter[nn.Module]) -> bool:
    """A batch norm of this package, called once, as it is, and read once."""
    if node.op != "call_module":
        return False
    part = parts[str(node.target)]
    plain = isinstance(part, Fused) and part.activation is None and not hooked(part)
    return plain and calls[part] == 1 and len(node.users) == 1 and len(node.args) == 1 and not node.kwargs

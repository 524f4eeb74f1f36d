"""One call of the exported graph being read: its arguments by name, and what is known of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from bnfold.fold.graph import Constant, Dim, Refused
from bnfold.torch_graph.arrays import dtype_name, to_array

__all__ = [
    *(
        "Call",
        "Stored",
        "given",
        "innermost",
        "op_of",
        "reads",
        "set_argument",
        "set_read",
        "shape_of",
        "stack",
    ),
    "within",
]

# other names of the same operator, with the same arguments
ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "linalg_matmul": "matmul",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "true_divide": "div",
}
JOINS = ("cat", "stack", "einsum")  # they read the items of one list


def given(call: fx.Node) -> dict[str, Any]:
    """The arguments that a call of an operator states, by name; none of any other call."""
    return dict(zip(_names(call), call.args, strict=False)) | dict(call.kwargs)


def op_of(node: fx.Node) -> str:
    """The operator of a call without its namespace and overload, "conv2d"; "" where it is none of torch's."""
    name = "".join(str(node.target).split(".")[-2:-1])
    return ALIASES.get(name, name)


def reads(call: fx.Node) -> list[Any]:
    """What a call of an operator reads, by slot.

    Slot i is argument i of the operator's schema. The items of lists of tensors come behind them, in order;
    an operator that joins tensors has no other slots.
    """
    stated = given(call)
    items = [item for _, items in _lists(call) for item in items]
    return items if op_of(call) in JOINS else [stated.get(name) for name in _names(call)] + items


def readers(value: fx.Node) -> list[fx.Node]:
    """The calls that read a value, each as often as it does."""
    return [user for user in value.users for _ in range(max(1, sum(each is value for each in reads(user))))]


def set_argument(call: fx.Node, name: str, value: Any) -> None:
    """Set an argument by name, wherever the call keeps it."""
    names = _names(call)
    index = names.index(name)
    if index < len(call.args):
        call.update_arg(index, value)
    elif call.target._schema.arguments[index].kwarg_only or index > len(call.args):  # type: ignore[union-attr]
        call.update_kwarg(name, value)
    else:
        call.args = (*call.args, value)


def set_read(call: fx.Node, slot: int, value: Any) -> None:
    """Let a call read another value at a slot."""
    names = [] if op_of(call) in JOINS else _names(call)
    if slot < len(names):
        set_argument(call, names[slot], value)
        return
    rest = slot - len(names)
    for name, items in _lists(call):
        if rest < len(items):
            set_argument(call, name, [*items[:rest], value, *items[rest + 1 :]])
            return
        rest -= len(items)


def _names(call: fx.Node) -> list[str]:
    schema = getattr(call.target, "_schema", None)
    return [] if schema is None else [argument.name for argument in schema.arguments]


def _lists(call: fx.Node) -> list[tuple[str, list[Any]]]:
    """The arguments of a call that are lists of tensors."""
    lists = ((name, value) for name, value in given(call).items() if isinstance(value, (list, tuple)))
    return [(name, list(value)) for name, value in lists if any(isinstance(item, fx.Node) for item in value)]


def stack(call: fx.Node) -> list[str]:
    """The paths of the modules within which a call is made, the outermost first."""
    return list(within(call).values())


def within(call: fx.Node) -> dict[str, str]:
    """The calls of modules around a call, the outermost first: a name for each, and the path."""
    calls = call.meta.get("nn_module_stack") or {}
    return {name: _dotted(path) if "[" in path else path for name, (path, _) in calls.items()}


def _dotted(path: str) -> str:
    """A module's path as `named_modules` has it. What torch.compile captures has it as an expression:
    "L['self']._modules['layer1'][0].conv" is layer1.0.conv.
    """
    inside = re.sub(r"^\w+\['[^']*'\]", "", path.replace("._modules[", "["))
    return ".".join(re.findall(r"\w+", inside))


def innermost(call: fx.Node) -> str:
    """The path of the module that makes the call; "" for the whole."""
    return next(reversed(stack(call)), "")


def shape_of(value: Any) -> tuple[Dim, ...] | None:
    """The shape of a tensor: numbers, symbols, or None where torch knows no more; None if it is no tensor."""
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(_dim(size) for size in value.shape)


def _dim(size: Any) -> Dim:
    if isinstance(size, int):
        return size
    expression = getattr(getattr(size, "node", None), "expr", None)
    return str(expression) if expression is not None and expression.is_Symbol else None


@dataclass(eq=False)
class Stored:
    """A value that is known before the program runs: a parameter, a buffer, or computed from such.

    `load` gives the tensor. `target` is its name in the program's state, in this shape or another ("" if it
    is computed otherwise).
    """

    load: Callable[[], torch.Tensor]
    target: str = ""

    def constant(self, node: fx.Node, locked: str) -> Constant:
        """The value of `node` as the solver sees it. locked: why it must not be rewritten."""
        value = node.meta["val"]
        shape = tuple(int(size) for size in value.shape)
        name = self.target or node.name
        return Constant(name, lambda: to_array(self.load()), shape, dtype_name(value.dtype), locked)


@dataclass(eq=False)
class Call:
    """A `call_function` node; see `reads` for its slots.

    `stored`: what is known before the program runs. `locked`: why a stored value must not be rewritten.
    """

    node: fx.Node
    stored: dict[fx.Node, Stored]
    locked: Callable[[fx.Node], str]
    names: list[str] = field(init=False)
    arguments: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        declared = self.node.target._schema.arguments  # type: ignore[union-attr]
        defaults = {each.name: each.default_value for each in declared if each.has_default_value()}
        self.names = [each.name for each in declared]
        self.arguments = defaults | given(self.node)

    @property
    def op(self) -> str:
        """See `op_of`."""
        return op_of(self.node)

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def slot(self, name: str) -> int:
        """The number of an argument."""
        return self.names.index(name)

    def item(self, name: str, index: int) -> int:
        """The slot of an item of a list of tensors."""
        start = 0 if self.op in JOINS else len(self.names)
        for other, items in _lists(self.node):
            if other == name:
                return start + index
            start += len(items)
        raise Refused(f"its {name} is no list of tensors")

    def tensor(self, name: str) -> tuple[Dim, ...]:
        """The shape of a tensor argument."""
        node = self.arguments.get(name)
        shape = shape_of(node.meta.get("val")) if isinstance(node, fx.Node) else None
        if shape is None:
            raise Refused(f"its {name} is no tensor of known rank")
        return shape

    @property
    def x(self) -> tuple[Dim, ...]:
        """The shape of the first argument."""
        return self.tensor(self.names[0])

    @property
    def out(self) -> tuple[Dim, ...]:
        """The shape of the (first) output."""
        value = self.node.meta.get("val")
        shape = shape_of(value[0] if isinstance(value, (tuple, list)) else value)
        if shape is None:
            raise Refused("the rank of its output is not known")
        return shape

    def constant(self, name: str) -> Constant | None:
        """A tensor argument whose value is known."""
        return self.known(self.arguments.get(name))

    def known(self, node: Any) -> Constant | None:
        """A tensor whose value is known, of any argument."""
        if not isinstance(node, fx.Node) or node not in self.stored:
            return None
        return self.stored[node].constant(node, self.locked(node))

    def fill(self, name: str) -> float | None:
        """The number that an argument is, or that all entries of a tensor are; None if it is neither."""
        value = self.arguments.get(name)
        if isinstance(value, (int, float)):
            return float(value)
        if not isinstance(value, fx.Node):
            return None
        if op_of(value) in ("zeros", "zeros_like", "new_zeros"):
            return 0.0
        constant = self.known(value)
        if constant is None or math.prod(constant.shape) != 1:
            return None
        return float(constant.load().reshape(-1)[0])

    def weight(self, name: str = "weight") -> Constant:
        """A tensor argument without whose value there is no linear layer."""
        weight = self.constant(name)
        if weight is None:
            raise Refused("its weight is computed at run time")
        return weight

    def integers(self, name: str, count: int) -> tuple[int, ...]:
        """A list of integers; one number, or none, stands for all axes."""
        value = self.arguments.get(name)
        given = list(value) if isinstance(value, (list, tuple)) else [value]
        entries = [entry for entry in given if isinstance(entry, int)]
        if len(entries) < len(given):
            raise Refused(f"its {name} is computed at run time")
        if len(entries) not in (1, count):
            raise Refused(f"its {name} has {len(entries)} entries for {count} axes")
        return tuple(entries) * (count if len(entries) == 1 else 1)

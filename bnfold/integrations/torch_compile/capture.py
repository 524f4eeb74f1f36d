"""What torch.compile captured: which inputs of the graph are weights, numbers, sizes, or the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor

__all__ = ["Capture", "captured", "has_free_sizes", "norms", "obstacle"]

PLAIN = (Tensor, torch.nn.Parameter)


@dataclass(frozen=True)
class Capture:
    """A captured graph, whose inputs are told apart by their position.

    weights: parameters and buffers of modules, which torch.compile hands over at every call.
    numbers: the eps and momentum of batch norms, which `dynamic=True` makes inputs.
    sizes: sizes of other inputs. inputs: what the user gives.
    """

    graph: fx.GraphModule
    weights: dict[int, Tensor]
    numbers: dict[int, float]
    sizes: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def places(self) -> list[fx.Node]:
        """Its inputs, as nodes."""
        return [node for node in self.graph.graph.nodes if node.op == "placeholder"]

    @property
    def attributes(self) -> list[Tensor]:
        """What the graph itself holds, and no caller hands over: constants, or all weights, where inductor's
        freezing is on for the whole process.
        """
        return [*self.graph.parameters(), *self.graph.buffers()]

    @property
    def statistics(self) -> list[Tensor]:
        """The running means and variances that batch norms read."""
        at = {node: self.weights[i] for i, node in enumerate(self.places) if i in self.weights}
        held = {node: self._held(node) for node in self.graph.graph.nodes if node.op == "get_attr"}
        read = [value for node in norms(self.graph) for value in _statistics(node)]
        found = [at.get(node, held.get(node)) for node in dict.fromkeys(read)]
        return [value for value in found if isinstance(value, Tensor)]

    def _held(self, node: fx.Node) -> Any:
        return getattr(self.graph, str(node.target), None)

    def given(self, arguments: Sequence[Any]) -> list[Any]:
        """Of a call's arguments those of the user."""
        return [arguments[i] for i in self.inputs]

    def holding(self, arguments: Sequence[Any]) -> Capture:
        """The same graph with the weights and numbers of another call."""
        weights = {i: arguments[i] for i in self.weights}
        return replace(self, weights=weights, numbers={i: float(arguments[i]) for i in self.numbers})


def captured(graph: fx.GraphModule, arguments: Sequence[Any]) -> Capture:
    """The inputs of a captured graph, told apart. arguments: of the first call, real tensors."""
    weights: dict[int, Tensor] = {}
    numbers: dict[int, float] = {}
    sizes, inputs = [], []
    places = (node for node in graph.graph.nodes if node.op == "placeholder")
    for i, (node, value) in enumerate(zip(places, arguments, strict=True)):
        if isinstance(value, (torch.SymInt, int)):
            sizes.append(i)
        elif _is_weight(node, value):
            weights[i] = value
        elif _is_number(node):
            numbers[i] = float(value)
        else:
            inputs.append(i)
    return Capture(graph, weights, numbers, tuple(sizes), tuple(inputs))


def obstacle(capture: Capture, arguments: Sequence[Any]) -> str:
    """Why nothing may be folded; "" if it may."""
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    stored = [*capture.weights.values(), *capture.attributes]
    reasons = {
        "gradients are on": torch.is_grad_enabled() and any(v.requires_grad for v in (*tensors, *stored)),
        "gradients are turned on inside": any(_enables_grad(node) for node in capture.graph.graph.nodes),
        "a batch norm is in training mode": any(_trains(node) for node in norms(capture.graph)),
        "the arguments are fake tensors": any(isinstance(value, FakeTensor) for value in tensors),
        "its parameters are tensors of a class of their own (spread over processes, or quantized)": any(
            type(value) not in PLAIN for value in stored
        ),
        "its parameters were made in inference mode, where changes of them leave no trace": any(
            value.is_inference() for value in stored
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def norms(graph: fx.GraphModule) -> list[fx.Node]:
    """The calls of batch norms."""
    return [node for node in graph.graph.nodes if "batch_norm" in getattr(node.target, "__name__", "")]


def has_free_sizes(capture: Capture) -> bool:
    """Whether one compiled graph is for inputs of several sizes."""
    return bool(capture.sizes) or any(
        isinstance(size, torch.SymInt) for node in capture.places for size in _shape(node)
    )


def _shape(node: fx.Node) -> Sequence[Any]:
    return tuple(getattr(node.meta.get("example_value"), "shape", ()))


def _is_weight(node: fx.Node, value: Any) -> bool:
    """Whether it is of an nn.Module: torch.compile says so of buffers, and parameters have their own type."""
    static = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    return isinstance(value, Tensor) and (static is not None or isinstance(value, torch.nn.Parameter))


def _is_number(node: fx.Node) -> bool:
    """Whether an input is a number, as a tensor, that nothing but batch norms read."""
    argument = node.meta.get("grapharg")
    if argument is None or not argument.pass_arg_as_tensor or not node.users:
        return False
    items = all(user.op == "call_method" and user.target == "item" for user in node.users)
    readers = (getattr(reader.target, "__name__", "") for user in node.users for reader in user.users)
    return items and all(name == "batch_norm" for name in readers)


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.kwargs.get(name, node.args[index] if len(node.args) > index else None)


def _statistics(node: fx.Node) -> Iterator[fx.Node]:
    """What `torch.nn.functional.batch_norm` reads as its running statistics, and `torch.batch_norm`."""
    first = 1 if getattr(node.target, "__module__", "") == "torch.nn.functional" else 3
    for index, name in enumerate(("running_mean", "running_var"), first):
        value = _argument(node, index, name)
        if isinstance(value, fx.Node):
            yield value


def _trains(node: fx.Node) -> bool:
    """Whether it moves running statistics."""
    return _argument(node, 5, "training") not in (None, False) and any(True for _ in _statistics(node))


def _enables_grad(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "_set_grad_enabled" and node.args[:1] == (True,)

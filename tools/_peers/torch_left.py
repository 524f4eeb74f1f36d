"""What a tool left in a torch module: calls of batch norm, and per-channel arithmetic with stored numbers.

A tool's result may be a module, an exported program or a frozen script. All are read as the same list of
calls and counted by the same rule: a batch norm counts, and so does a Mul, Add, Sub or Div of the data by one
stored number a channel, which is what a batch norm that is written out consists of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tools._peers.left import Left

Shape = tuple[int, ...]
ARITHMETIC = ("mul", "add", "sub", "div")
STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
NAME = re.compile(r"\w+(?:::|\.)(\w+?)_?(?:\.\w+)?")  # aten.add_.Tensor, aten::add_


@dataclass(frozen=True)
class Call:
    """An operator by its bare name; for each tensor that it reads None, or the shape of a constant."""

    op: str
    inputs: tuple[Shape | None, ...]

    @property
    def batch_norm(self) -> bool:
        return "batch_norm" in self.op

    @property
    def per_channel(self) -> bool:
        """Of the data and one constant, which has a single axis that is longer than 1."""
        constants = [shape for shape in self.inputs if shape is not None]
        if self.op not in ARITHMETIC or len(self.inputs) != 2 or len(constants) != 1:
            return False
        return sum(size > 1 for size in constants[0]) == 1


def left(calls: Iterable[Call]) -> Left:
    """What is left of a network's batch norms."""
    listed = list(calls)
    return Left(sum(call.batch_norm for call in listed), sum(call.per_channel for call in listed))


def of_module(module: nn.Module, x: Tensor) -> Iterator[Call]:
    """The calls that torch.export sees; nothing is decomposed, so that a batch norm is one call."""
    return of_program(torch.export.export(module, (x,)))


def of_program(program: ExportedProgram) -> Iterator[Call]:
    """What depends on stored numbers alone is constant, and computing it is not counted."""
    stored = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind in STORED}
    constant: dict[Any, Shape] = {}
    for node in program.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder" and node.name in stored:
            constant[node] = tuple(node.meta["val"].shape)
        elif node.op == "call_function" and inputs and all(value in constant for value in inputs):
            constant[node] = tuple(getattr(node.meta["val"], "shape", ()))
        elif node.op == "call_function":
            yield Call(_bare(str(node.target)), tuple(constant.get(value) for value in inputs))


def of_script(frozen: torch.jit.ScriptModule) -> Iterator[Call]:
    """The nodes of a graph that was traced and frozen: what was stored is constant by then."""
    for node in frozen.graph.nodes():
        tensors = [value for value in node.inputs() if isinstance(value.type(), torch._C.TensorType)]
        yield Call(_bare(node.kind()), tuple(_stored(value) for value in tensors))


def _stored(value: Any) -> Shape | None:
    made_by = value.node()
    return tuple(made_by.t("value").shape) if made_by.kind() == "prim::Constant" else None


def _bare(name: str) -> str:
    match = NAME.fullmatch(name)
    return match[1] if match else name

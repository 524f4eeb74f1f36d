"""Outputs that are 0 or 1 whatever was computed: what stands in front of them is compared too.

Behind a Softmax whose inputs are thousands, two different models agree to the last bit. So the tensor in
front of the last saturating operators is a further output of both models, as far as both have the same
operators there.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx

from bnfold.onnx_graph.file.loaded import Loaded

__all__ = ["with_fronts"]

SATURATING = frozenset(
    ("Softmax", "LogSoftmax", "Hardmax", "Sigmoid", "HardSigmoid", "Tanh", "Clip", "ArgMax", "ArgMin")
)
# What only moves or renames values, from the first input to the first output.
MOVING = frozenset(
    (
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Cast",
        "Concat",
        "Slice",
        "Dropout",
    )
)


class _Front(NamedTuple):
    """A tensor, the output that it ends in, and the operators between, the last first."""

    tensor: str
    output: str
    operators: tuple[str, ...]


def with_fronts(a: Loaded, b: Loaded) -> tuple[Loaded, Loaded, frozenset[str]]:
    """Both models with these outputs more, and their names; the models themselves where there are none."""
    fronts = [_fronts(model.proto.graph) for model in (a, b)]
    if not fronts[0] or [f[1:] for f in fronts[0]] != [f[1:] for f in fronts[1]]:
        return a, b, frozenset()
    names = [f"{front.tensor} (in front of {front.output})" for front in fronts[0]]
    return _more(a, fronts[0], names), _more(b, fronts[1], names), frozenset(names)


def _more(model: Loaded, fronts: list[_Front], names: list[str]) -> Loaded:
    result = model.copy()
    for front, name in zip(fronts, names, strict=True):
        result.proto.graph.node.append(onnx.helper.make_node("Identity", [front.tensor], [name]))
        result.proto.graph.output.add().name = name
    return result


def _fronts(graph: onnx.GraphProto) -> list[_Front]:
    """Each tensor once, in the order of the outputs."""
    producers = {name: node for node in graph.node for name in node.output if name}
    found: dict[str, _Front] = {}
    for output in graph.output:
        pending: list[tuple[str, tuple[str, ...]]] = [(output.name, ())]
        seen: set[tuple[str, bool]] = set()
        while pending:
            tensor, passed = pending.pop()
            node, saturates = producers.get(tensor), not SATURATING.isdisjoint(passed)
            if (tensor, saturates) in seen:
                continue
            seen.add((tensor, saturates))
            if node is not None and _moves(node, tensor):
                many = node.input if node.op_type == "Concat" else node.input[:1]
                pending += [(name, (*passed, node.op_type)) for name in reversed(many)]
            elif node is not None and saturates:
                found.setdefault(tensor, _Front(tensor, output.name, passed))
    return list(found.values())


def _moves(node: onnx.NodeProto, tensor: str) -> bool:
    known = node.domain in ("", "ai.onnx") and node.op_type in SATURATING | MOVING
    return known and len(node.input) > 0 and node.output[0] == tensor

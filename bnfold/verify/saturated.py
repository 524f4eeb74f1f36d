"""Outputs that are 0 or 1 whatever was computed: what stands in front of them is compared too.

Behind a Softmax whose inputs are thousands, two different models agree to the last bit. So the tensor in
front of the last saturating operators is a further output of both models, as far as both have the same
operators there. Of a Softmax it is the logarithm: what adds one number to all that it weighs changes nothing.
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


SOFTMAX = frozenset(("Softmax", "LogSoftmax"))


class _Front(NamedTuple):
    """What makes a tensor to compare (its output is still to be named), the tensor that it is named after,
    the output that this ends in, and the operators between, the last first.
    """

    maker: onnx.NodeProto
    tensor: str
    output: str
    operators: tuple[str, ...]


def with_fronts(a: Loaded, b: Loaded) -> tuple[Loaded, Loaded, frozenset[str]]:
    """Both models with these outputs more, and their names; the models themselves where there are none."""
    fronts = [_fronts(model.proto.graph) for model in (a, b)]
    if not fronts[0] or [f[2:] for f in fronts[0]] != [f[2:] for f in fronts[1]]:
        return a, b, frozenset()
    names = [f"{front.tensor} (in front of {front.output})" for front in fronts[0]]
    return _more(a, fronts[0], names), _more(b, fronts[1], names), frozenset(names)


def _more(model: Loaded, fronts: list[_Front], names: list[str]) -> Loaded:
    result = model.copy()
    for front, name in zip(fronts, names, strict=True):
        node = result.proto.graph.node.add()
        node.CopyFrom(front.maker)
        node.output[:] = [name]
        result.proto.graph.output.add().name = name
    return result


def _fronts(graph: onnx.GraphProto) -> list[_Front]:
    """Each tensor once, in the order of the outputs."""
    producers = {name: node for node in graph.node for name in node.output if name}
    found: dict[str, _Front] = {}
    for output in graph.output:
        pending: list[tuple[str, tuple[str, ...], onnx.NodeProto | None]] = [(output.name, (), None)]
        seen: set[tuple[str, bool]] = set()
        while pending:
            tensor, passed, nearest = pending.pop()
            node, saturates = producers.get(tensor), nearest is not None
            if (tensor, saturates) in seen:
                continue
            seen.add((tensor, saturates))
            if node is not None and _moves(node, tensor):
                many = node.input if node.op_type == "Concat" else node.input[:1]
                nearest = node if node.op_type in SATURATING else nearest
                if node.op_type != "Identity":
                    passed = (*passed, node.op_type)
                pending += [(name, passed, nearest) for name in reversed(many)]
            elif node is not None and nearest is not None:
                found.setdefault(tensor, _Front(_maker(tensor, nearest), tensor, output.name, passed))
    return list(found.values())


def _maker(tensor: str, nearest: onnx.NodeProto) -> onnx.NodeProto:
    """What is compared of a tensor. nearest: the saturating operator that it ends in first."""
    if nearest.op_type not in SOFTMAX:
        return onnx.helper.make_node("Identity", [tensor], [""])
    made = onnx.NodeProto()
    made.CopyFrom(nearest)
    made.op_type, made.name = "LogSoftmax", ""
    return made


def _moves(node: onnx.NodeProto, tensor: str) -> bool:
    known = node.domain in ("", "ai.onnx") and node.op_type in SATURATING | MOVING
    return known and len(node.input) > 0 and node.output[0] == tensor

r"""Which layer of an engine computes which node of the model: where each batch norm went.

TensorRT lists the layers of an engine with the ONNX nodes that each computes:

    Name: conv_myl0_1, LayerType: correlation, ..., Metadata: [ONNX Layer: conv]\x1f[ONNX Layer: relu]

A node of a model-local function is told with the call: `[ONNX Layer: mul | bn1 (BnfoldBatchNorm)]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnfold.report.table import first, table

__all__ = ["LINEAR", "EngineLayer", "ModelNode", "NodePlacement", "Placement", "layers_in", "placement"]

# What a batch norm may disappear into.
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ELEMENTWISE = "kgen"  # TensorRT's word for a kernel that it writes itself
OUTCOMES = {  # of a place, and the words for it
    "fused": "in the layer of {with_}",
    "stand-alone": "a layer without a conv or matmul",
    "absent": "no layer: it was computed in the build",
}

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), .*Metadata: (?P<nodes>.*)$")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_CALL = re.compile(r" \([^()]*\)$")  # the operator behind the name of a call

Path = tuple[str, ...]  # a node's name, then those of the calls that it lies in, the innermost first


@dataclass(frozen=True)
class ModelNode:
    """A node of the model. name: as the ledger tells it; op: with its domain, if that is not ONNX's own."""

    name: str
    op: str

    @property
    def is_batch_norm(self) -> bool:
        return self.op == "BatchNormalization" or self.op.startswith("bnfold.Bnfold")


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine. kind: TensorRT's word; nodes: what it computes, as paths."""

    name: str
    kind: str
    nodes: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.kind, "nodes": [" in ".join(path) for path in self.nodes]}


@dataclass(frozen=True)
class NodePlacement:
    """Where a node went. outcome: see OUTCOMES; layers: by name; hosts: convs and matmuls that share them."""

    name: str
    op: str
    outcome: str
    layers: tuple[str, ...]
    hosts: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "outcome": self.outcome,
            "with": list(self.hosts),
            "layers": list(self.layers),
        }


@dataclass(frozen=True)
class Placement:
    """Where the batch norms and the ReLUs of a model went, and all layers of the engine."""

    batch_norms: tuple[NodePlacement, ...]
    relus: tuple[NodePlacement, ...]
    layers: tuple[EngineLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        return {name: [each.to_dict() for each in some] for name, some in vars(self).items()}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, *, everything: bool = False) -> Iterator[str]:
        """The table. everything: with the ReLUs and the layers as well."""
        shown = (*self.batch_norms, *(self.relus if everything else ()))
        if shown:
            heading = ("node", "operator", "where it went", "engine layer")
            yield from table([heading, *((p.name, p.op, _words(p), first(p.layers, 2)) for p in shown)])
        yield self.summary
        if self.relus:
            fused = _count(self.relus, "fused")
            yield f"relu: {fused} of {len(self.relus)} in the layer of a conv or matmul"
        if everything:
            rows = [(one.name, one.kind, ", ".join(map(" in ".join, one.nodes))) for one in self.layers]
            yield from table([("engine layer", "type", "computes"), *rows])

    @property
    def summary(self) -> str:
        """One line on the batch norms."""
        if not self.batch_norms:
            return "no batch norm in the model"
        counts = {outcome: _count(self.batch_norms, outcome) for outcome in OUTCOMES}
        total = len(self.batch_norms)
        return (
            f"{total} batch norm{'s' * (total > 1)}: {counts['fused']} in the layer of a conv or matmul, "
            f"{counts['stand-alone']} stand-alone, {counts['absent']} without a layer"
        )


def layers_in(text: str, names: Mapping[str, str]) -> list[EngineLayer]:
    """The layers that TensorRT lists. names: of nodes, by what they are called in the list."""
    layers = []
    for line in text.split("\n"):  # which, unlike splitlines, leaves the separators \x1e and \x1f alone
        match = _LAYER.match(line)
        if match:
            nodes = [_path(found, names) for found in _NODE.findall(match["nodes"])]
            layers.append(EngineLayer(match["name"], match["kind"], tuple(dict.fromkeys(nodes))))
    return layers


def _path(text: str, names: Mapping[str, str]) -> Path:
    name, *calls = text.split(" | ")
    return tuple(names.get(part, part) for part in (name, *(_CALL.sub("", call) for call in calls)))


def placement(nodes: Sequence[ModelNode], layers: Sequence[EngineLayer]) -> Placement:
    """Where each batch norm and ReLU went. One in a function counts once for each call that has a layer."""
    ops = {node.name: node.op for node in nodes}
    carriers: dict[str, dict[Path, list[EngineLayer]]] = {node.name: {} for node in nodes}
    homes = _homes(ops, layers)
    for layer in layers:
        for path in layer.nodes:
            for at, name in enumerate(path):
                found = carriers.get(name, {}).setdefault(path[at:], [])
                if layer not in found:
                    found.append(layer)

    def places(wanted: Sequence[ModelNode]) -> Iterator[NodePlacement]:
        for node in wanted:
            for path, found in (carriers[node.name] or {(node.name,): []}).items():
                near = [homes[layer] for layer in found]
                outcome = "fused" if near and all(near) else "stand-alone" if near else "absent"
                with_ = tuple(dict.fromkeys(host for some in near for host in some))
                yield NodePlacement(
                    " in ".join(path), node.op, outcome, tuple(layer.name for layer in found), with_
                )

    norms = [node for node in nodes if node.is_batch_norm]
    relus = [node for node in nodes if node.op == "Relu"]
    return Placement(tuple(places(norms)), tuple(places(relus)), tuple(layers))


def _homes(ops: Mapping[str, str], layers: Sequence[EngineLayer]) -> dict[EngineLayer, tuple[str, ...]]:
    """The convs and matmuls that each layer computes.

    A generated elementwise layer is said to compute a conv too if it adds no more than the conv's bias: where
    another layer has that conv, it does not count.
    """
    elsewhere = {path for layer in layers if layer.kind != ELEMENTWISE for path in layer.nodes}
    homes = {}
    for layer in layers:
        linear = [path for path in layer.nodes if ops.get(path[0]) in LINEAR]
        if layer.kind == ELEMENTWISE:
            linear = [path for path in linear if path not in elsewhere]
        homes[layer] = tuple(map(" in ".join, linear))
    return homes


def _count(places: Sequence[NodePlacement], outcome: str) -> int:
    return sum(place.outcome == outcome for place in places)


def _words(place: NodePlacement) -> str:
    return OUTCOMES[place.outcome].format(with_=first(place.hosts, 2))

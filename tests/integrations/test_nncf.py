"""NNCF's quantizer for a folded model, with graphs of OpenVINO's shape made here. tools/stacks runs NNCF."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from bnfold.integrations.nncf import quantize, sums_in_float


class Node:
    """A node with one output, which is its own tensor."""

    def __init__(self, kind: str, name: str, *sources: Node) -> None:
        self.kind, self.name, self.sources = kind, name, sources
        self.readers: list[Node] = []
        for source in sources:
            source.readers.append(self)

    def get_type_name(self) -> str:
        return self.kind

    def get_friendly_name(self) -> str:
        return self.name

    def get_node(self) -> Node:
        return self

    def output(self, _: int) -> Node:
        return self

    def inputs(self) -> list[Entry]:
        return [Entry(self, source) for source in self.sources]

    def get_target_inputs(self) -> set[Entry]:
        return {Entry(reader, self) for reader in self.readers}


@dataclass(frozen=True)
class Entry:
    node: Node
    source: Node

    def get_node(self) -> Node:
        return self.node

    def get_source_output(self) -> Node:
        return self.source


@dataclass
class Scope:
    names: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)


class Graph:
    """A network of two residual blocks; each reads its shortcut in front of the Relu, or behind it."""

    def __init__(self, pre_activation: bool, norm: bool = False) -> None:
        self.nodes: list[Node] = []
        x = self.add("Parameter", "x")
        number = self.add("Convert", "number", self.add("Constant", "half"))
        stream = self.add("Add", "bias", self.add("Convolution", "conv", x), number)
        self.add("Relu", "early", stream)  # beside a bias, which is no sum of two tensors
        stream = self.add("Add", "more", stream, number)
        for block in ("first", "second"):
            if norm:
                scaled = self.add("Multiply", f"scaled of {block}", stream, number)
                relu = self.add("Relu", f"relu of {block}", scaled)
            else:
                relu = self.add("Relu", f"relu of {block}", stream)
            conv = self.add("Convolution", f"conv of {block}", relu)
            stream = self.add("Add", block, conv, stream if pre_activation else relu)
        relu = self.add("Relu", "last", stream)
        self.add("Add", "beside a conv", self.add("Convolution", "conv of last", relu), relu)

    def add(self, *arguments: Any) -> Node:
        self.nodes.append(Node(*arguments))
        return self.nodes[-1]

    def get_ordered_ops(self) -> list[Node]:
        return self.nodes


def test_sums_beside_activations_are_named() -> None:
    """Those that make such a tensor, or read one; no bias, and none whose tensor a conv or a norm rounds."""
    assert sums_in_float(Graph(pre_activation=True)) == ["first", "second"]
    assert sums_in_float(Graph(pre_activation=True, norm=True)) == []
    assert sums_in_float(Graph(pre_activation=False)) == []


def test_nncf_is_told_of_them_beside_what_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    made = ModuleType("nncf")
    vars(made).update(IgnoredScope=Scope, quantize=lambda *a, **k: told.append((a, k)) or "quantized")
    monkeypatch.setitem(sys.modules, "nncf", made)
    model, own = Graph(pre_activation=True), Scope(["conv"], ["Relu"])
    assert quantize(model, "images") == "quantized"
    assert quantize(model, "images", ignored_scope=own, subset_size=4) == "quantized"
    assert told[0] == ((model, "images"), {"ignored_scope": Scope(["first", "second"])})
    scope = Scope(["conv", "first", "second"], ["Relu"])
    assert told[1] == ((model, "images"), {"ignored_scope": scope, "subset_size": 4})
    assert own == Scope(["conv"], ["Relu"])  # which stays the user's


def test_a_model_of_another_kind_is_one_line() -> None:
    with pytest.raises(TypeError, match=r"^quantize takes a model of OpenVINO, not bytes: call openvino"):
        quantize(b"", "images")


def test_an_absent_nncf_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ImportError, match=r"^bnfold needs quantize of nncf, tested with nncf 3\.4\.0"):
        quantize(Graph(pre_activation=True), "images")

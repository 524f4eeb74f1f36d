"""Half precision, written into a model: the tensors, constants and Casts of a plan.

Each float32 tensor of the graph exists as half, as float32, or as both with one Cast between: whoever makes
it gives it its name and type, and readers of the other type share the Cast. Graph inputs and outputs keep
their types, and names; bodies of control flow and functions are not touched.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from bnfold.onnx_graph.model.constants import constant_of
from bnfold.onnx_graph.model.new_nodes import append
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.site import CODES, Scope, Site, Value, numpy_dtype
from bnfold.passes.half.plan import Plan

__all__ = ["write"]


def write(scope: Scope, plan: Plan, half: str) -> int:
    """Convert the graph in place; the number of Casts that this took.

    Args:
        scope: the graph of the model to edit, as `plan` describes it.
        plan: what becomes half.
        half: "float16" or "bfloat16".
    """
    with without_gc():
        writer = _Writer(scope, plan, half)
        writer.write()
        writer.surgery.finish()
    return writer.casts


class _Writer:
    def __init__(self, scope: Scope, plan: Plan, half: str) -> None:
        self.scope, self.plan, self.half = scope, plan, half
        self.surgery = Surgery(scope.model)
        self.suffix = {"float16": "fp16", "bfloat16": "bf16"}[half]
        self.casts = 0
        self.types = {
            info.name: info.type.tensor_type
            for info in scope.proto.value_info
            if info.type.HasField("tensor_type")
        }

    def write(self) -> None:
        floats = [value for value in self.scope.values.values() if value.dtype == "float32"]
        known = [value for value in floats if constant_of(value) is not None and not value.overridable]
        for value in known:
            self.constant(value)
        self.surgery.sweep()  # nodes that computed constants read tensors no more
        stored = set(known)
        for value in floats:
            if value not in stored and (value.site is None or value.site.alive):
                self.tensor(value)
        for site in self.plan.slots:
            if site.op == "Cast" and self.plan.is_half(site) and 0 in self.plan.slots[site].outputs:
                for attribute in site.node.attribute:
                    if attribute.name == "to":
                        attribute.i = CODES[self.half]

    def wants_half(self, site: Site, slot: int) -> bool:
        return self.plan.is_half(site) and slot in self.plan.slots[site].inputs

    def constant(self, value: Value) -> None:
        """A stored value: half, float32, or both, as its readers want it."""
        uses = list(self.surgery.uses(value))
        halves = [(site, slot) for site, slot in uses if self.wants_half(site, slot)]
        if not halves:
            return
        constant = constant_of(value)
        assert constant is not None
        if constant.quantized is not None:
            self.cast_for(value, halves)
            return
        with np.errstate(over="ignore"):
            array = constant.load().astype(numpy_dtype(self.half), order="C")
        tensor = self.surgery.replaceable(value)
        if tensor is not None and len(halves) == len(uses):
            self.surgery.replace(value, tensor, array)
            value.dtype = self.half
            return
        second = self.surgery.constant(f"{value.name}_{self.suffix}", array, value)
        for site, slot in halves:
            self.surgery.connect(site, slot, second)

    def tensor(self, value: Value) -> None:
        """A value that is computed or fed."""
        maker = value.site
        made_half = (
            maker is not None and self.plan.is_half(maker) and value.slot in self.plan.slots[maker].outputs
        )
        uses = list(self.surgery.uses(value))
        halves = [use for use in uses if self.wants_half(*use)]
        if not made_half:
            if halves:
                self.cast_for(value, halves)
            return
        assert maker is not None
        others = [use for use in uses if use not in halves]
        if value.is_output:
            inner = self.renamed(value, maker)
            for site, slot in halves:
                self.surgery.connect(site, slot, inner)
            return
        value.dtype = self.half
        info = self.types.get(value.name)
        if info is not None:
            info.elem_type = CODES[self.half]
        if others:
            full = self.cast(value, f"{value.name}_fp32", "float32", maker)
            for site, slot in others:
                self.surgery.connect(site, slot, full)

    def renamed(self, value: Value, maker: Site) -> Value:
        """The maker's output under another name; a Cast behind it gives the graph output."""
        op = "Cast", self.surgery.name(f"{value.name}_cast")
        stem = f"{value.name}_{self.suffix}"
        inner = append(self.surgery, value, stem, op, [], maker, to=int(TensorProto.FLOAT))
        inner.dtype = self.half
        self.casts += 1
        return inner

    def cast_for(self, value: Value, uses: list[tuple[Site, int]]) -> None:
        """A half copy of a float32 value for these readers."""
        half = self.cast(value, f"{value.name}_{self.suffix}", self.half, value.site)
        for site, slot in uses:
            self.surgery.connect(site, slot, half)

    def cast(self, value: Value, stem: str, dtype: str, maker: Site | None) -> Value:
        made = self.surgery.value(stem, self.scope, value)
        made.dtype = dtype
        anchor = maker if maker is not None else self.scope.sites[0]
        to = CODES[dtype]
        site = self.surgery.node("Cast", made.name, [value], [made], anchor, to=to)
        if maker is None:  # an input of the graph: ahead of all nodes
            self.surgery.nodes[self.scope].added[-1] = (site.node, anchor.node, -0.5)
        self.casts += 1
        return made

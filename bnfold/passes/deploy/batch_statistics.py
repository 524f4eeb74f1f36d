"""A norm by its batch's own statistics in standard operators, with the running statistics that it gives."""

from __future__ import annotations

import numpy as np

from bnfold.fold.graph import Array
from bnfold.onnx_graph.model.new_nodes import emit, take_over
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.site import CODES, FLOATS, Value, numpy_dtype
from bnfold.passes.deploy.norms import Norm
from bnfold.passes.deploy.terms import Term, materialize

__all__ = ["statistics_in_standard_ops"]


def statistics_in_standard_ops(surgery: Surgery, norm: Norm) -> bool:
    """Replace a norm by the batch's statistics; False, and nothing is changed, if a type is not known.

    Half types are computed in float32, as the operator asks for it.
    """
    if not all(norm.site.dtype(slot) in FLOATS for slot in range(5)):
        return False
    _Writer(surgery, norm).write()
    return True


class _Writer:
    def __init__(self, surgery: Surgery, norm: Norm) -> None:
        self.surgery, self.norm, self.site = surgery, norm, norm.site
        self.stem = norm.site.node.name or norm.site.name
        self.dtype = "float64" if norm.x.dtype == "float64" else "float32"  # of all that is computed

    def write(self) -> None:
        norm, site, surgery = self.norm, self.site, self.surgery
        x = self.cast(norm.x, self.dtype, "wide")
        mean = self.mean(x, "mean")
        centered = self.step("Sub", [x, mean], "centered")
        var = self.mean(self.step("Mul", [centered, centered], "squares"), "var")
        epsilon = self.stored(np.array(norm.epsilon), "epsilon")
        deviation = self.step("Sqrt", [self.step("Add", [var, epsilon], "var_epsilon")], "deviation")
        normalized = self.step("Div", [centered, deviation], "normalized")
        scaled = self.step("Mul", [normalized, self.parameter(1, norm.scale, "scale")], "scaled")
        self.give(0, "Add", [scaled, self.parameter(2, norm.shift, "shift")])
        for slot, own in ((1, mean), (2, var)):
            if norm.momentum is not None and site.used(slot):
                self.running(slot, own, norm.momentum)
        surgery.kill(site)

    def running(self, slot: int, own: Value, momentum: float) -> None:
        """Output 1 or 2: `given*momentum + own*(1 - momentum)`, of the shape (C)."""
        given = self.site.values[slot + 2]
        assert given is not None
        flat = self.surgery.constant(f"{self.stem}_flat", np.array([-1]), self.site)
        own = self.step("Reshape", [own, flat], "own")
        kept, new = self.stored(np.array(momentum), "kept"), self.stored(np.array(1 - momentum), "new")
        given = self.step("Mul", [self.cast(given, self.dtype, "given"), kept], "given_part")
        self.give(slot, "Add", [given, self.step("Mul", [own, new], "own_part")])

    def give(self, slot: int, op: str, inputs: list[Value]) -> None:
        """The last step of an output, in the type that this has."""
        name = self.site.node.name if slot == 0 else ""
        dtype = self.site.dtype(slot and slot + 2)
        if dtype == self.dtype:
            take_over(self.surgery, self.site, slot, ("", op), inputs, name)
        else:
            result = self.step(op, inputs, f"output_{slot}")
            take_over(self.surgery, self.site, slot, ("", "Cast"), [result], name, to=CODES[dtype])

    def parameter(self, slot: int, term: Term, name: str) -> Value:
        dtype, channels = self.site.dtype(slot), self.norm.channels
        value = materialize(self.surgery, term, channels, dtype, f"{self.stem}_{name}", self.site)
        return self.cast(value, self.dtype, f"{name}_wide")

    def mean(self, value: Value, name: str) -> Value:
        axes = [0, *range(2, len(self.norm.x.shape or ()))]
        if self.site.opset < 18:
            return self.step("ReduceMean", [value], name, axes=axes, keepdims=1)
        given = self.surgery.constant(f"{self.stem}_axes", np.array(axes), self.site)
        return self.step("ReduceMean", [value, given], name, keepdims=1)

    def cast(self, value: Value, dtype: str, name: str) -> Value:
        if value.dtype == dtype:
            return value
        value = self.step("Cast", [value], name, to=CODES[dtype])
        value.dtype = dtype
        return value

    def stored(self, array: Array, name: str) -> Value:
        array = array.astype(numpy_dtype(self.dtype))
        return self.surgery.constant(f"{self.stem}_{name}", array, self.site)

    def step(self, op: str, inputs: list[Value], name: str, **attributes: object) -> Value:
        return emit(self.surgery, op, inputs, f"{self.stem}_{name}", self.site, **attributes)

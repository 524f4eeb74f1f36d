"""What one node does, by itself: compared with another's, or computed.

Two runs of one evaluator on both models decide nothing about the evaluator: an operator that it implements
wrongly it implements wrongly on both sides. So any evaluator will do that is a function of its inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold.onnx_graph.file.tensors import as_text
from bnfold.proof.plain import plain

Array: TypeAlias = np.ndarray[Any, Any]

__all__ = [
    "Agrees",
    "Array",
    "Operator",
    "TooLarge",
    "TooLong",
    "Undecided",
    "is_float",
    "precision_of",
    "steps_of",
    "wide",
    "zero_of",
]

# What onnx's evaluator takes for something else, or in a type of its own.
_ELSEWHERE = frozenset({"GroupNormalization", "Upsample", "GlobalLpPool"})
# Some releases compute these in float32, whatever they are given; and all take cubic coefficients in float32.
_NARROW = frozenset({"Resize"})
# Its loops in Python: the most numbers that an input may have.
_LOOPS = {"DeformConv": 100, "GridSample": 1000, "NonMaxSuppression": 1000, "RoiAlign": 1000}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_NUMBERS = itertools.count()
# Of each floating type: the distance of two numbers from 1 on, and the smallest normal number.
# float64's are four times its own, since that is what the comparison itself is computed in.
_STEPS = {"float64": (50, 1022), "float32": (23, 126), "float16": (10, 14), "bfloat16": (7, 126)}
# Of a Constant that states no tensor: the types of what it states.
_LISTED: dict[str, Any] = dict.fromkeys(("value_float", "value_floats"), np.float32)
_LISTED |= dict.fromkeys(("value_int", "value_ints"), np.int64)
# Attributes whose numbers may lie outside of them, and are not looked for: equal to nothing.
_UNREAD = (AttributeProto.TENSORS, AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS)


class Undecided(Exception):
    """Nothing is known of a claim; the text says why."""


class Agrees(Undecided):
    """Nothing is wrong as far as float32 tells, which is too little for a proof."""


class TooLarge(Undecided):
    """A region has too many nodes. Behind a fault nothing agrees any more, and regions grow to the
    outputs.
    """


class TooLong(Undecided):
    """A region takes too long to compute; so does every region that it is a part of."""


def is_float(array: Array) -> bool:
    """Of a floating type, ml_dtypes' bfloat16 included."""
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def steps_of(dtype: str) -> tuple[int, int]:
    """Of a floating type: how many binary digits follow the first one, and the exponent of the smallest
    normal number, negated. Of other types, those of float32.
    """
    return _STEPS.get(dtype, _STEPS["float32"])


def precision_of(dtype: str) -> float:
    """Half a unit in the last place of numbers from 1 on: the largest relative error of storing a number."""
    return float(2.0 ** -(steps_of(dtype)[0] + 1))


@cache
def zero_of(code: int) -> Array | None:
    """A zero of a type by its number in ONNX; None for what is no type."""
    try:
        return np.zeros((), helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, ValueError, TypeError):
        return None


def wide(array: Array) -> Array:
    """Floating numbers in float64, which holds all narrower ones exactly; others as they are."""
    return array.astype(np.float64) if is_float(array) else array


class Operator:
    """An operator with its attributes.

    key: what two nodes that do the same have in common, in whatever models they are. identity: with which
    inputs and outputs are there, within one model.
    """

    def __init__(
        self,
        node: NodeProto,
        opsets: Mapping[str, int],
        ir_version: int,
        array: Callable[[TensorProto], Array],
    ) -> None:
        self.node, self._opsets, self._ir_version, self._array = node, opsets, ir_version, array
        self.op, domain = as_text(node.op_type), as_text(node.domain)
        self.domain = "" if domain == "ai.onnx" else domain
        self.since = _since(self.op, self.domain, opsets.get(self.domain, 0))
        head = self.domain, self.op, node.overload, self.since
        if self.op == "Constant":  # compared by its value; to take its bytes for a key would copy all weights
            self.key: Any = (*head, next(_NUMBERS))
        else:
            attributes = sorted(node.attribute, key=lambda a: as_text(a.name))
            self.key = (*head, *(_key(a, array) for a in attributes))
        self._there = [bool(name) for name in node.input], [bool(name) for name in node.output]
        self.identity = self.key, *map(tuple, self._there)
        self._evaluator: Any = None

    @property
    def custom(self) -> bool:
        """Whether it is none of ONNX's."""
        return bool(self.domain) and not self.domain.startswith("ai.onnx")

    def run(self, values: Sequence[Array | None]) -> list[Array]:
        """In the types of the file. Raises Undecided."""
        try:
            return self._run(values)
        except Undecided:
            raise
        except (Exception, MemoryError):
            return self._onnxruntime(values)

    def run_wide(self, values: Sequence[Array | None]) -> tuple[list[Array], bool]:
        """In float64, and whether only float32 was to be had. Raises Undecided.

        A Cast from one floating type to another changes how a number is stored, and not which one it is: how
        a number is stored is what the claims about weights are about.
        """
        first = values[0] if values else None
        if self.op == "Cast" and not self.domain and first is not None and self._to() in _FLOATS:
            return [first.astype(np.float64)], False
        if self.op == "CastLike" and not self.domain and first is not None and is_float(first):
            like = values[1]
            if like is not None and is_float(like):
                return [first], False
        most = _LOOPS.get(self.op)
        slow = most is not None and any(v is not None and v.size > most for v in values)
        if slow or self.op in _ELSEWHERE:
            return self._onnxruntime(values, narrow=True), True
        try:
            made = [_all_wide(v) for v in self._run(values)]
            return made, self.op in _NARROW and (self._cubic() or all(map(_is_narrow, made)))
        except Undecided:
            raise
        except (Exception, MemoryError) as error:
            try:
                if any(isinstance(v, list) for v in values):
                    raise Undecided("a sequence")
                return self._onnxruntime(values, narrow=True), True
            except Undecided:
                raise Undecided(f"{self.op} cannot be computed: {_line(error)}") from None

    def _cubic(self) -> bool:
        return any(a.name == "mode" and a.s == b"cubic" for a in self.node.attribute)

    def moved(self, rng: np.random.Generator) -> Operator:
        """The same with other attributes: floating ones off by half a unit in the last place of float32."""
        node = NodeProto()
        node.CopyFrom(self.node)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.FLOAT:
                attribute.f *= (
                    1 + rng.choice([-1.0, 1.0]) * 2.0**-23
                )  # which float32 rounds to the next number
        return Operator(node, self._opsets, self._ir_version, self._array)

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        return {a.name: helper.get_attribute_value(a) for a in self.node.attribute}

    def _to(self) -> int:
        return next((int(a.i) for a in self.node.attribute if a.name == "to"), 0)

    def _run(self, values: Sequence[Array | None]) -> list[Array]:
        if self.op == "Constant" and not self.domain:
            for attribute in self.node.attribute:
                if attribute.name == "value":
                    return [self._array(attribute.t)]
                if attribute.name in _LISTED:
                    return [np.array(helper.get_attribute_value(attribute), _LISTED[attribute.name])]
        if not self.domain and len(self._there[1]) == 1:
            found = plain(self.op, self._attributes, values)
            if found is not None:
                return [found]
        if self._evaluator is None:
            from bnfold.onnx_graph.run.reference import evaluator

            self._evaluator = evaluator(self._model([None] * len(values)))
        with np.errstate(all="ignore"):
            made = self._evaluator.run(None, self._feed(values))
        outputs = iter(made)
        return [_array(next(outputs)) if there else np.zeros(0) for there in self._there[1]]

    def _onnxruntime(self, values: Sequence[Array | None], narrow: bool = False) -> list[Array]:
        """By onnxruntime, in float32 if `narrow`. Raises Undecided."""
        from bnfold.errors import BnfoldError
        from bnfold.onnx_graph.file.loaded import load
        from bnfold.onnx_graph.run.evaluators import OnnxRuntime

        if narrow:
            values = [v.astype(np.float32) if v is not None and is_float(v) else v for v in values]
        try:
            found = OnnxRuntime(load(self._model(values))).run(self._feed(values))
        except (BnfoldError, KeyError, ValueError, TypeError) as error:
            raise Undecided(f"{self.op} cannot be computed: {_line(error)}") from None
        made = iter(found.values())
        return [_array(next(made)) if there else np.zeros(0) for there in self._there[1]]

    def _feed(self, values: Sequence[Array | None]) -> dict[str, Array]:
        return {f"x{i}": _array(v) for i, v in enumerate(values) if v is not None}

    def _model(self, values: Sequence[Array | None]) -> onnx.ModelProto:
        """The node alone."""
        node = NodeProto()
        node.CopyFrom(self.node)
        for attribute in node.attribute:
            if (
                attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.GRAPH)
                or attribute.ref_attr_name
            ):
                raise Undecided(f"{self.op} has an attribute that cannot be computed with: {attribute.name}")
            if attribute.type == AttributeProto.TENSOR:
                attribute.t.CopyFrom(numpy_helper.from_array(self._array(attribute.t)))
        ins, outs = self._there
        del node.input[:], node.output[:]
        node.input.extend([f"x{i}" if there else "" for i, there in enumerate(ins)])
        node.output.extend([f"y{i}" if there else "" for i, there in enumerate(outs)])
        inputs = []
        for i, (there, value) in enumerate(zip(ins, values, strict=True)):
            if there:
                kind = TensorProto.FLOAT if value is None else helper.np_dtype_to_tensor_dtype(value.dtype)
                shape = None if value is None else value.shape
                inputs.append(helper.make_tensor_value_info(f"x{i}", kind, shape))
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", inputs, outputs)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self._ir_version)


def _array(value: Any) -> Array:
    """A sequence stays what it is."""
    return value if isinstance(value, list) else np.asarray(value)  # type: ignore[return-value]


def _is_narrow(value: Array) -> bool:
    """Whether all numbers could be float32."""
    return isinstance(value, list) or bool((value == value.astype(np.float32)).all())


def _all_wide(value: Any) -> Any:
    if isinstance(value, list):
        return [_all_wide(v) for v in value]
    return value if value.dtype == np.float64 else wide(value)


@cache
def _since(op: str, domain: str, version: int) -> int:
    """The opset that the operator's meaning dates from; the model's own, for what onnx does not know."""
    try:
        return int(onnx.defs.get_schema(op, version, domain).since_version)
    except (onnx.defs.SchemaError, TypeError):  # a name that is no text
        return version


def _key(attribute: AttributeProto, array: Callable[[TensorProto], Array]) -> Any:
    """What two equal attributes have in common. Bodies are compared as scopes."""
    if attribute.type == AttributeProto.GRAPH:
        return attribute.name, "body"
    if attribute.type in _UNREAD:
        return attribute.name, next(_NUMBERS)
    if attribute.type == AttributeProto.TENSOR:
        value = array(attribute.t)
        content = str(value.tolist()) if value.dtype.kind == "O" else value.tobytes()
        return attribute.name, value.dtype.name, value.shape, content
    if attribute.doc_string:
        stated = AttributeProto()
        stated.CopyFrom(attribute)
        stated.ClearField("doc_string")
        attribute = stated
    return attribute.name, attribute.SerializeToString(deterministic=True)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:160] or type(error).__name__

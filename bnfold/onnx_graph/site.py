"""A model in memory: its scopes, its nodes, its values, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx

from bnfold.errors import ModelError
from bnfold.fold.graph import Array, Constant, Dim, Tensor

if TYPE_CHECKING:
    from bnfold.onnx_graph.file.loaded import Loaded

__all__ = ["CODES", "DTYPES", "FLOATS", "INLINE", "STATE", "Model", "Scope", "Site", "Value", "numpy_dtype"]

# names of onnx.TensorProto.DataType, as numpy and ml_dtypes spell them
_NAMES = """
    float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 complex64 complex128
    bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4
    float4_e2m1fn float8_e8m0fnu uint2 int2
"""
DTYPES = dict(enumerate(_NAMES.split(), 1))
CODES = {name: code for code, name in DTYPES.items()}
FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})
# AttributeProto's types that standard operators mean by a name. A damaged file may have any other.
_INT, _FLOAT, _STRING, _INTS, _FLOATS = (2,), (1, 2), (3,), (7,), (6, 7)
_KINDS: dict[str, tuple[int, ...]] = {
    name: kind
    for kind, names in {
        _INT: "allowzero axis batch_axis block_size blocksize broadcast ceil_mode count_include_pad end "
        "exclude_outside group hidden_size is_test keepdims layout linear_before_reset noop_with_empty_axes "
        "num_groups num_outputs output_dtype spatial start stash_type storage_order training_mode transA "
        "transB",
        _FLOAT: "alpha beta cubic_coeff_a epsilon extrapolation_value gamma lambd max min momentum ratio",
        _STRING: "approximate auto_pad coordinate_transformation_mode direction equation "
        "keep_aspect_ratio_policy mode nearest_mode padding_mode",
        _INTS: "axes dilations ends kernel_shape output_padding output_shape paddings pads perm shape split "
        "starts strides",
        _FLOATS: "scales",
    }.items()
    for name in names.split()
}
INLINE = "inline the functions first, with onnx.inliner.inline_local_functions"
STATE = "state its type and shape in the model's value_info"
_OVERRIDABLE = {
    "defined twice": "is defined twice",
    "sparse initializer": "is a sparse initializer",
    "body input": "is an input of a body too",
}
_CURES = {
    "graph input": "it is stored as well: --freeze-initializers, or freeze_initializers=True, fixes it",
    "function input": INLINE,
    "function output": INLINE,
}
HIGHEST_RANK = 32  # of any array, by numpy before 2.0; what has more axes is taken for damage
BIGGEST_OPERAND = 1 << 24  # elements of a constant operand that may be rewritten


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name, those of ml_dtypes included; raises ValueError for an unknown one."""
    own = getattr(ml_dtypes, name, None)
    return np.dtype(own) if own is not None else np.dtype(name)


@dataclass(eq=False)
class Model:
    """What all scopes of a model share."""

    loaded: Loaded
    resolve: Callable[[Value], None]  # find out whether a value is constant, once: `constants.resolve`
    shared: str = "duplicate"  # what to do with a stored value whose users need different ones
    bound: frozenset[str] = frozenset()  # initializers that training_info updates
    functions: frozenset[tuple[str, str, str]] = frozenset()  # domain, name, overload
    explodes: bool = False  # its functions call each other more often than anything could follow
    followed: int = 0  # functions that inference was given so far
    locks: bool = False  # a constant may be locked
    names: set[str] = field(default_factory=set)  # of nodes, as reports give them
    scopes: list[Scope] = field(default_factory=list)  # all of them, bodies included
    computed: int = 0  # bytes of constants that were computed to see whether they are any

    def clear(self) -> None:
        """Undo the links between all parts: `Graph.clear`."""
        for scope in self.scopes:
            for site in scope.sites:
                site.values, site.outputs, site.private = [], [], None
            for value in scope.values.values():
                value.constant = None
            scope.sites.clear()
            scope.values.clear()


@dataclass(eq=False)
class Scope:
    """Where names are defined: a graph, the body of an If, Loop or Scan, a model-local function."""

    model: Model
    proto: Any  # GraphProto or FunctionProto
    opset: int  # of the default domain; 0 if it is not imported
    parent: Scope | None = None
    owner: Site | None = None  # the node whose body this is
    values: dict[str, Value] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    in_function: bool = False  # it is, or lies in, a model-local function

    def find(self, name: str) -> Value | None:
        """The value that this name means here."""
        scope: Scope | None = self
        while scope is not None:
            value = scope.values.get(name)
            if value is not None:
                return value
            scope = scope.parent
        return None


class Value:
    """A name in a scope: an input, an initializer, or an output of a node."""

    __slots__ = (
        *("constant", "count", "dtype", "fixed", "init", "is_output", "name", "overridable", "resolved"),
        *("scope", "shape", "site", "slot", "tensor", "uses"),
    )

    def __init__(self, name: str, scope: Scope, site: Site | None = None, slot: int = -1) -> None:
        self.name = name
        self.scope = scope
        self.site = site  # the node that makes it
        self.slot = slot  # as which output, 0, 1, ...
        self.init: onnx.TensorProto | None = None
        self.overridable = False  # the caller may replace the initializer
        self.uses: list[tuple[Site, int]] = []  # a use counts while `site.values[slot]` is this value
        self.count = 0  # how many do
        self.is_output = False  # of its graph, body or function
        self.fixed = ""
        self.shape: tuple[Dim, ...] | None = None
        self.dtype = ""
        self.tensor: Tensor | None = None
        self.resolved = False
        self.constant: Constant | None = None

    @property
    def cure(self) -> str:
        """What the user can do where it is no constant or must not change; "" if nothing is known."""
        if self.fixed == "graph input" and self.init is None:
            return ""
        return _CURES.get(self.fixed, "")


class Site:
    """An `onnx.NodeProto` with what is known of it: scope, inputs and outputs, decoded attributes.

    Inputs and outputs are `Value`s, numbered 0, 1, ...; None for one that is left out.
    """

    __slots__ = (
        *("_attributes", "alive", "bodies", "name", "node", "op", "opset", "outputs", "private", "scope"),
        "values",
    )

    def __init__(self, node: onnx.NodeProto, op: str, scope: Scope) -> None:
        self.node = node
        self.op = op
        self.scope = scope
        self.opset = scope.opset
        self.name = ""
        self.values: list[Value | None] = []  # one for each input
        self.outputs: list[Value | None] = []
        self._attributes: dict[str, Any] | None = None
        self.private: dict[int, Tensor] | None = None
        self.bodies: list[Scope] | None = None
        self.alive = True

    @property
    def attributes(self) -> dict[str, Any]:
        """All of them, decoded as `attr` does it, but for tensors."""
        found = self._attributes
        if found is None:
            try:
                found = self._attributes = {a.name: _decoded(a) for a in self.node.attribute[:]}
            except _OddType as odd:
                if "." not in self.op:  # what others mean by a name is not known
                    raise ModelError(
                        f"node {self.name!r} ({self.op}): its attribute {odd} is of a type that the operator "
                        "does not take; the model is damaged: export it again"
                    ) from None
                found = self._attributes = {}
        return found

    def attr(self, name: str, default: Any = None) -> Any:
        """A Python number, string or list; an array for a tensor; a GraphProto for a body."""
        attributes = self._attributes or self.attributes
        value = attributes.get(name, default)
        if value.__class__ is onnx.TensorProto:
            value = attributes[name] = self.scope.model.loaded.array(value)
        return value

    @property
    def refers(self) -> bool:
        """Whether an attribute is taken from the call of the function that the node is in."""
        return self.scope.in_function and any(a.ref_attr_name for a in self.node.attribute)

    def _value(self, i: int) -> Value | None:
        return self.values[i] if i < len(self.values) else None

    def has(self, i: int) -> bool:
        """Whether input i is given."""
        return i < len(self.values) and self.values[i] is not None

    def constant(self, i: int) -> Constant | None:
        """Input i, if its value is known, however it is computed."""
        value = self.values[i] if i < len(self.values) else None
        if value is None:
            return None
        if not value.resolved:
            self.scope.model.resolve(value)
        return value.constant

    def value(self, i: int) -> Array | None:
        """What input i is, if that is known."""
        constant = self.constant(i)
        return None if constant is None else constant.load()

    def shape(self, i: int) -> tuple[Dim, ...] | None:
        """The shape of input i; None if not even the rank is known."""
        value = self.values[i] if i < len(self.values) else None
        return None if value is None else value.shape

    def out_shape(self, j: int = 0) -> tuple[Dim, ...] | None:
        """The shape of output j; None if not even the rank is known."""
        value = self.outputs[j] if j < len(self.outputs) else None
        return None if value is None else value.shape

    def rank(self, i: int) -> int | None:
        """The rank of input i."""
        shape = self.shape(i)
        return None if shape is None else len(shape)

    def dtype(self, i: int) -> str:
        """The type of input i as numpy (or ml_dtypes, as for "int4") spells it; "" if unknown."""
        value = self.values[i] if i < len(self.values) else None
        return "" if value is None else value.dtype

    def operand(self, i: int) -> bool:
        """Make a constant data input a tensor of this use alone, which may be rewritten.

        False if it is no constant.
        """
        constant = self.constant(i)
        if constant is None:
            return False
        if self.private is None:
            self.private = {}
        if i not in self.private:
            value = self.values[i]
            assert value is not None
            self.private[i] = Tensor(value.name, constant.shape, constant.dtype, constant=constant)
        return True

    def used(self, j: int) -> bool:
        """Whether anybody reads output j."""
        value = self.outputs[j] if j < len(self.outputs) else None
        return value is not None and (value.count > 0 or value.is_output)

    def producer(self, i: int) -> Site | None:
        """The node that computes input i."""
        value = self._value(i)
        return None if value is None else value.site

    def producer_op(self, i: int) -> str:
        """The operator that computes input i; "" if none does."""
        producer = self.producer(i)
        return "" if producer is None else producer.op

    def why_not_constant(self, i: int) -> str:
        """What input i is, if it is no constant, in words that follow its name."""
        value = self._value(i)
        if value is None:
            return "is missing"
        if value.overridable:
            return _OVERRIDABLE.get(value.fixed, "can be overridden by the caller: it is a graph input too")
        if value.site is not None:
            return f"is computed by {value.site.name}"
        return "is an input"

    def cure(self, i: int) -> str:
        """What the user can do where input i is no constant or must not change; "" if nothing is known."""
        value = self._value(i)
        return "" if value is None else value.cure


class _OddType(Exception):
    """An attribute is not of the type that its name stands for."""


def _decoded(attribute: onnx.AttributeProto) -> Any:
    kind: int = attribute.type
    expected = _KINDS.get(attribute.name)
    if expected is not None and kind not in expected:
        if kind:
            raise _OddType(repr(attribute.name))
        kind = expected[0]  # IR 1 did not say
        if expected is _FLOAT and attribute.HasField("i"):
            kind = 2
    if kind == 2:
        return attribute.i
    if kind == 7:
        return attribute.ints[:]
    if kind == 1:
        return attribute.f
    if kind == 3:
        return attribute.s.decode(errors="backslashreplace")
    if kind == 6:
        return attribute.floats[:]
    if kind == 4:
        return attribute.t  # loaded when it is asked for
    if kind == 8:
        return [entry.decode(errors="backslashreplace") for entry in attribute.strings]
    if kind == 5:
        return attribute.g
    if kind == 0:
        for key in ("ints", "floats", "f", "i"):
            entry = getattr(attribute, key)
            if entry:
                return entry if key in ("f", "i") else entry[:]
        return attribute.s.decode(errors="backslashreplace") if attribute.s else 0
    return None

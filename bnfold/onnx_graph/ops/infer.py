"""The types and shapes of all values: as the model states them, else inferred.

The operators that most nets consist of are inferred here, at a few microseconds a node. Where that does not
give every floating point value a rank, onnx's own inference is asked once, at ten times the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import onnx

from bnfold.fold.graph import Dim
from bnfold.onnx_graph.model.constants import resolve
from bnfold.onnx_graph.model.evaluate import EVALUATE
from bnfold.onnx_graph.model.scopes import CONTROL, declare
from bnfold.onnx_graph.model.site import (
    DTYPES,
    FLOATS,
    Model,
    Scope,
    Site,
)
from bnfold.onnx_graph.ops.windows import counts

__all__ = ["infer"]

Shape = tuple[Dim, ...]
Calls = dict[tuple[str, str, str], list[Site]]
# what a rule may stumble over in a damaged node
_DAMAGE = (IndexError, TypeError, ValueError, ArithmeticError)
_CODES = {name: code for code, name in DTYPES.items()}


def infer(model: Model, scopes: list[Scope]) -> None:
    """Fill in `dtype` and `shape` of all values, as far as they can be known; never fails."""
    calls: Calls = {}
    for scope in scopes:
        function = scope.proto if isinstance(scope.proto, onnx.FunctionProto) else None
        if function is not None:
            _from_calls(scope, calls.get((function.domain, function.name, function.overload), []))
        if not _pass(scope, calls):
            graph = _inferred(model, scope)
            if graph is not None:
                _merge(scope, graph)
            for site in _all_sites(scope):
                for value in site.outputs:
                    if value is not None and value.constant is None:
                        value.resolved = False
            _pass(scope, {}, last=True)


def _all_sites(scope: Scope) -> Iterator[Site]:
    for site in scope.sites:
        for body in site.bodies or ():
            yield from _all_sites(body)
        yield site


def _pass(scope: Scope, calls: Calls, last: bool = False) -> bool:
    """One walk in the order of the nodes; False if onnx's inference is needed."""
    complete = True
    functions = scope.model.functions
    for site in _all_sites(scope):
        op = site.op
        if functions:
            key = (site.node.domain, site.node.op_type, site.node.overload)
            if key in functions:
                calls.setdefault(key, []).append(site)
        if op in EVALUATE and site.outputs and (first := site.outputs[0]) is not None and not first.resolved:
            resolve(first)
        if last and op in ("Conv", "ConvTranspose"):
            _from_weight(site)
        for value in site.outputs:
            if value is None or (value.shape is not None and value.dtype):
                continue
            rule = None if value.slot else _reshape if last and op == "Reshape" else FORWARD.get(op)
            source = site.values[0] if site.values else None
            if rule is not None and source is not None:
                if value.shape is None:
                    value.shape = _asked(rule, site)
                value.dtype = value.dtype or source.dtype
            if complete and (value.count or value.is_output):
                unknown = value.shape is None and (not value.dtype or value.dtype in FLOATS)
                complete = not unknown and bool(value.dtype)
    return complete


def _asked(rule: Callable[[Site], Shape | None], site: Site) -> Shape | None:
    try:
        return rule(site)
    except _DAMAGE:
        return None


def _from_calls(scope: Scope, calls: list[Site]) -> None:
    """The inputs of a function: what all of its calls agree on."""
    for slot, name in enumerate(scope.proto.input):
        value = scope.values[name]
        dtypes = {call.dtype(slot) for call in calls}
        shapes = {call.shape(slot) for call in calls}
        if len(dtypes) == 1 and not value.dtype:
            value.dtype = dtypes.pop()
        known = [shape for shape in shapes if shape is not None]
        if value.shape is None and known and len(known) == len(shapes) and len({len(s) for s in known}) == 1:
            value.shape = tuple(d[0] if len(set(d)) == 1 else None for d in zip(*known, strict=True))


def _inferred(model: Model, scope: Scope) -> onnx.GraphProto | None:
    import onnx.shape_inference

    try:
        proto = _as_model(model, scope) if scope.in_function else model.loaded.proto
        if _negative(proto.graph):
            return None
        return onnx.shape_inference.infer_shapes(
            proto.SerializeToString(), strict_mode=False, data_prop=True
        ).graph
    except (
        Exception
    ):  # of any kind: this is C++ on a model that need not be valid, and all it gives is optional
        return None


def _negative(graph: onnx.GraphProto) -> bool:
    """A size below zero is declared: onnx's inference may end the whole process on it."""
    return any(
        dim.dim_value < 0
        for info in (*graph.input, *graph.output, *graph.value_info)
        for dim in info.type.tensor_type.shape.dim
    )


def _as_model(model: Model, scope: Scope) -> onnx.ModelProto:
    """A function as a model of its own."""
    proto = onnx.ModelProto(ir_version=model.loaded.proto.ir_version, opset_import=scope.proto.opset_import)
    proto.functions.extend(model.loaded.proto.functions)
    proto.graph.name = scope.proto.name
    proto.graph.node.extend(scope.proto.node)
    for name in scope.proto.input:
        value = scope.values[name]
        info = proto.graph.input.add(name=name)
        info.type.tensor_type.elem_type = _CODES.get(value.dtype, 0)
        for dim in value.shape or ():
            entry = info.type.tensor_type.shape.dim.add()
            if isinstance(dim, int):
                entry.dim_value = dim
            elif dim:
                entry.dim_param = dim
        if value.shape == ():
            info.type.tensor_type.shape.SetInParent()
    for name in scope.proto.output:
        proto.graph.output.add(name=name)
    return proto


def _merge(scope: Scope, graph: onnx.GraphProto) -> None:
    """Take over what is new; what the model states itself comes first."""
    values = scope.values
    names = {name for name, value in values.items() if value.shape is None or not value.dtype}
    stated = {name: (values[name].shape, values[name].dtype) for name in names}
    for entries in (graph.output, graph.value_info):
        declare(scope, [entry for entry in entries[:] if entry.name in names])
    for name, (shape, dtype) in stated.items():
        value = values[name]
        value.shape = shape if shape is not None else value.shape
        value.dtype = dtype or value.dtype
    for site in scope.sites:
        if site.bodies:
            first = site.node.output[:]
            twin = next(
                (node for node in graph.node if node.op_type in CONTROL and node.output[:] == first), None
            )
            graphs = (
                []
                if twin is None
                else [g for a in twin.attribute for g in ([a.g] if a.type == 5 else a.graphs)]
            )
            for body, other in zip(site.bodies, graphs, strict=False):
                _merge(body, other)


# Rules for the first output; None where they cannot tell. The type is that of the first input.


def _same(site: Site) -> Shape | None:
    value = site.values[0]
    assert value is not None
    return value.shape


def _conv(site: Site) -> Shape | None:
    x, weight = site.shape(0), site.shape(1)
    if weight is None or len(weight) < 3:
        return None
    if x is None or len(x) != len(weight):
        return None
    spatial = counts(site, x[2:], weight[2:])
    return None if spatial is None else (x[0], weight[0], *spatial)


def _from_weight(site: Site) -> None:
    """Ranks and channels of a convolution's input and output, where nothing else tells them."""
    weight = site.shape(1)
    if weight is None or len(weight) < 3 or not site.outputs:
        return
    left, right = (weight[1], weight[0]) if site.op == "Conv" else (weight[0], weight[1])
    groups = site.attr("group", 1)
    if isinstance(left, int) and isinstance(right, int):
        left, right = (left * groups, right) if site.op == "Conv" else (left, right * groups)
    rest = (None,) * (len(weight) - 2)
    x, y = site.values[0], site.outputs[0]
    if x is not None and x.shape is None and x.init is None:
        x.shape, x.dtype = (None, left, *rest), x.dtype or site.dtype(1)
    if y is not None and y.shape is None:
        y.shape = (_asked(_conv, site) if site.op == "Conv" else None) or (None, right, *rest)
        y.dtype = y.dtype or site.dtype(1)


def _reshape(site: Site) -> Shape | None:
    """The rank at least: it is the length of the wanted shape."""
    wanted = site.shape(1)
    rank = wanted[0] if wanted is not None and len(wanted) == 1 else None
    return (None,) * rank if isinstance(rank, int) and rank <= 64 else None


def _pool(site: Site) -> Shape | None:
    x, kernel = site.shape(0), site.attr("kernel_shape")
    if x is None or not kernel or len(x) != len(kernel) + 2:
        return None
    spatial = counts(site, x[2:], kernel)
    return None if spatial is None else (*x[:2], *spatial)


def _global_pool(site: Site) -> Shape | None:
    x = site.shape(0)
    return None if x is None else (*x[:2], *(1,) * (len(x) - 2))


def _broadcast(site: Site) -> Shape | None:
    result: Shape | None = None
    for slot in range(len(site.values)):
        shape = site.shape(slot)
        if shape is None:
            return None
        if result is None or site.opset >= 7:
            result = (
                shape if result is None or (result == shape and None not in shape) else _joint(result, shape)
            )
    return result


def _joint(a: Shape, b: Shape) -> Shape:
    if len(a) < len(b):
        a, b = b, a
    result = list(a)
    for i, size in enumerate(b, len(a) - len(b)):
        other = a[i]
        if other == 1 or (isinstance(size, int) and size > 1):
            result[i] = size
        elif size not in (1, other) and not (isinstance(other, int) and other > 1):
            result[i] = None
    return tuple(result)


def _concat(site: Site) -> Shape | None:
    shapes = [site.shape(slot) for slot in range(len(site.values))]
    first, axis = shapes[0], site.attr("axis", 1)
    if first is None or not -len(first) <= axis < len(first):
        return None
    axis %= len(first)
    total: Dim = 0
    for shape in shapes:
        if shape is None or len(shape) != len(first):
            return None
        size = shape[axis]
        total = total + size if isinstance(total, int) and isinstance(size, int) else None
    return (*first[:axis], total, *first[axis + 1 :])


def _flatten(site: Site) -> Shape | None:
    x, axis = site.shape(0), site.attr("axis", 1)
    if x is None:
        return None
    axis += len(x) if axis < 0 else 0
    return _product(x[:axis]), _product(x[axis:])


def _product(sizes: Shape) -> Dim:
    rest = [size for size in sizes if size != 1]
    if len(rest) == 1:
        return rest[0]
    known = [size for size in rest if isinstance(size, int)]
    return math.prod(known) if len(known) == len(rest) else None


def _gemm(site: Site) -> Shape | None:
    a, b = site.shape(0), site.shape(1)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    return a[1 if site.attr("transA", 0) else 0], b[0 if site.attr("transB", 0) else 1]


def _matmul(site: Site) -> Shape | None:
    a, b = site.shape(0), site.shape(1)
    if a is None or b is None or len(b) < 2 or len(a) < 2:
        return None
    return (*_joint(a[:-2], b[:-2]), a[-2], b[-1])


def _transpose(site: Site) -> Shape | None:
    x = site.shape(0)
    if x is None:
        return None
    perm = site.attr("perm") or range(len(x))[::-1]
    return tuple(x[axis] for axis in perm) if sorted(perm) == list(range(len(x))) else None


_LIKE_INPUT = """
    Abs BatchNormalization Celu Clip Dropout Elu Erf Exp Gelu GroupNormalization HardSigmoid HardSwish
    Identity InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax Mish Neg PRelu
    Reciprocal Relu Selu Sigmoid Softmax Softplus Softsign Sqrt Swish Tanh ThresholdedRelu
"""

FORWARD: dict[str, Callable[[Site], Any]] = {
    **dict.fromkeys(_LIKE_INPUT.split(), _same),
    **dict.fromkeys(("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum"), _broadcast),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    "Concat": _concat,
    "Conv": _conv,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Transpose": _transpose,
}

"""Model-local functions that may be called with half precision: their bodies are typed by onnx's inference.

A body of standard operators takes any type until a constant in it fixes one. So a call is typed with half
inputs, and the function may be called so if that gives half outputs.
"""

from __future__ import annotations

import onnx
import onnx.shape_inference

from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.scopes import default_opset
from bnfold.onnx_graph.model.site import DTYPES, Scope, Site
from bnfold.passes.half.write import CODES

__all__ = ["typeless"]

_CODES = {name: code for code, name in DTYPES.items()}


def typeless(scope: Scope, half: str) -> frozenset[tuple[str, str, str]]:
    """The functions (domain, name, overload) all of whose calls in the graph may have `half` for float32."""
    answers: dict[tuple[str, str, str], bool] = {}
    for site in scope.sites:
        key = (site.node.domain, site.node.op_type, site.node.overload)
        if key in scope.model.functions and answers.get(key, True):
            answers[key] = _takes(scope.model.loaded, site, half)
    return frozenset(key for key, fine in answers.items() if fine)


def _takes(loaded: Loaded, site: Site, half: str) -> bool:
    model = onnx.ModelProto(
        ir_version=max(loaded.proto.ir_version, 8), opset_import=loaded.proto.opset_import
    )
    if not default_opset(model.opset_import):
        return False
    model.functions.extend(loaded.proto.functions)
    graph = model.graph
    graph.name = "call"
    graph.node.append(site.node)
    for value in site.values:
        if value is None or any(entry.name == value.name for entry in graph.input):
            continue
        tensor = graph.input.add(name=value.name).type.tensor_type
        dtype = half if value.dtype == "float32" else value.dtype
        tensor.elem_type = CODES.get(dtype) or _CODES.get(dtype, 0)
        if value.shape is not None:
            tensor.shape.SetInParent()
            for dim in value.shape:
                entry = tensor.shape.dim.add()
                if isinstance(dim, int):
                    entry.dim_value = dim
                elif dim:
                    entry.dim_param = dim
    wanted = {}
    for value in site.outputs:
        if value is not None:
            graph.output.add(name=value.name)
            wanted[value.name] = CODES[half] if value.dtype == "float32" else _CODES.get(value.dtype, 0)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception:  # of any kind: it does not take the type, or says nothing about it
        return False
    return all(o.type.tensor_type.elem_type == wanted[o.name] for o in inferred.graph.output)

"""For NNCF: its quantizer for OpenVINO's models, told where a folded batch norm stood.

NNCF rounds what a sum reads, and of a Relu only what it returns. Where both read one tensor, as on the
shortcut of a pre-activation network, no quantizer can serve the two: the tensor is stored in float, and
rounded for each of them. A batch norm in front of the Relu reads rounded numbers, as the sum does, and they
share a quantizer; the fold takes it away. Such sums cost less time and less accuracy in float.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from bnfold.integrations.stack import imported

if TYPE_CHECKING:
    import nncf
    import openvino

__all__ = ["quantize", "sums_in_float"]

# What NNCF fuses into the layer in front of it; no quantizer stands before one of these.
ACTIVATIONS = frozenset(
    ("Relu", "PRelu", "Clamp", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HSigmoid", "Swish", "HSwish")
)


def quantize(
    model: openvino.Model,
    calibration_dataset: nncf.Dataset,
    *,
    ignored_scope: nncf.IgnoredScope | None = None,
    **options: Any,
) -> openvino.Model:
    """`nncf.quantize` for a folded model: call this one in its place.

    A model that has no sums beside activations comes out as NNCF makes it.

    Args:
        model: made by OpenVINO of what `fold_onnx` returns with `quantize_for="int8"`.
        calibration_dataset: as for NNCF.
        ignored_scope: what else stays in float.
        options: NNCF's other keywords.

    Returns:
        The quantized model.

    Raises:
        ImportError: no NNCF, or one without this function; it says which version was tested.
        TypeError: the model is not OpenVINO's.
    """
    if not hasattr(model, "get_ordered_ops"):
        kind = type(model).__name__
        raise TypeError(f"quantize takes a model of OpenVINO, not {kind}: call openvino.convert_model first")
    of_nncf = imported("nncf", "nncf", "quantize")
    scope = imported("nncf", "nncf", "IgnoredScope")() if ignored_scope is None else ignored_scope
    scope = dataclasses.replace(scope, names=[*scope.names, *sums_in_float(model)])
    return of_nncf(model, calibration_dataset, ignored_scope=scope, **options)


def sums_in_float(model: openvino.Model) -> list[str]:
    """The names of sums that make or read a tensor which a sum and an activation read: better not rounded."""
    sums = [node for node in model.get_ordered_ops() if _sum(node)]
    return [node.get_friendly_name() for node in sums if any(map(_forked, [node.output(0), *_sources(node)]))]


def _sum(node: Any) -> bool:
    """Of two tensors that are computed: one by a stored number is a bias."""
    return node.get_type_name() == "Add" and not any(map(_stored, _sources(node)))


def _sources(node: Any) -> list[Any]:
    return [entry.get_source_output() for entry in node.inputs()]


def _stored(tensor: Any) -> bool:
    """A constant, or one that is stored in another type."""
    node = tensor.get_node()
    return node.get_type_name() == "Constant" or (
        node.get_type_name() == "Convert" and all(map(_stored, _sources(node)))
    )


def _forked(tensor: Any) -> bool:
    readers = [entry.get_node() for entry in tensor.get_target_inputs()]
    return any(map(_sum, readers)) and any(node.get_type_name() in ACTIVATIONS for node in readers)

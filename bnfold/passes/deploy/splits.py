"""SplitToSequence that only SequenceAt reads becomes a Split: TensorRT knows no sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.ops.sequences import is_only_indexed, part_sizes
from bnfold.onnx_graph.site import Scope, Site

__all__ = ["split_plainly"]


def split_plainly(surgery: Surgery, scope: Scope) -> int:
    """Returns how many were replaced."""
    found = [site for site in scope.sites if is_only_indexed(site) and not site.refers]
    for site in found:
        _replace(surgery, site)
    return len(found)


def _replace(surgery: Surgery, site: Site) -> None:
    sizes, sequence = part_sizes(site), site.outputs[0]
    x = site.values[0]
    assert sizes is not None
    assert sequence is not None
    assert x is not None
    axis = int(site.attr("axis", 0))
    parts = [surgery.value(f"{sequence.name}_part", site.scope) for _ in sizes]
    for size, part in zip(sizes, parts, strict=True):
        part.dtype = x.dtype
        if x.shape is not None:
            part.shape = (*x.shape[: axis % len(x.shape)], size, *x.shape[axis % len(x.shape) + 1 :])
    inputs, stated = [x], dict[str, Any](axis=axis)
    if site.opset >= 13:
        inputs.append(surgery.constant(f"{sequence.name}_sizes", np.array(sizes, np.int64), site))
    else:
        stated["split"] = list(sizes)
    surgery.node("Split", site.node.name or f"{sequence.name}_split", inputs, parts, site, **stated)
    for reader, _ in list(surgery.uses(sequence)):
        index = reader.value(1)
        assert index is not None
        surgery.connect(reader, 0, parts[int(index.reshape(-1)[0])])
        surgery.bypass(reader, 0)
    surgery.kill(site)

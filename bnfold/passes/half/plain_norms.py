"""Batch norms that stay, with a variance of 1: their parameters then survive half precision.

A running variance of 1e-8 is zero in float16, and so is an epsilon of 1e-12; TensorRT computes variance +
epsilon in the type of the parameters. What a frozen batch norm computes is `scale*x + shift`, and it computes
the same with gamma = scale, beta = shift, mean = 0, variance = 1 and epsilon = 0, all computed in float64
here.
"""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto

from bnfold.fold.affine import all_finite, from_batch_norm
from bnfold.fold.graph import Array
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.ops.facts import EPSILON
from bnfold.onnx_graph.read import analysed
from bnfold.onnx_graph.site import Site

__all__ = ["make_plain"]


def make_plain(loaded: Loaded) -> int:
    """Rewrite the float32 batch norms of the graph whose parameters are stored, in place; how many."""
    if not any(node.op_type == "BatchNormalization" for node in loaded.proto.graph.node):
        return 0
    with without_gc():
        model = analysed(loaded)
        surgery, count = Surgery(model), 0
        for site in model.scopes[0].sites:
            if site.op == "BatchNormalization" and _rewrite(site, surgery):
                count += 1
        surgery.finish()
    return count


def _rewrite(site: Site, surgery: Surgery) -> bool:
    arrays = [site.value(slot) for slot in range(1, 5)]
    found = [array for array in arrays if array is not None and array.dtype == np.float32 and array.ndim == 1]
    if len(found) < 4 or site.opset < 7 or site.attr("training_mode", 0) or not site.attr("spatial", 1):
        return False
    if any(site.used(j) for j in range(1, len(site.outputs))):
        return False
    gamma, beta, mean, var = found
    with np.errstate(all="ignore"):
        scale, shift = from_batch_norm(gamma, beta, mean, var, site.attr("epsilon", EPSILON))
        new: list[Array] = [a.astype(np.float32) for a in (scale, shift, 0 * scale, 0 * scale + 1)]
    if not all(map(all_finite, new)):
        return False
    base = site.node.name or site.name
    for slot, (what, array) in enumerate(zip(("scale", "shift", "zero", "one"), new, strict=True), 1):
        before = site.values[slot]
        assert before is not None
        surgery.connect(site, slot, surgery.constant(f"{base}_{what}", array, before))
    stated = [attribute for attribute in site.node.attribute if attribute.name == "epsilon"]
    epsilon = stated[0] if stated else site.node.attribute.add(name="epsilon", type=AttributeProto.FLOAT)
    epsilon.f = 0.0
    return True

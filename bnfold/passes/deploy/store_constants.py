"""What is computed from constants alone is stored: TensorRT asks for some operands as initializers."""

from __future__ import annotations

import numpy as np

from bnfold.onnx_graph.model.constants import constant_of
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.site import Scope, Site, Value, numpy_dtype

__all__ = ["store_computed"]

SMALL = 1 << 20  # bytes that are stored in any case
_CONDITIONS = {"If": 0, "Loop": 1}
GROWTH = 4  # larger values may have so many times the bytes of what they are computed from


def store_computed(surgery: Surgery, scope: Scope) -> int:
    """Replace computed constants by initializers where a node that is not constant itself reads them.

    Left alone: what is dequantized (a runtime wants to see that), what would make the file much larger, what
    training_info updates, conditions (a runtime that knows which branch is run looks at shapes there, and may
    find fault with them), and model-local functions. Returns how many values were replaced.
    """
    count = 0
    for site in scope.sites:
        for value in site.outputs if site.op != "Constant" and site.alive else ():
            if value is not None and _is_worth_storing(value, site):
                _store(surgery, value)
                count += 1
    return count


def _is_worth_storing(value: Value, site: Site) -> bool:
    constant = constant_of(value)
    if constant is None or constant.locked or constant.quantized is not None:
        return False
    if site.op in ("QuantizeLinear", "DequantizeLinear"):
        return False
    if not any(_runs(*use) for use in value.uses):
        return False
    sources = [entry for slot in range(len(site.values)) if (entry := site.constant(slot)) is not None]
    room = GROWTH * sum(_size(entry.shape, entry.dtype) for entry in sources)
    return _size(constant.shape, constant.dtype) <= max(SMALL, room)


def _size(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.float64)) * numpy_dtype(dtype).itemsize


def _runs(site: Site, slot: int) -> bool:
    """Not constant itself, and what it reads there is no condition."""
    if not site.alive or slot == _CONDITIONS.get(site.op):
        return False
    return any(value is None or constant_of(value) is None for value in site.outputs)


def _store(surgery: Surgery, value: Value) -> None:
    constant = constant_of(value)
    assert constant is not None
    stored = surgery.constant(f"{value.name}_constant", constant.load(), value)
    for reader, slot in [use for use in surgery.uses(value) if _runs(*use)]:
        surgery.connect(reader, slot, stored)

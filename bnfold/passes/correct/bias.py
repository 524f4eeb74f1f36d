"""A bias of its own for each layer of a quantized model, and what is written into it.

Biases that several layers read are copied; a layer without one gets one of zeros, of the kind that quantizers
write: int32 with a step that is the input's times the weight's, so that integer kernels still take the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.fold.graph import Array
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.new_nodes import append, emit
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.site import FLOATS, Site, Value, numpy_dtype
from bnfold.passes.correct.layers import Layer, constant_operand

__all__ = ["Bias", "Refused", "own_bias"]

SLOT = 2  # of the bias, but for a MatMul


class Refused(Exception):
    """The layer's bias cannot be renewed; the message is the reason."""


@dataclass
class Bias:
    """Where a layer's bias is stored.

    tensor: its initializer. scale: that of its step, "" for floats. zero: its zero point. added: there was
    none. factor: by which the layer multiplies it. weight_scale: the initializer with the weight's scales, of
    which `rows` is the axis of the output channels; "" if those must stay.
    """

    tensor: str
    scale: str = ""
    zero: int = 0
    added: bool = False
    factor: float = 1.0
    weight_scale: str = ""
    rows: int = 0

    def type(self, loaded: Loaded) -> str:
        """The type of the stored numbers."""
        found = next(tensor for tensor in loaded.proto.graph.initializer if tensor.name == self.tensor)
        return str(loaded.array(found).dtype.name)

    def renew(self, loaded: Loaded, shift: Array, stretch: Array | None) -> int:
        """Add `shift` to each channel of the layer's output, which is stretched before.

        shift, stretch: of shape (channels,), float64. Integers are rounded to the next step; gives how many
        of them are at the end of their range.
        """
        stored = {tensor.name: tensor for tensor in loaded.proto.graph.initializer}
        tensor = stored[self.tensor]
        old = loaded.array(tensor)
        step: Any = loaded.array(stored[self.scale]).astype(np.float64) if self.scale else 1.0
        real = (old.astype(np.float64) - self.zero) * step
        if stretch is not None:
            real = real * stretch
            scale = loaded.array(stored[self.weight_scale])
            along = stretch.reshape([-1 if a == self.rows else 1 for a in range(max(scale.ndim, 1))])
            loaded.set_array(stored[self.weight_scale], (scale * along).astype(scale.dtype))
            if self.scale and step.size > 1:  # it stays the product of the input's and the weight's
                kept = (step * stretch).astype(loaded.array(stored[self.scale]).dtype)
                loaded.set_array(stored[self.scale], kept)
                step = kept.astype(np.float64)
        real = real + shift / self.factor
        if not self.scale:
            loaded.set_array(tensor, real.reshape(old.shape).astype(old.dtype))
            return 0
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.where(step > 0, np.round(real / step), 0) + self.zero
        ends = np.iinfo(old.dtype)
        loaded.set_array(tensor, np.clip(codes, ends.min, ends.max).astype(old.dtype))
        return int(((codes < ends.min) | (codes > ends.max) | ~np.isfinite(codes)).sum())


def own_bias(surgery: Surgery, layer: Layer, channels: int, deviation: bool) -> Bias:
    """Give a layer a bias, and scales if the deviation is to be matched, that no other node reads.

    channels: how many outputs the layer has.

    Raises:
        Refused: the bias is computed, or belongs to the caller. Nothing was changed then.
    """
    site = layer.site
    bias = _bias(surgery, layer, channels)
    if site.op == "Gemm" and site.has(SLOT):
        bias.factor = float(site.attr("beta", 1.0))
    if deviation:
        dequantize, turned = layer.weight.dequantize, layer.weight.turned
        assert dequantize is not None
        dequantize = _own_node(surgery, *((site, 1) if turned is None else (turned, 0)), dequantize)
        bias.rows = 0 if dequantize.rank(1) == 1 else layer.rows_of_codes
        bias.weight_scale = _own(surgery, dequantize, 1).name
    return bias


def _bias(surgery: Surgery, layer: Layer, channels: int) -> Bias:
    site, slot = layer.site, SLOT
    if site.op == "MatMul":
        if layer.add is None:
            return _added_behind(surgery, layer, channels)
        site = layer.add
        found = constant_operand(site)
        assert found is not None
        slot = found
    value = site.values[slot] if site.has(slot) else None
    if value is None:
        return _added(surgery, layer, channels)
    if site.op == "Gemm" and site.attr("beta", 1.0) == 0:
        raise Refused("its bias is multiplied by a beta of 0")
    source = value.site
    if source is not None and source.op == "DequantizeLinear":
        return _of_integers(surgery, site, slot, source, channels)
    if site.constant(slot) is None or site.dtype(slot) not in FLOATS:
        raise Refused(_why(value))
    shape = site.shape(slot) or ()
    if any(size != 1 for size in shape) and shape[-1] != channels:
        raise Refused(f"its bias of shape {list(shape)} does not run along the channels")
    return Bias(_own(surgery, site, slot, channels).name)


def _why(value: Value) -> str:
    if value.overridable:
        cure = f" ({value.cure})" if value.cure else ""
        return f"its bias {value.name!r} is an input that the caller may give{cure}"
    return "its bias is computed when the model runs"


def _of_integers(surgery: Surgery, site: Site, slot: int, source: Site, channels: int) -> Bias:
    for at in range(len(source.values)):
        value = source.values[at]
        if value is not None and source.constant(at) is None:
            raise Refused(_why(value))
    codes, zero = source.value(0), source.value(2) if source.has(2) else None
    scale = source.value(1)
    assert codes is not None
    assert scale is not None
    if codes.dtype.kind not in "iu" or codes.size not in (1, channels) or scale.size not in (1, channels):
        raise Refused(f"its bias of {codes.dtype.name} {list(codes.shape)} is of an unusual kind")
    if zero is not None and zero.size and zero.min() != zero.max():
        raise Refused("its bias has several zero points")
    source = _own_node(surgery, site, slot, source)
    at_zero = int(zero.reshape(-1)[0]) if zero is not None and zero.size else 0
    stored = _own(surgery, source, 0, channels)
    return Bias(stored.name, _own(surgery, source, 1).name, at_zero)


def _added(surgery: Surgery, layer: Layer, channels: int) -> Bias:
    """A bias of zeros for a Conv, ConvTranspose or Gemm that has none."""
    site = layer.site
    stem = f"{layer.tensor}_bias"
    step = _step(layer, channels)
    if step is None:
        kind = site.dtype(0) if site.dtype(0) in FLOATS else "float32"
        value = surgery.constant(stem, np.zeros(channels, numpy_dtype(kind)), site)
        surgery.connect(site, SLOT, value)
        return Bias(value.name, added=True)
    after = layer.weight.dequantize
    assert after is not None
    codes = surgery.constant(f"{stem}_quantized", np.zeros(channels, np.int32), site)
    scale = surgery.constant(f"{stem}_quantized_scale", step, site)
    zero = surgery.constant(f"{stem}_quantized_zero_point", np.zeros(step.shape, np.int32), site)
    axis = {"axis": 0} if step.size > 1 else {}
    value = emit(surgery, "DequantizeLinear", [codes, scale, zero], stem, after, **axis)
    value.dtype = scale.dtype
    surgery.connect(site, SLOT, value)
    return Bias(codes.name, scale.name, added=True)


def _step(layer: Layer, channels: int) -> Array | None:
    """That of an int32 bias: the input's times the weight's; None if either is not quantized so."""
    value = layer.site.values[0]
    source = None if value is None else value.site
    scale = layer.weight.scale
    if source is None or source.op != "DequantizeLinear" or scale is None or scale.ndim > 1:
        return None
    own = source.value(1)
    if own is None or own.size != 1:
        return None
    step = (own.reshape(()).astype(np.float64) * scale.astype(np.float64)).astype(scale.dtype)
    if not (step > 0).all():  # half precision has none so small
        return None
    if step.size == 1:
        return np.asarray(step.reshape(()))
    groups, rest = divmod(channels, step.size)  # those of a ConvTranspose share their scales
    return None if rest else np.tile(step, groups)


def _added_behind(surgery: Surgery, layer: Layer, channels: int) -> Bias:
    """An Add of zeros behind a MatMul, which takes over the name of its output."""
    site, y = layer.site, layer.last
    kind = y.dtype if y.dtype in FLOATS else "float32"
    value = surgery.constant(f"{y.name}_bias", np.zeros(channels, numpy_dtype(kind)), site)
    name = surgery.name(f"{site.node.name or y.name}_bias")
    append(surgery, y, f"{y.name}_without_bias", ("Add", name), [value], site)
    return Bias(value.name, added=True)


# -- what no other node reads


def _own_node(surgery: Surgery, site: Site, slot: int, source: Site) -> Site:
    """The DequantizeLinear that `site` reads, or a copy if others read it too."""
    value = site.values[slot]
    assert value is not None
    if value.count == 1 and not value.is_output:
        return source
    how = {key: source.attr(key) for key in source.attributes}
    inputs = [entry for entry in source.values if entry is not None]
    copy = emit(surgery, "DequantizeLinear", inputs, value.name, source, **how)
    copy.dtype, copy.shape = value.dtype, value.shape
    surgery.connect(site, slot, copy)
    assert copy.site is not None
    return copy.site


def _own(surgery: Surgery, site: Site, slot: int, size: int = 0) -> Value:
    """The initializer that an input is, or a copy if others read it too. size: one number spreads to it."""
    value = site.values[slot]
    array = site.value(slot)
    assert value is not None
    assert array is not None
    spread = array.size == 1 < size
    if value.init is not None and value.count == 1 and surgery.replaceable(value) is not None and not spread:
        return value
    array = np.full(size, array.reshape(-1)[0]) if spread else array
    new = surgery.constant(f"{value.name}_own", array, value)
    surgery.connect(site, slot, new)
    return new

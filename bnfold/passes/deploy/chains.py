"""From a batch norm that is left, or a scale known at run time, to all that one fused node can do.

    x -> batch norm or Mul -> Mul, Add per channel -> Add of a tensor like x -> Relu

Each step must be the only reader of the one before. Mul and Add per channel have the shape (1, C, 1, ...), or
(N, C, 1, ...) with a set for each sample, as conditional batch norm does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnfold.onnx_graph.model.new_nodes import only_reader, same_shape
from bnfold.onnx_graph.site import Site, Value
from bnfold.passes.deploy.bnfold_ops import Variant
from bnfold.passes.deploy.norms import Norm
from bnfold.passes.deploy.terms import Known, Read, Term, add, known, multiply

__all__ = ["Chain", "from_norm", "from_scale"]


@dataclass
class Chain:
    """What one node will do instead of `sites`: it gives the output of the last one."""

    sites: list[Site]
    x: Value
    channels: int
    scale: Term
    shift: Term
    epsilon: float | None = None  # of a norm by the batch's own statistics
    residual: Value | None = None
    relu: bool = False

    @property
    def last(self) -> Site:
        return self.sites[-1]

    @property
    def variant(self) -> Variant:
        return Variant(self.epsilon is not None, self.residual is not None, self.relu)

    @property
    def pays(self) -> bool:
        """One node does more than the one that is there: a plain batch norm stays one, which all know."""
        known_now = isinstance(self.scale, Known) and isinstance(self.shift, Known)
        return not known_now or self.epsilon is not None or self.residual is not None or self.relu


def from_norm(norm: Norm) -> Chain:
    """A batch norm and what can join it."""
    chain = Chain([norm.site], norm.x, norm.channels, norm.scale, norm.shift, norm.epsilon)
    while _maps(chain):
        pass
    return _finished(chain)


def from_scale(site: Site) -> Chain | None:
    """A Mul per channel that an Add per channel follows: an affine map of which no batch norm is left."""
    if site.op != "Mul" or site.refers or len(site.values) != 2:
        return None
    for slot in (0, 1):
        x = site.values[slot]
        if x is None or x.shape is None or len(x.shape) < 2 or site.constant(slot) is not None:
            continue
        channels = x.shape[1]
        if not isinstance(channels, int) or channels < 2:
            continue
        scale = _per_channel(site, 1 - slot, x, channels)
        if scale is None or (isinstance(scale, Known) and scale.array.size == 1):
            continue
        chain = Chain([site], x, channels, scale, known(np.zeros(()), len(x.shape)))
        ops = {site.op}
        while (step := _maps(chain)) is not None:
            ops.add(step.op)
        if "Add" in ops:
            return _finished(chain)
    return None


def _maps(chain: Chain) -> Site | None:
    """Take a Mul or Add per channel that follows into the chain; None if none does."""
    y = chain.sites[-1].outputs[0]
    site = only_reader(y)
    if y is None or site is None or site.op not in ("Mul", "Add") or site.refers or len(site.values) != 2:
        return None
    operand = _per_channel(site, 1 if site.values[0] is y else 0, chain.x, chain.channels)
    if operand is None or (chain.epsilon is not None and _per_sample(operand)):
        return None
    if site.op == "Mul":
        chain.scale, chain.shift = multiply(chain.scale, operand), multiply(chain.shift, operand)
    else:
        chain.shift = add(chain.shift, operand)
    chain.sites.append(site)
    return site


def _per_channel(site: Site, slot: int, x: Value, channels: int) -> Term | None:
    """An operand of the shape (1 or N, C, 1, ...), if it is certain to be one."""
    value, shape = site.values[slot], site.shape(slot)
    assert x.shape is not None
    rank = len(x.shape)
    if value is None or value is x or shape is None or len(shape) > rank or value.dtype != x.dtype:
        return None
    whole = (1,) * (rank - len(shape)) + shape
    constant = site.constant(slot)
    if constant is not None and not constant.locked:
        channelwise = all(size == 1 for axis, size in enumerate(whole) if axis != 1)
        return known(constant.load(), rank) if channelwise and whole[1] in (1, channels) else None
    if whole[1] != channels or any(size != 1 for size in whole[2:]):
        return None
    if whole[0] != 1 and (whole[0] is None or whole[0] != x.shape[0]):
        return None
    if whole == x.shape:  # which is the data?
        return None
    return Read(value) if len(shape) == rank else Read(value, (1, channels) + (1,) * (rank - 2))


def _per_sample(term: Term) -> bool:
    """Not certain to be one set for the whole batch."""
    return isinstance(term, Read) and term.shape is None and (term.value.shape or (None,))[0] != 1


def _finished(chain: Chain) -> Chain:
    """With the residual sum and the ReLU that follow."""
    y = chain.last.outputs[0]
    site = only_reader(y)
    if site is not None and site.op in ("Add", "Sum") and len(site.values) == 2 and not site.refers:
        assert y is not None
        other, x = site.values[1 if site.values[0] is y else 0], chain.x
        if other is not None and other.dtype == x.dtype and (same_shape(other, y) or same_shape(other, x)):
            chain.residual = other
            chain.sites.append(site)
            site = only_reader(site.outputs[0])
    if site is not None and site.op == "Relu":
        chain.relu = True
        chain.sites.append(site)
    return chain

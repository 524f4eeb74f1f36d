"""The roles that nodes play.

A role is data. It says how an operator behaves under a change `t' = p*t + q` of the tensors around it, not
what the operator is called; one rule of `carry/table.py` serves each class of role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.fold.affine import compact
from bnfold.fold.graph import Array, Constant, Key, Role
from bnfold.fold.windows import Windows


@dataclass(frozen=True, slots=True)
class Closed(Role):
    """Its float inputs and outputs must stay as they are. `listed`: a batch norm that is not affine has a
    line in the ledger all the same. `cure`: what would open it, or "".
    """

    reason: str = "is not linear"
    listed: bool = False
    cure: str = ""


@dataclass(eq=False, slots=True)
class Affine(Role):
    """`y = scale*x + shift`; the only role that may vanish, and the one that the solver is asked to make
    vanish.

    kind "norm": both are stored, so that a node that stays absorbs any change (p != 0). "scale": only the
    scale is (Mul by a constant). "shift": only the shift is (Add of a constant). Arrays are float64, of the
    tensor's rank, with one entry along axes along which all are equal. `stay` says why it may not vanish (""
    if it may); it then still absorbs.
    """

    scale: Array
    shift: Array
    kind: str
    x: int = 0
    constants: Mapping[str, tuple[int, Constant]] = field(
        default_factory=dict
    )  # "gamma", "beta", "mean", "var" | "value"
    eps: float = 0.0
    form: str = ""  # how the constant enters: "x*c" "x/c" "x+c" "x-c" "c-x"
    stay: str = ""
    listed: bool = True  # has its own line in the ledger
    dead: tuple[int, ...] = ()  # channels whose output never changes: for the ledger only
    plain: bool = False  # seen to have no scale of 0, some shift, and not 1 as its first scale

    def __post_init__(self) -> None:
        if self.kind != "norm":  # a constant may be stored in full
            self.scale, self.shift = compact(self.scale), compact(self.shift)


@dataclass(eq=False, slots=True)
class Linear(Role):
    """Conv, ConvTranspose, Gemm, MatMul with a constant weight: `y = W x + bias`, free along its other axes.

    `split` is the weight's shape with the groups made explicit: one axis for groups (`w_group`, or None), one
    for the outputs (`w_out`) and one for the inputs (`w_in`); the rest (kernel, batch) is summed over or
    passed through.
    """

    weight: Constant
    weight_slot: int
    x: int
    in_axis: int  # of x
    out_axis: int  # of y
    split: tuple[int, ...]
    w_group: int | None
    w_out: int
    w_in: int
    bias: Constant | None = None
    bias_slot: int | None = None  # None: the operator has no bias input
    bias_open: str = ""  # why the bias cannot be changed ("" if it can)
    bias_cure: str = ""  # what would let it
    bias_blocks_scale: bool = False  # the bias is computed at run time: the output cannot be scaled either
    bias_unread: bool = False  # what is stored there counts for nothing (beta = 0), but its shape has to fit
    padded: str = ""  # why an input shift cannot be absorbed ("" if it can)
    padded_cure: str = ""  # what would let it
    free: tuple[tuple[int, int], ...] = ()  # axes of x that reappear as axes of y
    alpha: float = 1.0
    beta: float = 1.0
    costs: int = 0  # nodes that a missing bias would add
    windows: Windows | None = None  # None: neither a plain convolution nor a product with one matrix

    @property
    def groups(self) -> int:
        return 1 if self.w_group is None else self.split[self.w_group]

    @property
    def outputs(self) -> int:
        """Output channels of all groups together."""
        size = self.split[self.w_out]
        return size if self.w_group is None else size * self.split[self.w_group]

    @property
    def inputs(self) -> int:
        """Input channels of all groups together."""
        size = self.split[self.w_in]
        return size if self.w_group is None else size * self.split[self.w_group]

    @property
    def rest(self) -> tuple[int, ...]:
        """The sizes of the other axes: the taps of a convolution, the batch of a stack of matrices."""
        channels = (self.w_group, self.w_out, self.w_in)
        return tuple(size for axis, size in enumerate(self.split) if axis not in channels)

    def stored(self, axis: int) -> int:
        """An axis of `split` in the weight as it is stored; -1: it is spread over two."""
        group = self.w_group
        if group is not None and self.split[group] > 1 and axis != group + 1:
            return -1
        return axis - 1 if group is not None and axis > group else axis

    def matrices(self, values: Array) -> Array:
        """The weight, or numbers laid out like it, seen as matrices: one for each group and tap.

        Args:
            values: of the weight's shape, perhaps with axes in front (a stack of weights).

        Returns:
            Of shape (*those in front, groups, outputs of a group, inputs of a group, *rest): a view.
        """
        front = values.ndim - len(self.weight.shape)
        values = values.reshape(values.shape[:front] + self.split)
        channels = [axis for axis in (self.w_group, self.w_out, self.w_in) if axis is not None]
        order = channels + [axis for axis in range(len(self.split)) if axis not in channels]
        values = values.transpose(*range(front), *(front + axis for axis in order))
        return values if self.w_group is not None else np.expand_dims(values, front)


@dataclass(eq=False, slots=True)
class Recurrent(Role):
    """LSTM, GRU, RNN: input weights (directions, gates, inputs) and bias absorb.

    Where each direction is stored by itself, a weight is (gates, inputs), and `others` has those of the other
    direction: weight, slot, bias, slot.
    """

    weight: Constant
    weight_slot: int
    bias: Constant | None
    bias_slot: int | None  # None: there is no place for one
    x: int = 0
    axis: int = 2
    others: tuple[tuple[Constant, int, Constant | None, int | None], ...] = ()

    @property
    def directions(self) -> tuple[tuple[Constant, int, Constant | None, int | None], ...]:
        """All that is stored by itself, this weight first."""
        return ((self.weight, self.weight_slot, self.bias, self.bias_slot), *self.others)


@dataclass(eq=False, slots=True)
class Sampled(Role):
    """DeformConv: what it gives, channels on axis 1, is absorbed by its weight (outputs first) and its bias.

    What it reads stays: offsets choose the places, and a mask weighs what is found there.
    """

    weight: Constant
    weight_slot: int
    bias: Constant | None
    bias_slot: int
    bias_open: str = ""  # why the bias cannot be changed ("" if it can)


@dataclass(frozen=True, slots=True)
class Map(Role):
    """Elementwise, or a window or reduction within channels: `f(p*x + q) = p*f(x) + q` under conditions.

    sign: of p that pass: "any", "positive", or "absolute" (Abs: p -> |p|). shift: why q does not pass ("" if
    it does). flat: axes along which p and q must be constant (reduced, resized, windowed). squeezed: axes of
    x that y does not have. gain: multiplies q (ReduceSum: the number of summands; 0: not known). uniform: one
    p and one q for the whole tensor. flip: the operator that serves a negative p instead (ReduceMax <->
    ReduceMin). power: y carries |p| to this power (a variance: 2). centred: the mean is taken off, so that a
    shift of x vanishes and none of y can be made. x: the slot of the data.
    """

    sign: str = "positive"
    shift: str = ""
    flat: tuple[int, ...] = ()
    squeezed: tuple[int, ...] = ()
    gain: float = 1.0
    uniform: bool = False
    flip: str = ""
    power: float = 1.0
    centred: bool = False
    x: int = 0


@dataclass(eq=False, slots=True)
class Leaky(Role):
    """LeakyRelu, PRelu: like a positive map, and a negative p swaps the two halves: slope -> 1/slope, p ->
    p/slope.
    """

    slope: Array  # float64, of the tensor's rank
    constant: Constant | None = None
    key: Key = "alpha"


@dataclass(eq=False, slots=True)
class Clamp(Role):
    """Clip: one p and one q for all channels, absorbed by the bounds; a negative p swaps them."""

    low: float
    high: float
    keys: tuple[Key, Key] = (1, 2)


@dataclass(frozen=True, slots=True)
class Gate(Role):
    """HardSigmoid(alpha*x + beta): the input absorbs one p and one q; the output is closed. Celu: alpha, both
    sides.
    """

    alpha: float
    beta: float | None  # None: Celu, whose output carries p


@dataclass(frozen=True, slots=True)
class Move(Role):
    """Data is rearranged. `move` is one of the classes of moves.py and maps p and q like the data."""

    move: Any
    x: int = 0


@dataclass(eq=False, slots=True)
class Pad(Role):
    """The tensor is framed along `axes`. fill None: by its own values; else by a constant, kept at `key`.

    Without axes: some of its entries are replaced by the constant.
    """

    axes: tuple[int, ...]
    fill: float | None
    key: Key = 2
    x: int = 0


@dataclass(frozen=True, slots=True)
class Split(Role):
    """One input, several outputs: consecutive slices along one axis, which loses it if `drops` (unbind)."""

    axis: int
    sizes: tuple[int, ...]
    drops: bool = False


@dataclass(frozen=True, slots=True)
class Concat(Role):
    """Inputs side by side along one axis, a new one if `adds` (stack). `sizes`: None where unknown."""

    axis: int
    sizes: tuple[int | None, ...]
    adds: bool = False


@dataclass(frozen=True, slots=True)
class Sum(Role):
    """`y = sum(coefficients[i] * x[i])`, broadcast: all share p, and split q."""

    coefficients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Product(Role):
    """`y = prod(x[i] ** powers[i])`, broadcast: p multiplies, q is zero on all."""

    powers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Same(Role):
    """Max, Min, Where, and the like: one (p > 0, q) on all `slots` and the output."""

    slots: tuple[int, ...]
    sign: str = "positive"


@dataclass(frozen=True, slots=True)
class Contract(Role):
    """Two tensors multiplied (MatMul, Einsum): p of an operand passes to y along the axes that it keeps.

    `axes[i]`: for each axis of operand i, the axis of y, or None where it is summed over. `stochastic` names
    the operand whose rows sum to one (Softmax), so that the other one's q passes as well; None if there is
    none. `labels`: of the axes of both operands and of y, a letter for each; where one operand is stored,
    they tell which of its axes takes a p, and what a q comes out as. `bias_open`: why y cannot get an
    addition of its own ("" if it can).
    """

    axes: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    stochastic: int | None = None
    labels: tuple[str, str, str] | None = field(default=None, compare=False)
    bias_open: str = field(default="", compare=False)


@dataclass(eq=False, slots=True)
class Normalize(Role):
    """InstanceNorm, GroupNorm, LayerNorm, RMSNorm: removes the input's own mean and variance, then scale and
    shift.

    Output: own scale and bias absorb, if p and q vary along `axes` (of y) only. Input: q constant along
    `over`; p one number (an eps that is scaled along).
    """

    scale: Constant | None
    scale_slot: int
    bias: Constant | None
    bias_slot: int | None
    axes: tuple[int, ...]  # axes of y that the parameters cover
    over: tuple[int, ...]  # axes of x that are normalized over
    removes_mean: bool
    eps: float
    groups: int = 0  # parameters are one per group (GroupNormalization before opset 21)


@dataclass(frozen=True, slots=True)
class SoftmaxInput(Role):
    """Softmax, LogSoftmax: a shift that is uniform along the axis changes nothing; all else is closed."""

    axis: int


def is_data(role: Role, slot: int) -> bool:
    """Whether a node of this role reads data at a slot, and not a parameter."""
    if isinstance(role, Sum | Product | Concat | Contract):
        return True
    return slot in role.slots if isinstance(role, Same) else slot == getattr(role, "x", 0)

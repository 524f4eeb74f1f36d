"""All that the solver sees of a model: tensors, nodes, and the role each node plays.

A role is data. It says how an operator behaves under a change `t' = p*t + q` of the tensors around it, not
what the operator is called; one rule in `carry.py` serves each class of role. Input slots are numbered 0, 1,
...; output slots are -1, -2, ... . Arrays that belong to a tensor have its rank, and each axis is 1 or the
tensor's full static size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from bnfold.fold.windows import Windows

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = (
    "int | str | None"  # a static size, a named symbol, or unknown (equal to nothing, not even to itself)
)
Moments: TypeAlias = "Array | tuple[Array, Array]"  # two rows
Key: TypeAlias = "int | str"  # where a node keeps a value: an input slot, or an attribute's name


@dataclass(eq=False, slots=True)
class Constant:
    """A value that a node input sees: `load()` gives it in the orientation in which the node uses it.

    `store` identifies what lies in the file; several constants may look at one store. `locked` says why it
    must not be rewritten ("" if it may be). `quantized`: None for a plain constant; for integers behind a
    scale, the axes along which the scale may vary (only a change along one of them can be absorbed). `view`
    is the reader's own handle.
    """

    store: str
    load: Callable[[], Array]
    shape: tuple[int, ...]
    dtype: str
    locked: str = ""
    quantized: tuple[int, ...] | None = None
    view: Any = None

    @property
    def value(self) -> Array:
        return self.load()


@dataclass(eq=False, slots=True)
class Tensor:
    """A value that flows along the graph's edges."""

    name: str
    shape: tuple[Dim, ...] | None = None
    dtype: str = "float32"
    producer: Node | None = None
    slot: int = -1  # the output slot of the producer
    readers: list[tuple[Node, int]] = field(default_factory=list)
    fixed: str = ""  # why it must stay as it is: "graph input", "graph output", ...
    constant: Constant | None = (
        None  # one use of a constant as a data operand; its only reader may rewrite it
    )
    moments: Moments | None = None  # mean and variance per channel, if a batch norm knows them

    @property
    def rank(self) -> int:
        return len(self.shape or ())


@dataclass(eq=False, slots=True)
class Node:
    """An operator. `name` and `op` are for people; only `role` matters to the solver."""

    name: str
    op: str
    role: Role
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    source: Any = None  # the reader's own handle

    def at(self, slot: int) -> Tensor:
        tensor = self.inputs[slot] if slot >= 0 else self.outputs[-1 - slot]
        assert tensor is not None
        return tensor


class Role:
    """Base of all roles. An operator without a better one is `Closed`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Closed(Role):
    """Its float inputs and outputs must stay as they are. `listed`: a batch norm that is not affine has a
    line in the ledger all the same.
    """

    reason: str = "is not linear"
    listed: bool = False


@dataclass(eq=False, slots=True)
class Affine(Role):
    """`y = scale*x + shift`; the only role that may vanish, and the one that the solver is asked to make
    vanish.

    kind "norm": both are stored, so that a node that stays absorbs any change (p != 0). "scale": only the
    scale is (Mul by a constant). "shift": only the shift is (Add of a constant). Arrays are float64, of the
    tensor's rank. `stay` says why it may not vanish ("" if it may); it then still absorbs.
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
    bias_blocks_scale: bool = False  # the bias is computed at run time: the output cannot be scaled either
    padded: str = ""  # why an input shift cannot be absorbed ("" if it can)
    free: tuple[tuple[int, int], ...] = ()  # axes of x that reappear as axes of y
    alpha: float = 1.0
    beta: float = 1.0
    groups: int = 1
    costs: int = 0  # nodes that a missing bias would add
    windows: Windows | None = None  # None: neither a plain convolution nor a product with one matrix


@dataclass(eq=False, slots=True)
class Recurrent(Role):
    """LSTM, GRU, RNN: input weights (directions, gates, inputs) and bias absorb."""

    weight: Constant
    weight_slot: int
    bias: Constant | None
    bias_slot: int
    x: int = 0
    axis: int = 2


@dataclass(frozen=True, slots=True)
class Map(Role):
    """Elementwise, or a window or reduction within channels: `f(p*x + q) = p*f(x) + q` under conditions.

    `sign`: "any", "positive", or "absolute" (Abs: p -> |p|). `shift`: "any" or the reason why not. `flat` are
    the axes along which p and q must be constant (reduced, resized, windowed); on axes `mean` the shift may
    vary if it goes forward and arrives as its mean. `keep` tells how axes of x map to y (None: the same
    rank). `gain` multiplies q (ReduceSum: the number of summands, 0 unknown). `reduced` are axes of size 1 in
    y.
    """

    sign: str = "positive"
    shift: str = ""
    flat: tuple[int, ...] = ()
    squeezed: tuple[int, ...] = ()
    gain: float = 1.0
    uniform: bool = False  # one p and one q for the whole tensor
    flip: str = ""  # the operator that serves a negative p instead (ReduceMax <-> ReduceMin)


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
    """The tensor is framed along `axes`. fill None: by its own values; else by a constant, kept at `key`."""

    axes: tuple[int, ...]
    fill: float | None
    key: Key = 2


@dataclass(frozen=True, slots=True)
class Split(Role):
    """One input, several outputs: consecutive slices along one axis."""

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concat(Role):
    """Inputs side by side along one axis. `sizes`: None where unknown."""

    axis: int
    sizes: tuple[int | None, ...]


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
    """Two tensors multiplied at run time (MatMul, Einsum): p of an operand passes to y along the axes that it
    keeps.

    `axes[i]`: for each axis of operand i, the axis of y, or None where it is summed over. `stochastic` names
    the operand whose rows sum to one (Softmax), so that the other one's q passes as well; None if there is
    none.
    """

    axes: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    stochastic: int | None = None


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


@dataclass(eq=False, slots=True)
class Graph:
    """Nodes in topological order (bodies of If and Loop after the values they capture)."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)


# What a plan asks the writer to do. Arrays are in the type of the value that they replace.


@dataclass(eq=False, slots=True)
class SetValue:
    """Give the node's input slot or attribute `key` a new value; `old` is what it had before."""

    node: Node
    key: Key
    value: Array
    old: Constant | None = None


@dataclass(eq=False, slots=True)
class Rescale:
    """Multiply a quantized constant by `factor` (of its rank; negative entries negate the integers)."""

    node: Node
    key: Key
    factor: Array
    old: Constant


@dataclass(eq=False, slots=True)
class AddBias:
    """Give a node without bias one: an input, another operator that has one, or an Add behind it."""

    node: Node
    value: Array


@dataclass(eq=False, slots=True)
class Bypass:
    """Remove an affine node: its readers read its input."""

    node: Node


@dataclass(eq=False, slots=True)
class Retype:
    """Replace the operator by the one named in its role (`Map.flip`)."""

    node: Node
    op: str


Edit: TypeAlias = "SetValue | Rescale | AddBias | Bypass | Retype"

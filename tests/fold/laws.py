"""What each role asks of a change, as linear equations: the method a second time, without any search.

With every tensor written as `t = u*t' + v`, three systems part: log |u| ("L") and v ("V") over the reals, the
sign of u ("S") over GF(2), where + is 0. An unknown is one entry of a tensor's array; unknown 0 is no change.
A batch norm that stays asks nothing; one that vanishes asks `u_y = a*u_x` and `v_y = a*v_x + b`.

What is no linear equation is left out, so that more seems possible than is: slopes and bounds that swap, zero
scales, the layout of quantized weights, constants that cannot grow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bnfold.fold import roles
from bnfold.fold.affine import align
from bnfold.fold.graph import Array, Graph, Node, Refused, Tensor
from tests.fold.axes import varying
from tests.fold.products import contract, without_place

ALL, SCALE = "LSV", "LS"
LARGEST = 1 << 21  # entries of one tensor's array


class Laws:
    """The equations of a graph, and those of each node that may vanish (`candidates`).

    Attributes:
        products: nodes that may get an addition each. Equations of those that get none have numbers too,
            behind those of the candidates.
        size: the number of unknowns, those of all three systems alike.
        equal: for each system, pairs of arrays of unknowns that are equal entry by entry.
        rows: for each system, (unknowns (n, k), factors (n, k), right sides (n,), candidate or -1).

    Args:
        graph: what the solver sees.
        stay: candidates that are known to stay, of which more can be said.

    Raises:
        ValueError: a tensor may change in more entries than this can hold.
    """

    def __init__(self, graph: Graph, stay: Collection[Node] = ()) -> None:
        self.candidates: list[Node] = []
        self.ids: dict[Tensor, Array] = {}
        self.equal: dict[str, list[tuple[Array, Array]]] = {kind: [] for kind in ALL}
        self.rows: dict[str, list[tuple[Array, Array, Array, int]]] = {kind: [] for kind in ALL}
        self.stay = stay
        self.halves: list[tuple[Array, Array]] = []  # around LeakyRelus
        self.size = 1
        for tensor, axes in varying(graph).items():
            shape = tuple(size if axis in axes else 1 for axis, size in enumerate(tensor.shape or ()))
            count = int(np.prod(shape, dtype=np.int64))  # type: ignore[arg-type]
            if count > LARGEST:
                raise ValueError(f"{tensor.name} may change in {count} entries; {LARGEST} can be held")
            self.ids[tensor] = np.arange(self.size, self.size + count).reshape(shape)  # type: ignore[arg-type]
            self.size += count
        for node in graph.nodes:
            LAWS[type(node.role)](self, node)
        self.products: list[Node] = []
        for node, ids, factors in without_place(graph, self.ids):
            number = len(self.candidates) + len(self.products)
            self.products.append(node)
            self.rows["V"].append((ids, factors, np.zeros(len(ids)), number))
        for tensor in self.ids:
            if tensor.fixed or (tensor.constant is not None and tensor.constant.locked):
                self.still(ALL, tensor)
        self._unswapped()

    def _unswapped(self) -> None:
        """Where its sign is fixed, or no scale that may meet it is negative, a LeakyRelu keeps |u|."""
        if not self.halves:
            return
        halves = [tuple(np.broadcast_arrays(*pair)) for pair in self.halves]
        rows = self.rows["S"]
        ties = (*self.equal["S"], *halves, *(np.broadcast_arrays(ids[:, :1], ids) for ids, *_ in rows))
        signs = connected(_pairs((*self.equal["S"], *halves)), self.size)
        links = _pairs(ties)
        names = connected(links[:, (links != 0).all(0)], self.size)
        odd = [names[:0], *(names[ids[right != 0]].ravel() for ids, _, right, _ in rows)]
        for x, y in halves:
            fixed = (signs[x] == signs[0]) | (signs[y] == signs[0])
            kept = fixed | ~np.isin(names[x], np.concatenate(odd))
            self.same(SCALE, x[kept], y[kept])

    def still(self, kinds: str, *tensors: Tensor) -> None:
        """No change of these kinds."""
        for tensor in tensors:
            self.same(kinds, np.zeros_like(self.ids[tensor]), self.ids[tensor])

    def others_still(self, node: Node, data: Collection[int]) -> None:
        """Parameters that are computed at run time cannot change."""
        self.still(ALL, *(t for slot, t in enumerate(node.inputs) if t is not None and slot not in data))

    def same(self, kinds: str, a: Array, b: Array) -> None:
        a, b = np.broadcast_arrays(a, b)
        for kind in kinds:
            self.equal[kind].append((a, b))

    def positive(self, ids: Array) -> None:
        self.same("S", np.zeros_like(ids), ids)

    def even(self, kinds: str, ids: Array, axes: Collection[int]) -> Array:
        """One unknown along these axes; the array with size 1 there."""
        first = ids
        for axis in axes:
            first = first.take([0], axis)
        self.same(kinds, ids, first)
        return first

    def alike(self, x: Array, y: Array, axes: Collection[int], factor: Any) -> None:
        """Along these axes y changes as x does, times a factor."""
        start = tuple(slice(1) if axis in axes else slice(None) for axis in range(x.ndim))
        if any(x.shape[axis] > 1 or y.shape[axis] > 1 for axis in axes):
            for kind, times in (("L", 1.0), ("S", 1.0), ("V", factor)):
                self.row(kind, [(y, 1.0), (y[start], -1.0), (x, -times), (x[start], times)])

    def row(self, kind: str, terms: list[tuple[Array, Any]], right: Any = 0.0, candidate: int = -1) -> None:
        """sum(factor * unknown) = right, entry by entry."""
        *arrays, right = np.broadcast_arrays(*(ids for ids, _ in terms), right)
        factors = [np.broadcast_to(factor, right.shape).ravel() for _, factor in terms]
        ids = np.stack([array.ravel() for array in arrays], 1)
        self.rows[kind].append((ids, np.stack(factors, 1).astype(float), right.ravel(), candidate))


def _closed(laws: Laws, node: Node) -> None:
    laws.still(ALL, *(t for t in (*node.inputs, *node.outputs) if t is not None))


def _affine(laws: Laws, node: Node) -> None:
    role: roles.Affine = node.role  # type: ignore[assignment]
    x, y = laws.ids[node.at(role.x)], laws.ids[node.outputs[0]]
    laws.others_still(node, (role.x,))
    if role.kind == "scale":  # a product that stays passes a shift, a sum a scale
        laws.row("V", [(y, 1.0), (x, -role.scale)])
    stays = bool(role.stay) or node in laws.stay
    along = [axis for axis, size in enumerate(role.scale.shape) if size == 1]
    if role.kind == "shift":  # x + c or c - x, whose sign depends on whether it stays
        laws.same(SCALE if stays or (role.scale > 0).all() else "L", x, y)
    elif role.kind == "norm" and stays:  # it takes what varies along its channels
        laws.even(ALL, x, along)
        laws.even(ALL, y, along)
    elif role.kind == "norm":  # that, or both sides vary alike
        laws.alike(x, y, along, role.scale)
    if not role.stay:
        laws.candidates.append(node)
    if stays:
        return
    number = len(laws.candidates) - 1
    x, y, a, b = (array.ravel() for array in np.broadcast_arrays(x, y, role.scale, role.shift))
    x, y, a, b = (array[a != 0] for array in (x, y, a, b))
    laws.row("L", [(y, 1.0), (x, -1.0)], np.log(np.abs(a)), number)
    laws.row("S", [(y, 1.0), (x, 1.0)], (a < 0).astype(float), number)
    laws.row("V", [(y, 1.0), (x, -a)], b, number)


def _linear(laws: Laws, node: Node) -> None:
    role: roles.Linear = node.role  # type: ignore[assignment]
    x, y = node.at(role.x), node.outputs[0]
    laws.others_still(node, (role.x,))
    free = role.free if role.bias is None and not role.bias_blocks_scale else ()
    ends = (x, role.in_axis, [a for a, _ in free]), (y, role.out_axis, [b for _, b in free])
    for tensor, own, passing in ends:
        rest = [axis for axis in range(tensor.rank) if axis != own]
        laws.even("V", laws.ids[tensor], rest)
        laws.even(SCALE, laws.ids[tensor], [axis for axis in rest if axis not in passing])
    _passed(laws, *ends)
    if role.weight.locked or role.weight.quantized == ():
        laws.still(SCALE, x, y)
    elif role.weight.quantized is not None:  # one scale for all takes one factor, and others along their axis
        for tensor, own, stored in ((x, role.in_axis, role.w_in), (y, role.out_axis, role.w_out)):
            if role.stored(stored) not in role.weight.quantized:
                laws.even(SCALE, laws.ids[tensor], [own])
    if role.padded:
        laws.still("V", x)
    locked = role.bias is not None and bool(role.bias.locked)
    if role.bias_open or locked:
        laws.still("V", x, y)
    if role.bias_blocks_scale or locked:
        laws.still(SCALE, y)


def _passed(laws: Laws, *ends: tuple[Tensor, int, list[int]]) -> None:
    """Along its free axes a layer's output changes by the factors by which its input does."""
    arrays = []
    for tensor, own, passing in ends:
        ids = laws.ids[tensor]
        rest = [axis for axis in range(ids.ndim) if axis not in (own, *passing)]
        arrays.append(ids.transpose(own, *passing, *rest)[(..., *(0 for _ in rest))])  # channels, free axes
    one = arrays[0][:1]
    start = (slice(None), *(slice(1) for _ in one.shape[1:]))
    for ids in arrays if max(ids[0].size for ids in arrays) > 1 else ():
        for kind in SCALE:
            laws.row(kind, [(ids, 1.0), (ids[start], -1.0), (one, -1.0), (one[start], 1.0)])


def _recurrent(laws: Laws, node: Node) -> None:
    role: roles.Recurrent = node.role  # type: ignore[assignment]
    laws.others_still(node, (role.x,))
    laws.still(ALL, *node.outputs)
    ids = laws.ids[node.at(role.x)]
    laws.even(ALL, ids, [axis for axis in range(ids.ndim) if axis != role.axis])


def _map(laws: Laws, node: Node) -> None:
    role: roles.Map = node.role  # type: ignore[assignment]
    x, y = laws.ids[node.at(role.x)], laws.ids[node.outputs[0]]
    laws.others_still(node, (role.x,))
    x = laws.even(ALL, x, range(x.ndim) if role.uniform else role.flat)
    x = x.squeeze(role.squeezed) if role.squeezed else x
    if role.power == 1:
        laws.same("L", x, y)
    else:
        laws.row("L", [(y, 1.0), (x, -role.power)])
    if role.sign == "absolute":
        laws.positive(y)
    else:
        laws.same("S", x, y)
    if role.sign == "positive" and not role.flip:
        laws.positive(y)
    if role.shift or role.gain == 0:
        laws.still("V", node.at(role.x), node.outputs[0])
    elif role.centred:
        laws.still("V", node.outputs[0])
    else:
        laws.row("V", [(y, 1.0), (x, -role.gain)])


def _leaky(laws: Laws, node: Node) -> None:
    role: roles.Leaky = node.role  # type: ignore[assignment]
    x, y = node.at(0), node.outputs[0]
    laws.still("V", x, y)
    if (role.slope > 0).all():  # a negative scale swaps the halves, and |u| changes
        laws.halves.append((laws.ids[x], laws.ids[y]))
    else:
        laws.same(SCALE, laws.ids[x], laws.ids[y])
        laws.positive(laws.ids[x])
    if role.constant is None:  # one slope for all
        laws.even("S", laws.ids[x], range(x.rank))


def _clamp(laws: Laws, node: Node) -> None:
    role: roles.Clamp = node.role  # type: ignore[assignment]
    x, y = laws.ids[node.at(0)], laws.ids[node.outputs[0]]
    laws.same(ALL, x, y)
    laws.even("V", x, range(x.ndim))
    if role.low not in (0, -np.inf) or role.high not in (0, np.inf):  # else a Relu, which scales may pass
        laws.even(SCALE, x, range(x.ndim))


def _gate(laws: Laws, node: Node) -> None:
    role: roles.Gate = node.role  # type: ignore[assignment]
    x, y = node.at(0), node.outputs[0]
    laws.even(ALL, laws.ids[x], range(x.rank))
    if role.beta is not None:
        laws.still(ALL, y)
        return
    laws.same(SCALE, laws.ids[x], laws.ids[y])
    laws.positive(laws.ids[x])
    laws.still("V", x, y)


def _move(laws: Laws, node: Node) -> None:
    """Unknowns are moved like the data. Where they cannot be, they vary along axes where they must not."""
    role: roles.Move = node.role  # type: ignore[assignment]
    x, y = laws.ids[node.at(role.x)], laws.ids[node.outputs[0]]
    laws.others_still(node, (role.x,))
    vary = [axis for axis, size in enumerate(x.shape) if size > 1]
    for axes in (axes for count in range(len(vary) + 1) for axes in combinations(vary, count)):
        first = x
        for axis in axes:
            first = first.take([0], axis)
        try:
            moved = role.move.push(first.astype(float))
        except Refused:
            continue
        laws.even(ALL, x, axes)
        laws.same(ALL, moved.astype(int), y)
        return
    laws.still(ALL, node.at(role.x), node.outputs[0])


def _pad(laws: Laws, node: Node) -> None:
    role: roles.Pad = node.role  # type: ignore[assignment]
    x, y = laws.ids[node.at(role.x)], laws.ids[node.outputs[0]]
    laws.others_still(node, (role.x,))
    laws.same(ALL, laws.even(ALL, x, role.axes), y)
    if role.fill:  # beside zeros, one and the same v / u would do: no linear equation
        laws.even(ALL, x, range(x.ndim))


def _split(laws: Laws, node: Node) -> None:
    role: roles.Split = node.role  # type: ignore[assignment]
    _parts(laws, node.at(0), list(zip(node.outputs, role.sizes, strict=True)), role.axis, role.drops)


def _concat(laws: Laws, node: Node) -> None:
    role: roles.Concat = node.role  # type: ignore[assignment]
    parts = [(node.at(slot), size) for slot, size in enumerate(role.sizes) if node.inputs[slot] is not None]
    _parts(laws, node.outputs[0], parts, role.axis, role.adds)


def _parts(laws: Laws, whole: Tensor, parts: list[tuple[Tensor, int | None]], axis: int, alone: bool) -> None:
    """Parts side by side along one axis of the whole; alone: each is one entry of it, without that axis."""
    ids, start = laws.ids[whole], 0
    known = ids.shape[axis] > 1 and all(size is not None for _, size in parts)
    if not known:
        ids = laws.even(ALL, ids, (axis,))
    for tensor, size in parts:
        part = ids.take(range(start, start + (size or 0)), axis) if known else ids
        start += size or 0
        if _takes_all(tensor):
            continue
        own = np.expand_dims(laws.ids[tensor], axis) if alone else laws.ids[tensor]
        laws.same(ALL, part, own if known else laws.even(ALL, own, (axis,)))


def _takes_all(tensor: Tensor) -> bool:
    """A stored operand is rewritten."""
    return tensor.constant is not None and not tensor.constant.locked


def _operands(laws: Laws, node: Node) -> tuple[Array, dict[int, Array], bool]:
    """Unknowns of the output, of operands (in its rank), and whether a stored operand takes what is left."""
    y = laws.ids[node.outputs[0]]
    stored = {slot for slot, tensor in enumerate(node.inputs) if tensor is not None and _takes_all(tensor)}
    slots = [slot for slot, t in enumerate(node.inputs) if t is not None and slot not in stored]
    return y, {slot: align(laws.ids[node.at(slot)], y.ndim) for slot in slots}, bool(stored)


def _sum(laws: Laws, node: Node) -> None:
    role: roles.Sum = node.role  # type: ignore[assignment]
    y, operands, open_ = _operands(laws, node)
    for ids in operands.values():
        laws.same(SCALE, ids, y)
    if not open_:
        laws.row("V", [(y, 1.0), *((ids, -role.coefficients[slot]) for slot, ids in operands.items())])


def _product(laws: Laws, node: Node) -> None:
    role: roles.Product = node.role  # type: ignore[assignment]
    y, operands, open_ = _operands(laws, node)
    laws.still("V", *(t for t in (*node.inputs, *node.outputs) if t is not None))
    for kind in SCALE if not open_ else "":
        laws.row(kind, [(y, 1.0), *((ids, -role.powers[slot]) for slot, ids in operands.items())])


def _same(laws: Laws, node: Node) -> None:
    role: roles.Same = node.role  # type: ignore[assignment]
    y, operands, _ = _operands(laws, node)
    laws.others_still(node, role.slots)
    for slot, ids in operands.items():
        if slot in role.slots:
            laws.same(ALL, ids, y)
    if role.sign == "positive":
        laws.positive(y)


def _normalize(laws: Laws, node: Node) -> None:
    role: roles.Normalize = node.role  # type: ignore[assignment]
    x, y = node.at(0), node.outputs[0]
    laws.others_still(node, (0,))
    laws.still(ALL, *node.outputs[1:])
    laws.even(SCALE, laws.ids[x], range(x.rank))
    laws.positive(laws.ids[x])
    if role.removes_mean:
        laws.even("V", laws.ids[x], role.over)
    else:
        laws.still("V", x)
    if role.scale is None or role.scale.locked:
        laws.still(ALL, y)
    elif role.bias_slot is None:
        laws.still("V", y)
    laws.even(ALL, laws.ids[y], [axis for axis in range(y.rank) if axis not in role.axes])


def _softmax(laws: Laws, node: Node) -> None:
    role: roles.SoftmaxInput = node.role  # type: ignore[assignment]
    laws.still(SCALE, node.at(0))
    laws.even("V", laws.ids[node.at(0)], (role.axis,))
    laws.still(ALL, node.outputs[0])


def _pairs(ties: Iterable[Sequence[Array]]) -> Array:
    return np.concatenate([np.zeros((2, 0), int), *(np.stack([a.ravel(), b.ravel()]) for a, b in ties)], 1)


def connected(pairs: Array, size: int) -> Array:
    """For each of `size` numbers, a name that it shares with those that pairs (2, n) connect it to."""
    links = coo_matrix((np.ones(pairs.shape[1]), tuple(pairs)), (size, size))
    names: Array = connected_components(links, directed=False)[1]
    return names


LAWS: dict[type, Callable[[Laws, Node], None]] = {
    roles.Closed: _closed,
    roles.Affine: _affine,
    roles.Linear: _linear,
    roles.Recurrent: _recurrent,
    roles.Map: _map,
    roles.Leaky: _leaky,
    roles.Clamp: _clamp,
    roles.Gate: _gate,
    roles.Move: _move,
    roles.Pad: _pad,
    roles.Split: _split,
    roles.Concat: _concat,
    roles.Sum: _sum,
    roles.Product: _product,
    roles.Same: _same,
    roles.Contract: contract,
    roles.Normalize: _normalize,
    roles.SoftmaxInput: _softmax,
}

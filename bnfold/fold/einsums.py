"""Roles of products by an equation, as Einsum has it: "btc,oc->bto", "...c,chd->...hd"."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

from bnfold.fold.graph import Constant, Refused
from bnfold.fold.role_builders import Shape, by_matrix, is_kept
from bnfold.fold.roles import Contract, Linear

__all__ = ["einsum", "einsum_by_matrix"]

DOTS = "..."


def einsum(equation: str, shapes: Sequence[Shape], y: Shape) -> Contract:
    """A product of two tensors.

    Args:
        equation: as the operator has it.
        shapes: of the operands.
        y: the shape of the result.

    Raises:
        Refused: it is another one, or sums the diagonal of an operand.
    """
    found = _labels(equation, [len(shape) for shape in shapes], len(y))
    if found is None:
        raise Refused(f"its equation {equation!r} is not a plain product of two tensors")
    *terms, right = found
    axes = []
    for term, shape in zip(terms, shapes, strict=True):
        goals: list[int | None] = []
        for label, size in zip(term, shape, strict=True):
            goal = right.find(label)
            goals.append(goal if goal >= 0 and is_kept(size, y[goal]) else None)
        axes.append(tuple(goals))
    return Contract((axes[0], axes[1]), labels=found)


def einsum_by_matrix(equation: str, weight: Constant, slot: int, shape: Shape, rank: int) -> Linear | None:
    """A tensor times a stored matrix.

    Args:
        equation: as the operator has it.
        weight: what is stored, at `slot`, 0 or 1.
        slot: of the weight.
        shape: of the other operand.
        rank: of the result.

    Returns:
        None where it is something else: summed over more than one axis, or batches of matrices.
    """
    ranks = [len(shape), len(shape)]
    ranks[slot] = len(weight.shape)
    found = _labels(equation, ranks, rank)
    if found is None:
        return None
    data, matrix, right = found[1 - slot], found[slot], found[2]
    summed = set(matrix) & set(data) - set(right)
    made = set(matrix) & set(right) - set(data)
    if len(matrix) != 2 or len(summed) != 1 or len(made) != 1:
        return None
    inner, outer = summed.pop(), made.pop()
    if set(data) - {inner} != set(right) - {outer}:
        return None
    in_axis, w_in = data.index(inner), matrix.index(inner)
    if shape[in_axis] != weight.shape[w_in]:  # not known, or 1, which is broadcast
        return None
    free = tuple((axis, right.index(label)) for axis, label in enumerate(data) if label != inner)
    role = by_matrix(weight, slot, 1 - slot, in_axis, right.index(outer), w_in, free)
    role.windows, role.costs = None, 1
    return role


def _labels(equation: str, ranks: Sequence[int], rank: int) -> tuple[str, str, str] | None:
    """The axes of two operands and of the result, a letter each; None: it is no plain product of the two."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(ranks) or len(terms) != 2:
        return None
    unused = "".join(letter for letter in ascii_letters if letter not in equation)
    terms.append(right)
    hidden = [size - len(term.replace(DOTS, "")) for term, size in zip(terms, (*ranks, rank), strict=True)]
    if min(hidden) < 0 or hidden[2] != max(hidden) or hidden[2] > len(unused):
        return None
    found = []
    for term, count in zip(terms, hidden, strict=True):  # what an ellipsis stands for ends alike in all
        if count and DOTS not in term:
            return None
        found.append(term.replace(DOTS, unused[hidden[2] - count : hidden[2]], 1))
    plain = all(len(set(term)) == len(term) and set(term) <= set(ascii_letters) for term in found)
    known = set(found[2]) <= set(found[0] + found[1])
    return (found[0], found[1], found[2]) if plain and known else None

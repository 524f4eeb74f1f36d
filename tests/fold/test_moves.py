"""How arrays follow data that is rearranged: the same index must carry the same number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bnfold.fold import moves
from bnfold.fold.graph import Refused
from bnfold.fold.moves import Take, Transpose, regroup


@pytest.mark.parametrize(
    ("before", "after", "channels", "goal"),
    [
        ((1, 8, 4, 5), (1, 2, 4, 4, 5), (1, 8, 1, 1), (1, 2, 4, 1, 1)),
        (("N", 8, 4, 5), ("N", 8, 20), (1, 8, 1, 1), (1, 8, 1)),
        (("N", 8, "H", "W"), ("N", 8, None), (1, 8, 1, 1), (1, 8, 1)),
        ((None, 8, 1, 1), (None, 8), (1, 8, 1, 1), (1, 8)),
        ((2, 8, 3), (2, 24), (1, 8, 1), (1, 24)),
        ((2, 24), (2, 8, 3), (1, 24), (1, 8, 3)),
        ((2, 8), (2, 8, 1, 1), (1, 8), (1, 8, 1, 1)),
        ((1, 1, 8), (8,), (1, 1, 8), (8,)),
    ],
)
def test_regroup_moves_numbers_like_data(before, after, channels, goal) -> None:  # type: ignore[no-untyped-def]
    array = np.arange(1.0, 1 + math.prod(channels)).reshape(channels)
    moved = regroup(array, before, after)
    assert moved.shape == goal
    if all(isinstance(d, int) for d in before):
        data = np.broadcast_to(array, before).reshape(after)
        np.testing.assert_array_equal(np.broadcast_to(moved, after), data)
    np.testing.assert_array_equal(regroup(moved, after, before), array)


def test_regroup_refuses_what_it_cannot_follow() -> None:
    with pytest.raises(Refused):
        regroup(np.arange(8.0).reshape(1, 8, 1), ("N", 8, "H"), ("N", None))


def test_unknown_dimensions_equal_nothing() -> None:
    with pytest.raises(Refused):
        regroup(np.arange(8.0).reshape(1, 8, 1), (None, 8, None), (8, None, None))


def test_transpose_and_back() -> None:
    array = np.arange(8.0).reshape(1, 8, 1)
    move = Transpose((2, 0, 1))
    assert move.push(array).shape == (1, 1, 8)
    np.testing.assert_array_equal(move.pull(move.push(array)), array)


def test_take_leaves_the_rest_open() -> None:
    move = Take(1, (2, 0), 4)
    np.testing.assert_array_equal(move.push(np.arange(4.0).reshape(1, 4)), [[2, 0]])
    np.testing.assert_array_equal(move.pull(np.array([[5.0, 6.0]])), [[6, np.nan, 5, np.nan]])


def test_take_twice_with_different_changes() -> None:
    with pytest.raises(Refused):
        Take(1, (1, 1), 3).pull(np.array([[5.0, 6.0]]))


@pytest.mark.parametrize("depth_first", [True, False])
def test_depth_to_space_is_free_backward_and_equal_within_a_block_forward(depth_first) -> None:  # type: ignore
    move = moves.DepthToSpace(2, depth_first)
    small = np.arange(1.0, 4.0).reshape(1, 3, 1, 1)
    large = move.pull(small)
    assert large.shape == (1, 12, 1, 1)
    np.testing.assert_array_equal(move.push(large), small)
    data = np.broadcast_to(large, (1, 12, 2, 2))
    shape = (1, 2, 2, 3, 2, 2) if depth_first else (1, 3, 2, 2, 2, 2)
    axes = (0, 3, 4, 1, 5, 2) if depth_first else (0, 1, 4, 2, 5, 3)
    image = data.reshape(shape).transpose(axes).reshape(1, 3, 4, 4)  # ONNX, DepthToSpace
    np.testing.assert_array_equal(image, np.broadcast_to(small, (1, 3, 4, 4)))
    with pytest.raises(Refused):
        move.push(np.arange(12.0).reshape(1, 12, 1, 1))

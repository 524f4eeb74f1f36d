"""What is refused although it is exact on paper, and the neighbour that is not."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.fold.absorb import absorb as absorbing
from bnfold.fold.absorb.store import to_disk
from bnfold.fold.carry.guard import CARRIED, KAPPA
from bnfold.fold.edits import SetValue
from bnfold.fold.solve import solve
from tests.fold.nets import Net


def half(net: Net) -> Net:
    for tensor in net.graph.tensors:
        tensor.dtype = "float16"
    return net


@pytest.mark.parametrize(("scale", "folds"), [(2.0, True), (CARRIED["float16"] * 2, False), (1e-4, False)])
def test_half_precision_activations_stay_near_their_size(scale: float, folds: bool) -> None:
    """bn -> Relu -> conv: the Relu's output would be carried at 1/scale times its size."""
    net = Net()
    x = net.relu(net.norm(net.move(net.tensor(4, "graph input")), "bn", scale=[scale] * 4, shift=[0] * 4))
    net.close(net.conv(x))
    plan = solve(half(net).graph)
    assert (plan.order != []) == folds
    if not folds:
        assert "float16" in plan.entries[0].reason


def test_the_ends_of_a_pair_take_each_others_values() -> None:
    net = Net()
    net.close(net.norm(net.conv(net.tensor(4, "graph input")), "bn", scale=[300.0] * 4))
    assert solve(half(net).graph).order


@pytest.mark.parametrize(("size", "folds"), [(1.0, True), (0.5 / KAPPA, False)])
def test_a_shift_that_drowns_the_signal_stays(size: float, folds: bool) -> None:
    """conv -> bn and, beside it, a reader that would have to take the shift off again."""
    net = Net()
    y = net.conv(net.tensor(4, "graph input"))
    net.close(net.norm(y, "bn", scale=[1.0] * 4, shift=[1.0] * 4))
    net.close(net.conv(y, name="reader"))
    y.moments = (np.zeros(4), np.full(4, size**2))
    plan = solve(net.graph)
    assert (plan.order != []) == folds
    if not folds:
        assert "reader" in plan.entries[0].blocked_by
        assert "last place" in plan.entries[0].reason


def test_large_new_weights_move_to_a_file_and_keep_their_values() -> None:
    value = np.arange(1 << 18, dtype=np.float32).reshape(512, 512)
    node = Net().conv(Net().tensor(4)).producer
    assert node is not None
    (edit,) = to_disk([SetValue(node, 1, value.copy())], held=0)
    assert isinstance(edit, SetValue)
    assert isinstance(edit.value, np.memmap)
    np.testing.assert_array_equal(edit.value, value)
    (small,) = to_disk([SetValue(node, 1, value[:2].copy())], held=0)
    assert isinstance(small, SetValue)
    assert not isinstance(small.value, np.memmap)
    assert absorbing.to_disk is to_disk


@pytest.mark.parametrize(("scale", "folds"), [(1e-30, True), (1e-39, False)])
def test_one_channel_below_the_normal_numbers_stops_the_fold(scale: float, folds: bool) -> None:
    net = Net()
    net.close(net.norm(net.conv(net.tensor(4, "graph input")), "bn", scale=[1, scale, 1, 1], shift=[0] * 4))
    plan = solve(net.graph)
    assert (plan.order != []) == folds
    if not folds:
        assert "channel 1" in plan.entries[0].reason


def test_a_dead_channel_folds() -> None:
    """Its weights are exactly zero, which every type can store."""
    net = Net()
    net.close(net.norm(net.conv(net.tensor(4, "graph input")), "bn", scale=[1, 0, 1, 1]))
    assert solve(net.graph).order

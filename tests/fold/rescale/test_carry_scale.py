"""A positive scale carried on any tensor, and channels brought into a narrower range, without any file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.fold.absorb.absorb import absorb
from bnfold.fold.carry.spread import Conflict, State
from bnfold.fold.edits import SetValue
from bnfold.fold.graph import Tensor
from bnfold.fold.rescale.carry_scale import carry, commit, undo
from bnfold.fold.rescale.fit_range import fit, troubled
from bnfold.fold.rescale.headroom import BFLOAT16, FLOAT16, headroom
from bnfold.fold.roles import Linear
from tests.fold.nets import Net

MARGIN = 8.0


def factor(*values: float) -> Any:
    return np.array(values, np.float64).reshape(1, -1, 1, 1)


def weights(net: Net, state: State) -> dict[str, Any]:
    """The weights of each conv as they become."""
    found = {n.name: n.role.weight.value for n in net.graph.nodes if isinstance(n.role, Linear)}
    for edit in absorb(net.graph, state):
        if isinstance(edit, SetValue) and edit.key == 1:
            found[edit.node.name] = edit.value
    return found


def seen(sizes: dict[Tensor, Any]) -> Any:
    return lambda tensor, axis: sizes.get(tensor) if axis == 1 else None


def chain(first: Any = 1.0, second: Any = 1.0) -> tuple[Net, list[Tensor]]:
    """Conv, Relu, conv, closed; the weights of the convs times `first` and `second`."""
    net = Net()
    x = net.tensor(4, fixed="graph input")
    a = net.conv(x, name="one")
    r = net.relu(a)
    b = net.conv(r, name="two")
    net.close(b)
    for node in net.graph.nodes:
        if isinstance(node.role, Linear):
            size = (
                np.reshape(first, (-1, 1, 1, 1)) if node.name == "one" else np.reshape(second, (1, -1, 1, 1))
            )
            value = node.role.weight.value * size
            node.role.weight = net.constant(value)
    return net, [x, a, r, b]


def test_a_factor_is_absorbed_on_both_sides_of_a_relu() -> None:
    net, (_, a, r, b) = chain()
    before, p, state = weights(net, State()), factor(2, 0.25, 8, 1), State()
    spread = carry(state, r, p)
    assert not state.p
    assert set(spread.values) == {a, r}
    commit(state, spread)
    after = weights(net, state)
    np.testing.assert_array_equal(after["one"], before["one"] * p.reshape(4, 1, 1, 1))
    np.testing.assert_array_equal(after["two"], before["two"] / p)
    assert b not in state.p


def test_factors_add_up_and_are_taken_back() -> None:
    net, (_, a, r, _) = chain()
    state = State()
    one, two = carry(state, r, factor(2, 4, 1, 1)), None
    commit(state, one)
    two = carry(state, a, factor(2, 0.5, 0.5, 1))
    commit(state, two)
    np.testing.assert_array_equal(state.p[r], factor(4, 2, 0.5, 1))
    undo(state, two)
    np.testing.assert_array_equal(state.p[r], factor(2, 4, 1, 1))
    undo(state, one)
    assert not state.p
    assert not absorb(net.graph, state)


def test_a_sum_carries_one_factor_on_all_its_branches() -> None:
    net = Net()
    x = net.tensor(4, fixed="graph input")
    a, b = net.conv(x, name="one"), net.conv(x, name="two")
    s = net.add(a, b)
    net.close(net.conv(s, name="three"))
    spread = carry(State(), b, factor(2, 2, 4, 1))
    assert set(spread.values) == {a, b, s}
    assert all(np.array_equal(value, factor(2, 2, 4, 1)) for value in spread.values.values())


def test_what_cannot_follow_is_named() -> None:
    net, (x, a, _, b) = chain()
    for tensor, reason in ((x, "graph input"), (b, "Sigmoid is not linear")):
        with pytest.raises(Conflict, match=reason):
            carry(State(), tensor, factor(2, 2, 2, 2))
    with pytest.raises(Conflict, match=r"would be carried at 1\.13e\+15 times its size"):
        carry(State(), a, factor(2.0**50, 1, 1, 1))
    with pytest.raises(ValueError, match="positive"):
        carry(State(), a, factor(-1, 1, 1, 1))
    assert net.graph.nodes


def test_small_weights_matter_only_against_what_they_are_added_to() -> None:
    net, (x, a, _, _) = chain(first=np.array([1, 1e-6, 1e-6, 0]))
    node = net.graph.nodes[0]
    sizes = {x: np.ones(4), a: np.array([1, 1e-6, 1.0, 0])}
    head = headroom(node, State(), seen(sizes), FLOAT16)
    assert head is not None
    assert head.vanishing.tolist() == [False, True, False, False]  # the third has a bias of 1 beside it
    assert not headroom(node, State(), seen(sizes), BFLOAT16).troubles  # type: ignore[union-attr]


def test_a_small_channel_matters_only_to_a_reader_that_makes_it_large() -> None:
    for gain, matters in ((1.0, False), (1e5, True)):
        net, (_, _, r, b) = chain(second=np.array([1, 1, 1, gain]))
        sizes = {r: np.array([1, 1, 1, 1e-6]), b: np.full(4, 1.0)}
        head = headroom(net.graph.nodes[2], State(), seen(sizes), FLOAT16)
        assert head is not None
        assert head.fading.tolist() == [False, False, False, matters]


def test_channels_come_into_range() -> None:
    size = np.array([1, 1e-7, 2e5, 1])
    net, (x, a, r, b) = chain(first=size, second=1 / size)
    sizes = {x: np.ones(4), a: size, r: size, b: np.ones(4)}
    assert {node.name for node in troubled(net.graph, State(), seen(sizes), FLOAT16)} == {"one", "two"}
    result = fit(net.graph, seen(sizes), FLOAT16, MARGIN)
    assert not troubled(net.graph, result.state, seen(sizes), FLOAT16)
    assert not result.stuck
    p = result.state.p[r].reshape(-1)
    assert np.array_equal(np.exp2(np.round(np.log2(p))), p)
    assert p[0] == p[3] == 1
    assert (size * p * MARGIN <= FLOAT16.largest).all()
    (moved,) = result.moved
    assert moved.channels == [1, 2]
    assert moved.values is not None
    np.testing.assert_array_equal(moved.values[0], size[[1, 2]])
    np.testing.assert_array_equal(moved.values[1], (size * p)[[1, 2]])
    assert moved.weights is not None
    assert (moved.weights[1] >= FLOAT16.tiny).all()
    for name, value in weights(net, result.state).items():
        assert np.abs(value).max() < FLOAT16.largest, name


def test_nothing_in_range_is_touched_and_what_is_stuck_is_told() -> None:
    net, (x, a, r, b) = chain()
    sizes = {t: np.ones(4) for t in (x, a, r, b)}
    assert not fit(net.graph, seen(sizes), FLOAT16, MARGIN).state.p
    sizes[b] = np.full(4, 1e5)
    result = fit(net.graph, seen(sizes), FLOAT16, MARGIN)
    assert not result.moved
    ((name, reason),) = result.stuck
    assert name == b.name
    assert "Sigmoid is not linear" in reason

"""Weight ranges balanced by powers of two, without any file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.fold.absorb.absorb import absorb
from bnfold.fold.carry.spread import State
from bnfold.fold.edits import SetValue
from bnfold.fold.graph import Node, Tensor
from bnfold.fold.rescale.equalize import ENOUGH, Equalized, equalize
from bnfold.fold.rescale.int8_loss import BITS, lost, weight_sizes
from bnfold.fold.roles import Clamp, Concat, Linear
from tests.fold.nets import Net

# rows and columns that make up for each other
FAR = np.array([1, 2.0**-8, 2.0**-6, 2.0**-8])
NEAR = np.array([2.0**-8, 1, 2.0**-2, 1])


def scaled(net: Net, name: str, rows: Any = 1.0, columns: Any = 1.0) -> None:
    """Give a conv's weight, all of about the same size so far, other ranges."""
    node = next(node for node in net.graph.nodes if node.name == name)
    role = node.role
    assert isinstance(role, Linear)
    sign = np.sign(role.weight.value)
    role.weight = net.constant(sign * np.reshape(rows, (-1, 1, 1, 1)) * np.reshape(columns, (1, -1, 1, 1)))


def depthwise(net: Net, x: Tensor, sizes: Any, name: str) -> Tensor:
    count = len(sizes)
    weight = net.constant(np.reshape(sizes, (count, 1, 1, 1)))
    role = Linear(
        weight, 1, 0, 1, 1, (count, 1, 1, 1, 1), 0, 1, 2, bias=net.constant(np.zeros(count)), bias_slot=2
    )
    return net.node("Conv", role, [x], count, name)


def weights(net: Net, state: State) -> dict[str, Any]:
    found = {n.name: n.role.weight.value for n in net.graph.nodes if isinstance(n.role, Linear)}
    for edit in absorb(net.graph, state):
        if isinstance(edit, SetValue) and edit.key == 1:
            found[edit.node.name] = edit.value
    return found


def sums(net: Net, found: Equalized) -> tuple[float, float]:
    layers = [layer for node in net.graph.nodes if (layer := weight_sizes(node)) is not None]
    return tuple(sum(layer.lost(s) for layer in layers) for s in (State(), found.state))  # type: ignore


def chain(rows: Any = FAR, columns: Any = NEAR, between: str = "relu") -> tuple[Net, list[Tensor]]:
    """Conv, something, conv, Sigmoid."""
    net = Net()
    x = net.tensor(4, fixed="graph input")
    a = net.conv(x, name="one")
    if between == "relu":
        r = net.relu(a)
    elif between == "clip":
        r = net.node("Clip", Clamp(0.0, 6.0), [a], 4, "clip")
    else:
        r = net.close(a) or net.graph.nodes[-1].outputs[0]
    b = net.conv(r, name="two")
    net.close(b)
    scaled(net, "one", rows)
    scaled(net, "two", columns=columns)
    return net, [x, a, r, b]


def test_bits_are_lost_against_the_largest_channel() -> None:
    assert lost(np.array([1.0, 1.0])) == 0
    assert lost(np.array([8.0, 2.0])) == 1  # 0 and 2
    assert lost(np.array([1.0, 0.0])) == 0  # a channel of zeros has nothing to lose
    assert lost(np.array([1.0, 2.0**-30])) == BITS / 2
    assert lost(np.zeros(0)) == 0


def test_the_factor_is_the_square_root_of_what_the_reader_has_left() -> None:
    rows, columns = FAR, NEAR
    net, (_, a, r, _) = chain(rows=rows, columns=columns)
    before = weights(net, State())
    found = equalize(net.graph)
    p = found.state.p[r].reshape(-1)
    wanted = np.sqrt(columns / rows)
    np.testing.assert_array_equal(p / p[0], wanted / wanted[0])
    np.testing.assert_array_equal(found.state.p[a].reshape(-1), p)
    after = weights(net, found.state)
    np.testing.assert_array_equal(np.abs(after["one"][:, 0, 0, 0]), rows * p)
    np.testing.assert_array_equal(np.abs(after["two"][0, :, 0, 0]), columns / p)
    np.testing.assert_array_equal(  # and what both compute together is what it was, bit for bit
        np.einsum("oi,ij->oij", after["two"][..., 0, 0], after["one"][..., 0, 0]),
        np.einsum("oi,ij->oij", before["two"][..., 0, 0], before["one"][..., 0, 0]),
    )
    (region,) = found.regions
    assert region.factors.tolist() == p.tolist()
    assert {t.name for t in region.members} == {a.name, r.name}
    assert [n.name for n in region.made_by] == ["one"]
    assert [n.name for n in region.read_by] == ["two"]
    one, two = sums(net, found)
    assert two < one
    assert (found.before, found.after) == (one / 2, two / 2)


def test_balanced_ranges_are_left_alone() -> None:
    net, _ = chain(rows=1.0, columns=1.0)
    found = equalize(net.graph)
    assert not found.state.p
    assert not found.regions
    assert ENOUGH in {entry.reason for entry in found.stuck} or not found.before


def test_a_channel_without_a_range_is_left_alone() -> None:
    net, (_, _, r, _) = chain(np.array([1, 0, 2.0**-30, 2.0**-8]), np.array([2.0**-8, 2.0**-4, 2.0**-4, 1]))
    p = equalize(net.graph).state.p[r].reshape(-1)
    assert p[1] == p[2] == 1
    assert p[3] > p[0]


def test_all_makers_and_readers_of_a_sum_have_their_say() -> None:
    net = Net()
    x = net.tensor(4, fixed="graph input")
    a, b = net.conv(x, name="one"), net.conv(x, name="two")
    s = net.relu(net.add(a, b))
    net.close(net.conv(s, name="three"))
    net.close(net.conv(s, name="four"))
    for name in ("one", "two"):
        scaled(net, name, rows=FAR)
    for name in ("three", "four"):
        scaled(net, name, columns=NEAR)
    scaled(net, "two", rows=1.0)
    found = equalize(net.graph)
    p = found.state.p[s].reshape(-1)
    assert all(np.array_equal(found.state.p[t].reshape(-1), p) for t in (a, b))
    wanted = np.sqrt(NEAR / np.sqrt(FAR))  # the geometric mean of both makers' rows
    assert np.abs(np.log2(p / p[1]) - np.log2(wanted / wanted[1])).max() <= 0.5
    (region,) = found.regions
    assert {n.name for n in region.made_by} == {"one", "two"}
    assert {n.name for n in region.read_by} == {"three", "four"}
    one, two = sums(net, found)
    assert two < one


def test_a_depthwise_conv_has_one_row_and_column_for_each_channel() -> None:
    net = Net()
    x = net.tensor(4, fixed="graph input")
    a = net.relu(net.conv(x, name="one"))
    b = net.relu(depthwise(net, a, FAR, "middle"))
    net.close(net.conv(b, name="two"))
    scaled(net, "one")
    scaled(net, "two", columns=NEAR)
    found = equalize(net.graph)
    middle = np.abs(weights(net, found.state)["middle"]).reshape(-1)
    assert np.log2(middle.max() / middle.min()) < 8 - 2
    assert {n.name for region in found.regions for n in region.made_by + region.read_by} >= {"middle", "two"}
    one, two = sums(net, found)
    assert two < one


def test_parts_of_a_concat_are_regions_of_their_own() -> None:
    net = Net()
    x = net.tensor(4, fixed="graph input")
    a, b = net.conv(x, name="one"), net.conv(x, name="two")
    c = net.node("Concat", Concat(1, (4, 4)), [a, b], 8, "concat")
    net.close(net.conv(c, name="three"))
    scaled(net, "one", rows=FAR)
    scaled(net, "two")
    scaled(net, "three", columns=np.concatenate([NEAR, np.ones(4)]))
    found = equalize(net.graph)
    p = found.state.p[c].reshape(-1)
    np.testing.assert_array_equal(p[:4], found.state.p[a].reshape(-1))
    assert p[1] == p[3] > p[2] > p[0]
    one, two = sums(net, found)
    assert two < one


@pytest.mark.parametrize(
    ("between", "reason"), [("sigmoid", "is not linear"), ("clip", "needs the same change")]
)
def test_what_cannot_carry_stays_with_its_reason(between: str, reason: str) -> None:
    net, (_, a, _, _) = chain(between=between)
    found = equalize(net.graph)
    assert not found.state.p
    (entry,) = [entry for entry in found.stuck if entry.tensor == a.name]
    assert reason in entry.reason
    assert entry.clip == (between == "clip")


def test_a_clip_that_may_have_bounds_for_each_channel_carries() -> None:
    net, (_, a, r, _) = chain(between="clip")
    clip: Node = next(node for node in net.graph.nodes if node.op == "Clip")
    found = equalize(net.graph, split=[clip])
    p = found.state.p[r].reshape(-1)
    assert p.min() < p.max()
    np.testing.assert_array_equal(found.state.p[a].reshape(-1), p)


def test_a_barred_layer_and_an_unknown_number_of_channels_stay() -> None:
    net, (_, a, r, _) = chain()
    two = next(node for node in net.graph.nodes if node.name == "two")
    found = equalize(net.graph, barred={two: "would overflow"})
    assert not found.state.p
    assert ("two", "would overflow") in {(entry.blocked_by, entry.reason) for entry in found.stuck}
    for tensor in (a, r):
        tensor.shape = (1, "channels", 5, 5)
    found = equalize(net.graph)
    assert not found.state.p
    assert "the number of its channels is not known" in {entry.reason for entry in found.stuck}

"""The method by itself, on graphs without a file format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bnfold.fold import one_fold as folding
from bnfold.fold import roles
from bnfold.fold.carry import table as carry
from bnfold.fold.carry.spread import Spread
from bnfold.fold.edits import AddBias, Bypass, SetValue
from bnfold.fold.graph import Array, Graph, Node, Role, Tensor
from bnfold.fold.roles import Affine, Linear
from bnfold.fold.solve import RULES, Plan, solve
from bnfold.report.drawing import Route, Way
from bnfold.report.fold import Entry
from tests.fold.nets import Net


def kept(plan: Plan) -> list[str]:
    return [entry.name for entry in plan.entries if entry.outcome == "kept"]


def entry(plan: Plan, name: str) -> Entry:
    return next(e for e in plan.entries if e.name == name)


def new_value(plan: Plan, node: str, key: int) -> Array:
    return next(
        e.value for e in plan.edits if isinstance(e, SetValue) and e.node.name == node and e.key == key
    )


def test_conv_then_batch_norm_gives_the_textbook_weights() -> None:
    net = Net()
    x = net.tensor(4, "graph input")
    y = net.conv(x, name="conv")
    net.close(net.norm(y, "bn"))
    conv, bn = net.graph.nodes[0].role, net.graph.nodes[1].role
    assert isinstance(conv, Linear) and isinstance(bn, Affine)
    plan = solve(net.graph)
    np.testing.assert_allclose(
        new_value(plan, "conv", 1), conv.weight.value * bn.scale.reshape(4, 1, 1, 1), rtol=1e-6
    )
    np.testing.assert_allclose(new_value(plan, "conv", 2), bn.shift.reshape(-1), rtol=1e-6)
    assert [type(e) for e in plan.edits] == [SetValue, SetValue, Bypass]
    assert entry(plan, "bn").into == ("conv",)
    assert plan.routes() == {"bn": Route(*[Way("back", (y.name,), ("conv",))] * 2)}


def test_the_ways_of_scale_and_shift_are_told() -> None:
    """A positive scale passes a Relu, and no shift does."""
    net = Net()
    a = net.conv(net.tensor(4, "graph input"), name="first")
    b = net.relu(a)
    c = net.norm(b, "bn", scale=[1, 2, 3, 4])
    net.close(net.conv(c, name="second"))
    plan = solve(net.graph)
    route = plan.routes()["bn"]
    assert route.scale == Way("back", (b.name, a.name), ("first",))
    assert route.shift == Way("forward", (c.name,), ("second",))
    assert set(entry(plan, "bn").into) == {"first", "second"}


def test_the_short_way_of_a_pair_finds_what_the_long_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan() -> Plan:
        net = Net(5)
        x = net.tensor(4, "graph input")
        for scale in (None, [1, 1, 1, 1], [1, 2, 3, 4], [2, 0, 1, 3], [-1, 2, 2, 1]):
            x = net.relu(net.norm(net.conv(x, padded="its zero padding"), scale=scale))
            x = net.norm(net.conv(x, padded="its zero padding"), shift=[0, 0, 0, 0])
            x = net.norm(x)
        return solve(net.graph)

    tried: list[Node] = []
    long_way = folding.fold
    monkeypatch.setattr("bnfold.fold.solve.fold", lambda *a: (tried.append(a[1]), long_way(*a))[1])
    short, few = plan(), len(tried)
    monkeypatch.setattr("bnfold.fold.solve.pair", lambda *_: False)
    long = plan()
    assert 0 < few < len(tried) - few
    assert (short.entries, short.ways, short.routes()) == (long.entries, long.ways, long.routes())
    for one, other in zip(short.edits, long.edits, strict=True):
        assert type(one) is type(other)
        if isinstance(one, SetValue) and isinstance(other, SetValue):
            assert one.value.tobytes() == other.value.tobytes()


def test_batch_norm_then_conv_without_padding_goes_forward() -> None:
    net = Net()
    x = net.tensor(4, "graph input")
    net.close(net.conv(net.norm(x, "bn"), 3, name="conv"))
    bn, conv = net.graph.nodes[0].role, net.graph.nodes[1].role
    assert isinstance(conv, Linear) and isinstance(bn, Affine)
    plan = solve(net.graph)
    weight = conv.weight.value.astype(np.float64)
    np.testing.assert_allclose(new_value(plan, "conv", 1), weight * bn.scale, rtol=1e-6)
    np.testing.assert_allclose(
        new_value(plan, "conv", 2), weight[:, :, 0, 0] @ bn.shift.reshape(-1), rtol=1e-5
    )


def test_padding_stops_the_shift_and_is_named() -> None:
    net = Net()
    net.close(net.conv(net.norm(net.tensor(4, "graph input"), "bn"), padded="its zero padding", name="conv"))
    plan = solve(net.graph)
    assert not plan.edits
    assert entry(plan, "bn").blocked_by == "t0, conv"
    assert "zero padding" in entry(plan, "bn").reason and "graph input" in entry(plan, "bn").reason


def test_scale_goes_back_through_relu_and_shift_sideways() -> None:
    net = Net()
    x = net.tensor(4, "graph input")
    a = net.norm(net.relu(net.conv(x, name="first")), "bn")
    net.close(net.add(a, net.conv(x, name="second")))
    plan = solve(net.graph)
    assert entry(plan, "bn").into == ("first", "second")
    bn = net.graph.nodes[2].role
    assert isinstance(bn, Affine)
    np.testing.assert_allclose(new_value(plan, "second", 2), bn.shift.reshape(-1), rtol=1e-6)


def test_negative_scale_does_not_pass_relu() -> None:
    net = Net()
    x = net.tensor(4, "graph input")
    a = net.norm(net.relu(net.conv(x), "relu"), "bn", scale=[1, -1, 1, 1])
    net.close(net.add(a, net.conv(x)))
    plan = solve(net.graph)
    assert "negative scale" in entry(plan, "bn").reason
    assert "relu" in entry(plan, "bn").blocked_by


def test_identity_branches_with_positive_scales_all_go() -> None:
    net = Net()
    x = net.relu(net.conv(net.tensor(4, "graph input")))
    for _ in range(3):
        x = net.relu(net.add(net.norm(x), net.conv(x, padded="its zero padding")))
    net.close(net.conv(x))
    assert kept(solve(net.graph)) == []


def test_the_fold_that_blocks_two_others_is_evicted() -> None:
    """s = Concat(t1, t2): the batch norm of s alone, or those of t1 and t2."""
    net = Net()
    x = net.tensor(4, "graph input")
    t1, t2 = net.conv(x), net.conv(x)
    net.close(net.norm(net.concat(t1, t2), "a"))
    net.close(net.norm(t1, "b"))
    net.close(net.norm(t2, "c"))
    plan = solve(net.graph)
    assert kept(plan) == ["a"]
    assert plan.evicted == 1


def test_a_fold_that_blocks_two_others_together_with_more_is_evicted() -> None:
    """a alone blocks d, which the sum ties to t1; a and b block c, whose shift does not pass the Relu."""
    net = Net()
    t1 = net.conv(net.tensor(4, "graph input"))
    t2 = net.norm(t1, "a")
    c = net.norm(net.norm(t2, "b"), "c")
    net.close(net.conv(net.relu(net.concat(t1, c))))
    net.close(net.conv(net.add(net.norm(t2, "d"), t1)))
    plan = solve(net.graph)
    assert kept(plan) == ["a"]
    assert plan.evicted == 1


def test_zero_scale_goes_forward_but_not_back_past_a_reader() -> None:
    net = Net()
    x = net.relu(net.tensor(4, "graph input"))
    net.close(net.conv(net.norm(x, "bn", scale=[1, 0, -2, 1]), name="conv"))
    plan = solve(net.graph)
    assert entry(plan, "bn").into == ("conv",)
    assert (new_value(plan, "conv", 1)[:, 1] == 0).all()

    net = Net()
    y = net.conv(net.tensor(4, "graph input"))
    net.close(net.norm(y, "bn", scale=[1, 0, -2, 1]))
    net.conv(y, name="reader")
    plan = solve(net.graph)
    assert "zero scale" in entry(plan, "bn").reason
    assert "reader" in entry(plan, "bn").blocked_by


def test_skipped_nodes_are_named_as_such() -> None:
    net = Net()
    net.close(net.norm(net.conv(net.tensor(4, "graph input")), "bn"))
    assert entry(solve(net.graph, skip={"bn"}), "bn").reason == "skipped on request"


def test_add_of_a_tensor_to_itself_splits_the_shift() -> None:
    net = Net()
    y = net.conv(net.tensor(4, "graph input"), name="conv")
    net.close(net.norm(net.add(y, y), "bn"))
    bn = net.graph.nodes[2].role
    assert isinstance(bn, Affine)
    plan = solve(net.graph)
    np.testing.assert_allclose(new_value(plan, "conv", 2), bn.shift.reshape(-1) / 2, rtol=1e-6)


def test_a_shift_that_comes_back_by_another_way_is_halved() -> None:
    net = Net()
    y = net.conv(net.tensor(4, "graph input"), name="conv")
    net.close(net.norm(net.add(y, net.average(y)), "bn"))
    bn = net.graph.nodes[3].role
    assert isinstance(bn, Affine)
    plan = solve(net.graph)
    np.testing.assert_allclose(new_value(plan, "conv", 2), bn.shift.reshape(-1) / 2, rtol=1e-6)


def test_a_rolled_back_choice_leaves_no_trace() -> None:
    """The first operand looks free and is not: its other reader is closed; the second one takes the shift."""
    net = Net()
    x = net.tensor(4, "graph input")
    r, other = net.relu(net.conv(x)), net.conv(x, name="other")
    net.close(net.norm(net.add(net.move(r), other), "bn"))
    plan = solve(net.graph)
    assert entry(plan, "bn").outcome == "folded"
    assert not any(isinstance(e, AddBias) for e in plan.edits)
    bn = net.graph.nodes[-2].role
    assert isinstance(bn, Affine)
    np.testing.assert_allclose(new_value(plan, "other", 2), bn.shift.reshape(-1), rtol=1e-6)


@dataclass(frozen=True)
class Twice(Role):
    """y = 2x: an operator that the solver has never heard of."""


def test_a_new_operator_is_one_rule() -> None:
    def scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
        spread.want(node.outputs[0] if slot >= 0 else node.at(0), f, node)

    def shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
        spread.want(node.outputs[0] if slot >= 0 else node.at(0), d * 2 if slot >= 0 else d / 2, node)

    net = Net()
    y = net.conv(net.tensor(4, "graph input"), name="conv")
    net.close(net.norm(net.node("Twice", Twice(), [y], 4), "bn"))
    rules = {"scale": {**carry.SCALE, Twice: scale}, "shift": {**carry.SHIFT, Twice: shift}}
    plan = solve(net.graph, rules=rules)
    bn = net.graph.nodes[2].role
    assert isinstance(bn, Affine)
    np.testing.assert_allclose(new_value(plan, "conv", 2), bn.shift.reshape(-1) / 2, rtol=1e-6)


def test_every_role_has_both_rules() -> None:
    assert set(RULES["scale"]) == set(RULES["shift"])
    found = {kind for kind in vars(roles).values() if isinstance(kind, type) and issubclass(kind, Role)}
    assert found - {Role} == set(RULES["scale"])
    assert len(found) > 10


def chain(length: int) -> Graph:
    net = Net()
    x = net.tensor(4, "graph input")
    for _ in range(length):
        x = net.relu(net.norm(net.conv(x)))
    return net.graph


def dense(length: int) -> Graph:
    net = Net()
    features = [net.conv(net.tensor(4, "graph input"))]
    for _ in range(length):
        y = net.conv(net.relu(net.norm(net.concat(*features))))
        features.append(net.conv(net.relu(net.norm(y))))
    net.close(net.norm(net.concat(*features)))
    return net.graph


def diamond(length: int) -> Graph:
    net = Net()
    x = net.conv(net.tensor(4, "graph input"))
    for _ in range(length):
        x = net.add(x, net.conv(net.relu(net.norm(x))))
    net.close(net.norm(x))
    return net.graph


@pytest.mark.parametrize(
    ("build", "sizes", "most"),
    [(chain, (50, 500), 4), (dense, (8, 16, 32, 64), 16), (diamond, (10, 40, 160), 60)],
)
def test_work_grows_with_the_edges(build, sizes, most) -> None:  # type: ignore[no-untyped-def]
    per_edge = []
    for size in sizes:
        graph = build(size)
        per_edge.append(solve(graph).calls / sum(len(node.inputs) for node in graph.nodes))
    assert max(per_edge) <= most, per_edge


def test_dense_blocks_lose_one_of_their_batch_norms_and_all_inner_ones() -> None:
    plan = solve(dense(8))
    assert len(kept(plan)) == 8


def test_fixed_tensors_stay() -> None:
    net = Net()
    y = net.conv(net.tensor(4, "graph input"))
    y.fixed = "graph output"
    net.close(net.norm(y, "bn"))
    plan = solve(net.graph)
    assert isinstance(y, Tensor) and not plan.edits
    assert "graph output" in entry(plan, "bn").reason


def test_a_shift_between_two_zero_scales_is_not_divided_by_them() -> None:
    """conv -> + constant -> bn with a zero scale: the Add carries the zero, and nothing becomes NaN."""
    net = Net()
    y = net.conv(net.tensor(4, "graph input"), name="conv")
    value = net.constant(np.array([0.5, 1, 2, 3]).reshape(1, 4, 1, 1))
    role = Affine(np.ones((1, 1, 1, 1)), value.value.astype(np.float64), "shift", form="x+c")
    role.constants["value"] = (1, value)
    z = net.node("Add", role, [y], 4, "add")
    net.close(net.norm(z, "bn", scale=[1, 0, 2, 1]))
    with np.errstate(all="raise"):
        plan = solve(net.graph)
    assert entry(plan, "bn").outcome == "folded"
    for edit in plan.edits:
        if isinstance(edit, SetValue):
            assert np.isfinite(edit.value).all()

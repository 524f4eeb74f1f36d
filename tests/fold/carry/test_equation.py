"""Sums that a shift reaches by several ways: the choice that works is found."""

from __future__ import annotations

from bnfold.fold.solve import solve
from tests.fold.nets import Net

PADDED = "its windows see zero padding"


def test_a_sum_chooses_before_a_concat_closes_what_nobody_asked_for() -> None:
    """The sum may give its shift to its second operand only, whose part of the Concat is open until then."""
    net = Net(1)
    x = net.tensor(4, "graph input")
    first, second = net.conv(x, name="first"), net.conv(x, name="second")
    net.close(net.conv(first, padded=PADDED))
    total = net.add(first, second)
    net.close(net.conv(net.concat(second, total), name="behind"))
    net.close(net.norm(total, "bn", scale=[1.0] * 4))
    (entry,) = [entry for entry in solve(net.graph).entries if entry.name == "bn"]
    assert entry.outcome == "folded"
    assert set(entry.into) == {"second", "behind"}


def test_sums_with_one_way_left_go_first() -> None:
    """n + (n + c) is 0 behind the Relu: if n carries d, c carries -2d. Each sum alone tries d or -d."""
    net = Net(2)
    x = net.tensor(4, "graph input")
    c = net.conv(x, name="conv")
    n = net.norm(net.conv(x, name="start"), "bn")
    s = net.add(n, c)
    net.close(net.relu(net.add(s, n)))
    net.close(net.norm(n, "last", scale=[1.0] * 4))
    entries = {entry.name: entry for entry in solve(net.graph).entries}
    assert entries["last"].outcome == "folded"

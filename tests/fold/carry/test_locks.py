"""What cannot change is found once for all tries, and refuses nothing that could go."""

from __future__ import annotations

from bnfold.fold.solve import solve
from tests.fold.nets import Net


def test_a_lock_on_one_operand_of_a_concat_leaves_the_others_free() -> None:
    net = Net(3)
    x = net.tensor(4, "graph input")
    locked, free = net.conv(x, name="to an output"), net.conv(x, name="free")
    locked.fixed = "graph output"
    for _ in range(5):  # further than the first pass goes, which asks no locks
        free = net.relu(free)
    net.close(net.conv(net.concat(locked, free), name="behind"))
    net.close(net.norm(free, "bn", shift=[0] * 4))
    plan = solve(net.graph)
    assert [(entry.name, entry.into) for entry in plan.entries if entry.name == "bn"] == [
        ("bn", ("free", "behind"))
    ]


def test_a_lock_on_a_concat_holds_for_its_operands() -> None:
    net = Net(3)
    x = net.tensor(4, "graph input")
    parts = [net.conv(x), net.conv(x)]
    whole = net.concat(*parts)
    whole.fixed = "graph output"
    net.close(net.norm(net.relu(net.relu(net.relu(parts[1]))), "bn", shift=[0] * 4))
    (entry,) = [entry for entry in solve(net.graph).entries if entry.name == "bn"]
    assert entry.outcome == "kept"
    assert "graph output" in entry.reason

"""Weights that are scaled together are, bit for bit, those that are scaled one at a time."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.fold.absorb import linear as scaling
from bnfold.fold.edits import AddBias, SetValue
from bnfold.fold.graph import Array
from bnfold.fold.solve import Plan, solve
from tests.fold.nets import Net

LENGTH = 12


def layers(scales: dict[int, list[float]] | None = None, norms_first: bool = False) -> Net:
    """Convs of one shape, each with a batch norm behind (or before) it, between closed nodes."""
    net = Net(3)
    x = net.tensor(4, fixed="graph input")
    for i in range(LENGTH):
        scale = (scales or {}).get(i)
        if norms_first:
            x = net.conv(net.norm(x, f"norm{i}", scale), name=f"conv{i}")
        else:
            x = net.norm(net.conv(x, name=f"conv{i}"), f"norm{i}", scale)
        x = net.close(x, f"close{i}")
    return net


def weights(plan: Plan) -> dict[str, Array]:
    edits = [edit for edit in plan.edits if isinstance(edit, (SetValue, AddBias))]
    return {f"{edit.node.name} {getattr(edit, 'key', 2)}": edit.value for edit in edits}


@pytest.mark.parametrize("norms_first", [False, True])
def test_together_or_alone_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, norms_first: bool) -> None:
    stacks: list[int] = []
    stack = scaling._stack
    monkeypatch.setattr(scaling, "_stack", lambda jobs, *rest: (stacks.append(len(jobs)), stack(jobs, *rest)))
    monkeypatch.setattr(scaling, "AT_ONCE", 80)  # five layers of 16 weights
    together = weights(solve(layers(norms_first=norms_first).graph))
    assert stacks == [5, 5, 2]
    monkeypatch.setattr(scaling, "SMALL", 0)
    alone = weights(solve(layers(norms_first=norms_first).graph))
    assert len(stacks) == 3
    assert together.keys() == alone.keys()
    assert len(together) == 2 * LENGTH
    for key, value in together.items():
        assert value.dtype == alone[key].dtype == np.float32
        assert value.tobytes() == alone[key].tobytes(), key


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        ([1.0, 1e-38 / 8, 1.0, 1.0], "channel 1 would leave the normal range of float32"),
        ([1.0, 1.0, 3e38, 1.0], "channel 2 would overflow float32"),
    ],
)
def test_one_layer_among_many_that_does_not_fit_is_named(scale: list[float], says: str) -> None:
    plan = solve(layers({7: scale}).graph)
    kept = [entry for entry in plan.entries if entry.outcome == "kept"]
    assert [(entry.name, entry.blocked_by) for entry in kept] == [("norm7", "conv7")]
    assert says in kept[0].reason
    assert sum(entry.outcome == "folded" for entry in plan.entries) == LENGTH - 1


def test_a_channel_without_positive_weights_folds_with_the_others() -> None:
    plan = solve(layers({4: [-1.0, 1.0, 2.0, -2.0], 5: [1.0, -1.0, 0.0, 1.0]}).graph)
    assert all(entry.outcome == "folded" for entry in plan.entries)

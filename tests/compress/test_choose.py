"""The threshold over all groups: how many channels go, and which."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnfold.compress.choose import choose, importance_of
from bnfold.compress.groups import Group, Member, PruningGroups
from bnfold.errors import UsageError
from tests.compress import nets


def group(name: str, channels: int, norms: int = 1) -> Group:
    every = tuple(range(channels))
    members = tuple(Member(f"{name}.{i}", "both", every, every) for i in range(norms))
    return Group(name, channels, members, members, members)


def values(**given: list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(each, dtype=torch.float64) for name, each in given.items()}


def test_the_least_important_of_all_go_whatever_group_they_are_of() -> None:
    groups = [group("a", 4), group("b", 4)]
    found = choose(groups, values(a=[5, 1, 7, 6], b=[2, 8, 0, 3]), 0.5, 0.0, 1)
    assert found.gone == {"a": {1}, "b": {2, 0, 3}}
    assert (found.threshold, found.reached, found.most) == (3, 0.5, 0.75)


def test_the_ratio_is_of_batch_norm_channels() -> None:
    groups = [group("a", 4, norms=3), group("b", 4)]  # 16 batch norm channels; one of a is three
    found = choose(groups, values(a=[0, 1, 20, 21], b=[10, 11, 12, 13]), 0.375, 0.0, 1)
    assert found.gone == {"a": {0, 1}}
    assert found.reached == 6 / 16
    more = choose(groups, values(a=[0, 1, 20, 21], b=[10, 11, 12, 13]), 0.46, 0.0, 1)
    assert more.gone == {"a": {0, 1}, "b": {0}}  # 7 of 16 are nearer to 0.46 than 8


def test_a_floor_keeps_the_most_important_of_each_group() -> None:
    groups = [group("a", 10), group("b", 10)]
    given = values(a=[float(i) for i in range(10)], b=[100.0 + i for i in range(10)])
    assert choose(groups, given, 0.5, 0.0, 1).gone == {"a": set(range(9)), "b": {0}}
    found = choose(groups, given, 0.5, 0.25, 1)  # three of ten stay
    assert found.gone == {"a": set(range(7)), "b": {0, 1, 2}}
    all_of_it = choose(groups, given, 0.9, 0.25, 1)
    assert all_of_it.reached == all_of_it.most == 0.7


@pytest.mark.parametrize(("gone", "kept"), [(1, 20), (3, 16), (6, 16), (9, 8), (14, 8), (18, 8)])
def test_groups_keep_the_nearest_multiple(gone: int, kept: int) -> None:
    given = values(a=[0.0] * gone + [1.0] * (20 - gone))
    found = choose([group("a", 20)], given, gone / 20, 0.0, 8)
    assert found.gone.get("a", frozenset()) == set(range(20 - kept))


def test_a_floor_is_rounded_up_to_a_multiple() -> None:
    given = values(a=[float(i) for i in range(20)])
    assert choose([group("a", 20)], given, 0.9, 0.5, 8).gone == {"a": set(range(4))}  # 16 of 20 stay
    assert choose([group("a", 6)], values(a=[0.0] * 6), 0.9, 0.0, 8).gone == {}


def test_equal_ones_go_in_order_and_broken_ones_stay() -> None:
    groups = [group("a", 2), group("b", 4)]
    found = choose(groups, values(a=[1, 1], b=[1, 1, 1, 1]), 0.5, 0.0, 1)
    assert found.gone == {"a": {0}, "b": {0, 1}}


def measured(kind: object) -> list[float]:
    """Of two inputs of one linear layer, after two batch norms whose outputs are added."""
    net = nets.Made(
        lambda s, x: s.d(s.p(s.a(x)) + s.q(s.b(x))),
        a=nn.Linear(2, 2),
        p=nn.BatchNorm1d(2),
        b=nn.Linear(2, 2),
        q=nn.BatchNorm1d(2),
        d=nn.Linear(2, 1, bias=False),
    ).eval()
    with torch.no_grad():
        net.p.weight.copy_(torch.tensor([-1.0, 0.5]))
        net.q.weight.copy_(torch.tensor([3.0, 0.5]))
        net.d.weight.copy_(torch.tensor([[2.0, -10.0]]))
    found = next(g for g in PruningGroups(net, (torch.randn(2, 2),), {}, ()).all if not g.why)
    return importance_of(net, found, kind).tolist()  # type: ignore[arg-type]


def test_coupled_channels_have_one_importance() -> None:
    assert measured("mean") == [2, 0.5]
    assert measured("max") == [3, 0.5]
    assert measured("weighted") == [4, 5]  # times |2| and |-10|
    assert measured(lambda name, gammas: gammas[0] * len(gammas)) == [2, 1]


def test_a_scale_that_is_not_a_number_is_not_removed() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([float("nan"), 1.0, 2.0]))
    found = PruningGroups(net, (torch.randn(2, 2),), {}, ()).all[0]
    assert importance_of(net, found, "mean").tolist() == [float("inf"), 1, 2]
    assert importance_of(net, found, "weighted")[0] == float("inf")


def test_what_a_function_gives_is_checked() -> None:
    with pytest.raises(UsageError, match=r"importance gave \[3\] values for a, not \[2\] finite ones"):
        measured(lambda name, gammas: torch.ones(3))
    with pytest.raises(UsageError, match=r"importance gave \[2\] values for a, not \[2\] finite ones"):
        measured(lambda name, gammas: gammas[0] / 0)

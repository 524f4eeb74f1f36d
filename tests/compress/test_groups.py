"""Which channels go together, and what keeps them all; then: is the network without them the right one?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from bnfold.compress.groups import Group, PruningGroups
from bnfold.compress.layers import Removal, prune
from bnfold.compress.plan import PruneOptions, plan_pruning
from bnfold.errors import UsageError
from tests.compress.nets import Made, example, ready, residual_net, unit

OPTIONS = PruneOptions(0.4, "mean", 0.1, 1, verify=True)


def groups_of(net: nn.Module, ignored: tuple[str, ...] = ()) -> dict[str, Group]:
    return {group.name: group for group in PruningGroups(copy.deepcopy(net), (example(),), {}, ignored).all}


def members(group: Group) -> dict[str, str]:
    return {member.layer: member.side for member in group.members}


def test_a_residual_stream_is_one_group_and_what_is_inside_a_block_another() -> None:
    found = groups_of(residual_net())
    assert {name: (group.channels, group.why) for name, group in found.items()} == {
        "stem": (8, ""),
        "one.expand": (12, ""),
        "two.expand": (16, ""),
        "head": (5, "an output of the network has these channels"),
    }
    assert members(found["stem"]) == {
        "stem": "out",
        "norm": "both",
        "one.expand": "in",
        "one.project": "out",
        "one.norm3": "both",
        "two.expand": "in",
        "two.project": "out",
        "two.norm3": "both",
        "head": "in",
    }
    assert members(found["two.expand"]) == {
        "two.expand": "out",
        "two.norm1": "both",
        "two.depthwise": "both",
        "two.norm2": "both",
        "two.project": "in",
    }
    assert all(m.at == m.of == tuple(range(g.channels)) for g in found.values() for m in g.members)


@pytest.mark.parametrize(
    ("between", "after", "ruling"),
    [
        (nn.ReLU(), nn.Identity(), ["4"]),
        (nn.LeakyReLU(0.1), nn.ReLU(), ["4"]),
        (nn.SiLU(), nn.Identity(), ["1", "4"]),  # twice the input is not twice the output
        (nn.ReLU6(), nn.Identity(), ["1", "4"]),
        (nn.ReLU(), nn.SiLU(), ["4"]),
    ],
    ids=str,
)
def test_a_scale_that_the_next_batch_norm_divides_out_does_not_rule(
    between: nn.Module, after: nn.Module, ruling: list[str]
) -> None:
    """By way of a depthwise convolution; what is behind the second batch norm does not matter."""
    depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
    net = ready(
        nn.Sequential(
            nn.Conv2d(3, 6, 1),
            nn.BatchNorm2d(6),
            between,
            depthwise,
            nn.BatchNorm2d(6),
            after,
            nn.Conv2d(6, 2, 1),
        )
    )
    found = groups_of(net)["0"]
    assert [norm.layer for norm in found.norms] == ["1", "4"]
    assert [norm.layer for norm in found.ruling] == ruling
    # and that is true: a scale of 2 moves through all that, and is divided out in training mode
    x = example()
    net.train()
    net[4].eps = 1e-12
    nn.init.constant_(net[1].bias, 1.5)  # no channel that is hardly ever above 0
    before = net(x)
    with torch.no_grad():
        net[1].weight.mul_(2)
        net[1].bias.mul_(2)
    assert torch.allclose(net(x), before, rtol=0, atol=1e-6) == (ruling == ["4"])


def test_a_depthwise_bias_or_another_reader_lets_both_rule() -> None:
    for bias, read in ((True, False), (False, True)):
        net = ready(
            Made(
                lambda s, x, read=read: (lambda y: s.d(F.relu(s.n(s.c(y)))) + (s.e(y) if read else 0))(
                    s.a(x)
                ),
                a=unit(3, 6, 1),
                c=nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=bias),
                n=nn.BatchNorm2d(6),
                d=nn.Conv2d(6, 2, 1),
                e=nn.Conv2d(6, 2, 1),
            )
        )
        assert [norm.layer for norm in groups_of(net)["a.0"].ruling] == ["a.1", "n"]


def shuffled(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def tied() -> nn.Module:
    net = Made(lambda s, x: s.c(s.b(s.a(x))), a=unit(3, 8), b=unit(8, 8), c=unit(8, 8))
    net.c[0].weight = net.b[0].weight
    return net


def computed() -> nn.Module:
    net = Made(lambda s, x: s.b(s.a(x)), a=unit(3, 8), b=unit(8, 4))
    torch.nn.utils.parametrizations.weight_norm(net.b[0])
    return net


def front(call: Callable[[Any, Tensor], Any], reads: int = 8, **parts: nn.Module) -> Callable[[], nn.Module]:
    """Eight channels from a.0, what is asked about, and a reader b."""
    return lambda: Made(lambda s, x: s.b(call(s, s.a(x))), a=unit(3, 8), b=unit(reads, 4), **parts)


DIVIDED = "its channels are divided by the module's code (split, chunk or slice)"
CHANGES = "removing some of them changes what the others compute"
STAY: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "split": (front(lambda s, y: y.split([4, 4], 1)[0], 4), DIVIDED),
    "chunk": (front(lambda s, y: y.chunk(2, 1)[1], 4), DIVIDED),
    "slice": (front(lambda s, y: y[:, 2:6], 4), DIVIDED),
    "slice from the end": (front(lambda s, y: y.narrow(-3, 0, 4), 4), DIVIDED),
    "unbind": (
        front(lambda s, y: torch.stack(y.unbind(1), 1)),
        "its channels are taken apart by the module's code",
    ),
    "shuffle": (front(lambda s, y: shuffled(y)), "the network does not run without some of them: shape"),
    "pixel shuffle": (
        front(lambda s, y: F.pixel_shuffle(y, 2), 2),
        "how its channels reach b.0 is not understood",
    ),
    "two channels for each": (
        front(lambda s, y: s.g(y), 16, g=nn.Conv2d(8, 16, 3, groups=8)),
        "g: each of its 8 groups has one channel on one side, and another number on the other",
    ),
    "three groups and two": (
        lambda: Made(
            lambda s, x: s.b(s.a(s.s(x))),
            s=nn.Conv2d(3, 6, 1),
            a=unit(6, 6, groups=3),
            b=unit(6, 4, groups=2),
        ),
        "each of its channels is in a group of its own",
    ),
    "a part of a convolution in groups": (
        lambda: Made(
            lambda s, x: s.b(torch.cat([x, s.a(x)], 1)), a=unit(3, 3), b=nn.Conv2d(6, 4, 1, groups=2)
        ),
        "b convolves in groups, and has other channels too",
    ),
    "group norm": (
        front(lambda s, y: s.g(y), g=nn.GroupNorm(2, 8)),
        "g: GroupNorm does not treat each channel by itself",
    ),
    "a function that mixes": (front(lambda s, y: y.softmax(1)), CHANGES),
    "a function of their mean": (front(lambda s, y: y - y.mean(1, keepdim=True)), CHANGES),
    "reversed and added": (front(lambda s, y: y + y.flip(1)), CHANGES),
    "a parameter": (
        front(lambda s, y: s.g(y), g=Scale()),
        "g.by, which is no layer's, has these channels too",
    ),
    "a constant": (
        front(lambda s, y: y * torch.arange(8).reshape(8, 1, 1)),
        "the network does not run without some of them: The size of tensor a",
    ),
    "the input": (
        lambda: Made(lambda s, x: s.b(x + s.a(x)), a=unit(3, 3), b=unit(3, 4)),
        "an input of the network has these channels too",
    ),
    "an output": (
        lambda: Made(lambda s, x: (lambda y: (y, s.b(y)))(s.a(x)), a=unit(3, 8), b=unit(8, 4)),
        "an output of the network has these channels",
    ),
    "no batch norm": (
        lambda: Made(lambda s, x: s.b(F.relu(s.a(x))), a=nn.Conv2d(3, 8, 1), b=unit(8, 4)),
        "no batch norm has a scale for its channels",
    ),
    "no scale": (
        lambda: Made(
            lambda s, x: s.b(s.n(s.a(x))),
            a=nn.Conv2d(3, 8, 1),
            n=nn.BatchNorm2d(8, affine=False),
            b=unit(8, 4),
        ),
        "no batch norm has a scale for its channels",
    ),
    "one channel": (
        lambda: Made(lambda s, x: s.b(s.a(x)), a=unit(3, 1), b=unit(1, 4)),
        "it is the only one",
    ),
    "a shared weight": (tied, "b.0 shares a weight with c.0"),
    "a computed weight": (computed, "b.0: its weight is computed from other parameters"),
}


@pytest.mark.parametrize("name", STAY)
def test_channels_that_have_to_stay_do_and_the_reason_is_told(name: str) -> None:
    make, why = STAY[name]
    net = ready(make())
    groups = PruningGroups(copy.deepcopy(net), (example(),), {}, ())
    with pytest.raises(UsageError, match="nothing to prune in Made: all channels have to stay") as raised:
        plan_pruning(net, groups, (example(),), {}, OPTIONS)
    first = next(line for line in str(raised.value).splitlines() if line.startswith("  a"))
    assert why in first
    assert {group.name: group.why for group in groups.all}[
        "b.0" if "b.0" in first else "a" if "  a (" in first else "a.0"
    ]


def test_channels_of_one_layer_that_can_only_go_together_stay() -> None:
    """A sum with the same tensor twice couples channel i with channel 8 + i."""
    net = ready(
        Made(
            lambda s, x: (lambda y: s.b(s.c(x) + torch.cat([y, y], 1)))(s.a(x)),
            a=unit(3, 8),
            c=unit(3, 16),
            b=unit(16, 4),
        )
    )
    groups = PruningGroups(copy.deepcopy(net), (example(),), {}, ())
    with pytest.raises(UsageError, match=r"c\.0 \(16 channels\): some of its channels can only go together"):
        plan_pruning(net, groups, (example(),), {}, OPTIONS)


def test_what_torch_pruning_does_not_see_is_named() -> None:
    def part(s: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = s.a(x)
        result: Tensor = s.c(s.b(y))
        return result

    net = ready(Made(part, a=unit(3, 8), b=unit(8, 8), c=unit(8, 4)))
    groups = PruningGroups(copy.deepcopy(net), (example(),), {}, ())
    assert groups.unseen == ["a.0"]
    assert {group.name for group in groups.all} == {"b.0", "c.0"}


def test_ignored_layers_keep_what_they_make() -> None:
    net = residual_net()
    assert groups_of(net, ("one.project",))["stem"].why == "one.project is ignored"
    assert groups_of(net, ("stem",))["stem"].why == "it is ignored"
    inside = groups_of(net, ("one",))
    assert (inside["one.expand"].why, inside["stem"].why) == ("it is ignored", "one.project is ignored")
    assert inside["two.expand"].why == ""


# networks whose channels can go, each compared with itself where the outputs of the layers are set to 0

GO: dict[str, Callable[[], nn.Module]] = {
    "residual": residual_net,
    "concat": lambda: Made(
        lambda s, x: (lambda y: s.c(torch.cat([y, s.b(y)], 1)))(s.a(x)),
        a=unit(3, 8),
        b=unit(8, 6),
        c=unit(14, 4),
    ),
    "concat with the input": lambda: Made(
        lambda s, x: s.b(torch.cat([x, s.a(x), x], 1)), a=unit(3, 8), b=unit(14, 4)
    ),
    "dense, a batch norm behind the concat": lambda: Made(
        lambda s, x: (lambda y: s.c(F.relu(s.n(torch.cat([y, s.b(y)], 1)))))(s.a(x)),
        a=unit(3, 8),
        b=unit(8, 6),
        n=nn.BatchNorm2d(14),
        c=nn.Conv2d(14, 4, 1),
    ),
    "a sum with a concat": lambda: Made(
        lambda s, x: (lambda y: s.c(torch.cat([s.a2(y), s.b(y)], 1) + s.d(y)))(s.a(x)),
        a=unit(3, 8),
        a2=unit(8, 6),
        b=unit(8, 10),
        d=unit(8, 16),
        c=unit(16, 4),
    ),
    "squeeze and excite": front(
        lambda s, y: y * torch.sigmoid(s.e(F.relu(s.r(y.mean((2, 3), keepdim=True))))),
        r=nn.Conv2d(8, 2, 1),
        e=nn.Conv2d(2, 8, 1),
    ),
    "a gate of one channel": front(lambda s, y: y * torch.sigmoid(s.g(y)), g=nn.Conv2d(8, 1, 1)),
    "flattened": lambda: Made(
        lambda s, x: s.d(s.b(s.a(x)).flatten(1)), a=unit(3, 8), b=unit(8, 6), d=nn.Linear(6 * 64, 5)
    ),
    "channels last": front(lambda s, y: s.d(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), d=nn.Linear(8, 8)),
    "slices of the sides": front(lambda s, y: y[:, :, ::2, 1:-1]),
    "transposed": front(
        lambda s, y: F.relu(s.n(s.t(y))), 6, t=nn.ConvTranspose2d(8, 6, 2, 2), n=nn.BatchNorm2d(6)
    ),
    "depthwise and transposed": front(
        lambda s, y: F.relu(s.n(s.t(y))), t=nn.ConvTranspose2d(8, 8, 2, 2, groups=8), n=nn.BatchNorm2d(8)
    ),
    "convolutions in groups": lambda: Made(
        lambda s, x: s.d(s.c(s.b(s.a(x)))),
        a=unit(3, 12),
        b=unit(12, 24, groups=3),
        c=unit(24, 12, groups=4),
        d=nn.Conv2d(12, 2, 1),
    ),
    "a residual of convolutions in groups": lambda: Made(
        lambda s, x: (lambda y: s.d(y + s.c(s.b(y))))(s.a(x)),
        a=unit(3, 12),
        b=unit(12, 12, groups=2),
        c=unit(12, 12, groups=3),
        d=nn.Conv2d(12, 2, 1),
    ),
    "transposed, in groups": lambda: Made(
        lambda s, x: s.d(s.n(s.t(s.a(x)))),
        a=unit(3, 8),
        t=nn.ConvTranspose2d(8, 16, 2, 2, groups=2),
        n=nn.BatchNorm2d(16),
        d=nn.Conv2d(16, 2, 1),
    ),
    "slopes": front(lambda s, y: s.p(s.n(s.d(y))), d=nn.Conv2d(8, 8, 1), n=nn.BatchNorm2d(8), p=nn.PReLU(8)),
    "one slope, instance norm": front(lambda s, y: s.p(s.n(y)), n=nn.InstanceNorm2d(8), p=nn.PReLU()),
    "called twice": front(lambda s, y: s.d(s.d(y)), d=unit(8, 8)),
    "depthwise, called twice": front(
        lambda s, y: F.relu(s.n(s.d(s.d(y)))),
        d=nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        n=nn.BatchNorm2d(8),
    ),
    "in place": front(lambda s, y: y.mul_(2).tanh_()),
    "no shift": front(lambda s, y: s.n(s.d(y)), d=nn.Conv2d(8, 8, 1), n=nn.BatchNorm2d(8, bias=False)),
    "no statistics": front(
        lambda s, y: s.n(s.d(y)), d=nn.Conv2d(8, 8, 1), n=nn.BatchNorm2d(8, track_running_stats=False)
    ),
    "a dictionary": lambda: Made(lambda s, x: {"y": s.b(s.a(x)), "n": 3}, a=unit(3, 8), b=unit(8, 4)),
}


def test_groups_of_convolutions_in_groups_stay_equal() -> None:
    net = ready(GO["convolutions in groups"]())
    groups = PruningGroups(copy.deepcopy(net), (example(),), {}, ())
    assert {group.name: group.blocks for group in groups.all if not group.why} == {
        "a.0": 3,
        "b.0": 12,
        "c.0": 4,
    }
    gone = plan_pruning(net, groups, (example(),), {}, OPTIONS).choice.gone
    for name, (size, blocks) in {"a.0": (4, 3), "b.0": (2, 12), "c.0": (3, 4)}.items():
        lost = [sum(at // size == block for at in gone.get(name, ())) for block in range(blocks)]
        assert len(set(lost)) == 1
    assert len(gone) > 1


def silent(net: nn.Module, removals: list[Removal]) -> nn.Module:
    """The network with hooks that set channels to 0 where layers make them."""
    net = copy.deepcopy(net)

    def hook(gone: list[int], axis: int) -> Callable[..., Tensor]:
        return lambda layer, inputs, output: output.index_fill(axis, torch.tensor(gone), 0)

    for each in removals:
        layer = net.get_submodule(each.layer)
        if each.side != "in":
            layer.register_forward_hook(hook(sorted(each.gone), -1 if isinstance(layer, nn.Linear) else 1))
    return net


def flat(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else [made["y"]]


@pytest.mark.parametrize("name", GO)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_network_without_channels_is_the_one_in_which_they_are_silent(name: str, seed: int) -> None:
    net = ready(GO[name](), seed)
    groups = PruningGroups(copy.deepcopy(net), (example(),), {}, ())
    plan = plan_pruning(net, groups, (example(),), {}, OPTIONS)
    assert 0.3 < plan.choice.reached < 0.5
    small = copy.deepcopy(net)
    prune(small, plan.removals)
    numbers = [sum(value.numel() for value in each.parameters()) for each in (net, small)]
    assert numbers[1] < numbers[0]
    # In a layer behind the removed channels (a batch norm behind a concat, say) they are 0 by another hook.
    other = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    for one, two in zip(flat(small(other)), flat(silent(net, plan.removals)(other)), strict=True):
        assert one.shape == two.shape
        assert torch.allclose(one, two, rtol=0, atol=1e-10)
        assert one.abs().max() > 1e-3

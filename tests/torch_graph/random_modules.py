"""Random networks as people write them: blocks called twice, norms of their own, learned numbers.

A network is a chain of steps on images (batch, channels, height, width) and a head. What is drawn depends on
the seed alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.torch_graph.modules import Fn

__all__ = ["FrozenNorm", "exact", "network"]

SIZE = 6  # of an image's sides, at first


class FrozenNorm(nn.Module):
    """As detection libraries write it; `axis`: of the channels."""

    def __init__(self, channels: int, axis: int = 1, as_keras: bool = False) -> None:
        super().__init__()
        self.axis, self.as_keras = axis, as_keras
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.randn(channels))
        self.running_var.abs_().add_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = -1
        w, b, m, v = (t.reshape(shape) for t in self.buffers(recurse=False))
        if self.as_keras:
            return torch.subtract(x, m).mul_(v.add(1e-3).rsqrt_().mul(w)).add_(b)
        scale = w * (v + 1e-5).rsqrt()
        return x * scale + (b - m * scale)


class FrozenAct(FrozenNorm):
    """One with an activation in it."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(super().forward(x))
        return y


class LastNorm(nn.BatchNorm1d):
    """A batch norm over the last of the axes, by way of the second one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).reshape(x.shape)


class NormAct(nn.BatchNorm2d):
    """One with drop-out and an activation in it."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.3), act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


class Wrapper(nn.Module):
    """Hands everything on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Drawn:
    """What is drawn for one network."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def conv(self, a: int, b: int, same_size: bool = False) -> nn.Module:
        rng = self.rng
        kernel = rng.choice((1, 1, 3))
        padding: Any = kernel // 2 if same_size or rng.random() < 0.5 else 0
        groups = rng.choice((1, 1, 2)) if a % 2 == b % 2 == 0 else 1
        options = {"bias": rng.random() < 0.5, "groups": groups, "padding": padding}
        if rng.random() < 0.15:
            return nn.ConvTranspose2d(a, b, kernel, **options)
        if padding and rng.random() < 0.2:
            options["padding_mode"] = rng.choice(("reflect", "replicate", "circular"))
        layer = nn.Conv2d(a, b, kernel, **options)
        if rng.random() < 0.1:
            layer = nn.utils.parametrizations.weight_norm(layer)
        return layer

    def norm(self, channels: int) -> nn.Module:
        rng = self.rng
        kind = rng.choice(
            ("plain", "plain", "plain", "bare", "frozen", "keras", "instance", "act", "last", "scale")
        )
        if kind == "bare":
            return nn.BatchNorm2d(channels, affine=False)
        if kind in ("frozen", "keras"):
            return FrozenNorm(channels, as_keras=kind == "keras")
        if kind == "instance":
            return nn.InstanceNorm2d(channels, affine=rng.random() < 0.5, track_running_stats=True)
        if kind == "act":
            kinds = (NormAct, NormAct, FrozenAct)
            return rng.choice(kinds)(
                channels, rng.choice((nn.ReLU(inplace=True), nn.SiLU(), nn.Identity(), nn.PReLU()))
            )
        if kind == "last":
            norm = LastNorm(channels) if rng.random() < 0.5 else FrozenNorm(channels, axis=-1)
            return Fn(lambda m, x: m.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=norm)
        if kind == "scale":
            gamma = nn.Parameter(torch.randn(channels, 1, 1))
            return Fn(lambda m, x: x * m.gamma, gamma=gamma)
        return nn.BatchNorm2d(channels)

    def act(self, channels: int) -> nn.Module:
        makers: list[Callable[[], nn.Module]] = [
            nn.ReLU,
            lambda: nn.ReLU(inplace=True),
            lambda: nn.LeakyReLU(0.1),
            lambda: nn.PReLU(self.rng.choice((1, channels))),
            nn.SiLU,
            nn.ReLU6,
            nn.Identity,
            lambda: Fn(lambda m, x: functional.dropout(x, 0.4, m.training)),
            lambda: nn.Dropout(0.4),
            lambda: Fn(lambda m, x: -x),
            lambda: Fn(lambda m, x: x.abs()),
            lambda: Fn(lambda m, x: 1 - x),
            lambda: Fn(lambda m, x: torch.maximum(x, torch.zeros(()).to(x))),
        ]
        return self.rng.choice(makers)()

    def block(self, a: int, b: int, same_size: bool = False) -> nn.Module:
        parts = [self.conv(a, b, same_size), self.norm(b), self.act(b)]
        if self.rng.random() < 0.3:
            parts.insert(0, self.norm(a))
        if self.rng.random() < 0.2:
            parts[-2:] = parts[:-3:-1]
        return nn.Sequential(*parts)

    def number(self) -> nn.Module:
        """One learned number, or one for each column, or a number in the code."""
        shape = self.rng.choice(((), (1,), (1, 1, 1)))
        p = nn.Parameter(torch.randn(shape) + 1.5)
        run = self.rng.choice(
            (
                lambda m, x: x * m.p,
                lambda m, x: x + m.p,
                lambda m, x: m.p - x,
                lambda m, x: x / m.p,
                lambda m, x: x * 0.3 + 2,
            )
        )
        return Fn(run, p=p)

    def step(self, a: int) -> tuple[nn.Module, int]:
        """A step, and how many channels it gives."""
        rng = self.rng
        b = rng.choice((4, 6, 8))
        kind = rng.choice(tuple(STEPS))
        made: tuple[nn.Module, int] = STEPS[kind](self, a, b)
        return made

    def head(self, channels: int) -> nn.Module:
        kind = self.rng.choice(tuple(HEADS))
        return HEADS[kind](self, channels)


def _twice(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    """A block with shared weights on two views, or on two levels."""
    block = d.block(a, b)
    run = d.rng.choice(
        (
            lambda m, x: m.block(x) - m.block(x.flip(3)),
            lambda m, x: m.block(x) * torch.sigmoid(m.block(x.roll(1, 2))),
            lambda m, x: m.block(x) + functional.max_pool2d(m.block(x), 3, 1, 1),
            lambda m, x: torch.stack([m.block(x), m.block(-x)], 1).mean(1),
            lambda m, x: torch.cat([m.block(x), m.block(x.sin())], 1)[:, : m.b],
        )
    )
    return Fn(run, block=block, b=b), b


def _steps_in_time(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    """The same block again and again."""
    block, count = d.block(a, a, same_size=True), d.rng.choice((2, 3))

    def run(m: Any, x: Tensor) -> Tensor:
        for _ in range(count):
            x = m.block(x)
        return x

    block = nn.Sequential(*(c for c in block if not isinstance(c, nn.ConvTranspose2d)))
    return Fn(run, block=block), a


def _shared_layer(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    """One convolution, a batch norm of its own for each call."""
    parts = {"c": d.conv(a, b), "n": d.norm(b), "o": d.norm(b)}
    return Fn(lambda m, x: torch.tanh(m.n(m.c(x))) + torch.tanh(m.o(m.c(x.sin()))), **parts), b


def _residual(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    body = nn.Sequential(nn.Conv2d(a, a, 3, padding=1, bias=False), d.norm(a))

    def add(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        y += x
        return torch.relu_(y)

    return Fn(
        d.rng.choice((add, lambda m, x: x + m.body(x), lambda m, x: m.body(x) * x.mean())), body=body
    ), a


def _branches(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    left, right = (nn.Sequential(nn.Conv2d(a, b, 1), d.norm(b)) for _ in range(2))
    run = d.rng.choice(
        (
            lambda m, x: m.left(x) + m.right(x),
            lambda m, x: m.left(x) * torch.sigmoid(m.right(x)),
            lambda m, x: torch.where(x[:, :1] > 0, m.left(x), m.right(x)),
            lambda m, x: torch.stack([m.left(x), m.right(x)]).amax(0),
            lambda m, x: m.left(x).masked_fill(x[:, :1] > 0, 0.0) + m.right(x),
            lambda m, x: torch.minimum(m.left(x), m.right(x)),
        )
    )
    return Fn(run, left=left, right=right), b


def _split(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    """Halves of the channels, one of which has a batch norm."""
    half = a // 2

    def run(m: Any, x: Tensor) -> Tensor:
        left, right = x.split((half, a - half), 1)
        return torch.cat([m.n(left), right], 1)

    return Fn(run, n=d.norm(half)), a


def _along_the_width(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    p = nn.Parameter(torch.randn(3))
    parts = {"c": d.conv(a, b), "n": d.norm(b), "p": p, "pool": nn.AdaptiveAvgPool2d((2, 3))}
    run = d.rng.choice((lambda m, x: m.n(m.pool(m.c(x)) - m.p), lambda m, x: m.n(m.pool(m.c(x)) * m.p)))
    return nn.Sequential(Fn(run, **parts), nn.Upsample(scale_factor=2)), b


def _moved(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    run, out = d.rng.choice(
        (
            (lambda m, x: x.roll((1, 2), (2, 3)), a),
            (lambda m, x: x.flip((1, 2)), a),
            (lambda m, x: x[:, torch.arange(a - 1, -1, -1)], a),
            (lambda m, x: x.index_select(1, torch.tensor([0, 1])), 2),
            (lambda m, x: torch.stack(x.unbind(1)[::-1], 1), a),
            (lambda m, x: x.repeat(1, 2, 1, 1), 2 * a),
            (lambda m, x: functional.pixel_unshuffle(functional.pad(x, (0, 2, 0, 2))[..., :4, :4], 2), 4 * a),
            (lambda m, x: functional.interpolate(x, scale_factor=2, mode="bilinear"), a),
            (lambda m, x: functional.avg_pool2d(x, 2, 1), a),
            (lambda m, x: functional.max_pool2d(x, 2, 1, 1), a),
            (lambda m, x: x.tril() + x, a),
        )
    )
    return Fn(run), out


def _wrapped(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    wrap = d.rng.choice((Wrapper, lambda m: nn.ModuleDict({"a": m})["a"], nn.Sequential))
    return wrap(d.block(a, b)), b


def _tied(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    c, e = nn.Conv2d(a, b, 1), nn.Conv2d(a, b, 1)
    e.weight = c.weight
    parts = {"c": c, "e": e, "n": d.norm(b), "o": d.norm(b)}
    return Fn(lambda m, x: m.n(m.c(x)) + m.o(m.e(x)).tanh(), **parts), b


def _one_parameter(d: Drawn, a: int, b: int) -> tuple[nn.Module, int]:
    """A batch norm whose weight is its bias."""
    n = nn.BatchNorm2d(b)
    n.bias = n.weight
    return nn.Sequential(d.conv(a, b), n), b


STEPS: dict[str, Callable[[Drawn, int, int], tuple[nn.Module, int]]] = {
    "block": lambda d, a, b: (d.block(a, b), b),
    "another block": lambda d, a, b: (d.block(a, b), b),
    "twice": _twice,
    "in time": _steps_in_time,
    "shared layer": _shared_layer,
    "residual": _residual,
    "branches": _branches,
    "split": _split,
    "number": lambda d, a, b: (nn.Sequential(d.conv(a, b), d.number(), d.norm(b)), b),
    "along the width": _along_the_width,
    "moved": _moved,
    "wrapped": _wrapped,
    "tied": _tied,
    "one parameter": _one_parameter,
    "norm": lambda d, a, b: (d.norm(a), a),
    "group norm": lambda d, a, b: (nn.Sequential(nn.GroupNorm(1, a), d.norm(a)), a),
}


def _tokens(run: Callable[[Any, Tensor], Tensor], **parts: Any) -> nn.Module:
    return Fn(lambda m, x: run(m, x.flatten(2).transpose(1, 2)), **parts)


def _attention(d: Drawn, c: int) -> nn.Module:
    parts = {
        "q": nn.Linear(c, 4),
        "k": nn.Linear(c, 4),
        "v": nn.Linear(c, 6),
        "n": LastNorm(6),
        "o": LastNorm(6),
    }
    causal = d.rng.random() < 0.5

    def run(m: Any, x: Tensor) -> Tensor:
        y = functional.scaled_dot_product_attention(m.q(x), m.k(x), m.n(m.v(x)), is_causal=causal)
        return m.o(y)

    return _tokens(run, **parts)


def _recurrent(d: Drawn, c: int) -> nn.Module:
    kind = d.rng.choice((nn.LSTM, nn.GRU, nn.RNN))
    layer = kind(c, 5, d.rng.choice((1, 2)), bidirectional=d.rng.random() < 0.5, batch_first=True)
    return _tokens(lambda m, x: m.r(m.n(x))[0], r=layer, n=LastNorm(c))


def _statistics(d: Drawn, c: int) -> nn.Module:
    run = d.rng.choice(
        (
            lambda m, x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1),
            lambda m, x: torch.cat([x.mean((2, 3)), x.var((2, 3), unbiased=False)], 1),
            lambda m, x: torch.cat([x.sum((2, 3)), x.norm(dim=(2, 3))], 1),
            lambda m, x: torch.cat([x.amax((2, 3)), x.square().mean((2, 3))], 1),
        )
    )
    return nn.Sequential(Fn(run), nn.Linear(2 * c, 6), nn.BatchNorm1d(6))


def _embedded(d: Drawn, c: int) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        places = (x[..., 0] > 0).long() + 2
        return m.o(m.n(m.e(places)) + m.m(m.l(x)))

    return _tokens(
        run, e=nn.Embedding(5, 6), l=nn.Linear(c, 6), n=LastNorm(6), m=LastNorm(6), o=nn.Linear(6, 3)
    )


def _graph(d: Drawn, c: int) -> nn.Module:
    """A graph convolution: rows are added up by index."""

    def run(m: Any, x: Tensor) -> Tensor:
        h = m.l(x.flatten(0, 1))
        goal = (h[:, :1] > 0).long().expand_as(h)
        return m.n(torch.zeros(2, 6).to(h).scatter_add(0, goal, h) + m.b)

    return _tokens(run, l=nn.Linear(c, 6, bias=False), b=nn.Parameter(torch.randn(6)), n=nn.BatchNorm1d(6))


HEADS: dict[str, Callable[[Drawn, int], nn.Module]] = {
    "images": lambda d, c: nn.Identity(),
    "pooled": lambda d, c: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 5, bias=False), nn.BatchNorm1d(5)
    ),
    "einsum": lambda d, c: _tokens(
        lambda m, x: m.n(torch.einsum("blc,cd->bld", m.m(x), m.w)),
        w=nn.Parameter(torch.randn(c, 5)),
        n=LastNorm(5),
        m=LastNorm(c),
    ),
    "attention": _attention,
    "recurrent": _recurrent,
    "statistics": _statistics,
    "embedded": _embedded,
    "graph": _graph,
}


def network(seed: int) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, and an input for it."""
    torch.manual_seed(seed)
    drawn = Drawn(seed)
    channels = first = drawn.rng.choice((3, 4, 6))
    steps: list[nn.Module] = []
    for _ in range(drawn.rng.choice((1, 2, 3))):
        made, channels = drawn.step(channels)
        steps.append(made)
    steps.append(drawn.head(channels))
    module = nn.Sequential(*steps)
    if drawn.rng.random() < 0.2:
        module = nn.Sequential(Wrapper(module))
    _draw_numbers(module, drawn.rng)
    return module.eval(), torch.randn(2, first, SIZE, SIZE)


def _draw_numbers(module: nn.Module, rng: Random) -> None:
    """Norms that do something; some have zero scales, some negative ones, some a shift of zero."""
    kinds = (nn.modules.batchnorm._NormBase, FrozenNorm)
    sign = rng.random() < 0.5
    with torch.no_grad():
        for part in module.modules():
            if not isinstance(part, kinds):
                continue
            part.running_mean.normal_(0, 0.5)
            part.running_var.uniform_(0.5, 1.5)
            if part.weight is None:
                continue
            part.weight.uniform_(0.5, 1.5)
            if sign:
                part.weight.mul_(torch.randint(0, 2, part.weight.shape) * 2 - 1)
            if rng.random() < 0.2:
                part.weight[0] = 0
            if part.bias is not part.weight:
                part.bias.normal_(0, 0.5)
            if rng.random() < 0.1:
                part.running_mean.zero_(), part.bias.zero_()


def exact(module: nn.Module, x: Tensor) -> Tensor:
    """What it gives in float64."""
    with torch.no_grad():
        found: Tensor = copy.deepcopy(module).double()(x.double())
        return found

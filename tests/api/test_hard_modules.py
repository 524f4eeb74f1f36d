"""`fold_module` on code as people write it: shared, renamed, oddly called, held outside, written into."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, linear
from torch.nn.utils import parametrize

import bnfold
from bnfold.torch_graph.module.float64 import InFloat64, to_float64
from tests.torch_graph.modules import IMAGE, Fn, bn, conv, randomize

ROUNDING = 1e-5  # of the output's largest value, in float32


def fold(module: nn.Module, x: Tensor | None = None, **options: Any) -> tuple[nn.Module, Any, float]:
    """The folded module, the report, and how far it is off in float64."""
    x = torch.randn(IMAGE) if x is None else x
    folded, report = bnfold.fold_module(module, x, **options)
    with torch.no_grad():
        with InFloat64():
            exact = copy.deepcopy(module)(to_float64(x))
        found = folded(x.clone())
        exact, found = (y[0] if isinstance(y, tuple) else y for y in (exact, found))
    return folded, report, float((found.double() - exact).abs().max() / exact.abs().max())


def test_one_module_under_two_names_is_one_module() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.b2(m.c2(torch.sigmoid(m.b(m.c(x)))))

    module = Fn(run, c=conv(6, 6, 1), b=bn(6), b2=bn(6))
    module.c2 = module.c
    folded, report, error = fold(randomize(module))
    assert error < ROUNDING
    assert all("is used by several calls" in entry.reason for entry in report.kept)
    assert folded.c is folded.c2
    module = Fn(lambda m, x: torch.sigmoid(m.b2(torch.sigmoid(m.b(m.c(x))))), c=conv(6, 6, 1), b=bn(6))
    module.b2 = module.b
    _, report, error = fold(randomize(module))
    assert error < ROUNDING
    assert not report.folded


def test_a_weight_tied_to_a_module_that_is_not_called() -> None:
    module = randomize(Fn(lambda m, x: m.b(m.c(x)), c=conv(6, 4), b=bn(4), d=conv(6, 4)))
    module.d.weight = module.c.weight
    before = module.d.weight.clone()
    folded, report, error = fold(module)
    assert error < ROUNDING
    assert torch.equal(folded.d.weight, before)
    assert report.notes == ["c.weight is no longer tied to d.weight"]


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_batch_norms_that_share_parameters(eps: float) -> None:
    """One of them folds: the other one's scale must not become that of an identity map."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = batch_norm(m.c(x), m.mean, m.var, m.w, m.bias)
        z = m.d(torch.sigmoid(y))
        second = (m.mean2, m.var2) if eps == 1e-5 else (m.mean, m.var)
        return torch.sigmoid(batch_norm(z, *second, m.w, m.bias, eps=eps))

    module = Fn(run, c=conv(6, 4), d=conv(4, 4)).eval()
    for name in ("mean", "var", "w", "bias", "mean2", "var2"):
        module.register_buffer(name, torch.rand(4) + 0.5)
    _, report, error = fold(module)
    assert error < ROUNDING
    assert all("is used elsewhere too" in entry.reason for entry in report.kept)


class Masked(nn.BatchNorm2d):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x) if mask is None else super().forward(x) * mask


class Pair(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


CALLS = {
    "more than one tensor": (Masked, lambda m, x: m.b(m.c(x), x[:, :1, 2:, 2:])),
    "a name": (Masked, lambda m, x: m.b(x=m.c(x))),
    "None beside": (Masked, lambda m, x: m.b(m.c(x), None)),
    "more than a tensor out": (Pair, lambda m, x: m.b(m.c(x))[0]),
    "torch's own name": (bn, lambda m, x: m.b(input=m.c(x))),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_the_identity_would_not_take(name: str) -> None:
    kind, run = CALLS[name]
    module = randomize(Fn(run, c=conv(6, 4), b=kind(4)))
    folded, report, error = fold(module)
    assert [entry.outcome for entry in report.entries] == ["folded"]
    assert error < ROUNDING
    assert type(folded.b) is kind


def test_a_batch_norm_that_is_held_outside_as_well() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b = conv(6, 4), bn(4)
            self.layers = [self.c, self.b]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    _, report, error = fold(randomize(Net()))
    assert report.folded
    assert error < ROUNDING


@pytest.mark.parametrize(
    "run",
    [lambda m, x: m.b(conv2d(x, m.c.weight)), lambda m, x: m.b(linear(x.transpose(1, 3), m.l.weight))],
)
def test_a_bias_that_nobody_would_read_is_not_given(run: Any) -> None:
    module = Fn(run, c=conv(6, 4, bias=False), l=nn.Linear(6, 4, bias=False), b=bn(4))
    module = randomize(module if "conv2d" in run.__code__.co_names else Fn(run, l=module.l, b=bn(9)))
    _, report, error = fold(module)
    assert error < ROUNDING
    assert any("no place for a bias" in entry.reason for entry in report.kept)


def test_an_einsum_by_the_weight_of_a_layer_gives_that_no_bias() -> None:
    layers = {"c": nn.Conv2d(6, 4, 3, bias=False), "b": nn.BatchNorm3d(4)}
    module = randomize(Fn(lambda m, x: m.b(torch.einsum("bchw,ockl->bolhw", x, m.c.weight)), **layers))
    _, report, error = fold(module)
    assert error < ROUNDING
    assert "no place for a bias" in report.kept[0].reason


def test_what_torch_export_made_a_module_of() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4)))
    exported = torch.export.export(module, (torch.randn(IMAGE),)).module()
    _, report, error = fold(exported)
    assert error < ROUNDING
    assert report.folded


def test_prelu_with_one_slope() -> None:
    module = nn.Sequential(conv(6, 4), nn.PReLU(), bn(4), conv(4, 3))
    for negative in (True, False):
        _, _, error = fold(randomize(module, negative))
        assert error < ROUNDING


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(m.c(x).to(x.dtype)),
        lambda m, x: m.b(m.c(x).type_as(x)),
        lambda m, x: m.b(m.c(x.float()).to(torch.float32)),
    ],
)
def test_a_change_of_type_that_is_none(run: Any) -> None:
    _, report, error = fold(randomize(Fn(run, c=conv(6, 4), b=bn(4))))
    assert [entry.outcome for entry in report.entries] == ["folded"]
    assert error < ROUNDING


def test_a_frozen_backbone_under_no_grad() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(6, 4, bias=False), bn(4), nn.ReLU())
            self.head = conv(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.body(x)
            z: Tensor = self.head(y)
            return z

    folded, report, error = fold(randomize(Net()))
    assert [(entry.name, entry.outcome) for entry in report.entries] == [("body.1", "folded")]
    assert type(folded.body[1]) is nn.Identity
    assert error < ROUNDING


def test_pruned_weights_if_asked() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4)))
    torch.nn.utils.prune.l1_unstructured(module[0], "weight", 0.5)
    with torch.no_grad():
        module(torch.randn(IMAGE))
    assert "computed from other parameters" in fold(module)[1].kept[0].reason
    folded, report, error = fold(module, parametrizations="remove")
    assert report.folded
    assert error < ROUNDING
    assert int((folded[0].weight == 0).sum()) == folded[0].weight.numel() // 2


def test_a_parametrized_scale_of_a_batch_norm_if_asked() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4), nn.SiLU()))
    parametrize.register_parametrization(module[1], "weight", nn.Softplus())
    _, report, _ = fold(module)
    assert "computed from others" in report.kept[0].reason
    folded, report, error = fold(module, parametrizations="remove")
    assert error < ROUNDING
    assert report.folded
    assert type(folded[1]) is nn.Identity


def test_what_the_inputs_do_not_reach_is_told() -> None:
    module = randomize(Fn(lambda m, x: m.b(m.c(x)), c=conv(6, 4), b=bn(4), other=bn(4)))
    _, report, _ = fold(module)
    assert report.notes == ["not called on these inputs, and so not looked at: other"]
    module.train()
    _, report = bnfold.fold_module(module, torch.randn(IMAGE))
    assert any("call .eval() first" in note for note in report.notes)


def test_strides_attributes_and_identity_of_parameters_stay() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4))).to(memory_format=torch.channels_last)
    module[0].weight.no_weight_decay = True
    strides, weight = module[0].weight.stride(), module[0].weight
    folded, _, _ = fold(module)
    assert folded[0].weight.stride() == strides
    bnfold.fold_module(module, torch.randn(IMAGE), inplace=True)
    assert module[0].weight is weight
    assert weight.no_weight_decay
    module, x = randomize(nn.Sequential(conv(6, 4, bias=False), bn(4))), torch.randn(IMAGE)
    with torch.inference_mode():
        folded, _ = bnfold.fold_module(module, x)
    assert not any(value.is_inference() for value in folded.state_dict().values())


def test_the_check_leaves_buffers_and_looks_at_what_counts() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b = conv(6, 4), bn(4)
            self.register_buffer("n", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            self.n.add_(1)
            y: Tensor = self.b(self.c(x)) * self.n
            return y

    module, x = randomize(Counting()), torch.randn(IMAGE)
    for made in (bnfold.fold_module(module, x), bnfold.fold_program(torch.export.export(module, (x,)))):
        assert made[1].verification.status == "passed"
    assert float(module.n) == 1.0
    partly = randomize(nn.Sequential(conv(6, 4), bn(4), conv(4, 4), bn(4)))
    partly[1].train()
    mean = partly[1].running_mean.clone()
    program = torch.export.export(partly, (x,))
    bnfold.fold_program(program)
    assert torch.equal(partly[1].running_mean, mean)
    plain = randomize(nn.Sequential(conv(6, 4), bn(4)))
    plain.register_buffer("junk", torch.zeros(1, dtype=torch.float16))
    assert bnfold.fold_module(plain, x)[1].verification.rtol == 1e-5


def test_without_a_finite_value_nothing_is_known() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4)))
    _, report = bnfold.fold_module(module, torch.full(IMAGE, float("nan")))
    assert report.verification.status == "not run"
    assert "no output has a finite value" in report.verification.reason


@pytest.mark.parametrize("make", [torch.conj, lambda y: y.conj().imag, lambda y: y.abs().to_sparse()])
def test_odd_outputs(make: Any) -> None:
    module = randomize(Fn(lambda m, x: make(m.b(m.c(x)).to(torch.complex64)), c=conv(6, 4), b=bn(4)))
    _, report = bnfold.fold_module(module, torch.randn(IMAGE))
    assert report.verification.status == "passed"

"""`recalibrate`: the mean and variance of all the data, as float64 gives them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold.nn
from bnfold.errors import UsageError
from bnfold.nn.moments import moments


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )


def data(batches: int = 5, size: int = 7) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size + i, 3, 8, 8) * (i + 1) + i for i in range(batches)]


def truth(values: Tensor) -> tuple[Tensor, Tensor]:
    flat = values.double().transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1)


def test_the_first_batch_norm_has_the_moments_of_all_the_data() -> None:
    module = net()
    bnfold.nn.recalibrate(module, data())
    with torch.no_grad():
        mean, var = truth(torch.cat([module[0](x) for x in data()]))
    assert torch.allclose(module[1].running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    assert torch.allclose(module[1].running_var.double(), var, rtol=1e-6)


def test_layer_by_layer_each_sees_what_it_will_see_in_use() -> None:
    module = net()
    bnfold.nn.recalibrate(module, data(), layer_by_layer=True)
    module.eval()
    with torch.no_grad():
        for index in (1, 4):
            mean, var = truth(torch.cat([module[:index](x) for x in data()]))
            assert torch.allclose(module[index].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
            assert torch.allclose(module[index].running_var.double(), var, rtol=1e-5)


def test_it_can_be_undone_and_leaves_modes_and_weights_alone() -> None:
    module = net().eval()
    module[4].train()
    before = copy.deepcopy(module.state_dict())
    handle = bnfold.nn.recalibrate(module, data())
    assert [part.training for part in module] == [False, False, False, False, True]
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{i}.running_{kind}" for i in (1, 4) for kind in ("mean", "var")}
    assert handle.counts == {"1": sum(len(x) for x in data()) * 36, "4": sum(len(x) for x in data()) * 16}
    handle.undo()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_without_reset_old_statistics_count_as_what_was_seen() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    first, second = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4) * 3 + 2
    bnfold.nn.recalibrate(module, [first])
    module[0].num_batches_tracked.fill_(1)
    bnfold.nn.recalibrate(module, [second], reset=False)
    mean, var = truth(torch.cat([first, second]))
    assert torch.allclose(module[0].running_mean.double(), mean, atol=1e-6)
    assert torch.allclose(module[0].running_var.double(), var, rtol=1e-5)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    batches = [torch.randn(100, 2) * 0.1 + 1000 for _ in range(4)]
    bnfold.nn.recalibrate(module, batches)
    assert torch.allclose(module[0].running_var.double(), truth(torch.cat(batches))[1], rtol=1e-6)


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, *, rows: Tensor) -> Tensor:
        y: Tensor = self.norm(rows)
        return y


@pytest.mark.parametrize("form", ["tensor", "pair", "generator", "keywords"])
def test_batches_as_loaders_give_them(form: str) -> None:
    rows = [torch.randn(8, 3) for _ in range(3)]
    loaders: dict[str, Any] = {
        "tensor": rows,
        "pair": [(x, torch.zeros(8)) for x in rows],
        "generator": (x for x in rows),
        "keywords": [{"rows": x} for x in rows],
    }
    module = Keyword() if form == "keywords" else nn.Sequential(nn.BatchNorm1d(3))
    bnfold.nn.recalibrate(module, loaders[form])
    norm: Any = module.norm if form == "keywords" else module[0]  # type: ignore[index]
    assert torch.allclose(norm.running_mean, torch.cat(rows).mean(0), atol=1e-6)


class Inputs(nn.Module):
    """A network of two inputs, whose batch norm is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, rows: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = self.norm(input=rows * scale[:, None])
        return y


@pytest.mark.parametrize(
    "form", ["items", "list", "nested", "nested list", "keywords", "keywords and labels"]
)
@pytest.mark.parametrize("wrap", [False, True])
def test_networks_of_several_inputs(form: str, wrap: bool) -> None:
    torch.manual_seed(0)
    pairs = [(torch.randn(2 + n, 3), torch.rand(2 + n)) for n in range(3)]  # a first batch of two examples
    forms: dict[str, Any] = {
        "items": lambda x, s: (x, s),
        "list": lambda x, s: [x, s, torch.zeros(len(x))],
        "nested": lambda x, s: ((x, s), torch.zeros(len(x))),
        "nested list": lambda x, s: [[x, s], torch.zeros(len(x))],
        "keywords": lambda x, s: {"scale": s, "rows": x},
        "keywords and labels": lambda x, s: ({"scale": s, "rows": x}, torch.zeros(len(x))),
    }
    module = Inputs()
    loader = [forms[form](*pair) for pair in pairs]
    handle = bnfold.nn.recalibrate(torch.optim.swa_utils.AveragedModel(module) if wrap else module, loader)
    (norm,) = handle._before
    mean, var = truth(torch.cat([x * s[:, None] for x, s in pairs]))
    assert torch.allclose(norm.running_mean.double(), mean, atol=1e-6)
    assert torch.allclose(norm.running_var.double(), var, rtol=1e-6)


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_a_batch_norm_under_two_names_or_with_shared_buffers_is_measured_as_one(layer_by_layer: bool) -> None:
    x = data(1)[0]
    same, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    other.running_mean, other.running_var = same.running_mean, same.running_var
    for second in (same, other):

        class Two(nn.Module):
            def __init__(self, second: nn.Module = second) -> None:
                super().__init__()
                self.one, self.two = same, second

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.one(x) + self.two(x * 3 + 2)
                return y

        handle = bnfold.nn.recalibrate(Two(), [x], layer_by_layer=layer_by_layer)
        mean, var = truth(torch.cat([x, x * 3 + 2]))
        assert torch.allclose(same.running_mean.double(), mean, rtol=1e-6)
        assert torch.allclose(same.running_var.double(), var, rtol=1e-6)
        assert set(handle.counts.values()) == {2 * x.numel() // 3}


def test_frozen_batch_norms_and_ignored_ones_are_left_out() -> None:
    module = net()
    module[1].eval()
    before = copy.deepcopy(module[1].state_dict())
    handle = bnfold.nn.recalibrate(module, data())
    assert (list(handle.counts), handle.left_out) == (["4"], ("1",))
    assert all(torch.equal(value, before[key]) for key, value in module[1].state_dict().items())
    with torch.no_grad():
        mean, var = truth(torch.cat([module[:4](x) for x in data()]))
    assert torch.allclose(module[4].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(module[4].running_var.double(), var, rtol=1e-5)
    wrapped = torch.optim.swa_utils.AveragedModel(net())
    wrapped.module.eval()  # as a whole, which the wrapper does not see
    assert list(bnfold.nn.recalibrate(wrapped, data()).counts) == ["module.1", "module.4"]
    module = nn.Sequential(net(), nn.BatchNorm2d(2)).eval()
    handle = bnfold.nn.recalibrate(module, data(), ignored=("0",))
    assert (list(handle.counts), handle.left_out) == (["1"], ("0.1", "0.4"))
    handle = bnfold.nn.recalibrate(module, data(), ignored=("0.4", "1"), layer_by_layer=True)
    assert (list(handle.counts), handle.left_out) == (["0.1"], ("0.4", "1"))


@pytest.mark.parametrize("part", [False, True])
def test_a_network_that_was_compiled_and_run_before(part: bool) -> None:
    module = net()
    compiled: Any = torch.compile(module, backend="eager")
    run = nn.Sequential(compiled) if part else compiled
    with torch.no_grad():
        run(data()[0])
    bnfold.nn.recalibrate(run, data())
    with torch.no_grad():
        mean, _ = truth(torch.cat([module[0](x) for x in data()]))
    assert torch.allclose(module[1].running_mean.double(), mean, rtol=1e-6, atol=1e-6)


def test_a_last_batch_of_one_value_goes_layer_by_layer() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    rows = [torch.randn(8, 4), torch.randn(1, 4)]
    bnfold.nn.recalibrate(module, rows, layer_by_layer=True)
    with torch.no_grad():
        mean, _ = truth(module[0](torch.cat(rows)))
    assert torch.allclose(module[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)


LAYERS = {"layer_by_layer": True}
NORM = nn.Sequential(nn.BatchNorm1d(3))
FROZEN = nn.Sequential(nn.BatchNorm1d(3).eval())
BROKEN = [torch.randn(4, 3), torch.tensor([[1.0, 2.0, float("nan")]] * 4)]
INFINITE = [torch.randn(4, 3), torch.full((4, 3), float("inf"))]


@pytest.mark.parametrize(
    ("module", "loader", "options", "message"),
    [
        (nn.Sequential(nn.ReLU()), [torch.randn(2, 3)], {}, "Sequential has no batch norm with running"),
        (nn.Sequential(nn.BatchNorm1d(3)), [], {}, "no batch norm saw any data: the loader is empty"),
        (nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(1, 3)], LAYERS, r"0 saw 1 value\(s\)"),
        (nn.Sequential(nn.BatchNorm1d(3)), iter([torch.randn(4, 3)]), LAYERS, "many times"),
        (nn.BatchNorm1d(3), [torch.randn(2, 3)], {**LAYERS, "reset": False}, "reset=True only"),
        (NORM, [torch.randn(4, 3), torch.randn(1, 3)], {}, "batch 1 .* one value per channel at 0.*layer_by"),
        (NORM, BROKEN, {}, "batch 1 of the loader .* gives 0 values that are NaN or infinite"),
        (NORM, BROKEN, LAYERS, "batch 1 of the loader .* gives 0 values that are NaN or infinite"),
        (NORM, INFINITE, {"reset": False}, "batch 1 of the loader .* gives 0 values that are NaN or inf"),
        (FROZEN, [torch.randn(4, 3)], {}, r"batch norms of Sequential are ignored or frozen.*call .eval\("),
        (NORM, [torch.randn(4, 3)], {"ignored": ("0",)}, "all batch norms of Sequential are ignored"),
        (NORM, [torch.randn(4, 3)], {"ignored": ("1",)}, "ignored '1': no such module. Note: .* 0$"),
        (NORM, [torch.randn(4, 3)], {"ignored": "0"}, r"collection of names: \('0',\)"),
        (Inputs(), [torch.randn(4, 3)], {}, "Inputs takes 2 inputs, and the loader gives 1: .* keyword"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_and_nothing_changes(
    module: nn.Module, loader: Any, options: dict[str, Any], message: str
) -> None:
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(UsageError, match=message):
        bnfold.nn.recalibrate(module, loader, **options)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_moments_of_parts_merge_to_those_of_the_whole() -> None:
    x = torch.randn(50, 3, 4) * 0.1 + 1000
    parts = [x[:1], x[1:1], x[1:20], x[20:]]
    whole = moments(parts[0])
    for part in parts[1:]:
        whole = whole.merged(moments(part))
    assert int(whole.count) == 200
    assert torch.allclose(whole.mean, moments(x).mean, rtol=1e-12)
    assert torch.allclose(whole.m2, moments(x).m2, rtol=1e-9)

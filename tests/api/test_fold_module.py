"""`fold_module`: the user's own modules, folded, and held against themselves in float64."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

import bnfold
from tests.torch_graph.modules import CASES, IMAGE, Fn, bn, conv, randomize

ROUNDING = 1e-5  # of the output's largest value, in float32

# Where a module can follow less than a graph, and why.
LESS = {
    "conv called twice, one path without": (1, "is used by several calls"),
    "tied weights": (0, ""),
    "weight norm": (1, "is computed from other parameters"),
    "matmul by a parameter": (1, "its module has no place for a bias"),
    "forward into a matmul": (1, "its module has no place for a bias"),
    "layer scale on the left": (1, "written in the module's code"),
    "layer scale": (1, "written in the module's code"),
    "FrozenBatchNorm2d": (2, "written in the module's code"),
}


def error(folded: nn.Module, module: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        return float((folded(x).double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_what_can_fold_folds_and_is_exact(name: str) -> None:
    make, shape, stays = CASES[name]
    stays, why = LESS.get(name, (stays, ""))
    torch.manual_seed(len(name))
    module = randomize(make())
    x = torch.randn(shape)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    folded, report = bnfold.fold_module(module, x)
    assert len(report.kept) <= stays, report
    assert not why or any(why in entry.reason for entry in report.kept), report
    assert type(folded) is type(module)
    assert error(folded, module, x) < ROUNDING
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_batch_norm_that_vanishes_becomes_the_identity_and_all_else_stays() -> None:
    module = randomize(nn.Sequential(conv(6, 4, bias=False), bn(4), nn.ReLU(), conv(4, 4), bn(4)))
    module[0].weight.requires_grad_(False)
    module[3].train()
    folded, report = bnfold.fold_module(module, torch.randn(IMAGE))
    assert [type(part).__name__ for part in folded] == ["Conv2d", "Identity", "ReLU", "Conv2d", "Identity"]
    assert [entry.into for entry in report.folded] == [("0",), ("3",)]
    assert list(folded.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert not folded[0].weight.requires_grad
    assert not folded[0].bias.requires_grad
    assert folded[3].weight.requires_grad
    assert folded[3].training
    assert not folded[0].training
    again = pickle.loads(pickle.dumps(folded))
    x = torch.randn(IMAGE)
    assert torch.equal(again(x), folded(x))
    assert torch.allclose(torch.jit.script(folded)(x), folded(x))


class BatchNormAct(nn.BatchNorm2d):
    """A batch norm that calls other modules, as image models have them."""

    def __init__(self, channels: int, act: nn.Module, **options: Any) -> None:
        super().__init__(channels, **options)
        self.drop = nn.Dropout(0.1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.PReLU(4), nn.Sequential(nn.ReLU(), nn.Sigmoid())])
def test_of_a_batch_norm_that_calls_other_modules_these_are_left(act: nn.Module) -> None:
    module = randomize(nn.Sequential(conv(6, 4), BatchNormAct(4, act), conv(4, 3)))
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert [(name, type(part)) for name, part in folded[1].named_children()] == [
        ("drop", nn.Dropout),
        ("act", type(act)),
    ]
    assert type(folded[1]) is nn.Sequential
    assert report.entries[0].reason == ""
    assert error(folded, module, x) < ROUNDING
    kept = {name for name in module.state_dict() if ".act." in name}
    assert {name for name in folded.state_dict() if name.startswith("1.")} == kept


class BatchNormGate(BatchNormAct):
    """One that computes something itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class BatchNormSide(BatchNormAct):
    """One that reads a value twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)
        return self.act(y) + self.drop(y)


@pytest.mark.parametrize("kind", [BatchNormGate, BatchNormSide])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_that_does_more_becomes_the_identity_map(kind: Any, affine: bool) -> None:
    module = randomize(nn.Sequential(conv(6, 4), kind(4, nn.ReLU(), affine=affine), conv(4, 3)))
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert type(folded[1]) is kind
    assert report.entries[0].outcome == "folded"
    assert report.entries[0].reason == "its call stays in eager mode, as the identity map"
    assert error(folded, module, x) < ROUNDING


def test_a_submodule_that_does_nothing_now_may_do_something_later() -> None:
    class Later(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if self.training else x

    module = randomize(nn.Sequential(conv(6, 4), BatchNormAct(4, Later()), conv(4, 3)))
    folded, _ = bnfold.fold_module(module, torch.randn(IMAGE))
    assert type(folded[1]) is BatchNormAct


def test_a_sum_that_begins_with_zero() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y: Any = 0
        for part in (m.c, m.d):
            y = y + part(x)
        return m.b(y)

    module = randomize(Fn(run, c=conv(6, 4), d=conv(6, 4), b=bn(4)))
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert [set(entry.into) for entry in report.entries] == [{"c", "d"}]
    assert error(folded, module, x) < ROUNDING


def test_a_parameter_seen_in_another_shape_can_absorb() -> None:
    """Where a shift could not go: a scale behind the batch norm that is all of one channel's."""

    def run(m: Any, x: Tensor) -> Tensor:
        return torch.sigmoid(m.b(m.c(x) * m.g.weight.view(1, -1, 1, 1)))

    module = randomize(Fn(run, c=conv(6, 4), b=bn(4), g=bn(4)))
    with torch.no_grad():
        module.g.weight.fill_(1e-5)  # a layer scale as it starts
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert {entry.name: entry.outcome for entry in report.entries}["b"] == "folded"
    assert error(folded, module, x) < ROUNDING


def test_hooks_are_kept() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4)))
    seen: list[int] = []
    module[1].register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(IMAGE)
    folded, _ = bnfold.fold_module(module, x, verify=False)
    seen.clear()
    assert error(folded, module, x) < ROUNDING
    assert len(seen) >= 2


def test_a_batch_norm_called_twice_goes_whole_or_not_at_all() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(m.c(x)) + m.b(torch.sigmoid(x[:, :4, 2:, 2:]))

    module = randomize(Fn(run, c=conv(6, 4), b=bn(4)))
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert "another call of its module stays" in [entry.reason for entry in report.kept]
    assert not report.folded
    assert type(folded.b) is nn.BatchNorm2d
    assert torch.equal(folded(x), module(x))


def test_a_number_in_the_code_stays() -> None:
    """A scale that goes into a layer norm changes its epsilon, which a graph can do and a module cannot."""
    module = randomize(nn.Sequential(nn.Sigmoid(), nn.BatchNorm1d(5), nn.LayerNorm(6)))
    with torch.no_grad():
        module[1].weight.fill_(0.1)
        module[1].running_var.fill_(1.0)
    x = torch.randn(3, 5, 6)
    _, report = bnfold.fold_module(module, x)
    assert [entry.reason for entry in report.kept] == ["would change a number in the module's code"]
    program, report = bnfold.fold_program(torch.export.export(module, (x,)))
    assert not report.kept
    assert error(program.module(), module, x) < ROUNDING


def test_two_functional_batch_norms_of_one_module_both_go() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = batch_norm(m.c(x), m.mean, m.var, m.w, m.b, False)
        return batch_norm(m.d(torch.sigmoid(y)), m.mean2, m.var2, None, None, False)

    module = Fn(run, c=conv(6, 4), d=conv(4, 4))
    for name, value in (("mean", 0.3), ("var", 2.0), ("w", -1.5), ("b", 0.7), ("mean2", 0.4), ("var2", 3.0)):
        module.register_buffer(name, torch.full((4,), value))
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module.eval(), x, verify=False)
    assert [entry.outcome for entry in report.entries] == ["folded", "folded"]
    assert error(folded, module, x) < ROUNDING


def test_dropout_in_training_mode_passes_no_shift() -> None:
    module = randomize(nn.Sequential(conv(6, 4), nn.Dropout(0.5), bn(4)))
    module[1].train()
    _, report = bnfold.fold_module(module, torch.randn(IMAGE))
    assert len(report.kept) == 1


def test_code_that_asks_a_batch_norm_for_more_is_found_by_the_check() -> None:
    module = randomize(Fn(lambda m, x: m.b(m.c(x)) * m.b.eps, c=conv(6, 4), b=bn(4)))
    with pytest.raises(bnfold.VerifyError, match=r"the first fold that broke it is b\n.*does not run: .*eps"):
        bnfold.fold_module(module, torch.randn(IMAGE))
    folded, _ = bnfold.fold_module(module, torch.randn(IMAGE), skip=["b"])
    assert type(folded.b) is nn.BatchNorm2d


def test_a_batch_norm_without_parameters_cannot_absorb() -> None:
    """Two readers of one conv want different changes: one batch norm goes, the other would have to absorb."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        return torch.sigmoid(m.a(y)) + torch.sigmoid(m.b(y))

    module = randomize(Fn(run, c=conv(6, 4), a=bn(4), b=bn(4, affine=False)))
    x = torch.randn(IMAGE)
    folded, report = bnfold.fold_module(module, x)
    assert [entry.outcome for entry in report.entries] == ["kept", "folded"]
    assert error(folded, module, x) < ROUNDING


def test_parameters_that_are_tied_are_untied() -> None:
    make, shape, _ = CASES["tied weights"]
    module = randomize(make())
    x = torch.randn(shape)
    folded, report = bnfold.fold_module(module, x)
    assert error(folded, module, x) < ROUNDING
    assert module.c1.weight is module.c2.weight
    assert any("is no longer tied to" in note for note in report.notes)
    _, report = bnfold.fold_module(module, x, shared="skip")
    assert "is used by several calls" in report.kept[0].reason
    with pytest.raises(bnfold.UsageError, match=r"need different values after the fold; allow that"):
        bnfold.fold_module(module, x, shared="error")


def old_weight_norm() -> nn.Module:
    module = nn.Sequential(torch.nn.utils.weight_norm(conv(6, 4)), bn(4))
    with torch.no_grad():
        module(torch.randn(IMAGE))
    return module


def spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(conv(6, 4)), bn(4))


def old_spectral_norm() -> nn.Module:
    return nn.Sequential(torch.nn.utils.spectral_norm(conv(6, 4)), bn(4))


@pytest.mark.parametrize("make", [CASES["weight norm"][0], old_weight_norm, spectral_norm, old_spectral_norm])
def test_a_parametrization_is_removed_if_asked(make: Any) -> None:
    module = randomize(make())
    x = torch.randn(IMAGE)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        wanted = module(x)
    _, report = bnfold.fold_module(module, x)
    assert [entry.outcome for entry in report.entries] == ["kept"]
    assert "is computed from other parameters" in report.kept[0].reason
    folded, report = bnfold.fold_module(module, x, parametrizations="remove")
    assert [entry.outcome for entry in report.entries] == ["folded"]
    assert "the parametrization of 0.weight is removed: it is a plain parameter" in report.notes
    assert set(folded.state_dict()) == {"0.bias", "0.weight"}
    assert type(folded[0]) is nn.Conv2d
    with torch.no_grad():
        assert torch.allclose(folded(x), wanted, atol=1e-5)
        assert torch.equal(module(x), wanted)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    same, _ = bnfold.fold_module(module, x, parametrizations="remove", inplace=True)
    assert same is module
    with torch.no_grad():
        assert torch.allclose(module(x), wanted, atol=1e-5)


def test_a_parametrization_that_no_fold_concerns_stays() -> None:
    norm = nn.utils.parametrizations.weight_norm
    module = randomize(nn.Sequential(norm(conv(6, 4)), bn(4), nn.Sigmoid(), norm(conv(4, 4))))
    folded, report = bnfold.fold_module(module, torch.randn(IMAGE), parametrizations="remove")
    assert len(report.notes) == 1
    assert nn.utils.parametrize.is_parametrized(folded[3])
    assert not nn.utils.parametrize.is_parametrized(folded[0])
    with pytest.raises(bnfold.UsageError, match=r"parametrizations='no' is unknown.*keep, remove"):
        bnfold.fold_module(module, torch.randn(IMAGE), parametrizations="no")


def test_a_module_that_cannot_be_copied_is_told() -> None:
    module = nn.Sequential(torch.nn.utils.weight_norm(conv(6, 4)), bn(4)).eval()
    with pytest.raises(bnfold.UsageError, match=r"Sequential cannot be copied: .*\n.*call the module once"):
        bnfold.fold_module(module, torch.randn(IMAGE))


def test_keyword_arguments_and_dynamic_shapes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b = conv(6, 4), bn(4)

        def forward(self, x: Tensor, *, scale: Tensor, flip: bool = False) -> Tensor:
            z: Tensor = self.b(self.c(x.flip(3) if flip else x))
            return z * scale

    module = randomize(Net())
    x, scale = torch.randn(IMAGE), torch.randn(1)
    sizes = {"x": {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4)}, "scale": None, "flip": None}
    folded, report = bnfold.fold_module(module, (x,), {"scale": scale, "flip": True}, dynamic_shapes=sizes)
    assert [entry.outcome for entry in report.entries] == ["folded"]
    other = torch.randn(5, 6, 11, 9)
    with torch.no_grad():
        for flip in (True, False):  # the module is no trace: its code still decides
            wanted, found = module(other, scale=scale, flip=flip), folded(other, scale=scale, flip=flip)
            assert torch.allclose(found, wanted, atol=1e-5)


def test_a_free_size_that_torch_asks_not_to_be_one() -> None:
    """A linear layer on a token that is expanded to the size of the batch."""

    def run(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.l(m.token.expand(x.shape[0], -1, -1)).transpose(1, 2)
        return m.n(y + x)

    token = nn.Parameter(torch.randn(1, 5, 6))
    module = randomize(Fn(run, l=nn.Linear(6, 4), n=nn.BatchNorm1d(4), token=token))
    free = ({0: torch.export.Dim("batch")},)
    folded, _ = bnfold.fold_module(module, torch.randn(2, 4, 5), dynamic_shapes=free)
    x = torch.randn(3, 4, 5)
    assert torch.allclose(folded(x), module(x), atol=1e-5)


def test_in_place_changes_the_module_itself() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4)))
    x = torch.randn(IMAGE)
    wanted = module(x)
    folded, _ = bnfold.fold_module(module, (x,), inplace=True)
    assert folded is module
    assert type(module[1]) is nn.Identity
    assert torch.allclose(module(x), wanted, atol=1e-5)


def test_a_module_in_training_mode_is_as_it_was() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4), conv(4, 4), bn(4)))
    module[1].train()
    before = module[1].running_mean.clone()
    folded, report = bnfold.fold_module(module, torch.randn(IMAGE))
    assert [(e.name, e.outcome) for e in report.entries] == [("1", "kept"), ("3", "folded")]
    assert report.kept[0].reason == "uses batch statistics"
    assert torch.equal(module[1].running_mean, before)
    assert torch.equal(folded[1].running_mean, before)
    assert folded[1].training


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), r"torch.export cannot see the whole of Branching: .*\n.*parts .* inplace=True"),
        (nn.Sequential(nn.LazyBatchNorm2d()), "lazy parameters that hold nothing yet: run it once"),
        (conv(6, 4).to("meta"), "on the meta device, without values: load its weights first"),
        (3, "takes a torch.nn.Module, not int"),
    ],
)
def test_what_cannot_be_exported_is_told(module: Any, message: str) -> None:
    with pytest.raises(bnfold.UsageError, match=message):
        bnfold.fold_module(module, torch.randn(IMAGE))


def test_what_modelopt_has_quantized_is_told_to_come_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its quantizers look at numbers before they compute, which torch.export cannot follow."""
    monkeypatch.setattr(Branching, "__module__", "modelopt.torch.quantization.nn.modules.tensor_quantizer")
    message = r"(?s)cannot see the whole of Sequential: .*modelopt: fold before mtq\.quantize, or give"
    with pytest.raises(bnfold.UsageError, match=message):
        bnfold.fold_module(nn.Sequential(conv(6, 4), Branching()), torch.randn(IMAGE))


@pytest.mark.parametrize("zeros", [1, 4])
def test_scales_of_zero_fold_once(zeros: int) -> None:
    """The plan is carried out on the module, and its program stays: it must not be read and folded anew."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        module[1].running_mean.uniform_(-1, 1)
        module[1].weight.uniform_(0.5, 2.0)
        module[1].weight[:zeros] = 0
        module[1].bias.uniform_(-1, 1)
    x = torch.randn(2, 3, 5, 5)
    folded, report = bnfold.fold_module(module, x)
    assert [entry.outcome for entry in report.entries] == ["folded"]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), module(x), rtol=1e-5, atol=1e-6)

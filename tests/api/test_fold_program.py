"""`fold_program`: small networks, exported, folded, and held against the module in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from tests.torch_graph.modules import CASES, IMAGE, Fn, bn, conv, randomize

ROUNDING = 1e-5  # of the output's largest value, in float32


def export(module: nn.Module, x: torch.Tensor, **options: Any) -> Any:
    return torch.export.export(module, (x,), **options)


def error(program: Any, module: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double())
        return float((program.module()(x).double() - exact).abs().max() / exact.abs().max())


def norms(program: Any) -> int:
    return sum("batch_norm" in str(node.target) for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("name", CASES)
def test_what_can_fold_folds_and_is_exact(name: str) -> None:
    make, shape, stays = CASES[name]
    torch.manual_seed(len(name))
    module = randomize(make())
    x = torch.randn(shape)
    program = export(module, x)
    state = {key: value.clone() for key, value in program.state_dict.items()}
    folded, report = bnfold.fold_program(program)
    assert report.verification is None or report.verification.to_dict()["proof"]["status"] == "proved", report
    assert len(report.kept) == stays, report
    assert all(entry.reason and entry.blocked_by for entry in report.kept)
    assert norms(folded) == stays
    assert error(folded, module, x) < ROUNDING
    for key, value in program.state_dict.items():  # what was given is as it was
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("name", list(CASES)[::8])
def test_no_call_is_added(name: str) -> None:
    make, shape, _ = CASES[name]
    program = export(randomize(make()), torch.randn(shape))
    folded, _ = bnfold.fold_program(program, verify=False)
    assert len(folded.graph.nodes) <= len(program.run_decompositions({}).graph.nodes) + len(folded.state_dict)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    module = randomize(nn.Sequential(conv(6, 4), bn(4), nn.ReLU(), conv(4, 3))).to(dtype)
    x = torch.randn(IMAGE).to(dtype)
    folded, report = bnfold.fold_program(export(module, x))
    assert not report.kept
    assert report.verification.ok
    assert {value.dtype for value in folded.state_dict.values()} == {dtype}


def test_dynamic_shapes_stay_dynamic() -> None:
    torch.manual_seed(2)
    module = randomize(nn.Sequential(conv(6, 4), bn(4), nn.Flatten(2), nn.BatchNorm1d(4)))
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4)}
    program = export(module, torch.randn(IMAGE), dynamic_shapes=(sizes,))
    folded, report = bnfold.fold_program(program)
    assert not report.kept
    assert error(folded, module, torch.randn(5, 6, 12, 9)) < ROUNDING


def test_batch_statistics_are_kept_and_explained() -> None:
    module = randomize(nn.Sequential(conv(6, 4), bn(4), conv(4, 4), bn(4)))
    module[1].train()
    _, report = bnfold.fold_program(export(module, torch.randn(IMAGE)), verify=False)
    assert [(entry.name, entry.outcome) for entry in report.entries] == [("1", "kept"), ("3", "folded")]
    assert report.kept[0].reason == "uses batch statistics"


def test_names_are_those_of_the_modules_and_can_be_skipped() -> None:
    program = export(randomize(nn.Sequential(conv(6, 4), bn(4), conv(4, 4), bn(4))), torch.randn(IMAGE))
    _, report = bnfold.fold_program(program, skip=["3"])
    found = [(entry.name, entry.outcome, entry.into) for entry in report.entries]
    assert found == [("1", "folded", ("0",)), ("3", "kept", ())]
    with pytest.raises(bnfold.UsageError, match=r"skip 'bn9'.*valid choices are 1, 3"):
        bnfold.fold_program(program, skip=["bn9"])


def test_shared_parameters_are_duplicated_skipped_or_an_error() -> None:
    make, shape, _ = CASES["conv called twice, one path without"]
    program = export(randomize(make()), torch.randn(shape))
    folded, _ = bnfold.fold_program(program)
    assert torch.equal(folded.state_dict["c.weight"], program.state_dict["c.weight"])
    assert "c.weight_bnfold" in folded.state_dict
    _, report = bnfold.fold_program(program, shared="skip")
    assert "has several users" in report.kept[0].reason
    with pytest.raises(bnfold.UsageError, match=r"'c.weight' is shared"):
        bnfold.fold_program(program, shared="error")


def test_a_folded_program_can_be_saved_loaded_and_exported_again(tmp_path: Any) -> None:
    module = randomize(nn.Sequential(conv(6, 4, bias=False), bn(4), nn.ReLU()))
    x = torch.randn(IMAGE)
    folded, _ = bnfold.fold_program(export(module, x))
    torch.export.save(folded, tmp_path / "folded.pt2")
    again = torch.export.load(tmp_path / "folded.pt2")
    assert error(again, module, x) < ROUNDING
    assert error(again.run_decompositions(), module, x) < ROUNDING
    assert list(folded.state_dict) == ["0.weight", "0.bias"]


def test_overloads_that_no_row_expects_are_closed() -> None:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.clamp(m.c(x), min=x.mean(), max=x.amax())
        return torch.ops.aten.mul.Scalar(m.b(y), 2.0)

    module = randomize(Fn(run, c=conv(6, 4), b=bn(4)))
    folded, report = bnfold.fold_program(export(module, torch.randn(IMAGE)))
    assert [entry.outcome for entry in report.entries] == ["kept"]
    assert "cannot be understood" in report.kept[0].reason
    assert norms(folded) == 1


def test_what_is_no_exported_program_is_refused() -> None:
    with pytest.raises(bnfold.UsageError, match=r"not Sequential; export the module first"):
        bnfold.fold_program(nn.Sequential())
    with pytest.raises(bnfold.UsageError, match=r"valid choices are duplicate, skip, error"):
        bnfold.fold_program(export(nn.Sequential(nn.ReLU()), torch.randn(1)), shared="no")


def test_a_broken_fold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a rule wrong, the check would find it."""
    from bnfold.torch_graph.ops import table as operators

    monkeypatch.setitem(operators.ROLES, "silu", operators.ROLES["relu"])
    positive = randomize(nn.Sequential(conv(6, 4), nn.SiLU(), bn(4), conv(4, 4), bn(4)), negative=False)
    with torch.no_grad():
        norm = positive[2]  # scales alone, no shift
        norm.bias.copy_(norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt())
    program = export(positive, torch.randn(IMAGE))
    with pytest.raises(bnfold.VerifyError, match="the first fold that broke it is 2"):
        bnfold.fold_program(program, check="run")
    with pytest.raises(bnfold.VerifyError, match="silu is wrong\nverification by proof: refuted: silu: "):
        bnfold.fold_program(program)


def test_a_batch_norm_is_called_one_whatever_torch_makes_of_it() -> None:
    make, shape, _ = CASES["functional"]
    _, report = bnfold.fold_program(export(make().eval(), torch.randn(shape)))
    assert [(entry.name, entry.op) for entry in report.entries] == [("batch_norm", "batch_norm")]
    make, shape, _ = CASES["two batch norms"]
    _, report = bnfold.fold_program(export(randomize(make()), torch.randn(shape)))
    assert [(entry.name, entry.op) for entry in report.entries] == [("1", "batch_norm"), ("2", "batch_norm")]


PRODUCTS: dict[str, tuple[Any, tuple[int, ...], list[str]]] = {
    "rows": (lambda m, x: m.b(x @ m.l.weight.t()), (3, 6), ["addmm"]),
    "from the left": (lambda m, x: m.b(m.l.weight @ x), (2, 6, 5), ["matmul", "add"]),
    "tokens": (lambda m, x: m.b((x @ m.l.weight.t()).transpose(1, 2)), (2, 4, 6), ["matmul", "add"]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_plain_matrix_product_becomes_addmm_and_any_other_gets_an_addition(name: str) -> None:
    forward, shape, operators = PRODUCTS[name]
    module = randomize(Fn(forward, l=nn.Linear(6, 4, bias=False), b=nn.BatchNorm1d(4)))
    x = torch.randn(shape)
    folded, report = bnfold.fold_program(export(module, x))
    assert not report.kept
    assert error(folded, module, x) < ROUNDING
    calls = [str(node.target).split(".")[1] for node in folded.graph.nodes if node.op == "call_function"]
    assert [call for call in calls if call in ("matmul", "mm", "addmm", "add")] == operators


CORE = {
    "conv": lambda: nn.Sequential(conv(6, 4), bn(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
    "conv without bias": lambda: nn.Sequential(conv(6, 4, bias=False), bn(4)),
    "transposed conv": lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, 2, groups=2), bn(4)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(486, 4), nn.BatchNorm1d(4)),
    "group norm": lambda: nn.Sequential(nn.GroupNorm(2, 6), bn(6), nn.Sigmoid()),
}


@pytest.mark.parametrize("name", CORE)
def test_programs_of_core_aten_operators(name: str) -> None:
    """As ExecuTorch and others decompose them."""
    module, x = randomize(CORE[name]()), torch.randn(IMAGE)
    folded, report = bnfold.fold_program(export(module, x).run_decompositions())
    assert not report.kept
    assert norms(folded) == 0
    assert error(folded, module, x) < ROUNDING


def test_a_weight_that_is_computed_by_a_batch_norm() -> None:
    """Weight standardization: constant all the same, and stored as it is after the fold."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        w = m.c.weight
        flat = nn.functional.batch_norm(w.reshape(1, 4, -1), None, None, training=True)
        return m.b(nn.functional.conv2d(x, flat.reshape_as(w), m.c.bias))

    module, x = randomize(Fn(run, c=conv(6, 4), b=bn(4))), torch.randn(IMAGE)
    folded, report = bnfold.fold_program(export(module, x))
    assert [entry.outcome for entry in report.entries] == ["folded"]
    assert error(folded, module, x) < ROUNDING
    assert norms(folded) == 0


ROWS: dict[str, Any] = {
    "sum over places": lambda m, x: m.d(m.b(m.c(x)).sum((2, 3), keepdim=True)),
    "sum, then batch norm": lambda m, x: torch.sigmoid(m.b(m.c(x).sum((2, 3), keepdim=True))),
    "flip of places": lambda m, x: torch.sigmoid(m.b(m.c(x).flip(3))),
    "flip of channels": lambda m, x: torch.sigmoid(m.b(m.c(x).flip(1))),
    "adaptive max pooling": lambda m, x: torch.sigmoid(m.b(nn.functional.adaptive_max_pool2d(m.c(x), 2))),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_data(name: str) -> None:
    """Scales are positive, for maxima; a shift goes through all of them."""
    net = Fn(ROWS[name], c=conv(6, 4), b=bn(4), d=conv(4, 3, 1))
    module, x = randomize(net, negative=False), torch.randn(IMAGE)
    folded, report = bnfold.fold_program(export(module, x))
    assert not report.kept, report
    assert error(folded, module, x) < ROUNDING

"""torch.compile with bnfold: what folds, what is handed on as it is and why, what the options do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.integrations.torch_compile import backend as module_of_backend
from tests.integrations.torch_compile.nets import compiled, error, fresh, net, x
from tests.torch_graph.modules import Fn, randomize

__all__ = ["fresh"]

ROUNDING = 1e-5
pytestmark = pytest.mark.usefixtures("fresh")


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "bnfold"]


def test_the_name_is_known_to_torch() -> None:
    """By the entry point; inductor compiles what is folded."""
    module, batch = net(), x()
    assert "bnfold" in torch.compiler.list_backends()
    run = torch.compile(module, backend="bnfold")
    with torch.no_grad():
        assert error(run, module, batch) < ROUNDING
        module[0].weight.mul_(2)  # written into what inductor has compiled
        module[5].running_mean.add_(1)
        assert error(run, module, batch) < ROUNDING


@torch.no_grad()
def test_parameters_are_inputs_of_what_is_captured_and_fold_nevertheless() -> None:
    run = compiled(net(), verify=True)
    assert run.error(x()) < ROUNDING
    assert run.norms == [0]


@torch.no_grad()
def test_inputs_of_several_sizes() -> None:
    """One graph for one size, and one for all others."""
    run = compiled(net())
    for batch in (1, 2, 4, 7):
        assert run.error(x(batch)) < ROUNDING
    assert run.norms == [0, 0]


@torch.no_grad()
def test_a_break_of_the_graph_between_networks() -> None:
    def forward(m: Any, batch: Tensor) -> Tensor:
        batch = m.a(batch)
        torch._dynamo.graph_break()
        return m.b(batch)

    run = compiled(randomize(Fn(forward, a=net(), b=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))))
    assert run.error(x()) < ROUNDING
    assert run.norms == [0, 0]


@torch.no_grad()
def test_a_break_of_the_graph_between_a_conv_and_its_norm() -> None:
    def forward(m: Any, batch: Tensor) -> Tensor:
        batch = m.a(batch)
        torch._dynamo.graph_break()
        return m.b(batch)

    run = compiled(randomize(Fn(forward, a=nn.Conv2d(3, 4, 1), b=nn.BatchNorm2d(4))))
    assert run.error(x()) < ROUNDING
    assert run.norms == [0, 1]


@torch.no_grad()
def test_outputs_in_a_dict_and_those_that_are_an_input_or_a_weight() -> None:
    def forward(m: Any, batch: Tensor) -> Any:
        return {"y": m.a(batch), "x": batch, "w": m.a[0].weight, "n": batch.shape[0]}

    module, batch = Fn(forward, a=net()), x()
    run = compiled(module)
    made = run(batch)
    torch.testing.assert_close(made["y"], module(batch)["y"])
    assert made["x"] is batch
    assert made["w"] is module.a[0].weight
    assert made["n"] == 2
    assert run.norms == [0]


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, None])
def test_who_wants_no_gradients(context: Any) -> None:
    module = net()
    run = compiled(module)
    if context is None:  # grad is on, and nothing wants any
        module.requires_grad_(False)
        assert run.error(x()) < ROUNDING
    else:
        with context():
            assert run.error(x()) < ROUNDING
    assert run.norms == [0]


@torch.no_grad()
def test_half_precision_and_autocast() -> None:
    module = net().bfloat16()
    run = compiled(module)
    assert run.error(x().bfloat16()) < 0.05
    other = compiled(net())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert other.error(x()) < 0.05
        assert other(x()).dtype == torch.bfloat16
    assert run.norms + other.norms == [0, 0]


def test_gradients_arrive_and_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    module, batch = net(), x()
    run = compiled(module)
    with torch.no_grad():
        run(batch)
    run(batch).sum().backward()
    assert module[0].weight.grad is not None
    compiled(net(1))(batch).sum().backward()
    assert run.norms == [0, 2]
    assert reasons(caplog) == ["torch.compile: nothing is folded in a graph: gradients are on"]


def test_an_input_that_wants_a_gradient_gets_it() -> None:
    module, batch = net().requires_grad_(False), x()
    run = compiled(module)
    assert run.error(batch) < ROUNDING
    run(batch.requires_grad_()).sum().backward()
    assert batch.grad is not None
    assert run.norms == [0, 2]
    module.requires_grad_(True)
    run(batch.detach()).sum().backward()
    assert module[0].weight.grad is not None


@torch.no_grad()
def test_gradients_that_are_turned_on_inside() -> None:
    def forward(m: Any, batch: Tensor) -> Tensor:
        with torch.enable_grad():
            return m.a(batch)

    run = compiled(Fn(forward, a=net()))
    assert run(x()).requires_grad
    assert run.norms == [2]


@torch.no_grad()
def test_in_training_mode_statistics_move(caplog: pytest.LogCaptureFixture) -> None:
    module, batch = net(), x()
    run = compiled(module)
    run(batch)
    mean = module[3].running_mean.clone()
    run(module.train() and batch)
    assert not torch.equal(module[3].running_mean, mean)
    assert reasons(caplog) == [
        "torch.compile: nothing is folded in a graph: a batch norm is in training mode"
    ]
    module.eval()
    assert run.error(batch) < ROUNDING
    assert run.norms[-1] == 0


@torch.no_grad()
def test_a_graph_that_writes_into_its_input() -> None:
    run = compiled(Fn(lambda m, batch: m.a(batch.add_(1)), a=net()))
    batch = x()
    before = batch.clone()
    run(batch)
    torch.testing.assert_close(batch, before + 1)
    assert run.norms == [0]


@torch.no_grad()
def test_a_graph_that_writes_into_a_buffer(caplog: pytest.LogCaptureFixture) -> None:
    """At each call, so that no fold would last."""
    module = Fn(lambda m, batch: m.a(batch) + m.calls.add_(1), a=net())
    module.register_buffer("calls", torch.zeros(()))
    run = compiled(module)
    for _ in range(3):
        run(x())
    assert module.calls == 3
    assert run.norms == [2]
    assert "writes into parameters or buffers" in reasons(caplog)[0]


@torch.no_grad()
def test_what_torch_cannot_export_runs_and_says_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no way\nmuch more")

    monkeypatch.setattr(torch.export, "export", broken)
    run = compiled(net())
    assert run.error(x()) < ROUNDING
    assert run.norms == [2]
    assert reasons(caplog) == ["torch.compile: nothing is folded in a graph: RuntimeError: no way"]


@torch.no_grad()
def test_parameters_of_a_class_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    """Such as DTensor, or what torchao makes of a weight: they need not have memory."""
    module = net()
    module[0].weight = nn.Parameter(module[0].weight.as_subclass(type("Spread", (Tensor,), {})))
    run = compiled(module)
    assert run.error(x()) < ROUNDING
    assert 0 not in run.norms
    assert any("tensors of a class of their own" in reason for reason in reasons(caplog))


@torch.no_grad()
def test_a_network_without_batch_norms_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    run = compiled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    assert run.error(x()) == 0
    assert run.norms == [0]
    assert reasons(caplog) == []


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": "3"}, "not one string"),
        ({"freeze": True, "backend": "eager"}, "freeze is for backend='inductor'"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    run = torch.compile(net(), backend=module_of_backend.backend, options=options)
    with pytest.raises(Exception, match=message):
        run(x())


@torch.no_grad()
def test_mode_and_options_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a named compiler as they are, and to inductor as its settings."""
    seen: list[Any] = []

    def inner(graph: Any, arguments: Any, **keywords: Any) -> Any:
        seen.append(keywords)
        return graph.forward

    module = net()
    torch.compile(module, backend=module_of_backend.backend, options={"backend": inner, "other": 1})(x())
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", inner)
    for how in (
        {"mode": "max-autotune-no-cudagraphs"},
        {"options": {"freeze": True, "max_autotune": True}},
        {},
    ):
        torch.compiler.reset()
        torch.compile(module, backend=module_of_backend.backend, **how)(x())
    tuned, frozen, plain = (each["config_patches"] for each in seen[1:])
    assert seen[0] == {"options": {"other": 1}}
    assert tuned["max_autotune"]
    assert frozen == {"max_autotune": True, "freezing": True}
    assert plain is None


@torch.no_grad()
def test_a_name_to_skip_that_one_of_two_graphs_has() -> None:
    """It is no error of the other one."""

    def forward(m: Any, batch: Tensor) -> Tensor:
        batch = m.a(batch)
        torch._dynamo.graph_break()
        return m.b(batch)

    module = randomize(Fn(forward, a=net(), b=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))))
    run = compiled(module, skip=["a.3", "no.such"])
    assert run.error(x()) < ROUNDING
    assert run.norms == [1, 0]


@torch.no_grad()
def test_a_wrong_fold_is_never_used_nor_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*_: Any, **__: Any) -> Any:
        raise bnfold.VerifyError("off by 3")

    monkeypatch.setattr("bnfold.integrations.torch_compile.program.fold_program", wrong)
    run = compiled(net())
    with pytest.warns(RuntimeWarning, match="a fold is wrong, please report it.*off by 3"):
        assert run.error(x()) < ROUNDING
    assert run.norms == [2]
    assert "off by 3" in reasons(caplog)[0]

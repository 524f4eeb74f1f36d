"""The check of `fold_program` by a proof: what it decides, what it leaves to runs, what it says of a wrong
fold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import bnfold
from bnfold.api import fold_program as api
from bnfold.errors import UsageError, VerifyError
from bnfold.report.verification import Verification
from tests.torch_graph.modules import IMAGE, Fn, bn, conv, randomize


def small() -> ExportedProgram:
    torch.manual_seed(1)
    module = randomize(Fn(lambda m, x: torch.relu(m.bn(m.conv(x))), conv=conv(6, 4), bn=bn(4)))
    return torch.export.export(module, (torch.randn(IMAGE),))


def check_of(program: ExportedProgram, **options: Any) -> Verification:
    _, report = bnfold.fold_program(program, **options)
    assert report.verification is not None
    return report.verification


@pytest.mark.parametrize("options", [{}, {"check": "proof"}, {"check": "proof", "rtol": 1e-3}])
def test_a_proof_replaces_the_runs(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "verify_modules", None)  # nobody compares
    found = check_of(small(), **options)
    assert (found.status, found.outputs, found.notes) == ("passed", [], [])
    assert found.proof is not None
    proof = found.to_dict()["proof"]
    assert (proof["status"], proof["ran"]) == ("proved", True)
    assert str(found).startswith("verification by proof: proved: ")


@pytest.mark.parametrize("options", [{"check": "both"}, {"rtol": 1e-3}, {"inputs": (torch.ones(IMAGE),)}])
def test_both(options: dict[str, Any]) -> None:
    found = check_of(small(), **options)
    assert found.outputs
    assert found.proof is not None
    assert found.proof.to_dict()["status"] == "proved"


def test_runs_alone() -> None:
    found = check_of(small(), check="run")
    assert found.outputs
    assert found.proof is None


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(UsageError, match="check='z3' is unknown"):
        bnfold.fold_program(small(), check="z3")


def test_what_is_undecided_is_compared() -> None:
    """A table that is read at numbers from data."""
    torch.manual_seed(2)
    module = Fn(lambda m, x: m.bn(m.table(x)), table=nn.Embedding(9, 4), bn=nn.BatchNorm1d(4))
    found = check_of(torch.export.export(randomize(module), (torch.tensor([1, 2, 5]),)))
    assert found.proof is not None
    assert found.proof.to_dict()["status"] == "undecided"
    assert found.outputs
    assert found.ok


@pytest.mark.parametrize("check", ["proof", "run"])
def test_a_wrong_fold_is_refused_at_its_node(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    """By two units in the last place, which no run could show."""
    write = api.apply

    def wrong(*arguments: Any) -> ExportedProgram:
        made = write(*arguments)
        new = made.state_dict["conv.weight"].detach().clone()
        first = new.view(-1)[:1]
        first += torch.from_numpy(2 * np.spacing(np.abs(first.numpy())))
        made.state_dict["conv.weight"] = nn.Parameter(new, requires_grad=False)
        return made

    monkeypatch.setattr(api, "apply", wrong)
    if check == "run":
        assert check_of(small(), check="run").ok
        return
    with pytest.raises(VerifyError) as caught:
        bnfold.fold_program(small())
    said = str(caught.value)
    assert said.startswith(
        "the folded model does not compute the same: conv is wrong, a part of the fold of bn\n"
        "verification by proof: refuted: conv: conv2d: "
    )
    assert "weight of conv at [0, 0, 0, 0]" in said


@pytest.mark.parametrize("error", [KeyError("gone"), MemoryError()])
def test_a_fault_of_the_proof_leaves_it_to_runs(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(api, "prove", broken)
    found = check_of(small())
    assert (found.status, found.proof) == ("passed", None)
    assert found.outputs
    assert found.notes[0].startswith("compared, since ")
    assert ("please report it: KeyError('gone')" in found.notes[0]) == isinstance(error, KeyError)


def test_control_flow_is_compared() -> None:
    torch.manual_seed(3)

    def run(m: Any, x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (m.bn(m.conv(x)),))

    module = randomize(Fn(run, conv=conv(6, 4), bn=bn(4)))
    found = check_of(torch.export.export(module, (torch.randn(IMAGE),)))
    assert found.ok
    assert found.outputs
    assert "a proof is not to be had: cond calls cond, which is no operator" in found.notes[0]


def test_a_program_without_example_inputs_is_proved() -> None:
    program = small()
    program._example_inputs = None
    found = check_of(program)
    assert (found.status, found.notes) == (
        "passed",
        ["the folded program was not run: it carries no example inputs"],
    )


def test_a_program_that_does_not_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right arithmetic, that torch does not take."""
    write = api.apply

    def wrong(*arguments: Any) -> ExportedProgram:
        made = write(*arguments)
        node = next(node for node in made.graph.nodes if node.op == "output")
        last = node.args[0][0]
        with made.graph.inserting_before(node):
            turned = made.graph.call_function(torch.ops.aten.transpose.int, (last, 1, 3))
            shape = [2, 4 * 7, 7]
            seen = made.graph.call_function(torch.ops.aten.view.default, (turned, shape))
            again = made.graph.call_function(torch.ops.aten.view.default, (seen, [2, 7, 7, 4]))
            back = made.graph.call_function(torch.ops.aten.transpose.int, (again, 1, 3))
        for one in (turned, seen, again, back):
            one.meta["val"] = last.meta["val"]
        node.args = ((back,),)
        made.graph_signature.output_specs[0].arg.name = back.name
        made.graph_module.recompile()
        return made

    monkeypatch.setattr(api, "apply", wrong)
    with pytest.raises(VerifyError, match="what was folded does not run: view size is not compatible"):
        bnfold.fold_program(small())

"""What a certificate says of tensors: by name, over several rounds, in bodies."""

from __future__ import annotations

import numpy as np
import onnx

import bnfold
from bnfold.certificate import Certificate, Image
from bnfold.onnx_graph.ledger import Ledger
from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.patterns import PATTERNS


def certificate(model: onnx.ModelProto) -> Certificate:
    _, report = bnfold.fold_onnx(model, verify=False, certificate=True)
    assert report.certificate is not None
    return report.certificate


def test_a_vanished_output_is_what_its_input_has_become() -> None:
    """The name of the graph output goes to the conv."""
    g = Build(seed=1)
    y = g.bn(g.conv(g.input("x", (1, 3, 8, 8)), 4), shift=False)
    g.output(y)
    found = certificate(g.model())
    before, behind = found.images["", "conv_out"], found.images["", y]
    assert before is not None
    assert behind is not None
    assert (before.name, behind.name) == (y, y)
    assert behind.plain
    assert np.shape(before.p) == (1, 4, 1, 1)
    assert not np.any(before.q)
    assert (before.scaled, before.moved) == (1, 0)
    assert ("", "x") not in found.images


def test_without_being_asked_nothing_is_noted() -> None:
    g = Build(seed=1)
    g.output(g.bn(g.conv(g.input("x", (1, 3, 8, 8)), 4)))
    _, report = bnfold.fold_onnx(g.model(), verify=False)
    assert report.certificate is None
    assert "certificate" not in report.to_dict()


def test_tensors_of_a_body_are_found_by_its_path() -> None:
    case = next(case for case in PATTERNS if case.name == "inside the branches of If, weights in the branch")
    model = case.build()
    node = next(node for node in model.graph.node if node.op_type == "If")
    scopes = {scope for scope, _ in certificate(model).images}
    assert scopes == {f"{node.output[0]}:0/", f"{node.output[0]}:1/"}


def test_claims_of_two_rounds_are_one() -> None:
    """t1 = 2t + 1 and t2 = 3*t1 - 3 make t2 = 6t; what only a later round speaks of is as it was before."""
    ledger = Ledger()
    ledger.originals = frozenset({("", "t"), ("", "s"), ("", "r")})
    ledger._add({("", "t"): Image("a", 2.0, 1.0, scaled=1, moved=1), ("", "r"): None})
    ledger._add({("", "a"): Image("b", 3.0, -3.0, scaled=2, moved=2), ("", "s"): Image("c")})
    t = ledger.images["", "t"]
    assert t is not None
    assert (t.name, float(t.p), float(t.q)) == ("b", 6.0, 0.0)
    assert (t.scaled, t.moved) == (3, 3)
    assert ledger.images["", "r"] is None
    assert ("", "a") not in ledger.images  # no tensor of the original
    ledger._add({("", "b"): None})
    assert ledger.images["", "t"] is None


def test_what_a_sum_leaves_of_a_rounded_bias_is_nothing() -> None:
    ledger = Ledger()
    ledger.originals = frozenset({("", "t")})
    ledger._add({("", "t"): Image("t", 1.0, 0.1)})
    ledger._add({("", "t"): Image("t", 1.0, -float(np.float32(0.1)))})
    t = ledger.images["", "t"]
    assert t is not None
    assert t.plain

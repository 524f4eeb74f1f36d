"""An operator is one record: with it, and nothing else, every part of the package knows the operator."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path

import onnx.defs
import pytest

import bnfold
from bnfold.fold.rescale.headroom import FLOAT16
from bnfold.fold.roles import Map
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.model import infer as inference
from bnfold.onnx_graph.model.scopes import build
from bnfold.onnx_graph.ops import (
    activations,
    conversion,
    elementwise,
    indexing,
    linear,
    norms,
    shaping,
    sources,
    windowed,
)
from bnfold.onnx_graph.ops.facts import same_shape
from bnfold.onnx_graph.ops.operator import Half, Operator
from bnfold.onnx_graph.ops.table import OPERATORS
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.site import Scope
from bnfold.passes.channels.bounds import prove
from bnfold.passes.half.plan import plan
from bnfold.passes.half.ranges import Range
from tests.onnx_graph.build import Build

# Shrink with lambd = bias = 0 changes nothing. It has no record of its own: nets do not use it.
SHRINK = Operator(
    role=lambda site: Map("any"),
    shape=same_shape,
    evaluate=lambda site, inputs: inputs[0],
    bounds=lambda node, inputs: inputs[0],
    half=Half.SQUARES,
    moved=("lambd", 30),
)


def shrunk(g: Build, x: str) -> str:
    return g.op("Shrink", x, lambd=0.0, bias=0.0)


@pytest.fixture(params=[False, True], ids=["without a record", "with its record"])
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setitem(OPERATORS, "Shrink", SHRINK)
    return bool(request.param)


def inferred(g: Build, monkeypatch: pytest.MonkeyPatch) -> Scope:
    """The graph, with shapes by our rules alone."""
    monkeypatch.setattr(inference, "_inferred", lambda model, scope: None)
    model, scopes = build(load(g.model()), "duplicate")
    inference.infer(model, scopes)
    return scopes[0]


def test_a_batch_norm_folds_through_it(known: bool) -> None:
    g = Build()
    g.output(g.bn(shrunk(g, g.conv(g.input("x", (1, 3, 5, 5)), 4))))
    folded, report = bnfold.fold_onnx(g.model())
    assert ("BatchNormalization" in {node.op_type for node in folded.graph.node}) != known
    assert (report.verification is not None and report.verification.status == "passed") == known


def test_its_shape_is_inferred(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = Build()
    y = shrunk(g, g.input("x", (1, 3, 5, 5)))
    g.output(g.op("ArgMax", y))  # which tells nothing of what it reads
    value = inferred(g, monkeypatch).values[y]
    assert (value.shape, value.dtype) == (((1, 3, 5, 5), "float32") if known else (None, ""))


def test_a_constant_of_it_is_computed(known: bool) -> None:
    g = Build()
    weight = g.weight((4, 3, 1, 1), 3)
    g.output(g.op("Conv", g.input("x", (1, 3, 5, 5)), shrunk(g, weight)))
    [conv] = [node for node in read(load(g.model())).nodes if node.op == "Conv"]
    value = conv.source.value(1)
    assert (value is not None) == known
    if known:
        assert value.shape == (4, 3, 1, 1)


def test_its_bounds_are_used(known: bool) -> None:
    g = Build()
    y = shrunk(g, g.op("Clip", g.input("x", (1, 3, 5, 5)), g.const(0.0), g.const(6.0)))
    g.output(y)
    [bounds] = [found for tensor, found in prove(read(load(g.model()))).items() if tensor.name == y]
    assert (bounds.lo.min(), bounds.hi.max()) == ((0.0, 6.0) if known else (-math.inf, math.inf))


def test_half_precision_treats_it_as_the_record_says(known: bool) -> None:
    g = Build()
    x = g.input("x", (1, 3, 5, 5))
    g.output(shrunk(g, x))
    model, scopes = build(load(g.model()), "duplicate")
    inference.infer(model, scopes)
    found = plan(scopes[0], FLOAT16, {x: Range(300.0, (1, 3, 5, 5))}, {})
    assert list(found.stays.values()) == (["adds up 25 squares of up to 9e+04"] if known else [])


def test_every_operator_stands_in_one_family() -> None:
    families = (
        *(linear.LINEAR, elementwise.ELEMENTWISE, activations.ACTIVATIONS, windowed.WINDOWED, norms.NORMS),
        *(shaping.SHAPING, indexing.INDEXING, conversion.CONVERSION, sources.SOURCES),
    )
    assert sum(map(len, families)) == len(OPERATORS)
    for family in families:
        assert list(family) == sorted(family)


def test_every_record_is_of_an_operator_of_onnx() -> None:
    onnx_knows = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    newer = {"BitCast", "RMSNormalization", "Swish"}  # than the oldest onnx that is supported
    assert set(OPERATORS) - newer <= onnx_knows


def test_every_record_says_something() -> None:
    assert [op for op, record in OPERATORS.items() if record == Operator()] == []
    assert [op for op, record in OPERATORS.items() if record.role and record.closed] == []
    for op, record in OPERATORS.items():
        if record.moved is not None:
            name, version = record.moved
            assert name in onnx.defs.get_schema(op, version - 1, "").attributes
            assert name not in onnx.defs.get_schema(op, version, "").attributes


# tables that are about something else: which nodes have bodies, how slow onnx's evaluator is, what is counted
ELSEWHERE = {
    *("onnx_graph/model/scopes.py", "onnx_graph/run/reference.py", "onnx_graph/describe.py"),
    "passes/correct/layers.py",  # the four that quantizers make integers of, with where their outputs lie
}


def test_no_other_module_keeps_a_list_of_operators() -> None:
    root = Path(bnfold.__file__).parent
    modules = [path for part in ("onnx_graph", "passes") for path in sorted((root / part).rglob("*.py"))]
    kept = {
        path.relative_to(root).as_posix(): names
        for path in modules
        for names in _names(ast.parse(path.read_text(encoding="utf-8")))
        if len(names & set(OPERATORS)) > max(3, len(names) // 2)
    }
    assert {name for name in kept if not name.startswith("onnx_graph/ops/")} == ELSEWHERE, kept


def _names(tree: ast.Module) -> Iterator[set[str]]:
    """The words of each literal collection, and of each text."""
    for node in ast.walk(tree):
        entries: list[ast.expr] = []
        if isinstance(node, ast.Set | ast.Tuple | ast.List):
            entries = node.elts
        elif isinstance(node, ast.Dict):
            entries = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield set(node.value.split())
        yield {str(entry.value) for entry in entries if isinstance(entry, ast.Constant)}

"""An outline as data for the page."""

from __future__ import annotations

from bnfold.report.drawing import Outline, OutlineNode
from bnfold.report.html.picture import picture


def node(name: str, inputs: str, outputs: str, op: str = "Op") -> OutlineNode:
    return OutlineNode(name, op, tuple(inputs.split()), tuple(outputs.split()))


def test_nodes_and_edges() -> None:
    nodes = (node("a", "x w", "t"), node("b", "t t c", "y"), node("one", "", "c", "Constant"))
    found = picture(Outline(("x", "unread"), nodes, ("y",)))
    assert found["left_out"] == 1
    names = [each[:2] for each in found["nodes"]]
    assert names == [["x", "input"], ["a", "Op"], ["b", "Op"], ["y", "output"]]
    edges = [(names[a][0], names[b][0], found["tensors"][t]) for a, b, t, *_ in found["edges"]]
    assert edges == [("x", "a", "x"), ("a", "b", "t"), ("b", "y", "y")]
    heights = [each[3] for each in found["nodes"]]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4


def test_nodes_in_any_order() -> None:
    found = picture(Outline(("x",), (node("b", "t", "y"), node("a", "x", "t")), ("y",)))
    assert [each[0] for each in found["nodes"]] == ["x", "a", "b", "y"]


def test_constants_that_are_computed_are_left_out() -> None:
    constants = (node("a", "w", "s"), node("b", "s v", "t"))
    nodes = (*constants, node("c", "t x", "y"), node("d", "w", "r", "RandomNormalLike"), node("e", "r", "z"))
    outline = Outline(("x",), nodes, ("y", "z"))
    found, all_of_it = picture(outline), picture(outline, told="a")
    assert {each[0] for each in found["nodes"]} == {"x", "c", "y", "d", "e", "z"}
    assert (found["left_out"], all_of_it["left_out"]) == (2, 0)


def test_a_circle_does_not_hang() -> None:
    found = picture(Outline((), (node("a", "s", "t"), node("b", "t", "s")), ()), told="ab")
    assert len(found["nodes"]) == len(found["edges"]) == 2

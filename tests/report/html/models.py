"""A small model whose report has all that a page tells, and one with hostile names."""

from __future__ import annotations

import onnx

from tests.onnx_graph.build import Build

__all__ = ["EVIL", "net"]

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&lt;\u202e{{data}}"


def net(last: str = "last", second: str = "conv2") -> onnx.ModelProto:
    """bn1 and bn2 fold, the shift of bn2 forward; `last` is kept behind the Relu "gate"; branches merge."""
    g = Build(seed=2)
    x = g.bn(g.conv(g.input("x", (1, 3, 8, 8)), 4, k=3, pads=1, name="conv1"), name="bn1")
    x = g.op("Relu", x, name="relu1")
    x = g.op("Add", g.conv(x, 4, name="left"), g.conv(x, 4, name="right"), name="sum")
    x = g.op("Relu", g.conv(g.op("Sigmoid", x, name="sigmoid"), 4, name="middle"), name="relu2")
    x = g.op("Relu", g.conv(g.bn(x, "positive", name="bn2"), 4, name=second), name="gate")
    g.output(g.bn(x, name=last))
    return g.model()

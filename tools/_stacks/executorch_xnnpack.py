"""ExecuTorch with XNNPACK, quantized by PT2E: the lowered program, run by ExecuTorch's own runtime."""

from __future__ import annotations

from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import Tensor, fx, nn

from tools._peers.left import Left
from tools._stacks.measure import INT8, Made, measure
from tools._stacks.torchao_pt2e import quantized


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """The file's bytes are loaded and run; what is counted is in the program and in what XNNPACK took."""
    program = torch.export.export(quantized(module, x, fold), (x,))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    graphs = [edge.exported_program().graph_module]
    graphs += [each.original_module.graph_module for each in lowered(graphs[0])]
    norms = sum("batch_norm" in str(node.target) for graph in graphs for node in graph.graph.nodes)
    method = Runtime.get().load_program(bytes(edge.to_executorch().buffer)).load_method("forward")
    return Made(Left(norms, 0), lambda x: method.execute([x])[0])


def lowered(graph: fx.GraphModule) -> list[Any]:
    """What a backend has taken out of a program."""
    return [part for _, part in graph.named_children() if hasattr(part, "original_module")]


if __name__ == "__main__":
    measure(make, INT8)

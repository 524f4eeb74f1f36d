"""ExecuTorch with XNNPACK, quantized by PT2E: the lowered program, run by ExecuTorch's own runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from tools._peers.left import Left
from tools._peers.torch_left import Call, left, of_program
from tools._stacks.measure import FLOAT, Made, measure
from tools._stacks.timing import Run
from tools._stacks.torchao_pt2e import quantized


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """The file's bytes are loaded and run; what is counted is in the program and in what XNNPACK took."""
    program = torch.export.export(quantized(module, x, fold), (x,))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    written = bytes(edge.to_executorch().buffer)
    whole = edge.exported_program()
    parts = [left(calls(program)) for program in (whole, *lowered(whole.graph_module))]
    total = Left(sum(part.batch_norms for part in parts), sum(part.per_channel for part in parts))
    return Made(total, started(written), lambda: started(written))


def started(written: bytes) -> Run:
    """Loaded into memory of its own; a method reads its program's bytes, which must stay."""
    program = Runtime.get().load_program(written)
    method = program.load_method("forward")
    assert method is not None

    def run(x: Tensor, _keeps: Any = program) -> Any:
        return method.execute([x])[0]

    return run


def lowered(graph: fx.GraphModule) -> list[ExportedProgram]:
    """What XNNPACK has taken out of a program."""
    parts: Any = (part for _, part in graph.named_children())
    return [part.original_module for part in parts if hasattr(part, "original_module")]


def calls(program: ExportedProgram) -> Iterator[Call]:
    """Of torch's operators: those of ExecuTorch's dialect have them inside."""
    for node in program.graph.nodes:
        node.target = getattr(node.target, "_op", node.target)
    return of_program(program)


if __name__ == "__main__":
    measure(make, FLOAT)  # for int8: what PT2E leaves, which torchao's rows have

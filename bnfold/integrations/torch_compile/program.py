"""From what was captured to the folded graph: weights become stored ones, torch.export, `fold_program`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from bnfold.api.fold_program import fold_program
from bnfold.integrations.torch_compile.capture import Capture
from bnfold.report.fold import Report
from bnfold.torch_graph.read import read
from bnfold.torch_graph.tracing import without_warnings

__all__ = ["Unfit", "folded"]


class Unfit(Exception):
    """What was captured cannot be folded; the message says why."""


@torch.inference_mode(False)
def folded(
    capture: Capture, arguments: Sequence[Any], skip: Collection[str], verify: bool
) -> tuple[fx.GraphModule, Report]:
    """The folded graph, a function of what the user gives alone, and the report.

    Raises:
        Unfit: it is not to be folded, or nothing folds. VerifyError: as `fold_program`.
    """
    with torch._guards.tracing(None), torch.no_grad():
        program = _exported(capture, arguments)
        made, report = fold_program(program, verify=verify, skip=_known(program, skip))
        if not (report.folded or report.merged):
            raise Unfit("nothing folds")
        if made.graph_signature.buffers_to_mutate:
            raise Unfit("it writes into parameters or buffers of its own")
        return _bare(made.module(check_guards=False)), report


def _exported(capture: Capture, arguments: Sequence[Any]) -> ExportedProgram:
    module = _bound(capture)
    places = capture.places
    # Detached ones are other objects: torch.export marks sizes of its examples, and torch.compile reads that.
    examples = tuple(
        value.detach() if isinstance(value, torch.Tensor) else value for value in capture.given(arguments)
    )
    free = {
        places[i].name: [
            axis
            for axis, size in enumerate(places[i].meta["example_value"].shape)
            if isinstance(size, torch.SymInt)
        ]
        for i in capture.inputs
    }
    shapes = {name: dict.fromkeys(axes, Dim.AUTO) or None for name, axes in free.items()}
    program = torch.export.export(module, examples, dynamic_shapes=shapes if any(free.values()) else None)
    given = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    for node, axes in zip(given, free.values(), strict=True):
        if any(isinstance(node.meta["val"].shape[axis], int) for axis in axes):
            raise Unfit(f"torch.export fixes a size of {node.name} that torch.compile leaves free")
    return program


def _bound(capture: Capture) -> fx.GraphModule:
    """The captured graph, whose weights are buffers of it, and whose numbers are in it."""
    source = capture.graph
    parts = {name: part for name, part in source.named_modules() if name and "." not in name}
    module = fx.GraphModule(parts, fx.Graph())
    for name, value in (*source.named_parameters(recurse=False), *source.named_buffers(recurse=False)):
        setattr(module, name, value)
    graph, new, places = fx.Graph(module), dict[fx.Node, Any](), capture.places
    for i in capture.inputs:
        if not isinstance(places[i].meta.get("example_value"), torch.Tensor):
            raise Unfit(f"its input {places[i].name} is no tensor")
        new[places[i]] = graph.placeholder(places[i].name)
    for i, weight in capture.weights.items():
        module.register_buffer(f"_weight_{i}", weight.detach())
        new[places[i]] = graph.get_attr(f"_weight_{i}")
    for i, number in capture.numbers.items():
        new.update(dict.fromkeys(places[i].users, number))
    for i in capture.sizes:
        new[places[i]] = _size(places[i], capture, new, graph)
    for node in source.graph.nodes:
        if node.op != "placeholder" and node not in new:
            new[node] = graph.node_copy(node, new.__getitem__)
    graph.eliminate_dead_code()
    module.graph = graph
    module.recompile()
    return module.eval()


def _size(node: fx.Node, capture: Capture, new: dict[fx.Node, Any], graph: fx.Graph) -> Any:
    """A size that is an input, read off the input that has it."""
    if not node.users:
        return 0
    wanted = str(node.meta["example_value"])
    for place in (capture.places[i] for i in capture.inputs):
        for axis, size in enumerate(place.meta["example_value"].shape):
            if str(size) == wanted:
                return graph.call_method("size", (new[place], axis))
    raise Unfit(f"its input {node.name} is the size of no tensor that is given")


def _known(program: ExportedProgram, skip: Collection[str]) -> list[str]:
    """Those of the names to skip that this graph has: of several graphs of a network, each has a part."""
    if not skip:
        return []
    with without_warnings():
        graph = read(program.run_decompositions({}))
    return sorted({node.name for node in graph.nodes} & set(skip))


def _bare(module: torch.nn.Module) -> fx.GraphModule:
    """The same graph without what `ExportedProgram.module` hangs on it, which no cache can pickle."""
    assert isinstance(module, fx.GraphModule)
    graph = fx.Graph()
    output = graph.graph_copy(module.graph, {})
    assert isinstance(output, (tuple, list))
    graph.output(tuple(output))
    return fx.GraphModule(module, graph)

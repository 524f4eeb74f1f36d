"""torch's own exporter to ONNX, put right where a fold depends on it.

1. Without its optimizer, which folds what is not frozen, too.
2. A batch norm in training mode uses the statistics of each batch; the exporter would write the running ones.
3. A convolution without a bias stays one; the exporter would compute a bias of zeros, a broken one in 3-D.
4. Layers have the names of their modules, which the ledger tells and `skip` takes.
5. Sizes, inputs and outputs have the names that they are given.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.errors import UsageError, first_paragraph
from bnfold.torch_graph import names
from bnfold.torch_graph.call import Call, innermost
from bnfold.torch_graph.tracing import exported, told, without_warnings

__all__ = ["Written", "write"]

ADVICE = (
    "Rewrite what depends on the numbers in a tensor (torch.where in place of an if, say), or export the "
    "part of it that does not"
)
_CONVOLUTIONS: dict[Any, int] = {
    torch.ops.aten.conv1d.default: 1,
    torch.ops.aten.conv2d.default: 2,
    torch.ops.aten.conv3d.default: 3,
}


class Written(NamedTuple):
    """What a file keeps, or loses, of a module that its user should know.

    own_statistics: how many batch norms use the statistics of each batch. random: calls that draw random
    numbers, by module. changed: buffers into which the module writes, and the file does not. unnamed: sizes
    whose names are not in the file.
    """

    own_statistics: int
    random: list[str]
    changed: list[str]
    unnamed: list[str]


def write(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> Written:
    """Export a module to a file with its weights beside it.

    Raises:
        UsageError: torch cannot export it, or there are more names than inputs or outputs.
    """
    said = f"torch cannot export {type(module).__name__} to ONNX"
    try:
        with without_warnings():
            warnings.filterwarnings("ignore", "# ")  # on names of sizes, see `names.unnamed`
            with told(module, args, kwargs, said, ADVICE):
                program = exported(module, args, kwargs, dynamic_shapes, asserted=True)
            random, batches = _random(program), _own_statistics(program)
            _without_bias(program)
            sizes = names.sizes_of(module, args, kwargs, dynamic_shapes)
            made = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=sizes if any(sizes) else None,
            )
            assert made is not None
            assert made.exported_program is not None
            model = made.model
            changed = made.exported_program.graph_signature.buffers_to_mutate.values()
            names.name_layers(model)
            names.fix_sizes(model.graph)
            names.rename(model.graph, input_names, output_names)
            made.save(path, external_data=True)
            written = model.opset_imports.get("", 0)
    except UsageError:
        raise
    except Exception as error:  # of any kind: this is all of torch's exporter on the user's code
        raise UsageError(f"{said}: {_words(error)}") from error
    if opset not in (None, written):
        raise UsageError(
            f"torch's exporter wrote {type(module).__name__} in opset {written}, for it cannot in {opset}: "
            "leave opset out, or take another"
        )
    changed = [name for name in changed if not name.endswith("num_batches_tracked")]
    unnamed = names.unnamed(sizes, model)
    del program, made, model
    gc.collect()  # the exporter's graphs refer to themselves, and hold the weights
    return Written(batches, random, changed, unnamed)


def _words(error: BaseException) -> str:
    """What torch says, and what it was that it stumbled over."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    said = [first_paragraph(cause) for cause in causes[1:] or causes]
    return said[0] if len(said) == 1 else f"{said[0]}: {said[-1]}"


def _calls(program: ExportedProgram) -> Iterator[fx.Node]:
    """Those of operators, in branches and loops too; they may be changed, not taken out."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield from (node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
            module.recompile()


def _random(program: ExportedProgram) -> list[str]:
    """The modules (or the calls, where there is none) that draw random numbers."""
    return list(dict.fromkeys(innermost(node) or node.name for node in _calls(program) if _draws(node)))


def _draws(node: fx.Node) -> bool:
    """Whether a call draws random numbers as it is called: drop-out does not where it is off."""
    assert isinstance(node.target, torch._ops.OpOverload)
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given = Call(node, {}, lambda _: "").arguments
    modes = [given[name] for name in ("train", "training") if name in given]
    shares = [
        given[name] for name in ("p", "dropout", "dropout_p") if isinstance(given.get(name), (int, float))
    ]
    return all(modes) and all(shares)


def _own_statistics(program: ExportedProgram) -> int:
    """Take the running statistics from batch norms that do not use them."""
    norms = [node for node in _calls(program) if node.target is torch.ops.aten.batch_norm.default]
    moving = [node for node in norms if node.args[5]]
    for node in moving:
        node.update_arg(3, None)
        node.update_arg(4, None)
    return len(moving)


def _without_bias(program: ExportedProgram) -> None:
    """Convolutions without a bias call the operator that the exporter gives none."""
    for node in _calls(program):
        if (rank := _CONVOLUTIONS.get(node.target, 0)) == 0:
            continue
        call = Call(node, {}, lambda _: "")
        if call["bias"] is None and node.meta["val"].is_floating_point():
            sizes = [list(call.integers(name, rank)) for name in ("stride", "padding", "dilation")]
            node.target, node.kwargs = torch.ops.aten.convolution.default, {}
            node.args = (call["input"], call["weight"], None, *sizes, False, [0] * rank, call["groups"])

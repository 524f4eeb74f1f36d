"""Which modules of the user's hold each tensor, under which names, and which calls of the graph read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.torch_graph.call import readers

__all__ = ["Holders", "owner_of", "tensors"]

Place = tuple[nn.Module, str]  # a module, and the name of one of its own parameters or buffers


class Holders:
    """Of one module and the program that was exported from it.

    A module that is registered under several names is one module; a tensor that several modules hold (tied
    weights) has several places.
    """

    def __init__(self, module: nn.Module, program: ExportedProgram) -> None:
        self.module = module
        self.places: dict[int, list[Place]] = defaultdict(list)
        for part, name, tensor in tensors(module):
            self.places[id(tensor)].append((part, name))
        self.paths = {id(part): path for path, part in reversed(list(module.named_modules()))}
        inputs = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        self.readers: dict[int, list[fx.Node]] = defaultdict(list)
        for spec in program.graph_signature.input_specs:
            held = self.tensor(str(spec.target)) if spec.target else None
            if held is not None:
                self.readers[id(held)] += readers(inputs[spec.arg.name])

    def tensor(self, target: str) -> torch.Tensor | None:
        """The parameter or buffer of this name; None if there is none."""
        owner, name = owner_of(self.module, target)
        if owner is None:
            return None
        held = owner._parameters.get(name)
        return held if held is not None else owner._buffers.get(name)

    def part(self, path: str) -> nn.Module | None:
        """The submodule at a path."""
        try:
            return self.module.get_submodule(path)
        except AttributeError:
            return None

    def name(self, place: Place) -> str:
        """The full name of what a module holds."""
        path = self.paths[id(place[0])]
        return f"{path}.{place[1]}" if path else place[1]


def tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Every parameter and buffer, with the module that holds it and its name there; a tied one many times."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            yield from ((part, name, tensor) for name, tensor in held.items() if tensor is not None)


def owner_of(module: nn.Module, target: str) -> tuple[nn.Module | None, str]:
    """The submodule that holds a parameter or buffer, and its name there; None if there is none."""
    path, _, name = target.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None, name
    return (owner if name in owner._parameters or name in owner._buffers else None), name

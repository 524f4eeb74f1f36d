"""A module that calls a graph in place of its own code, and is in all else what it was.

It stays the same object: names, the order of parameters, modes, hooks, attributes and methods (an overridden
`train`) are its own. Only its class changes, to one that is a `torch.fx.GraphModule` and the class it had.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import reduce_graph_module

from bnfold.errors import UsageError
from bnfold.nn.batch_norm import Fused
from bnfold.nn.tracing import GraphReader

__all__ = ["Graphed", "check", "install", "restore"]

_EMPTY = fx.GraphModule(nn.Module(), fx.Graph())
_OWN_NAMES = {*dir(_EMPTY)} - {*dir(nn.Module())}


class Graphed(fx.GraphModule):
    """_bnfold_class: the class that it had. _bnfold_merged: paths of batch norms that have an activation for
    this graph. _bnfold_added: names of what a graph module has and the module had not.
    """

    if TYPE_CHECKING:  # torch.jit.script reads annotations
        _bnfold_class: type[nn.Module]
        _bnfold_merged: tuple[str, ...]
        _bnfold_added: tuple[str, ...]

    def __copy__(self) -> Graphed:
        return self._with(dict(vars(self)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphed:
        made = memo[id(self)] = _blank(self._bnfold_class)
        return made._with(copy.deepcopy(vars(self), memo), made)

    def _with(self, state: Mapping[str, Any], made: Graphed | None = None) -> Graphed:
        """This class with other attributes."""
        made = _blank(self._bnfold_class) if made is None else made
        vars(made).update(state)
        made.graph = state["_graph"]
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        _, (state, imports) = super().__reduce__()  # the graph as code
        return _blank, (self._bnfold_class,), {"state": state, "imports": imports}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        super().__setstate__(stored["state"])  # type: ignore[no-untyped-call]
        self.graph = reduce_graph_module(dict(stored["state"]), stored["imports"]).graph  # type: ignore[assignment]

    def _replicate_for_data_parallel(self) -> Any:
        return nn.Module._replicate_for_data_parallel(self)  # type: ignore[no-untyped-call]


@torch.jit.unused  # torch.jit.script, which compiles every submodule, leaves it out
class Inside:
    """The forward of a submodule whose code no longer fits its batch norms."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise UsageError(
            f"{self.path} cannot be called by itself: the network calls its batch norms in a graph, where an "
            "activation or a sum was moved. Call the network; bnfold.nn.revert undoes bnfold.nn.convert"
        )


def check(module: nn.Module) -> None:
    """Refuse a module that cannot be a graph module.

    Raises:
        UsageError: it has attributes of a graph module's names, or code that is not its class's.
    """
    name = type(module).__name__
    if "forward" in vars(module):
        raise UsageError(
            f"{name} has another forward than its class: it was replaced in this object, and a graph is made "
            "of the class's. Convert it without fuse_activations"
        )
    own = {*dir(type(module)), *vars(module), *module._modules, *module._parameters, *module._buffers}
    both = set() if isinstance(module, fx.GraphModule) else own & _OWN_NAMES
    if names := sorted(each for each in both if not each.startswith("__")):
        raise UsageError(
            f"{name} has attributes of its own that a torch.fx.GraphModule needs: {', '.join(names)}. "
            "Convert it without fuse_activations, or rename them"
        )


def install(
    module: nn.Module,
    graph: fx.Graph,
    constants: Mapping[str, Tensor],
    merged: Iterable[str],
    inside: Iterable[str],
) -> Graphed:
    """Let a module call a graph.

    Args:
        module: the graph was traced from it.
        graph: of its submodules and parameters, by their paths.
        constants: attributes that the graph reads and the module has not.
        merged: paths of batch norms that have an activation now and had none.
        inside: paths of submodules that must not be called by themselves from now on.
    """
    if not isinstance(module, Graphed):
        empty = vars(copy.deepcopy(_EMPTY))
        added = tuple(empty.keys() - vars(module).keys())
        vars(module).update({key: empty[key] for key in added})
        vars(module).update(_bnfold_added=added, _bnfold_merged=(), _tracer_cls=GraphReader)
        kinds = (kind for kind in type(module).__mro__ if not kind.__qualname__.endswith("GraphModuleImpl"))
        module.__class__ = _class(next(kinds))
    assert isinstance(module, Graphed)
    module._bnfold_merged += tuple(merged)
    module._bnfold_added += tuple(constants)
    vars(module).update(constants)
    for path in inside:
        vars(module.get_submodule(path)).setdefault("forward", Inside(path))
    module.graph = graph
    return module


def restore(module: Graphed) -> None:
    """Give a module its class and code back, where its submodules are still those that the code calls."""
    parts = [module.get_submodule(path) for path in module._bnfold_merged]
    whole = all(type(part) is nn.ReLU or (isinstance(part, Fused) and part.activation) for part in parts)
    if not whole or issubclass(module._bnfold_class, fx.GraphModule):
        return
    for part in module.modules():
        if isinstance(vars(part).get("forward"), Inside):
            del part.forward
    for part in parts:
        vars(part).pop("activation", None)
    for key in (*module._bnfold_added, "_bnfold_added", "_bnfold_merged", "_tracer_cls"):
        vars(module).pop(key, None)
    module.__class__ = module._bnfold_class  # type: ignore[assignment]


def _blank(plain: type[nn.Module]) -> Graphed:
    made: Graphed = object.__new__(_class(plain))
    return made


def _class(plain: type[nn.Module]) -> type[Graphed]:
    """A class of its own: `fx.GraphModule` keeps the code of the graph there."""
    unused = [*fx.GraphModule.__jit_unused_properties__, *getattr(plain, "__jit_unused_properties__", ())]
    names = {"_bnfold_class": plain, "__module__": plain.__module__, "__jit_unused_properties__": unused}
    made: type[Graphed] = types.new_class(
        plain.__name__, (Graphed, plain), {}, lambda space: space.update(names)
    )
    return made

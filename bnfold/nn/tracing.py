"""A module's calls as a graph that is right in training mode and in eval mode, or none.

torch.fx runs a module's code once and writes down the calls. What the code decides by itself is then fixed:
whether dropout is on, say. So the code is run in both modes.

1. Both graphs are the same: what depends on the mode is inside the submodules that the graph calls.
2. They differ in values that are the `training` of some module: it is run once more, with these as values
   that the graph reads when it runs. That graph is taken if it has both of the first in it.
3. They differ otherwise: there is no graph for both, and the module is refused by what differs. So is one
   whose code sets attributes, draws random numbers, or turns gradients or autocast on or off: a graph would
   not do that.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bnfold.errors import UsageError
from bnfold.nn.batch_norm import AddActivation, Fused

__all__ = ["GraphReader", "hooked", "traced"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MISSING = object()
_ASKED = (type(None), bool)  # defaults for which code asks what it was given
_GENERATORS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
)


def hooked(part: nn.Module) -> bool:
    """Whether somebody watches the calls of a module, or their gradients."""
    return any(getattr(part, hooks, None) for hooks in _HOOKS)


def traced(module: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The calls of a module, with modes as values that are read when the graph runs; and the tensors that its
    code makes of nothing, which the graph reads as attributes of the module.

    Submodules stay calls if they have no batch norm of this package inside, belong to torch.nn, or carry
    hooks. Modes, attributes and random states are left as they were.

    Raises:
        UsageError: there is no graph that is right in both modes.
        Exception: of any kind, where torch.fx cannot trace it.
    """
    training, evaluation = (_run(module, mode) for mode in (True, False))
    found, differs = training, _difference(_entries(training), _entries(evaluation))
    if differs:
        try:
            found = _run(module, True, symbolic=True)
            pairs = ((training, True), (evaluation, False))
            wrong = any(_difference(_entries(found, mode), _entries(other)) for other, mode in pairs)
        except Exception:  # of any kind: its code branches on what it computes of a mode, say
            wrong = True
        if wrong:
            raise UsageError(f"its calls differ between training mode and eval mode: {differs}")
    return found.graph, found.constants


@dataclass
class _Found:
    """One run: modes: the nodes that read one. constants: tensors that the code made, by attribute."""

    graph: fx.Graph
    modes: list[fx.Node]
    constants: dict[str, Tensor]


class GraphReader(fx.Tracer):
    """Makes a graph of code that reads modes, as values; for the code of a graph too, from a pickle."""

    proxy_buffer_attributes = True
    symbolic = True

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[fx.Node] = []

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        modes = [(vars(part), vars(part)["training"]) for part in root.modules() if "training" in vars(part)]
        try:
            graph = super().trace(root, concrete_args)
        finally:
            for own, mode in modes:
                own["training"] = mode
        for node in [node for node in self.modes if not node.users]:
            graph.erase_node(node)
            self.modes.remove(node)
        return graph

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for path, part in self.root.named_modules() if self.symbolic else ():
            if "training" in vars(part):
                mode: Any = self.create_proxy("get_attr", f"{path}.training".lstrip("."), (), {})
                self.modes.append(mode.node)
                vars(part)["training"] = mode
        return function, args


class _Forward(GraphReader):
    """Makes a graph of a module's forward. mode: what a branch on a mode sees."""

    def __init__(self, module: nn.Module, mode: bool, symbolic: bool) -> None:
        super().__init__()
        self.mode, self.symbolic, self.gradients = mode, symbolic, torch.is_grad_enabled()
        self.inside = {part for part in module.modules() if any(map(_is_own, part.modules()))}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = _is_own(m) or m not in self.inside or hooked(m)
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if torch.is_grad_enabled() != self.gradients:
            raise UsageError("its code turns gradients off or on, which a graph would not")
        return super().create_node(*args, **kwargs)

    def to_bool(self, obj: Any) -> bool:
        return self.mode if obj.node in self.modes else super().to_bool(obj)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Where a default is None, True or False, the argument is that: the code asks for it."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for i, arg in enumerate(args):
            default = arg.node.args[:1] if isinstance(arg, fx.Proxy) else ()
            if default and isinstance(default[0], _ASKED):
                as_traced(arg, default[0], str(arg.node.target))
                args[i] = default[0]
        return function, args


def _is_own(part: nn.Module) -> bool:
    return isinstance(part, (Fused, AddActivation))


def as_traced(given: Any, default: Any, name: str) -> None:
    """Refuse an argument that the calls of a graph do not depend on."""
    if isinstance(given, fx.Proxy):  # a tracer writes this call down
        given.tracer.create_proxy("call_function", as_traced, (given, default, name), {})
    elif type(given) is not type(default) or given != default:
        raise UsageError(
            f"{name} was {default!r} when the calls were merged, and cannot be anything else now"
        )


def _run(module: nn.Module, mode: bool, symbolic: bool = False) -> _Found:
    tracer = _Forward(module, mode, symbolic)
    parts = [(path, part) for path, part in module.named_modules() if part in tracer.inside or not path]
    constants: dict[str, Tensor] = {}
    with _as_it_was(module):
        for part in module.modules():
            if "training" in vars(part):
                part.training = mode
        before = {path: _attributes(part) for path, part in parts}
        drawn = _random_states()
        graph = tracer.trace(module)
        for node in graph.nodes:
            if isinstance(node.type, str):  # neither its code nor torch.jit.script could read that
                node.type = None
        reads = {node.target for node in graph.nodes if node.op == "get_attr"}
        for path, part in parts:
            for key, value in _changed(before[path], _attributes(part)).items():
                if path or key not in reads or not key.startswith("_tensor_constant"):
                    name = f"{path}.{key}".lstrip(".").partition("[")[0]
                    raise UsageError(f"its code sets {name}, which a graph would not")
                constants[key] = value
        if drawn != _random_states():
            raise UsageError("its code draws random numbers, which a graph would not draw again")
    return _Found(graph, tracer.modes, constants)


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Put back modes, attributes and random states; meanwhile no code turns autocast on or off."""
    plain = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    owns = [own for part in plain for own in (vars(part), *_collections(part).values())]
    before = [copy.copy(own) for own in owns]
    states = [get() for get, _ in _GENERATORS]
    enter = torch.autocast.__enter__
    torch.autocast.__enter__ = _no_autocast  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
        for own, old in zip(owns, before, strict=True):
            if isinstance(own, list):
                own[:] = old
            else:
                for key in own.keys() - old.keys():
                    del own[key]
                own.update(old)
        for (_, put), state in zip(_GENERATORS, states, strict=True):
            put(state)


def _no_autocast(_: torch.autocast) -> None:
    raise UsageError("its code turns autocast on or off, which a graph would not")


def _random_states() -> list[bytes]:
    states = [get() for get, _ in _GENERATORS]
    return [each.numpy().tobytes() if isinstance(each, Tensor) else pickle.dumps(each) for each in states]


def _collections(part: nn.Module) -> dict[str, Any]:
    """Lists and dicts among the attributes: the code may put something into them."""
    return {key: value for key, value in vars(part).items() if isinstance(value, (list, dict))}


def _changed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What is another object than before, or gone, as it is now."""
    keys = [*before, *(key for key in now if key not in before)]
    return {key: now.get(key) for key in keys if now.get(key, _MISSING) is not before.get(key, _MISSING)}


def _attributes(part: nn.Module) -> dict[str, Any]:
    """All attributes, and what is in lists and dicts among them."""
    found = dict(vars(part))
    for name, own in _collections(part).items():
        pairs = enumerate(own) if isinstance(own, list) else own.items()
        torchs = name in ("_parameters", "_buffers", "_modules")
        found.update({str(key) if torchs else f"{name}[{key}]": value for key, value in pairs})
    return found


def _entries(found: _Found, mode: bool | None = None) -> list[tuple[Any, ...]]:
    """The nodes, to be compared; mode: in place of what reads one."""
    known: dict[fx.Node, Any] = dict.fromkeys(found.modes, mode)
    entries = []
    for node in found.graph.nodes:
        if node in known:
            continue
        known[node] = f"%{len(known) - len(found.modes)}"
        target: Any = node.target
        if node.op == "get_attr" and target in found.constants:
            value = found.constants[target]
            target = value.dtype, value.tolist()
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        callers = list(node.meta.get("nn_module_stack", {}).values())
        caller = callers[-1][0] if callers and node.op != "call_module" else ""
        entries.append((node.op, target, args, kwargs, caller))
    return entries


def _difference(training: list[tuple[Any, ...]], evaluation: list[tuple[Any, ...]]) -> str:
    """What differs first, or ""."""
    for one, other in zip(training, evaluation, strict=False):
        if one != other:
            a, b = _told(one), _told(other)
            if a == b:
                return a if one[0] == "output" else f"the arguments of {a}"
            return f"{a} in training mode, {b} in eval mode"
    return "" if len(training) == len(evaluation) else "one has more calls"


def _told(entry: tuple[Any, ...]) -> str:
    op, target, *_, caller = entry
    name = str(getattr(target, "__name__", target))
    return "what it returns" if op == "output" else f"{name} in {caller}" if caller else name

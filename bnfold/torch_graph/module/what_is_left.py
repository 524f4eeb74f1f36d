"""What becomes of the call of a batch norm that folded, in a module that runs eagerly.

1. Its module does nothing else: it becomes `nn.Identity`.
2. Its module then calls its submodules, one after the other (a batch norm with an activation): it becomes
   `nn.Sequential` of these, under their own names.
3. Its module says what it is without the batch norm, by a method `without_batch_norm` (those of `bnfold.nn`
   do), or `activation_alone` where its calls give it one tensor: it becomes that.
4. All else (other arithmetic, hooks, a call of `torch.nn.functional.batch_norm`): the call stays, with
   parameters that make it the identity map.
5. So it does where what follows writes into its output, which would then be the memory of a tensor that
   others read, or into its input: the call makes the copy that is needed.
"""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from bnfold.fold.graph import Node, Tensor
from bnfold.fold.roles import Affine, Concat, Contract, Linear, Move, Normalize, Product, Sum
from bnfold.torch_graph.call import given, stack, within

__all__ = [
    *("MAY_RETURN_INPUT", "Calls", "Replacement", "Replacements", "calls_of", "hooked", "mean_of", "path_of"),
    "what_is_left",
]

# names of submodules that are left of the batch norm's module, the method that tells, or None: its call stays
Replacement: TypeAlias = "tuple[str, ...] | str | None"
METHOD, ALONE = "without_batch_norm", "activation_alone"

# what these compute is the batch norm and nothing else
_TORCH = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MAKE = (Linear, Sum, Product, Concat, Contract, Normalize)  # their results have memory of their own
MAY_RETURN_INPUT = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def mean_of(node: Node) -> str:
    """The name of a batch norm's running mean: calls that share it are one batch norm."""
    role = node.role
    assert isinstance(role, Affine)
    return role.constants["mean"][1].store


def path_of(node: Node) -> str:
    """The path of the module that keeps it."""
    return mean_of(node).rpartition(".")[0]


@dataclass
class Calls:
    """How often each submodule was called, by path; `odd`: those that were ever given anything but one
    tensor, or gave anything but one.
    """

    times: Counter[str] = field(default_factory=Counter)
    odd: set[str] = field(default_factory=set)

    def plain(self, path: str) -> int:
        """How often, if always with one tensor for one tensor; else 0."""
        return 0 if path in self.odd else self.times[path]


def calls_of(module: nn.Module, run: Callable[[], object]) -> Calls:
    """The calls that `run` makes, which runs the module."""
    calls = Calls()

    def after(path: str, part: nn.Module, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.times[path] += 1
        # What is called in its own way (Keras's layers) adds `mask=None` to the one tensor that it is given.
        own_way = type(part).__call__ is not nn.Module.__call__
        given = [value for value in kwargs.values() if not own_way or value is not None]
        if given or [type(value) for value in inputs] != [torch.Tensor] or type(output) is not torch.Tensor:
            calls.odd.add(path)

    with ExitStack() as hooks:
        for path, part in module.named_modules():
            hook = partial(after, path)
            hooks.callback(part.register_forward_hook(hook, with_kwargs=True).remove)
        run()
    return calls


class Replacements:
    """Answers for one module; `raw` is its export, and `program` the same without in-place operators.

    `made`: the calls that it makes.
    """

    def __init__(
        self, module: nn.Module, raw: ExportedProgram, program: ExportedProgram, made: Calls
    ) -> None:
        self.module, self.made, self.raw = module, made, raw
        self.written = set(_written(raw, _norms(raw), output=True))
        self.overwritten = set(_written(raw, _norms(raw), output=False))
        # the calls within each call of the module at a path
        self.calls: dict[str, dict[str, list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
        for call in program.graph.nodes:
            if call.op == "call_function":
                for name, path in within(call).items():
                    self.calls[path][name].append(call)

    def __call__(self, node: Node, folded: Collection[Node]) -> Replacement:
        """What is left of the module that makes this call; `folded`: all nodes that vanish."""
        path, mean = path_of(node), mean_of(node)
        owner = self.module.get_submodule(path)
        own_memory = _has_own_memory(_input(node), folded)
        if not path or hooked(owner) or mean in self.overwritten or (mean in self.written and not own_memory):
            return None
        times = sum(mean_of(other) == mean for other in folded if _is_norm_role(other))
        if type(owner).forward in _TORCH and self.made.plain(path) == times:
            return ()
        calls = next((calls for calls in self.calls[path].values() if node.source in calls), None)
        if calls is None:
            return None
        if hasattr(owner, METHOD):
            return ALONE if hasattr(owner, ALONE) and self.made.plain(path) == times else METHOD
        if self.made.plain(path) != times:
            return None
        own = {other.source for other in folded}
        if all(call in own or call.target is operator.getitem for call in calls):
            return ()
        return _in_a_row(owner, path, node.source, calls)

    def row(self, path: str, call: str, last: fx.Node) -> tuple[str, ...] | None:
        """The submodules that one call of a module hands its own result on to, in a row.

        path, call: of the module. last: the call that makes the result, behind which it makes none itself.
        """
        calls = self.calls[path].get(call, [])
        found = _in_a_row(self.module.get_submodule(path), path, last, calls, whole=True)
        return found if isinstance(found, tuple) else None

    def can_be_identity(self, chains: Mapping[str, list[Node]], folded: Collection[Node]) -> bool:
        """Whether what other calls write lets a module be the identity. chains: its nodes in each call of it,
        all of which vanish.
        """
        inside: dict[str, list[fx.Node]] = {name: [] for name in chains}
        for call in self.raw.graph.nodes:
            name = next(reversed(within(call)), "") if call.op == "call_function" else ""
            if name in inside:
                inside[name].append(call)
        if not all(inside.values()) or any(_written(self.raw, inside.items(), output=False)):
            return False
        written = set(_written(self.raw, inside.items(), output=True))
        return all(_has_own_memory(_input(chains[name][0]), folded) for name in written)


def _is_norm_role(node: Node) -> bool:
    return isinstance(node.role, Affine) and node.role.kind == "norm"


def what_is_left(gone: nn.Module, replacement: tuple[str, ...] | str) -> nn.Module:
    """The module that takes the place of a batch norm's."""
    if isinstance(replacement, str):
        left: nn.Module = getattr(gone, replacement)()
        return left.train(gone.training)
    rest = nn.Sequential(OrderedDict((name, gone.get_submodule(name)) for name in replacement))
    rest.training = gone.training
    return rest if replacement else nn.Identity().train(gone.training)


def _in_a_row(
    owner: nn.Module, path: str, norm: fx.Node, calls: list[fx.Node], whole: bool = False
) -> Replacement:
    """The submodules that are called behind the batch norm, if each takes what the one before it gives.

    whole: all that the module computes itself is the norm.
    """
    names: list[str] = []
    last = norm
    for child, group in groupby(calls, lambda call: _child(call, path)):
        part = list(group)
        if not child and (names or not (whole or _is_norm(part, norm))):
            return None
        if child:
            outside = {source for call in part for source in call.all_input_nodes if source not in part}
            if child in names or {source for source in outside if source.op != "placeholder"} != {last}:
                return None
            names.append(child)
        out = [call for call in part if any(user not in part for user in call.users)]
        if len(out) != 1 or (child and set(last.users) - set(part)):  # somebody else reads what is handed on
            return None
        last = out[0]
    silent = [name for name in owner._modules if name not in names]
    if any(type(owner._modules[name]) is not nn.Identity for name in silent):
        return None  # it may do something at another time, as drop-out does
    return tuple(names)


def _is_norm(part: list[fx.Node], norm: fx.Node) -> bool:
    """These calls are the batch norm and nothing else."""
    return norm in part and all(call is norm or call.target is operator.getitem for call in part)


def _child(call: fx.Node, path: str) -> str:
    """The submodule that makes a call within the module at `path`; "" for itself."""
    paths = stack(call)
    rest = paths[paths.index(path) + 1 :]
    return rest[0].removeprefix(f"{path}.").partition(".")[0] if rest else ""


def hooked(module: nn.Module) -> bool:
    """Somebody listens to its calls."""
    return any(getattr(module, hooks, None) for hooks in _HOOKS)


def _norms(raw: ExportedProgram) -> Iterator[tuple[str, list[fx.Node]]]:
    """Each call of a batch norm, once by the name of each of its parameters."""
    targets = {spec.arg.name: str(spec.target) for spec in raw.graph_signature.input_specs}
    for node in raw.graph.nodes:
        if node.op == "call_function" and "batch_norm" in str(node.target):
            names = (targets[source.name] for source in node.all_input_nodes if source.name in targets)
            yield from ((name, [node]) for name in names)


def _written(
    raw: ExportedProgram, regions: Iterable[tuple[str, list[fx.Node]]], output: bool
) -> Iterator[str]:
    """The names of those calls into whose output, or later into whose input, somebody writes."""
    order = {node: number for number, node in enumerate(raw.graph.nodes)}
    stored = {spec.arg.name for spec in raw.graph_signature.input_specs if spec.target}
    for name, calls in regions:
        if output:
            tensors = [call for call in calls if not set(calls).issuperset(call.users)]
        else:
            sources = (source for call in calls for source in call.all_input_nodes)
            tensors = [_memory(x) for x in sources if x not in calls and x.name not in stored]
        last = max(order[call] for call in calls)
        if any(order[writer] > last for tensor in tensors for writer in _writers(tensor)):
            yield name


def _memory(node: fx.Node) -> fx.Node:
    """The tensor that this one is a view of, or was made of in place."""
    while node.op == "call_function" and node.all_input_nodes and _is_view(node):
        node = node.all_input_nodes[0]
    return node


def _is_view(call: fx.Node) -> bool:
    """The call may return the memory of its first argument."""
    schema = getattr(call.target, "_schema", None)
    if schema is None:
        return call.target is operator.getitem
    aliases = any(result.alias_info is not None for result in schema.returns)
    return aliases or schema.name.split("::")[-1] in MAY_RETURN_INPUT


def _writers(node: fx.Node) -> Iterator[fx.Node]:
    """The calls that write into a tensor or into a view of it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema is not None:
            stated = given(user)
            for argument in schema.arguments:
                alias = argument.alias_info
                value = stated.get(argument.name)
                among = value is node or (isinstance(value, (list, tuple)) and node in value)
                if among and alias is not None and alias.is_write:
                    yield user
        if _is_view(user):
            yield from _writers(user)


def _input(node: Node) -> Tensor:
    """What a node that scales, shifts or rearranges reads."""
    assert isinstance(node.role, (Affine, Move))
    return node.at(node.role.x)


def _has_own_memory(x: Tensor, folded: Collection[Node]) -> bool:
    """One call alone reads this tensor, which is no view of another one."""
    while True:
        if x.fixed or len(x.readers) > 1 or x.producer is None:
            return False
        if x.producer not in folded:
            return isinstance(x.producer.role, _MAKE)
        x = _input(x.producer)

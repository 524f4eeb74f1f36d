"""What is called in the end: compiled folds, each for its weights, and a new one where these have changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from bnfold.integrations.torch_compile.capture import Capture, has_free_sizes
from bnfold.integrations.torch_compile.weights import Weights

__all__ = ["MOST", "Folded", "Steps"]

MOST = 8  # folds of one captured graph that are kept, with their weights
Run = Callable[..., Any]


class Steps(NamedTuple):
    """What a fold is made by.

    fold: the folded graph of a capture; raises for what cannot be folded.
    compile: compiles a graph for arguments.
    unfolded: told why a graph runs as it was captured.
    reads_weights: whether what is compiled reads the graph's weights at each call, and has not stored them.
    """

    fold: Callable[[Capture, Sequence[Any]], fx.GraphModule]
    compile: Callable[[fx.GraphModule, Sequence[Any]], Run]
    unfolded: Callable[[str], None]
    reads_weights: bool


class _Variant(NamedTuple):
    """One fold. graph, run: folded, and compiled; None: with these weights, the captured graph is to run."""

    weights: Weights
    numbers: tuple[float, ...]
    graph: fx.GraphModule | None
    run: Run | None


class Folded:
    """A captured graph as a function of all that torch.compile hands over at a call.

    torch.compile does not ask whose weights these are: a second module of the class comes here as well. So
    each call looks for the fold of its own weights, in their present state, and makes it if there is none.
    """

    def __init__(self, capture: Capture, steps: Steps, graph: fx.GraphModule, run: Run) -> None:
        self.capture, self.steps = capture, steps
        self.variants = [_variant(capture, graph, run)]
        # Where sizes are free, torch.compile has its guards by now: compiling again could need more of them.
        # Where the graph holds weights itself (inductor's freezing), they are no arguments.
        self.closed = has_free_sizes(capture) or bool(capture.attributes)
        self.as_captured: Run | None = None
        self.lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        variant = self._present(arguments)
        if variant is None:
            with self.lock:
                variant = self._present(arguments) or self._renewed(arguments)
        if variant is None or variant.run is None:
            return self._unfolded(arguments)
        return variant.run(*self.capture.given(arguments))

    def _present(self, arguments: Sequence[Any]) -> _Variant | None:
        weights = [arguments[i] for i in self.capture.weights]
        numbers = tuple(float(arguments[i]) for i in self.capture.numbers)
        fits = (each for each in self.variants if each.numbers == numbers and each.weights.hold(weights))
        return next(fits, None)

    def _renewed(self, arguments: Sequence[Any]) -> _Variant | None:
        """The fold of other weights, or of weights that have changed; None: there are enough."""
        capture = self.capture.holding(arguments)
        numbers, weights = tuple(capture.numbers.values()), list(capture.weights.values())
        before = [
            each for each in self.variants if each.numbers == numbers and each.weights.same_tensors(weights)
        ]
        if len(self.variants) >= MOST and not before:
            self.steps.unfolded(f"more than {MOST} modules of one class share what is compiled")
            return None
        made = self._made(capture, arguments, before[0] if before else None)
        self.variants = [made, *(each for each in self.variants if each not in before)]
        return made

    def _made(self, capture: Capture, arguments: Sequence[Any], old: _Variant | None) -> _Variant:
        """old: what is compiled for these weights, as they were."""
        plain, unfolded = _variant(capture, None, None), self.steps.unfolded
        try:
            graph = self.steps.fold(capture, arguments)
        except Exception as error:  # of any kind: the captured graph is right, whatever failed here
            unfolded(f"weights have changed: {error}")
            return plain
        if old is not None and self.steps.reads_weights and _put(old, graph):
            return _variant(capture, old.graph, old.run)
        if self.closed:
            unfolded("changed weights have to be compiled, which is done for fixed sizes alone")
            return plain
        return _variant(capture, graph, self._compiled(graph, capture.given(arguments)))

    def _unfolded(self, arguments: Sequence[Any]) -> Any:
        """What was captured, compiled if that can be done by now, and else as it stands: slow, and right."""
        if self.as_captured is None:
            with self.lock:
                graph = self.capture.graph
                self.as_captured = graph.forward if self.closed else self._compiled(graph, arguments)
        return self.as_captured(*arguments)

    def _compiled(self, graph: fx.GraphModule, arguments: Sequence[Any]) -> Run:
        with torch._guards.tracing(None):
            return self.steps.compile(graph, arguments)


def _variant(capture: Capture, graph: fx.GraphModule | None, run: Run | None) -> _Variant:
    weights = Weights(list(capture.weights.values()), capture.statistics, capture.attributes)
    return _Variant(weights, tuple(capture.numbers.values()), graph, run)


@torch.inference_mode(False)
@torch.no_grad()
def _put(old: _Variant, new: fx.GraphModule) -> bool:
    """Write the numbers of a new fold into what is compiled, if that is the same but for the numbers."""
    if old.graph is None or old.graph.code != new.code:
        return False
    there, here = _state(old.graph), _state(new)
    if {name: _kind(value) for name, value in there.items()} != {name: _kind(v) for name, v in here.items()}:
        return False
    differ = [name for name in there if there[name].data_ptr() != here[name].data_ptr()]
    if any(old.weights.has_at(there[name].data_ptr()) for name in differ):
        return False  # the fold has left it as it was: this is memory of a parameter that was replaced
    for name in differ:
        there[name].copy_(here[name])
    return True


def _state(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {**dict(graph.named_parameters()), **dict(graph.named_buffers())}


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device

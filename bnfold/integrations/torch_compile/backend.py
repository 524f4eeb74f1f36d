"""The backend that torch.compile calls with each graph that it captures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import fx

from bnfold.errors import UsageError, VerifyError, first_line
from bnfold.integrations.torch_compile.capture import Capture, captured, norms, obstacle
from bnfold.integrations.torch_compile.folded import Folded, Run, Steps
from bnfold.integrations.torch_compile.program import Unfit, folded

__all__ = ["Options", "backend"]

LOG = logging.getLogger("bnfold")
READS_WEIGHTS = ("inductor", "eager", "aot_eager")  # at each call
_said: set[str] = set()


@dataclass(frozen=True)
class Options:
    """What `torch.compile(model, backend="bnfold", options={...})` takes; all else goes on to what compiles.

    skip: names of batch norms to leave alone, as in `model.named_modules()`; unknown ones are no error.
    verify: check each fold, as `fold_program` does.
    backend: what compiles the folded graph: a name that torch.compile knows, or a backend itself.
    freeze: inductor's freezing, for the folded graph alone. Changed weights are noticed nevertheless.
    mode, others: for what compiles, as torch.compile was given them.
    """

    skip: Collection[str] = ()
    verify: bool = True
    backend: str | Callable[..., Run] = "inductor"
    freeze: bool = False
    mode: str | None = None
    others: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.skip, str):
            raise UsageError("skip takes a collection of names, not one string")
        if self.freeze and self.backend != "inductor":
            raise UsageError(f"freeze is for backend='inductor', not {self.backend!r}")

    @classmethod
    def of(cls, mode: str | None, given: Mapping[str, Any]) -> Options:
        """The keywords of a backend of torch.compile."""
        own = {name: given[name] for name in ("skip", "verify", "backend", "freeze") if name in given}
        return cls(**own, mode=mode, others={name: given[name] for name in given if name not in own})

    def compile(self, graph: fx.GraphModule, arguments: Sequence[Any]) -> Run:
        """Hand a graph on."""
        if self.backend == "inductor":
            return self._inductor(graph, arguments)
        from torch._dynamo.backends.registry import lookup_backend

        keywords = {"mode": self.mode, "options": dict(self.others or {})}
        inner: Callable[..., Run] = lookup_backend(self.backend)
        return inner(graph, list(arguments), **{name: value for name, value in keywords.items() if value})

    def _inductor(self, graph: fx.GraphModule, arguments: Sequence[Any]) -> Run:
        import torch
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        patches = {**(list_mode_options(self.mode) if self.mode else {}), **(self.others or {})}
        if self.freeze and not torch.is_grad_enabled() and any(True for _ in _stored(graph)):
            patches["freezing"] = True
        return cast("Run", compile_fx(graph, list(arguments), config_patches=patches or None))

    @property
    def reads_weights(self) -> bool:
        """Whether what is compiled reads the weights of the graph when it is called."""
        from torch._inductor import config

        frozen = self.freeze or (self.backend == "inductor" and config.freezing)
        return self.backend in READS_WEIGHTS and not frozen


def backend(
    graph: fx.GraphModule,
    arguments: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Fold the batch norms of a graph that torch.compile has captured, and hand the rest on.

    Where nothing may be folded, the graph is handed on as it is, and the reason is logged once, by
    `logging.getLogger("bnfold")`. Later calls notice that weights have changed, and fold anew.

    Args:
        graph: as captured: parameters and buffers are inputs of it.
        arguments: of the first call.
        mode: for what compiles.
        options: see `Options`.

    Returns:
        A function of the graph's inputs.

    Raises:
        UsageError: an option is wrong.
    """
    chosen = Options.of(mode, options or {})
    capture = captured(graph, arguments)
    if not norms(graph):
        return chosen.compile(graph, arguments)
    steps = Steps(_folding(chosen), chosen.compile, _unfolded, chosen.reads_weights)
    why = obstacle(capture, arguments)
    made = None
    if not why:
        try:
            made = steps.fold(capture, arguments)
        except Exception as error:  # of any kind: the captured graph is right, whatever failed here
            why = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {first_line(error)}"
    if made is None:
        _unfolded(why)
        return chosen.compile(graph, arguments)
    # Not within the `try`: torch.compile starts its analysis again by exceptions that come from here.
    run = chosen.compile(made, capture.given(arguments))
    return Folded(capture, steps, made, run)


def _folding(options: Options) -> Callable[[Capture, Sequence[Any]], fx.GraphModule]:
    def fold(capture: Capture, arguments: Sequence[Any]) -> fx.GraphModule:
        try:
            graph, report = folded(capture, arguments, options.skip, options.verify)
        except VerifyError as error:
            message = f"bnfold: a fold is wrong, please report it; this graph runs as it was: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            raise
        counts = f"{len(report.folded)} folded, {len(report.kept)} kept, {len(report.merged)} merged"
        LOG.info("torch.compile: %s", counts)
        LOG.debug("torch.compile:\n%s", report)
        return graph

    return fold


def _unfolded(reason: str) -> None:
    if reason not in _said:
        _said.add(reason)
        LOG.warning("torch.compile: nothing is folded in a graph: %s", reason)


def _stored(graph: fx.GraphModule) -> list[Any]:
    return [*graph.parameters(), *graph.buffers()]

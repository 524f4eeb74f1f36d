"""Does an ONNX file compute what the torch module does that it was exported from? float64 is the referee."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError, first_line
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run import widened
from bnfold.onnx_graph.run.evaluators import CannotRun, OnnxRuntime
from bnfold.onnx_graph.run.input_ranges import outside
from bnfold.options import Check
from bnfold.report.verification import OutputError, Verification
from bnfold.torch_graph.arrays import to_array
from bnfold.verify.child import Crashed
from bnfold.verify.difference import SEEDS, Truth, compare, excuse_by, tolerance_of
from bnfold.verify.modules import near, outputs, verdict
from bnfold.verify.process import Evaluated, evaluate

__all__ = ["AgainstModule"]


class AgainstModule:
    """The folded file beside the module: in its own type, and in float64.

    raw: the file as torch wrote it.
    """

    def __init__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], check: Check, raw: Loaded
    ) -> None:
        self.module, self.inputs, self.check, self.raw = module, (args, kwargs), check, raw
        self.notes: list[str] = []
        self.drawn: dict[int, _Drawn] = {}

    def feed(self, inputs: Any = None) -> dict[str, Any]:
        """Inputs (None: the example's) by the names that they have in the file; refused where they leave the
        ranges.
        """
        leaves = pytree.tree_leaves(self.inputs if inputs is None else inputs)
        arrays = [to_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        names = [value.name for value in self.raw.proto.graph.input]
        feed = dict(zip(names, arrays, strict=True))
        if text := outside(feed, self.check.ranges or {}):
            raise UsageError(text)
        return feed

    def draw(self, more: int) -> _Drawn:
        """What the module gives on its example inputs (0), or others near to them.

        Raises:
            UsageError: they leave the ranges. Exception: any other, of the module.
        """
        if more not in self.drawn:
            inputs = near(self.inputs, more)
            feed, own = self.feed(inputs), _arrays(outputs(self.module, *inputs))
            exact: list[Any] | None = None
            try:
                exact = _arrays(outputs(self.module, inputs[0], inputs[1], exact=True))
            except Exception as error:  # of any kind: it may write into what is stored, or leave Python
                if not more:
                    said = first_line(error)
                    self.notes.append(f"compared with the module as it is, not in float64: {said}")
            self.drawn[more] = _Drawn(feed, own, exact)
        return self.drawn[more]

    def draws(self, folded: Loaded, first: Evaluated) -> Iterator[Mapping[str, tuple[Any, Truth]]]:
        """What the file gives and the truth, on the example inputs and others near to them."""
        names = [output.name for output in folded.proto.graph.output]
        for more in range(SEEDS):
            if more and near(self.inputs, more) is None:
                return
            try:
                drawn = self.draw(more)
            except Exception:  # of any kind: what is near to its inputs may be none for the module
                return
            if drawn.exact is None:
                return
            try:
                found = evaluate(folded, drawn.feed, self.check, self.raw) if more else first
            except CannotRun:
                return
            each = zip(names, drawn.exact, drawn.own, strict=False)
            yield {name: (found.outputs[name], Truth(exact, own)) for name, exact, own in each}

    def __call__(self, folded: Loaded) -> Verification:
        tolerance = tolerance_of(widened.working_type(folded), self.check)

        def verification(errors: list[OutputError], by: str, status: str, reason: str) -> Verification:
            notes = [*self.notes, *more]
            return Verification(errors, by, status, reason, tolerance.rtol, tolerance.atol, notes)

        more: list[str] = []
        drawn = self.draw(0)
        try:
            found = evaluate(folded, drawn.feed, self.check, self.raw)
        except CannotRun as error:
            return verification([], "", "not run", str(error))
        except Crashed as crash:
            reason = f"the folded file crashes onnxruntime ({crash}), and the file as torch wrote it does not"
            return verification([], OnnxRuntime.label, "failed", reason)
        more += found.notes
        errors: list[OutputError] = []
        for i, output in enumerate(folded.proto.graph.output):  # a value may be several outputs
            own, exact = drawn.own[i], None if drawn.exact is None else drawn.exact[i]
            if own.dtype.kind == "c":
                more.append(f"{output.name} is complex, pairs of numbers in the file: not compared")
                continue
            best = own if exact is None or exact.dtype.kind != "f" else exact.astype(own.dtype)
            errors += compare(output.name, best, found.outputs[output.name], tolerance)
        excuse_by(errors, tolerance, self.draws(folded, found))
        status, reason = verdict(errors)
        truth = " in float64" if drawn.exact is not None else ""
        by = f"{found.evaluator}, against torch {torch.__version__}{truth}"
        return verification(errors, by, status, reason)


class _Drawn(NamedTuple):
    """Inputs of the file by name, and what the module gives: as it is, and in float64 (None: it cannot)."""

    feed: dict[str, Any]
    own: list[Any]
    exact: list[Any] | None


def _arrays(leaves: list[Any]) -> list[Any]:
    """What becomes an output of the file: None does not, and a number does."""
    return [np.asarray(leaf) for leaf in leaves if leaf is not None]

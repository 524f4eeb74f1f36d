"""Are two models the same? Both run on the same inputs; each output's error is measured and judged.

Where an error is beyond the tolerance, the unfolded model's own rounding is measured with a wider copy of it:
a net that amplifies rounding does so with any weights, and a folded model that strays from the exact result
no more than twice as far as the original did is as good as the original. Three inputs decide (`excuse`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnfold.errors import UsageError
from bnfold.onnx_graph.file import loaded as files
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run import inputs
from bnfold.onnx_graph.run import widened as precision
from bnfold.onnx_graph.run.evaluators import MISSING, CannotRun, Outputs, doubled, evaluate
from bnfold.onnx_graph.run.side_by_side import (
    PATIENCE,
    PATIENCE_FOR_ROUNDING,
    Broken,
    Feeds,
    Ran,
    in_float64,
    run_pair,
    seeded,
)
from bnfold.options import Check
from bnfold.report.verification import OutputError, Verification
from bnfold.verify.difference import NUDGES, SEEDS, TOLERANCES, Truth, compare, excuse_by, tolerance_of
from bnfold.verify.position import by_position
from bnfold.verify.saturated import with_fronts

Drawn = Mapping[str, tuple[Any, Truth]]


def verify(
    original: str | Path | onnx.ModelProto | Loaded,
    folded: str | Path | onnx.ModelProto | Loaded,
    check: Check = Check(),  # noqa: B008  (frozen)
) -> Verification:
    """Run both models on the same inputs and compare what they give.

    Args:
        original: the model to trust: a path, an `onnx.ModelProto`, or one that is loaded.
        folded: the model to judge, of any of these kinds.
        check: inputs (arrays by name, or a file or folder of them, see `inputs.load_inputs`), shapes, seed,
            ranges and tolerances. A half-precision model is compared twice, in its own type and as float32
            copies, and a tolerance given here holds for both.

    Raises:
        UsageError: the models' inputs or outputs differ in name (where there are several), type or shape; the
            given inputs do not fit; or the models need onnxruntime to run, and it is not installed.
        ModelError: a model cannot be read.
    """
    a, b = (m if isinstance(m, Loaded) else files.load(m) for m in (original, folded))
    b, notes = by_position(a, b)
    notes += filter(None, [doubled()])
    _same_signature(a, b)
    a, b, fronts = with_fronts(seeded(a), seeded(b))
    kind = precision.working_type(a)
    kind = "quantized" if kind == "float32" and precision.rounds_to_integers(a) else kind
    judge = _Check(kind, check, fronts, notes)
    try:
        return judge.run(a, b, Feeds(a, check.inputs, check.shapes, check.seed, check.ranges))
    except CannotRun as reason:
        return judge.verdict([], "", "not run", str(reason))
    except Broken as reason:
        return judge.verdict([], "", "failed", str(reason))


class _Check:
    """One comparison. A half-precision model is compared as float32 copies, then in its own type."""

    def __init__(self, kind: str, check: Check, fronts: AbstractSet[str], notes: list[str]) -> None:
        self.kind, self.check, self.fronts, self.notes = kind, check, fronts, notes
        self.exact: list[tuple[Mapping[str, Any], Outputs]] = []  # what the original would give, by feed

    def verdict(self, outputs: list[OutputError], by: str, status: str, reason: str = "") -> Verification:
        tolerance = tolerance_of(self.kind, self.check)
        return Verification(outputs, by, status, reason, tolerance.rtol, tolerance.atol, self.notes)

    def run(self, a: Loaded, b: Loaded, feeds: Feeds) -> Verification:
        if self.kind in ("float16", "bfloat16"):
            return self._run_half(a, b, feeds)
        ran = run_pair(a, b, feeds)
        self._tell_refusal(ran)
        errors = self._errors(ran, self.kind)
        if self.kind == "float32":
            draws, nudges = self._draws(a, b, ran, feeds), self._nudges(a)
            excuse_by(errors, tolerance_of(self.kind, self.check), draws, nudges)
        return self._judged(errors, ran.evaluator)

    def _tell_refusal(self, ran: Ran | None) -> None:
        if ran is not None and ran.refused and MISSING not in ran.refused:
            self.notes.append(f"the original model does not run in {ran.refused}")

    def _draws(self, a: Loaded, b: Loaded, ran: Ran, feeds: Feeds) -> Iterator[Drawn]:
        """What both models give on the first feed, and on others of its shapes."""
        for feed in _others(ran.feed, feeds):
            try:
                ran = ran if feed is ran.feed else run_pair(a, b, [feed])
            except CannotRun:
                return
            exact, why = in_float64(a, feed)
            if exact is None:
                self.notes.append(f"whether it is rounding could not be told: {why}")
                return
            self.exact.append((feed, exact))
            yield {name: (ran.folded[name], Truth(exact[name], ran.original[name])) for name in exact}

    def _nudges(self, a: Loaded) -> Iterator[Mapping[str, Truth]]:
        """What the original gives on the feeds that were drawn, in turn, with their last bits changed."""
        for seed in range(NUDGES):
            feed, exact = self.exact[seed % len(self.exact)]
            nudged = inputs.nudged(feed, seed)
            if nudged is None:
                return
            try:
                found, _ = evaluate(a, nudged)
            except CannotRun:
                return
            yield {name: Truth(exact[name], found[name]) for name in exact.keys() & found.keys()}

    def _run_half(self, a: Loaded, b: Loaded, feeds: Feeds) -> Verification:
        wide = own = None
        try:
            wide = _wide_pair(a, b, feeds)
        except CannotRun as reason:
            self.notes.append(f"not compared as float32 copies: {reason}")
        try:
            source = feeds if wide is None else [wide.feed]
            own = run_pair(a, b, source, patience=PATIENCE if wide is None else PATIENCE_FOR_ROUNDING)
        except CannotRun as reason:
            if wide is None:
                raise
            self.notes.append(f"not compared in {self.kind} itself: {reason}")
        self._tell_refusal(own)
        errors, names = [], []
        for ran, kind in ((wide, f"{self.kind} as float32"), (own, self.kind)):
            if ran is not None:
                found = self._errors(ran, kind)
                if wide is not None and own is not None:
                    draws = self._half_draws(a, b, wide, own, feeds, ran is wide)
                    excuse_by(found, tolerance_of(kind, self.check), draws)
                errors += found
                names.append(ran.evaluator)
        return self._judged(errors, ", ".join(dict.fromkeys(names)))

    def _half_draws(
        self, a: Loaded, b: Loaded, wide: Ran, own: Ran, feeds: Feeds, judge_wide: bool
    ) -> Iterator[Drawn]:
        """The float32 copy of the original is exact enough, and the model itself has the rounding."""
        first = wide.feed
        for feed in _others(first, feeds):
            try:
                if feed is not first:
                    wide = _wide_pair(a, b, [feed])
                    own = run_pair(a, b, [feed], patience=PATIENCE_FOR_ROUNDING)
            except CannotRun:
                return
            ours = (wide if judge_wide else own).folded
            yield {name: (ours[name], Truth(wide.original[name], own.original[name])) for name in ours}

    def _errors(self, ran: Ran, kind: str) -> list[OutputError]:
        errors = []
        tolerance, called = tolerance_of(kind, self.check), kind if kind.endswith("as float32") else ""
        for name, value in ran.original.items():
            if name in self.fronts and np.shape(value) != np.shape(ran.folded[name]):
                continue  # no output: it may have another shape
            errors += compare(name, value, ran.folded[name], tolerance, called)
        return errors

    def _judged(self, errors: list[OutputError], evaluator: str) -> Verification:
        bad = [error.name for error in errors if not error.ok]
        reason = f"{', '.join(dict.fromkeys(bad))} differ{'s' if len(set(bad)) == 1 else ''}" if bad else ""
        usual = TOLERANCES[self.kind]
        if bad and all(error.max_abs <= usual.atol + usual.rtol * error.largest for error in errors):
            reason += f", by less than the usual tolerance of {self.kind}, {usual.rtol:g}"
        return self.verdict(errors, evaluator, "failed" if bad else "passed", reason)


def _others(feed: Mapping[str, Any], feeds: Feeds) -> Iterator[Mapping[str, Any]]:
    """The feed, and others of its shapes."""
    yield feed
    for more in range(1, SEEDS):
        if (other := feeds.another(feed, more)) is not None:
            yield other


def _wide_pair(a: Loaded, b: Loaded, feeds: Feeds | list[Mapping[str, Any]]) -> Ran:
    return run_pair(precision.float32_copy(a), precision.float32_copy(b), feeds, as_float32=True)


def _same_signature(a: Loaded, b: Loaded) -> None:
    """Raises UsageError, naming the first difference between the models' inputs or outputs."""

    def described(model: Loaded, what: str) -> dict[str, str | inputs.Input]:
        values = getattr(model.proto.graph, what)
        if what == "input":
            stored = {t.name for t in model.proto.graph.initializer}
            values = [v for v in values if v.name not in stored]
        return {v.name: inputs.describe(v.type) for v in values}

    for what in ("input", "output"):
        ours, theirs = described(a, what), described(b, what)
        if list(ours) != list(theirs):
            lists = f"{', '.join(ours) or 'none'} and {', '.join(theirs) or 'none'}"
            raise UsageError(f"the models cannot be compared: their {what}s are {lists}")
        for name, kind in ours.items():
            if not inputs.compatible(kind, theirs[name]):
                both = f"{kind} and {theirs[name]}"
                raise UsageError(f"the models cannot be compared: the {what} {name!r} is {both}")

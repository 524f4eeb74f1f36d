"""The biases of a quantized model corrected against its float model: read, correct, check, hand back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import onnx

from bnfold.api.fold_onnx import opened
from bnfold.errors import UsageError, VerifyError
from bnfold.onnx_graph.describe import Sketch
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import Array
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.run.evaluators import opened as evaluator
from bnfold.onnx_graph.run.inputs import Given, Input, compatible, wanted
from bnfold.onnx_graph.run.samples import Samples
from bnfold.passes.correct.correct import Plan, plan
from bnfold.passes.correct.correct import correct as carry_out
from bnfold.passes.correct.moments import Runs
from bnfold.progress import Advance
from bnfold.report.correct import CorrectReport, OutputNoise

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["EVERY", "correct", "correct_loaded", "correct_units"]

EVERY = 5  # one sample of so many is held back
WORSE = 0.3  # dB that the outputs may lose on the samples held back
SURE = 2.0  # standard errors by which it must be more, not to be chance


@overload
def correct(
    model: str | Path | onnx.ModelProto,
    float_model: str | Path | onnx.ModelProto | onnx_ir.Model,
    inputs: Mapping[str, Any] | str | Path,
    *,
    deviation: bool | None = None,
    verify: bool = True,
) -> tuple[onnx.ModelProto, CorrectReport]: ...
@overload
def correct(
    model: onnx_ir.Model,
    float_model: str | Path | onnx.ModelProto | onnx_ir.Model,
    inputs: Mapping[str, Any] | str | Path,
    *,
    deviation: bool | None = None,
    verify: bool = True,
) -> tuple[onnx_ir.Model, CorrectReport]: ...
def correct(
    model: str | Path | onnx.ModelProto | onnx_ir.Model,
    float_model: str | Path | onnx.ModelProto | onnx_ir.Model,
    inputs: Mapping[str, Any] | str | Path,
    *,
    deviation: bool | None = None,
    verify: bool = True,
) -> tuple[onnx.ModelProto | onnx_ir.Model, CorrectReport]:
    """Correct the biases of a quantized ONNX model (QDQ) against the float model that it was made of.

    Rounded weights and values shift the mean of each channel of each layer. Layer by layer, with the layers
    before it corrected, a layer's mean over `inputs` in the quantized model is brought to that of the float
    model, by its bias alone: the integers of the weights stay what they are, bit for bit, and no node is
    added but for an Add behind a MatMul. Layers are found in the float model by the names of tensors, as
    onnxruntime's quantizer keeps them.

    Args:
        model: the quantized model: a path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        float_model: what was quantized, with batch norms folded as they were then.
        inputs: arrays by input name, samples along their first axis (or a file of them, .npz say), such as
            those that the quantizer was calibrated with. A model with a fixed first axis takes so many at
            a time.
        deviation: bring each channel's standard deviation to the float layer's too, by the scales of the
            weight, if it has one for each output channel. None: where the weight has less than 8 bits.
        verify: hold every fifth sample back, and compare the outputs on those before and after.

    Returns:
        The corrected model, of the kind that was given, and the report.

    Raises:
        ModelError: a model cannot be read.
        UsageError: the quantized model has no layer that can be corrected, the float model is of another
            network, or the inputs do not fit.
        VerifyError: on the samples held back the outputs are further from the float model's than before.
        BnfoldError: nothing runs the models.
    """
    loaded, as_given = opened(model, "correct")
    original, _ = opened(float_model, "correct")
    result, report = correct_loaded(loaded, original, inputs, deviation=deviation, verify=verify)
    return as_given(result), report


def correct_loaded(
    loaded: Loaded,
    original: Loaded,
    inputs: Given,
    *,
    deviation: bool | None = None,
    verify: bool = True,
    advance: Advance | None = None,
    sketch: Sketch | None = None,
) -> tuple[Loaded, CorrectReport]:
    """`correct` for models that are loaded; the result is ready to be saved.

    advance: told how far it is. sketch: is shown the model before it is changed.
    """
    samples, report = Samples(_inputs(loaded, original), inputs), CorrectReport()
    units = range(samples.count)
    report.held_back = verify and len(units) >= EVERY
    held = units[EVERY - 1 :: EVERY] if report.held_back else units
    used = [unit for unit in units if not report.held_back or unit not in held]
    report.samples = len(used) * samples.each
    report.compared = len(held) * samples.each if verify else 0
    work = plan(loaded.copy(), original, deviation)
    if sketch is not None:
        sketch.draw(loaded, read(loaded))
    report.left, done = work.left, 0
    total = work.steps * len(used) + len(held) * verify

    def tell(count: int, what: str) -> None:
        nonlocal done
        done += count
        if advance is not None:
            advance(done, total, what)

    runs = Runs(samples, used, tell)
    carry_out(work, original, runs, report)
    report.evaluator = runs.evaluator
    report.weights = _unchanged(loaded, work)
    if verify:
        report.outputs = _judged(_noise(Runs(samples, held, tell), original, loaded, work.loaded))
    return work.loaded, report


def correct_units(loaded: Loaded, original: Loaded, samples: Samples, units: Sequence[int]) -> Loaded:
    """A corrected copy of a quantized model, by some units of samples, and nothing else of `correct`."""
    work = plan(loaded.copy(), original, None)
    carry_out(work, original, Runs(samples, units, lambda count, what: None), CorrectReport())
    return work.loaded


def _inputs(loaded: Loaded, original: Loaded) -> list[Input]:
    """The inputs of both models, with the sizes that either fixes.

    Raises:
        UsageError: they are not fed alike, or do not give the same.
    """
    here, there = ({i.name: i for i in wanted(model)} for model in (loaded, original))
    names = ([value.name for value in model.proto.graph.output] for model in (loaded, original))
    for what, a, b in (("inputs", list(here), list(there)), ("outputs", *names)):
        if set(a) != set(b):
            raise UsageError(
                f"the quantized model's {what} are {', '.join(a)}, and the float model's {', '.join(b)}; "
                "give the float model that was quantized"
            )
    inputs = []
    for name, found in here.items():
        other = there[name]
        if not compatible(found, other):
            raise UsageError(
                f"the input {name!r} is {found} in the quantized model and {other} in the float model; give "
                "the float model that was quantized"
            )
        sizes = zip(found.dims or (), other.dims or (), strict=False)
        fixed = tuple(theirs if isinstance(theirs, int) else ours for ours, theirs in sizes)
        inputs.append(replace(found, dims=fixed) if found.dims and other.dims else found)
    return inputs


def _unchanged(before: Loaded, work: Plan) -> int:
    """How many weights have the integers that they had; everything that is stored is compared.

    Raises:
        VerifyError: something else than what was to be renewed has changed, which is a fault of bnfold.
    """
    renewed = {name for task in work.tasks for name in task.renewed}
    after = {tensor.name: tensor for tensor in work.loaded.proto.graph.initializer}
    for tensor in before.proto.graph.initializer:
        if tensor.name in renewed:
            continue
        other = after.get(tensor.name)
        old, new = before.array(tensor), None if other is None else work.loaded.array(other)
        if new is None and old.size == 1:
            continue  # a bias of one number, which became one for each channel
        if new is None or (new.dtype, new.shape) != (old.dtype, old.shape) or new.tobytes() != old.tobytes():
            raise VerifyError(f"tensor {tensor.name!r} changed, which must not be: please report it")
    return len({task.codes for task in work.tasks if task.codes} - renewed)


def _noise(runs: Runs, original: Loaded, *models: Loaded) -> dict[str, Array]:
    """Of each floating output the signal, and the noise of two models in it: squares, of shape (units, 3)."""
    evaluators = [evaluator(model) for model in (original, *models)]
    found: dict[str, list[list[float]]] = {}
    for count, feed in runs.samples.feeds(runs.units):
        exact, *others = (each.run(feed) for each in evaluators)
        runs.tell(count, "the outputs")
        for name, value in exact.items():
            signal = np.asarray(value)
            if signal.dtype.kind == "f":
                wide = signal.astype(np.float64)
                differences = (np.asarray(other[name]).astype(np.float64) - wide for other in others)
                squares = [float((array**2).sum()) for array in (wide, *differences)]
                found.setdefault(name, []).append(squares)
    return {name: np.asarray(rows) for name, rows in found.items()}


def _judged(noise: Mapping[str, Array]) -> list[OutputNoise]:
    """Signal over noise of each output.

    Raises:
        VerifyError: the noise of all, each relative to its signal, is more than before, beyond chance.
    """
    outputs, before, change = [], 0.0, np.zeros(1)
    usual = np.all([np.isfinite(rows[:, :2]).all(1) for rows in noise.values()], axis=0)
    for name, all_rows in noise.items():
        rows = all_rows[usual]
        signal, *both = map(float, rows.sum(0))
        outputs.append(OutputNoise(name, *(_decibels(signal, each) for each in both)))
        if signal > 0:
            before = before + both[0] / signal
            change = change + (rows[:, 2] - rows[:, 1]) / signal
    chance = SURE * float(change.std()) * math.sqrt(len(change))
    if not float(change.sum()) - chance <= before * (10 ** (WORSE / 10) - 1):  # or is no number
        told = ", ".join(map(str, outputs))
        raise VerifyError(
            f"the correction makes the outputs worse, and was dropped: {told}; give more samples, or such as "
            "the model is meant for"
        )
    return outputs


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None

"""Layer by layer: the mean of each output, with the layers before it corrected, goes to the float layer's."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np

from bnfold.errors import UsageError
from bnfold.fold.graph import Array
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.read import analysed
from bnfold.passes.correct.bias import Bias, Refused, own_bias
from bnfold.passes.correct.layers import Layer, Sum, layers_of
from bnfold.passes.correct.match import matched
from bnfold.passes.correct.moments import Moments, Runs
from bnfold.passes.correct.sums import find_sums
from bnfold.report.correct import CorrectedLayer, CorrectReport, LeftLayer
from bnfold.report.table import counted

__all__ = ["Plan", "Task", "correct", "plan"]

BELOW = 8  # bits of a weight, for which the deviation is matched unless told otherwise
LIMITS = 0.5, 2.0  # of the factor that matches a deviation
SMALL = 1e-6  # a deviation, relative to the layer's values, that is taken for none
QDQ = "QDQ (onnxruntime: quant_format=QuantFormat.QDQ)"
NO_LAYERS = f"it has no Conv, ConvTranspose, Gemm or MatMul with a stored weight; quantize it as {QDQ}"
NOT_FINITE = "its output is infinite or not a number on these samples"
ONE_SCALE = "its weight has no scale for each channel, which the deviation would need"
OF_SUM = "mean of the sum that it ends"
SHARED = "other layers read its weight, and its scales stay for the deviation"


@dataclass(eq=False)
class Task:
    """A layer that is corrected: where its bias is, and what is known without the model that was read.

    sum: whose mean it corrects; None: its own.
    """

    node: str
    op: str
    bits: int
    depth: int
    tensor: str
    target: str
    axis: int
    bias: Bias
    scaled: bool
    sum: Sum | None = None
    codes: str = ""  # the initializer with the weight's integers
    note: str = ""

    @property
    def renewed(self) -> set[str]:
        """The initializers that get other numbers."""
        return {self.bias.tensor, *((self.bias.scale, self.bias.weight_scale) if self.scaled else ())}

    @property
    def measured(self) -> tuple[str, str]:
        """Where its mean is measured, in both models."""
        return (self.tensor, self.target) if self.sum is None else self.sum[:2]


class Step(NamedTuple):
    """One correction. when: steps of one time do not depend on each other. scaled: the deviation as well."""

    when: tuple[int, int]
    task: Task
    tensor: str
    target: str
    scaled: bool


@dataclass
class Plan:
    """What will be done to `loaded`, in which every layer has a bias of its own by now."""

    loaded: Loaded
    tasks: list[Task]
    left: list[LeftLayer] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How often a model is run on all samples."""
        return 3 + len({step.when for step in self.in_order} - {(0, 0)})

    @property
    def in_order(self) -> list[Step]:
        """What is measured and corrected, one after the other."""
        steps = [Step((task.depth, 0), task, task.tensor, task.target, task.scaled) for task in self.tasks]
        steps = [step for step in steps if step.task.sum is None or step.task.scaled]
        steps += [
            Step((task.sum.depth - 1, 1), task, *task.measured, False) for task in self.tasks if task.sum
        ]
        return sorted(steps, key=lambda step: step.when)


def plan(loaded: Loaded, original: Loaded, deviation: bool | None) -> Plan:
    """Find the layers of a quantized model (a copy, which is edited) and those of the float model.

    deviation: whether it is matched as well; None: where the weight has less than 8 bits.

    Raises:
        UsageError: it is no QDQ model, or not of that float model.
    """
    with without_gc():
        model, floats = analysed(loaded), analysed(original)
        if not any(site.op == "DequantizeLinear" for site in model.scopes[0].sites):
            raise UsageError(f"there is no DequantizeLinear in the model: quantize it as {QDQ}")
        layers, left = layers_of(model)
        found, unknown = matched(layers, floats.scopes[0])
        find_sums(found, floats.scopes[0])
        tasks, surgery = [], Surgery(model)
        for layer in found:
            try:
                tasks.append(_task(surgery, layer, deviation))
            except Refused as refused:
                left.append(LeftLayer(layer.site.name, layer.site.op, str(refused)))
        surgery.finish()
        left = unknown + left
        floats.clear()
        model.clear()
    if not tasks:
        why = f"{left[0].node}: {left[0].reason}" if left else NO_LAYERS
        raise UsageError(f"no layer of the quantized model can be corrected: {why}")
    return Plan(loaded, tasks, left)


def _task(surgery: Surgery, layer: Layer, deviation: bool | None) -> Task:
    site, bits = layer.site, layer.weight.bits
    count = layer.count
    if not count:
        raise Refused(f"its weight of shape {list(site.shape(1) or ())} is of an unusual kind")
    wanted = bool(bits) and (bits < BELOW if deviation is None else deviation)
    note = _obstacle(layer, count) if wanted else ""
    scaled = wanted and not note
    bias = own_bias(surgery, layer, count, scaled)
    axis, depth = layer.channels, layer.depth
    codes = None if layer.weight.dequantize is None else layer.weight.dequantize.values[0]
    stored = "" if codes is None or codes.init is None else codes.name
    note = "; ".join(filter(None, (note, OF_SUM if layer.sum else "")))
    place = layer.tensor, layer.target
    return Task(site.name, site.op, bits, depth, *place, axis, bias, scaled, layer.sum, stored, note)


def _obstacle(layer: Layer, count: int) -> str:
    """Why the scales of a weight cannot match each output channel's deviation; "" if they can."""
    scale, dequantize, turned = layer.weight.scale, layer.weight.dequantize, layer.weight.turned
    if scale is None or dequantize is None:
        return ONE_SCALE
    rows, rank = layer.rows_of_codes, layer.site.rank(1) or 1
    along = dequantize.attr("axis", 1) % rank == rows if scale.ndim == 1 else scale.ndim == rank
    if not along or scale.shape[0 if scale.ndim == 1 else rows] != count:
        return ONE_SCALE
    between = None if turned is None else turned.outputs[0]
    return SHARED if between is not None and between.count > 1 else ""


def correct(plan: Plan, original: Loaded, runs: Runs, report: CorrectReport) -> None:
    """Carry a plan out on its model, and fill in the report.

    Raises:
        CannotRun: nothing runs one of the models on these samples.
        UsageError: the models do not give layers of the same sizes.
    """
    loaded, tasks = plan.loaded, plan.tasks
    places = [(*place, task.axis) for task in tasks for place in {(task.tensor, task.target), task.measured}]
    axes = {tensor: axis for tensor, _, axis in places}
    wanted = runs.moments(original, {target: axis for _, target, axis in places}, "the float model")
    before = runs.moments(loaded, axes, "the quantized model")
    for task in tasks:
        here, there = before[task.tensor].mean, wanted[task.target].mean
        if here.shape != there.shape:
            raise UsageError(
                f"layer {task.node!r} has {here.size} channels in the quantized model and {there.size} in the"
                " float model; give the float model that was quantized"
            )
    done = list[Task]()
    for when, level in groupby(plan.in_order, lambda step: step.when):
        group = list(level)
        names = {step.tensor: step.task.axis for step in group}
        found = before if when == (0, 0) else runs.moments(loaded, names, group[0].task.node)
        for step in group:
            task = step.task
            if not (wanted[step.target].finite and found[step.tensor].finite):
                if task not in done:  # by its own mean, before its sum
                    report.left.append(LeftLayer(task.node, task.op, NOT_FINITE))
                continue
            _renew(loaded, task, found[step.tensor], wanted[step.target], step.scaled)
            done += [task] if task not in done else []
    if not done:
        raise UsageError(f"no layer can be corrected: {tasks[0].node}: {NOT_FINITE}")
    after = runs.moments(loaded, axes, "the corrected model")
    for task in sorted(done, key=tasks.index):
        tensor, target = task.measured
        moments = before[tensor], after[tensor], wanted[target]
        report.layers.append(_line(loaded, task, *moments))


def _renew(loaded: Loaded, task: Task, found: Moments, wanted: Moments, scaled: bool) -> None:
    stretch = None
    if scaled:
        stretch = np.ones_like(wanted.deviation)
        enough = np.minimum(found.deviation, wanted.deviation) > SMALL * np.sqrt(wanted.square.max())
        stretch[enough] = np.clip(wanted.deviation[enough] / found.deviation[enough], *LIMITS)
    shift = wanted.mean - (found.mean if stretch is None else stretch * found.mean)
    short = task.bias.renew(loaded, shift, stretch)
    if short:
        task.note = f"{counted(short, 'channel')} at the end of its range"


def _line(loaded: Loaded, task: Task, before: Moments, after: Moments, wanted: Moments) -> CorrectedLayer:
    size = float(np.sqrt(wanted.square.mean())) or 1.0

    def error(found: Array, exact: Array) -> float:
        return float(np.sqrt(((found - exact) ** 2).mean())) / size

    return CorrectedLayer(
        task.node,
        task.op,
        task.bits,
        error(before.mean, wanted.mean),
        error(after.mean, wanted.mean),
        error(before.deviation, wanted.deviation),
        error(after.deviation, wanted.deviation),
        task.bias.type(loaded),
        task.bias.added,
        task.scaled,
        task.note,
    )

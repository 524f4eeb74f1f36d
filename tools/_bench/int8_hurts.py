"""What does nothing before int8 or in place of the correction, and what hurts. Started by tools/int8 hurts.

The small networks of tools/int8 trained with their first seed, all batch norms folded and no branch merged,
quantized with a scale for each output channel. Signal over noise of the outputs in dB against float32, one
for each set of images: as they are, with ranges found in other ways, corrected, corrected from one pass, and
with the images' own statistics in the batch norms. bench/results/int8_hurts.json keeps the result.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import bnfold
from bnfold.nn import recalibrate
from bnfold.onnx_graph.file.loaded import load as loaded
from bnfold.onnx_graph.run.inputs import wanted
from bnfold.onnx_graph.run.samples import Samples
from bnfold.passes.correct.correct import Plan, Step, plan
from bnfold.passes.correct.correct import correct as carry_out
from bnfold.passes.correct.moments import Runs
from bnfold.report.correct import CorrectReport
from tools._bench.int8_trained import (
    CACHE,
    COMPARISON,
    EPOCHS,
    PACKAGES,
    TRAIN,
    Case,
    corrected,
    exported,
    small,
)
from tools._bench.quantized import Array, decibels, outputs, prepared, quantize
from tools._common import RESULTS, origin, read, write
from tools._data.images import FASHION, Images, load
from tools._data.trained import NETWORKS, trained

RESULT = RESULTS / "int8_hurts.json"
SETS, SEED = 2, 0
RANGES: dict[str, dict[str, Any]] = {
    "entropy": {"method": "Entropy"},
    "percentile 99.999": {"method": "Percentile", "percentile": 99.999},
    "percentile 99.9": {"method": "Percentile", "percentile": 99.9},
}


class OnePass(Plan):
    """All layers corrected by what one run of the quantized model shows."""

    @property
    def in_order(self) -> list[Step]:
        """As if no layer depended on another."""
        return [step._replace(when=(0, 0)) for step in super().in_order]


def from_one_pass(goal: Path, source: Path, batches: Sequence[Array], every: int) -> onnx.ModelProto:
    """The same corrections as `corrected`, of which none knows the others."""
    original = loaded(source)
    found = plan(loaded(goal).copy(), original, None)
    work = OnePass(found.loaded, found.tasks, found.left)
    images = {wanted(original)[0].name: np.concatenate(batches)[::every]}
    samples = Samples(wanted(original), images)
    runs = Runs(samples, range(samples.count), lambda count, what: None)
    carry_out(work, original, runs, CorrectReport())
    return work.loaded.to_proto()


def recalibrated(name: str, images: Images, batches: Sequence[Array], path: Path) -> onnx.ModelProto:
    """The network with the statistics of the images that calibrate, folded and prepared."""
    file = CACHE / f"{name}-{SEED}-{images.name}.pt".replace(" ", "_")
    net = trained(name, images, SEED, EPOCHS[images.name], file)
    recalibrate(net, [torch.from_numpy(batch) for batch in batches])
    model = exported(net, images.train[:2], path)
    return prepared(bnfold.fold_onnx(model, quantize_for="int4")[0], path)


def measured(name: str, images: Images, case: Case, folder: Path) -> dict[str, list[float]]:
    """Decibels of each way, one for each set."""
    exact, source, goal = outputs(case.model, case.others), folder / "source.onnx", folder / "goal.onnx"
    prepared(bnfold.fold_onnx(case.model, quantize_for="int4")[0], source)
    found: dict[str, list[float]] = {}

    def note(key: str, model: Path | onnx.ModelProto) -> None:
        found.setdefault(key, []).append(decibels(exact, outputs(model, case.others)))

    for batches in case.sets[:SETS]:
        quantize(source, goal, batches, True)
        note("plain", goal)
        note("corrected", corrected(goal, source, batches, case.every))
        note("one pass", from_one_pass(goal, source, batches, case.every))
        for key, how in RANGES.items():
            with contextlib.redirect_stdout(io.StringIO()):
                quantize(source, goal, batches, True, **how)
            note(key, goal)
            note(f"{key}, corrected", corrected(goal, source, batches, case.every))
        other = folder / "recalibrated.onnx"
        recalibrated(name, images, batches, other)
        note("recalibrated, float32", other)
        quantize(other, goal, batches, True)
        note("recalibrated", goal)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="int8 hurts", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", metavar="NAME", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--data", metavar="FOLDER", type=Path, default=FASHION, help="of Fashion-MNIST")
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULT, help="where the result goes")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # of the quantizer's, one for each model
    torch.set_num_threads(1)
    images = load("fashion-mnist", SEED, args.data).first(TRAIN, COMPARISON)
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            case = small(name, images, SEED, Path(folder))
            found = measured(name, images, case, Path(folder))
        print(name, {key: f"{np.mean(values):.1f}" for key, values in found.items()}, flush=True)
        result = read(args.out)
        result.setdefault("networks", {})[name] = origin(*PACKAGES) | {"sets": SETS, "ways": found}
        write(args.out, result)


if __name__ == "__main__":
    main()

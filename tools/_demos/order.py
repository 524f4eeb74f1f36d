"""One network through all steps of compression, in their order: from training to int8, corrected.

Started by tools/order. It is the network of tools/slim_demo, trained on scikit-learn's digits. After each
step it is an ONNX file, and of each file is told what is in it, how many answers are right, and how far int8
would move its outputs if it were quantized at this point. `--json` stores that; docs/compression.md shows it.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch

import bnfold
import bnfold.compress
from tools._bench.quantized import KINDS, decibels, prepared, quantize, rounded
from tools._bench.quantized import outputs as run
from tools._common import ending, origin, write
from tools._data.images import CLASSES, PART, Images, digits
from tools._demos import order_table, slim_run
from tools._demos.slim_run import EXAMPLES, Plan

PACKAGES = ("numpy", "onnx", "torch", "torch-pruning", "onnxruntime", "scikit-learn")
EPOCHS = 25
FIRST, SEEDS = 10, 3
CALIBRATION = 256  # images, of those to train with


class Step(NamedTuple):
    """A network after a step. facts: what the step itself tells."""

    name: str
    path: Path
    facts: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="order")
    add = parser.add_argument
    add("--seeds", type=int, default=SEEDS, help=f"how many, from {FIRST} on (default: {SEEDS})")
    add("--quick", action="store_true", help="few epochs of at most 256 images")
    add("--json", type=Path, metavar="FILE", help="store the results there")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds: at least 1")
    warnings.filterwarnings("ignore")  # that parts of torch are deprecated is no news here
    logging.disable(logging.WARNING)  # of the quantizer's, one for each model
    torch.set_num_threads(1)  # the network is small: more would round differently
    epochs = 2 if arguments.quick else EPOCHS
    with ending("order"):
        runs = []
        for seed in range(FIRST, FIRST + arguments.seeds):
            images = digits(seed)
            images = images.first(256, 128) if arguments.quick else images
            with tempfile.TemporaryDirectory() as folder:
                steps = [
                    measured(step, images) for step in walked(images, Plan(seed, epochs, 0), Path(folder))
                ]
            runs.append({"seed": seed, "steps": steps})
        count = {"name": images.name, "train": len(images.train), "test": len(images.test)}
        protocol = {"images": count, "epochs": epochs, "ratio": slim_run.RATIO, "calibration": CALIBRATION}
        result = {**origin(*PACKAGES), "protocol": protocol, "runs": runs}
        if arguments.json is not None:
            write(arguments.json, result)
    print(order_table.text(result))
    print("", *order_table.lines(result), "", order_table.after(result), sep="\n")


def walked(images: Images, plan: Plan, folder: Path) -> Iterator[Step]:
    """The network as it is trained, and after each step but the last two, which `measured` makes."""
    net = slim_run.trained(images, CLASSES, plan, slim_run.STRENGTH)
    slim: Any = {"ratio": slim_run.RATIO, "fold": False}
    slimmed, _ = bnfold.compress.slim(net, images.train[:EXAMPLES], **slim)
    again, _ = bnfold.compress.slim(net, images.train[:EXAMPLES], loader=images.train.split(PART), **slim)
    for name, module in (("trained", net), ("slimmed", slimmed), ("recalibrated", again)):
        path = folder / f"{name}.onnx"
        exported(module.eval(), images, path, fold=False)
        yield Step(name, path, {})

    folded = folder / "folded.onnx"
    report = exported(again, images, folded, fold=True)
    yield Step("folded", folded, {"folded": len(report.folded), "kept": len(report.kept)})

    dropped = folder / "dropped.onnx"
    low, high = (float(of(images.train)) for of in (torch.min, torch.max))
    model, found = bnfold.fold_onnx(folded, drop_dead_channels=True, input_ranges={"x": (low, high)})
    onnx.save(model, dropped)
    assert found.dropped is not None
    yield Step("dropped", dropped, {"channels": found.dropped.channels})

    balanced = folder / "equalized.onnx"
    plain, ranges = bnfold.equalize_onnx(dropped, fold=False)
    model, decided = bnfold.equalize_onnx(dropped, fold=False, calibration={"x": images.train.numpy()})
    onnx.save(model, balanced)
    facts = {
        "bits_lost": [ranges.bits_before, ranges.bits_after],
        "by_chance": [by_chance(each, images) for each in (onnx.load(dropped), plain)],
        "trial": None if decided.trial is None else decided.trial._asdict(),
    }
    yield Step("equalized", balanced, facts)


def by_chance(model: onnx.ModelProto, images: Images) -> dict[str, float]:
    """Weights rounded alone, by one scale each that is drawn anew: mean noise as dB, and the dB's spread."""
    others, rng = [part.numpy() for part in images.test.split(PART)], np.random.default_rng(0)
    exact = run(model, others)
    found = np.array(
        [decibels(exact, run(rounded(model, 8, False, rng), others)) for _ in range(order_table.DRAWS)]
    )
    mean = float(-10 * np.log10((10 ** (-found / 10)).mean()))
    return {"db": mean, "deviation": float(found.std()), "from": float(found.min()), "to": float(found.max())}


def exported(module: torch.nn.Module, images: Images, path: Path, *, fold: bool) -> bnfold.Report:
    """A file of the network for any number of images, with its batch norms or without."""
    sizes, examples = ({0: torch.export.Dim("batch")},), images.test[:EXAMPLES]
    how: Any = {"dynamic_shapes": sizes, "input_names": ["x"], "force": True, "merge_branches": fold}
    report = bnfold.export(module, examples, path, **how)
    if not fold:
        report = bnfold.export(module, examples, path, skip=[entry.name for entry in report.entries], **how)
    return report


def measured(step: Step, images: Images) -> dict[str, Any]:
    """What is in a file, what it answers, and what int8 makes of it: as quantized, and corrected."""
    model = onnx.load(step.path)
    others = [part.numpy() for part in images.test.split(PART)]
    exact = run(step.path, others)
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    result: dict[str, Any] = {
        "name": step.name,
        **step.facts,
        "batch_norms": sum(node.op_type == "BatchNormalization" for node in model.graph.node),
        "nodes": len(model.graph.node),
        "parameters": stored,
        "bytes": step.path.stat().st_size,
        "accuracy": images.accuracy(torch.from_numpy(exact)),
    }
    calibration = images.train[:CALIBRATION].numpy()
    source, goal = step.path.with_suffix(".source.onnx"), step.path.with_suffix(".int8.onnx")
    onnx.save(prepared(model, source) if not result["batch_norms"] else model, source)
    for kind, per_channel in KINDS.items():
        quantize(source, goal, [calibration], per_channel)
        found = [goal]
        if not result["batch_norms"]:
            better, _ = bnfold.correct(onnx.load(goal), onnx.load(source), {"x": calibration}, verify=False)
            found.append(goal.with_suffix(".corrected.onnx"))
            onnx.save(better, found[1])
        result[kind] = {}
        for name, path in zip(("quantized", "corrected"), found, strict=False):
            answers = run(path, others)
            result[kind][name] = {
                "db": decibels(exact, answers),
                "accuracy": images.accuracy(torch.from_numpy(answers)),
                "bytes": path.stat().st_size,
            }
    return result


if __name__ == "__main__":
    main()

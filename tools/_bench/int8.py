"""What int8 and int4 make of a network whose branches are merged, or not. Started by tools/int8.

timm's repvgg_a0 in training form with random weights, twice: with half of the scales of its batch norms
negative, and with all positive. Each is folded in several ways, prepared (`quant_pre_process`) and quantized
by onnxruntime (`quantize_static`, QDQ, int8 weights, uint8 tensors, ranges by MinMax) with one scale for each
weight and with one for each output channel, on several draws of random inputs, and compared with float32 on
others. One draw more is corrected as well (`bnfold.correct`). For int4 the weights alone are rounded, with a
scale for each output channel.
bench/results/int8.json keeps the result.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import bnfold
from tools._bench.quantized import (
    KINDS,
    LINEAR,
    decibels,
    milliseconds,
    outputs,
    prepared,
    quantize,
    rounded,
)
from tools._common import RESULTS, origin, write
from tools._data.models import export_by_itself
from tools._peers.peers import PACKAGES

RESULT = RESULTS / "int8.json"
NETWORK, SHAPE = "repvgg_a0", (1, 3, 224, 224)
SIGNS = {"half of the scales negative": 0.5, "all scales positive": 0.0}
DRAWS, CALIBRATION, COMPARISON = 3, 4, 8  # sets of inputs for calibration, inputs in each, and to compare on
CORRECTION, OTHERS = (1, 6), (99, 6)  # seed and inputs to calibrate and correct with, and to compare on


def variants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The network, folded in each way. free: all is merged but the batch norms that are branches."""

    def folded(**options: Any) -> tuple[onnx.ModelProto, Any]:
        return bnfold.fold_onnx(model, **options)

    apart, report = folded(quantize_for="int4")
    yield "apart", apart
    yield "apart, all folded", folded(merge_branches=False)[0]
    yield "free", folded(skip=[entry.name for entry in report.kept])[0]
    yield "full", folded()[0]
    for target in ("int8-per-tensor", "int8"):
        yield f"--for {target}", folded(quantize_for=target)[0]


def draws(seed: int, count: int) -> Any:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(SHAPE, np.float32) for _ in range(count)]


def corrected(
    original: Path, model: onnx.ModelProto, source: Path, goal: Path, per_channel: bool
) -> dict[str, float]:
    """Signal over noise of one more draw, and of what `bnfold.correct` makes of it by the same inputs."""
    inputs, others = draws(*CORRECTION), draws(*OTHERS)
    quantize(source, goal, inputs, per_channel)
    samples = {model.graph.input[0].name: np.concatenate(inputs)}
    better, _ = bnfold.correct(onnx.load(goal), model, samples, verify=False)
    exact = outputs(original, others)
    return {
        "uncorrected": decibels(exact, outputs(goal, others)),
        "corrected": decibels(exact, outputs(better, others)),
    }


def measured(path: Path, folder: Path) -> dict[str, Any]:
    """All variants of a network."""
    inputs = draws(DRAWS, COMPARISON)
    exact = outputs(path, inputs)
    found: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    same: dict[bytes, str] = {}
    for number, (name, model) in enumerate(variants(onnx.load(path))):
        first = same.setdefault(model.SerializeToString(deterministic=True), name)
        if first != name:
            found[name] = {"same_as": first} | found[first]
            continue
        ops = Counter(node.op_type for node in model.graph.node)
        row: dict[str, Any] = {"linear": sum(ops[op] for op in LINEAR)}
        row |= {"batch_norms": ops["BatchNormalization"], "sums": ops["Add"], "milliseconds": {}}
        source, four = folder / f"{number}.onnx", folder / "four.onnx"
        onnx.save(rounded(model, 4), four)
        row["int4"] = {"db": decibels(exact, outputs(four, inputs))}
        exact_model = prepared(model, source)
        for kind, per_channel in KINDS.items():
            goal, db = folder / f"{number}_{kind}.onnx", []
            for draw in range(DRAWS):
                quantize(source, goal, draws(draw, CALIBRATION), per_channel)
                db.append(decibels(exact, outputs(goal, inputs)))
            row[kind] = {"db": float(np.mean(db)), "from": min(db), "to": max(db)}
            row[kind] |= corrected(path, exact_model, source, goal, per_channel)
        found[name] = row
        paths |= {f"{name}: float32": source, f"{name}: int8": folder / f"{number}_per_channel.onnx"}
    for key, taken in milliseconds(paths, inputs[0]).items():
        name, kind = key.rsplit(": ", 1)
        found[name]["milliseconds"][kind] = taken
    return found


def told(found: dict[str, Any]) -> Iterator[str]:
    """Lines of a table."""
    for name, row in found.items():
        counts = f"{row['linear']:>8}{row['batch_norms']:>8}{row['sums']:>6}"
        rows = [row[kind] for kind in KINDS]
        db = "".join(f"{one['db']:6.1f} ({one['from']:.1f} to {one['to']:.1f})" for one in rows)
        ms = row["milliseconds"]
        yield f"{name:22}{counts}{db}{row['int4']['db']:8.1f}{ms['float32']:8.1f}{ms['int8']:8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="int8", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULT, help="where the result goes")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # of the quantizer's, one for each model
    networks = {}
    for signs, negative in SIGNS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "raw.onnx"
            export_by_itself(NETWORK, negative, path)
            name = f"{NETWORK}, {signs}"
            networks[name] = measured(path, Path(folder))
        print(f"{name}: linear nodes, batch norms, sums; dB with one scale, each channel's, int4; ms of both")
        print("\n".join(told(networks[name])), flush=True)
    write(args.out, {**origin(*PACKAGES), "networks": networks})


if __name__ == "__main__":
    main()

"""What int8 and int4 make of a network whose branches are merged, or not. Started by tools/int8.

timm's repvgg_a0 in training form with random weights, twice: with half of the scales of its batch norms
negative, and with all positive. Each is folded in several ways, prepared (`quant_pre_process`) and quantized
by onnxruntime (`quantize_static`, QDQ, int8 weights, uint8 tensors, ranges by MinMax) with one scale for each
weight and with one for each output channel, on several draws of random inputs, and compared with float32 on
others. For int4 the weights alone are rounded, with a scale for each output channel.
bench/results/int8.json keeps the result.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import bnfold
from tools._common import RESULTS, origin, session, write
from tools._data.models import export_by_itself
from tools._peers.peers import PACKAGES

RESULT = RESULTS / "int8.json"
NETWORK, SHAPE = "repvgg_a0", (1, 3, 224, 224)
SIGNS = {"half of the scales negative": 0.5, "all scales positive": 0.0}
DRAWS, CALIBRATION, COMPARISON = 3, 4, 8  # sets of inputs for calibration, inputs in each, and to compare on
KINDS = {"per_tensor": False, "per_channel": True}
LINEAR = ("Conv", "Gemm", "MatMul")
ROUNDS = 20  # runs of each model, in turn, for the times


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Inputs, one at a time."""

    def __init__(self, name: str, inputs: Any) -> None:
        self.feeds = iter([{name: x} for x in inputs])

    def get_next(self) -> Any:
        return next(self.feeds, None)


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


def outputs(path: Path, inputs: Any) -> Any:
    found = session(path)
    name = found.get_inputs()[0].name
    return np.concatenate([np.asarray(found.run(None, {name: x})[0], np.float64) for x in inputs])


def decibels(exact: Any, found: Any) -> float:
    """Signal to noise, over all outputs."""
    return float(10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum()))


def rounded(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """The weights of convolutions and of the last layer rounded, with a scale for each output channel."""
    new = onnx.ModelProto.FromString(model.SerializeToString())
    stored = {tensor.name: tensor for tensor in new.graph.initializer}
    for name in {node.input[1] for node in new.graph.node if node.op_type in LINEAR} & stored.keys():
        weight = numpy_helper.to_array(stored[name]).astype(np.float64)
        step = np.abs(weight).max(tuple(range(1, weight.ndim)), keepdims=True) / (2 ** (bits - 1) - 1)
        weight = np.round(weight / np.where(step == 0, 1, step)) * step
        stored[name].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), name))
    return new


def milliseconds(paths: dict[str, Path], x: Any) -> dict[str, float]:
    """Medians on one thread; the models run in turn."""
    sessions = {name: session(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, found in sessions.items():
            feed = {found.get_inputs()[0].name: x}
            begin = time.perf_counter()
            found.run(None, feed)
            times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(taken) * 1e3) for name, taken in times.items()}


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
        onnx.save(model, source)
        quant_pre_process(source, source, skip_symbolic_shape=True)
        for kind, per_channel in KINDS.items():
            goal, db = folder / f"{number}_{kind}.onnx", []
            for draw in range(DRAWS):
                quantize_static(
                    source,
                    goal,
                    Reader(model.graph.input[0].name, draws(draw, CALIBRATION)),
                    quant_format=QuantFormat.QDQ,
                    per_channel=per_channel,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
                db.append(decibels(exact, outputs(goal, inputs)))
            row[kind] = {"db": float(np.mean(db)), "from": min(db), "to": max(db)}
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

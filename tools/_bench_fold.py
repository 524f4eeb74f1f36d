"""Load, fold and save: how long it takes, what it holds in memory, what is left. Started by tools/bench_fold.

Every number of one model is measured in the same run, tool by tool, each in processes of its own. The table
shows this run; bench/results/fold.json keeps the latest of each model, with its machine and versions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _left
import _models
import _peers
import onnx
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
RESULTS = ROOT / "bench" / "results" / "fold.json"

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
    os.environ["PYTHONPATH"] = str(ROOT)
    console = Console(width=None if sys.stdout.isatty() else 110)
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        with console.status(name):
            result = bench_huge() if name == HUGE else bench(name, arguments.repeat, console.status)
        result.update(machine=_peers.machine(), date=today(), versions=_peers.versions("torch", "timm"))
        store(name, result)
        console.print(table(name, result))
    judge(console)
    console.print(f"Stored in {RESULTS.relative_to(ROOT)}.")


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def store(name: str, result: dict[str, Any]) -> None:
    """Beside what is known of the other models, in the order of MODELS."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[name] = result
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({key: known[key] for key in MODELS if key in known}, indent=1) + "\n")


def model_file(name: str) -> Path:
    """The file of that name, made when first needed; networks as exported raw, with constants folded."""
    path = CACHE / f"{name}.onnx"
    if path.exists():
        return path
    if name in CHAINS:
        onnx.save(_models.chain(CHAINS[name]), path)
        return path
    # In a process of its own, so that what the exporter does cannot touch what is measured.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import _models; from pathlib import Path\n"
        "model, example = _models.network(sys.argv[2]); raw, path = Path(sys.argv[3]), Path(sys.argv[4])\n"
        "_models.export(model, example, raw); _models.fold_constants(raw, path); raw.unlink()"
    )
    raw = CACHE / f"{name}.raw.onnx"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), name, str(raw), str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


def bench(name: str, repeat: int, status: Callable[[str], Any]) -> dict[str, Any]:
    """Every tool on one model."""
    source = model_file(name)
    batch_norms, own = _left.inspect(source)
    result: dict[str, Any] = {"bytes": source.stat().st_size, "batch_norms": batch_norms, "tools": {}}
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        for tool in TOOLS:
            with status(f"{name}: {tool}"):
                target = Path(folder) / f"{tool}.onnx"
                result["tools"][tool] = measure(tool, source, target, own, repeat)
        result["imports"] = imports(source, Path(folder) / "imports.onnx", repeat)
    return result


def measure(
    tool: str, source: Path, target: Path, own: frozenset[_left.PerChannel], repeat: int
) -> dict[str, Any]:
    """One tool on one file: in-process, as a whole process, its memory, and what it left."""
    outcome = _peers.measure(tool, source, target, repeat, TIMEOUT)
    found: dict[str, Any] = {
        "in_process": summary(outcome.seconds),
        "memory": {"before": outcome.before, "most": outcome.most},
        "failure": outcome.failure,
    }
    if not outcome.failure:
        rest = _left.left(target, own)
        found["left"] = {"batch_norms": rest.batch_norms, "per_channel": rest.per_channel}
        found["whole_process"] = summary(wall(_peers.TOOLS[tool].command(str(source), str(target)), repeat))
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
        source = _models.huge(Path(folder))
        batch_norms, own = _left.inspect(source)
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


def table(name: str, result: dict[str, Any]) -> Table:
    """What was measured, for a person."""
    title = f"{name}: {result['batch_norms']} batch norms, {result['bytes'] / 1e6:.1f} MB"
    view = Table(title=title, title_justify="left")
    times = ("in-process, s", "(median)", "whole process, s", "(median)")
    for heading in ("tool", *times, "RssAnon, MB", "left"):
        view.add_column(heading, justify="left" if heading == "tool" else "right")
    for tool, found in result["tools"].items():
        if found["failure"]:
            said = f"> {TIMEOUT:.0f}" if found["failure"] == "timeout" else "failed"
            view.add_row(tool, said, "", "", "", "", "")
            continue
        seconds = [found[key][part] for key in ("in_process", "whole_process") for part in ("min", "median")]
        memory = found["memory"]
        left = found["left"]
        rest = f"{left['batch_norms']}" + (f" + {left['per_channel']}" if left["per_channel"] else "")
        grown = f"{memory['before'] / 1e6:.0f} -> {memory['most'] / 1e6:.0f}"
        view.add_row(tool, *(f"{t:.3f}" for t in seconds), grown, rest)
    if "imports" in result:
        alone = result["imports"]
        view.add_row("imports of bnfold", "", "", f"{alone['min']:.3f}", f"{alone['median']:.3f}", "", "")
    return view


def judge(console: Console) -> None:
    """What the stored numbers say about bnfold against its peers."""
    known = json.loads(RESULTS.read_text())
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

    peers = [t for t in PYTHON_PEERS if not tools[t]["failure"] and rest(t) <= rest("onnxruntime")]
    parts = []
    for key in ("in_process", "whole_process"):
        ours = tools["bnfold"][key]["min"]
        if peers:
            best = min(peers, key=lambda t: float(tools[t][key]["min"]))
            parts.append(f"{key.replace('_', ' ')} {ours / tools[best][key]['min']:.2f} of {best}")
    bound = tools["onnxruntime"]["whole_process"]["min"] + result["imports"]["min"]
    parts.append(f"{tools['bnfold']['whole_process']['min'] / bound:.2f} of onnxruntime + imports")
    return ", ".join(parts)


if __name__ == "__main__":
    main()

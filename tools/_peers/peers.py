"""What bnfold and each of its peers do with a file: load, fold, save. As a program, it measures one of them.

    python -m tools._peers.peers TOOL IN OUT [--repeat N] [--budget SECONDS]

prints one line of JSON for each run: its seconds, and for the first run the anonymous memory that the process
held before and at most. Imports are done before; the whole process is for the caller to time.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools._common import command, run

Fold = Callable[[str, str], object]


@dataclass(frozen=True)
class Tool:
    """Python that imports a tool, Python that folds SOURCE into TARGET, and the packages that do the work."""

    imports: str
    body: str
    packages: tuple[str, ...]

    def load(self) -> Fold:
        """The imports, and a function of the two paths."""
        names: dict[str, Any] = {}
        exec(compile(self.imports, "imports", "exec"), names)
        code = compile(self.body, "fold", "exec")

        def fold(source: str, target: str) -> object:
            names.update(SOURCE=source, TARGET=target)
            exec(code, names)
            return names.get("report")

        return fold

    def command(self, source: str, target: str) -> list[str]:
        """The same as a process of its own."""
        if self is TOOLS["bnfold"]:
            return [sys.executable, "-m", "bnfold", "fold", source, target, "--no-verify", "--force"]
        script = f"{self.imports}\nSOURCE, TARGET = {source!r}, {target!r}\n{self.body}"
        return [sys.executable, "-c", script]


def _onnxruntime(level: str) -> Tool:
    """Its offline optimizer: BASIC keeps to ONNX's operators, EXTENDED brings its own."""
    return Tool(
        "import onnxruntime as ort",
        "options = ort.SessionOptions()\n"
        f"options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_{level}\n"
        "options.optimized_model_filepath = TARGET\n"
        "options.log_severity_level = 3\n"
        "ort.InferenceSession(SOURCE, options, providers=['CPUExecutionProvider'])",
        ("onnxruntime",),
    )


TOOLS = {
    "bnfold": Tool(
        "import bnfold.api.fold_onnx, bnfold.options, bnfold.onnx_graph.file.save",
        "folded, report = bnfold.api.fold_onnx.fold_file(SOURCE, check=bnfold.options.Check(verify=False))\n"
        "bnfold.onnx_graph.file.save.save(folded, TARGET, force=True)",
        ("onnx", "numpy"),
    ),
    "onnxruntime": _onnxruntime("BASIC"),
    "onnxruntime_extended": _onnxruntime("EXTENDED"),
    "onnxsim": Tool(
        "import onnx, onnxsim",
        "model, _ = onnxsim.simplify(onnx.load(SOURCE))\nonnx.save(model, TARGET)",
        ("onnxsim",),
    ),
    "onnxslim": Tool(
        "import onnx, onnxslim",
        "onnx.save(onnxslim.slim(SOURCE), TARGET)",
        ("onnxslim",),
    ),
    "onnxoptimizer": Tool(
        "import onnx, onnxoptimizer",
        "onnx.save(onnxoptimizer.optimize(onnx.load(SOURCE), ['fuse_bn_into_conv']), TARGET)",
        ("onnxoptimizer",),
    ),
    "onnxoptimizer_all": Tool(
        "import onnx, onnxoptimizer",
        "onnx.save(onnxoptimizer.optimize(onnx.load(SOURCE)), TARGET)",
        ("onnxoptimizer",),
    ),
    "onnxscript": Tool(
        "import onnx_ir, onnxscript.optimizer, onnxscript.rewriter",
        "model = onnx_ir.load(SOURCE)\n"
        "onnxscript.optimizer.optimize(model)\n"
        "onnx_ir.save(onnxscript.rewriter.rewrite(model), TARGET)",
        ("onnxscript", "onnx-ir"),
    ),
}
# Every package that a number depends on.
PACKAGES = sorted({"torch", "timm"}.union(*(tool.packages for tool in TOOLS.values())))


def anonymous() -> int:
    """Bytes of this process that no file backs (RssAnon)."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("RssAnon is not in /proc/self/status")


@dataclass
class Peak:
    """Anonymous memory in bytes: before, and at most while sampled."""

    before: int = field(default_factory=anonymous)
    most: int = 0


@contextmanager
def sampled(interval: float = 0.005) -> Iterator[Peak]:
    """Samples anonymous memory from a thread of its own."""
    peak, stop = Peak(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak.most = max(peak.most, anonymous())
            stop.wait(interval)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak.most = max(peak.most, anonymous())
        stop.set()
        thread.join()


@dataclass
class Outcome:
    """How a tool did: seconds of each run, bytes before and at most, what stopped it ("": nothing)."""

    seconds: list[float] = field(default_factory=list)
    before: int = 0
    most: int = 0
    failure: str = ""


def measure(tool: str, source: Path, target: Path, repeat: int, timeout: float) -> Outcome:
    """The tool in a process of its own, imports not counted; a run longer than the timeout does not count."""
    budget = timeout / 3
    program = command("tools._peers.peers", tool, source, target, "--repeat", repeat, "--budget", budget)
    outcome = Outcome()
    lines, outcome.failure = run(program, timeout + budget + 20)  # 20 s for the imports
    for line in lines:
        outcome.seconds.append(line["seconds"])
        outcome.before = line.get("before", outcome.before)
        outcome.most = line.get("most", outcome.most)
    outcome.seconds = [seconds for seconds in outcome.seconds if seconds <= timeout]
    if outcome.seconds and outcome.failure == "timeout":
        outcome.failure = ""  # it was only the last run that was cut off
    if not outcome.seconds and not outcome.failure:
        outcome.failure = "timeout"
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for all runs")
    arguments = parser.parse_args()
    fold = TOOLS[arguments.tool].load()
    begin = time.perf_counter()
    for index in range(arguments.repeat):
        start = time.perf_counter()
        if index == 0:  # its time counts only where there is no other: sampling costs a little
            with sampled() as peak:
                fold(arguments.source, arguments.target)
            memory = {"before": peak.before, "most": peak.most}
        else:
            fold(arguments.source, arguments.target)
            memory = {}
        print(json.dumps({"seconds": time.perf_counter() - start, **memory}), flush=True)
        if time.perf_counter() - begin > arguments.budget:
            break


if __name__ == "__main__":
    main()

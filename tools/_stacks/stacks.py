"""What is left of batch norms inside other stacks, without bnfold and with it. Started by tools/stacks.

Each stack runs in an environment of its own, each network in a process of its own. What is counted is in the
stack's own artefact: the graph that inductor is handed, onnxruntime's int8 file, the converted program of
PT2E, what XNNPACK takes of it, OpenVINO's model, Olive's file. Errors are against the network in float64,
seconds and milliseconds the processor's, the latter medians of calls in turn on one thread. What a network
needs in several stacks is made once in a run. A line says where bnfold leaves as much as the stack alone,
where the outputs do not agree, and where a call is surely slower by more than 3 %; the status is then 1.
bench/results/stacks.json keeps what was measured before; --missing goes on where a run was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from bnfold.integrations.stack import TESTED
from tools._common import RESULTS, ROOT, console, machine, read, run, table, today, write
from tools._stacks.stacks_table import HEADINGS, rows
from tools._stacks.verdict import complaints

RESULT = RESULTS / "stacks.json"
NETWORKS = ("levit_128s", "repvgg_a0", "densenet121", "resnetv2_50, positive scales")
MORE = ("resnet50", "mobileone_s0")  # on request


class Stack(NamedTuple):
    """One stack. environment: in .venv-stacks; "": .venv-bench. package: whose version is told."""

    environment: str
    module: str
    package: str

    @property
    def python(self) -> Path:
        folder = ROOT / ".venv-stacks" / self.environment if self.environment else ROOT / ".venv-bench"
        return folder / "bin" / "python"


STACKS = {
    "openvino": Stack("openvino", "openvino_ir", "openvino"),
    "nncf": Stack("openvino", "openvino_nncf", "nncf"),
    "onnxruntime": Stack("", "onnxruntime_int8", "onnxruntime"),
    "olive": Stack("olive", "olive_workflow", "olive-ai"),
    "modelopt": Stack("modelopt", "modelopt_int8", "nvidia-modelopt"),
    "torchao": Stack("executorch", "torchao_pt2e", "torchao"),
    "executorch": Stack("executorch", "executorch_xnnpack", "executorch"),
    "torch.compile": Stack("", "torch_compile", "torch"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="stacks", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stacks", nargs="*", choices=[*STACKS, []], help="those alone; by default all")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS + MORE, default=NETWORKS, help="those alone"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one network in one stack")
    parser.add_argument("--missing", action="store_true", help="what has no result at this version")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as shared:
        failed = [name for name in arguments.stacks or STACKS if not stack(name, arguments, shared)]
    view = table("Batch norms in other stacks", HEADINGS, HEADINGS[:3])
    for cells in rows(read(RESULT)):
        view.add_row(*cells)
    console(160).print(view)
    sys.exit(1 if failed else 0)


def stack(name: str, arguments: argparse.Namespace, shared: str) -> bool:
    """Measures the networks that were asked for in one stack; says what is wrong, and whether nothing is."""
    kind, right = STACKS[name], True
    version = installed(kind)
    if not version:
        print(f"{name}: not installed; tested with {kind.package} {TESTED[kind.package]}", file=sys.stderr)
        return False
    for network in arguments.networks:
        if arguments.missing and read(RESULT).get(name, {}).get(network, {}).get("version") == version:
            continue
        begin = time.monotonic()
        ways, problem = measured(kind, [network, shared], arguments.timeout)
        wrong = [problem] if problem else list(complaints(ways))
        if not problem:
            found = {"version": version, "date": today(), "machine": machine(), "ways": ways}
            result = read(RESULT)  # another run may have added to it
            result.setdefault(name, {})[network] = found
            write(RESULT, result)
        taken = f"{time.monotonic() - begin:.0f} s"
        for line in wrong or [taken]:
            print(f"{name} {version}, {network}: {line}", file=sys.stderr, flush=True)
        right = right and not wrong
    return right


def installed(kind: Stack) -> str:
    """The version in the stack's environment; "": it is not there."""
    program = f"import importlib.metadata as m; print(m.version({kind.package!r}))"
    try:
        done = subprocess.run(
            [kind.python, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip().partition("+")[0]


def measured(kind: Stack, arguments: list[str], timeout: float) -> tuple[dict[str, Any], str]:
    """What the stack's module prints, and what went wrong."""
    found, failure = run([str(kind.python), "-m", f"tools._stacks.{kind.module}", *arguments], timeout)
    if failure or not found:
        return {}, failure or "it has printed nothing"
    return found[-1], ""


if __name__ == "__main__":
    main()

"""What is left of batch norms inside other stacks, without bnfold and with it. Started by tools/stacks.

Each stack runs in an environment of its own, each network in a process of its own. What is counted is in the
stack's own artefact: the graph that inductor is handed, onnxruntime's int8 file, the converted program of
PT2E, what XNNPACK takes of it, OpenVINO's model, Olive's file. Errors are against the network in float64,
seconds and milliseconds the processor's, the latter medians of calls in turn on one thread.
bench/results/stacks.json keeps what was measured before; --missing goes on where a run was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from bnfold.integrations.stack import TESTED
from tools._common import RESULTS, ROOT, console, machine, read, run, table, today, write
from tools._stacks.stacks_table import HEADINGS, rows

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
    result = read(RESULT)
    failed = False
    for name in arguments.stacks or STACKS:
        stack = STACKS[name]
        version = installed(stack)
        if not version:
            print(
                f"{name}: not installed; tested with {stack.package} {TESTED[stack.package]}", file=sys.stderr
            )
            failed = True
            continue
        for network in arguments.networks:
            if arguments.missing and result.get(name, {}).get(network, {}).get("version") == version:
                continue
            ways, problem = measured(stack, network, arguments.timeout)
            if problem:
                print(f"{name} {version}, {network}: {problem}", file=sys.stderr)
                failed = True
                continue
            found = {"version": version, "date": today(), "machine": machine(), "ways": ways}
            result = read(RESULT)  # another run may have added to it
            result.setdefault(name, {})[network] = found
            write(RESULT, result)
    view = table("Batch norms in other stacks", HEADINGS, HEADINGS[:3])
    for cells in rows(result):
        view.add_row(*cells)
    console(140).print(view)
    sys.exit(1 if failed else 0)


def installed(stack: Stack) -> str:
    """The version in the stack's environment; "": it is not there."""
    program = f"import importlib.metadata as m; print(m.version({stack.package!r}))"
    try:
        done = subprocess.run(
            [stack.python, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip().partition("+")[0]


def measured(stack: Stack, network: str, timeout: float) -> tuple[dict[str, Any], str]:
    """The ways of one network, and what went wrong."""
    found, failure = run([str(stack.python), "-m", f"tools._stacks.{stack.module}", network], timeout)
    if failure or not found:
        return {}, failure or "it has printed nothing"
    return found[-1], ""


if __name__ == "__main__":
    main()

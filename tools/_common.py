"""What the tools share: where a result comes from and goes to, processes of their own, sessions, tables."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bnfold
from bnfold.errors import BnfoldError, VerifyError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from rich.console import Console
    from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

# where a result comes from, and where it goes


def origin(*packages: str) -> dict[str, Any]:
    """Where, when and with what a result was measured."""
    return {"machine": machine(), "date": today(), "versions": versions(*packages)}


def versions(*packages: str) -> dict[str, str | None]:
    """Of bnfold, Python and these packages; None: not installed."""
    found: dict[str, str | None] = {"bnfold": bnfold.__version__, "python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """The processor by name, and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0))
    return {"cpu": model or platform.machine(), "cores": cores, "system": platform.system()}


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def read(path: Path) -> dict[str, Any]:
    """What is stored there; {} if nothing is."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def shown(path: Path) -> Path:
    """The path as it is told: from the checkout on."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


# processes


def command(module: str, *arguments: object) -> list[str]:
    """A module of the tools as a program."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(command: list[str], timeout: float) -> tuple[list[dict[str, Any]], str]:
    """The lines of JSON that a command prints, and what stopped it: "", "timeout", or its last words."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        failure = ""
        try:
            done = subprocess.run(command, stdout=out, stderr=err, timeout=timeout, check=False, cwd=ROOT)
            if done.returncode:
                err.seek(0)
                words = [line.strip() for line in err.read().splitlines() if line.strip()]
                failure = (words or [f"ended with {done.returncode}"])[-1][:200]
        except subprocess.TimeoutExpired:
            failure = "timeout"
        out.seek(0)
        return [json.loads(line) for line in out if line.startswith("{") and line.endswith("}\n")], failure


def measured(module: str, name: str, seconds: float, timeout: float) -> dict[str, Any]:
    """The line of JSON that a module of the tools prints of a network."""
    lines, failure = run(command(module, name, "--seconds", seconds), timeout)
    if failure:
        raise RuntimeError(f"{name}: {failure}")
    return lines[0]


@contextlib.contextmanager
def ending(tool: str) -> Iterator[None]:
    """Ends the program with a line and a status where something is wrong with what it was given."""
    try:
        yield
    except (BnfoldError, OSError) as error:
        print(f"{tool}: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, VerifyError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)


def session(model: Path | bytes, optimize: bool = True, threads: int = 1) -> InferenceSession:
    """A model in onnxruntime on the CPU. threads: 0 is one for each core."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# tables


def console(width: int) -> Console:
    """The terminal; of that width where it is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def table(title: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    """An empty table for the terminal. left: the headings of columns that begin at the left."""
    from rich.table import Table

    view = Table(title=title, title_justify="left")
    for heading in headings:
        view.add_column(heading, justify="left" if heading in left else "right")
    return view


def markdown(headings: Sequence[object], rows: Iterable[Sequence[object]], sides: str = "l") -> list[str]:
    """The lines of a table for a page. sides: where each column begins, l or r; r is left out at the end."""
    rule = [{"l": "---", "r": "--:"}[side] for side in sides.ljust(len(headings), "r")]
    lines = ["".join(f" {cell} |" if cell != "" else " |" for cell in row) for row in (headings, *rows)]
    return [f"|{lines[0]}", f"|{'|'.join(rule)}|", *(f"|{line}" for line in lines[1:])]

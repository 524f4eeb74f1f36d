"""The comparison in a process of its own: a crash of what runs the models, or its hanging, ends in words.

Models reach the child as files, the options pickled, and JSON comes back. The child is as this process: the
same interpreter and the same modules.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold import errors
from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.run.evaluators import CannotRun, OnnxRuntime
from bnfold.onnx_graph.run.inputs import load_inputs
from bnfold.options import Check
from bnfold.report.verification import OutputError, Verification
from bnfold.verify import models

__all__ = ["verify"]

JOB, RESULT = "job.pickle", "result.json"


class _Crashed(Exception):
    """The child is gone without a result; the message is the signal."""


def verify(original: Loaded, folded: Loaded, check: Check) -> Verification:
    """`models.verify`, in a process of its own if the check says so.

    There, onnxruntime also opens the second model as it will be used, with its optimizer on; what it does not
    take is noted.

    Raises:
        BnfoldError: the original crashes what runs it, memory or the check's time ran out.
    """
    if not (check.apart or check.timeout is not None):
        return models.verify(original, folded, check)
    with tempfile.TemporaryDirectory(prefix="bnfold-") as name:
        folder = Path(name)
        first, second = (_placed(m, folder / f"{i}.onnx") for i, m in enumerate((original, folded), 1))
        job = replace(check, inputs=_arrays(check.inputs))
        try:
            found, crash = _in_child(folder, check.timeout, first, second, job)
        except _Crashed as error:
            return _blamed(folder, first, job, str(error))
        result = Verification(**found | {"outputs": [OutputError(**output) for output in found["outputs"]]})
        if crash:
            result.notes.append(_optimizer_crashes(folder, first, check.timeout, crash))
        return result


def _placed(model: Loaded, path: Path) -> Path:
    """Where the model is as a file."""
    if model.path is not None and not model.edited:
        return model.path.absolute()
    save(model, path, external=True)
    return path


def _arrays(given: Any) -> Any:
    """Inputs as the child can have them."""
    if isinstance(given, (str, os.PathLike)):
        return load_inputs(Path(given))
    return {n: np.asarray(array) for n, array in given.items()} if isinstance(given, Mapping) else given


def _blamed(folder: Path, first: Path, check: Check, crash: str) -> Verification:
    """Whose crash it is: the original by itself tells."""
    try:
        found, _ = _in_child(folder, check.timeout, first, first, check)
    except _Crashed as error:
        said = f"onnxruntime crashes on the original model ({error}), so that nothing can be compared"
        raise BnfoldError(f"{said}; --no-verify (verify=False) does without") from None
    reason = f"the second model crashes onnxruntime ({crash}), and the original does not"
    return Verification([], found["evaluator"], "failed", reason, found["rtol"], found["atol"])


def _optimizer_crashes(folder: Path, first: Path, timeout: float | None, crash: str) -> str:
    try:
        _, own = _in_child(folder, timeout, first)
    except _Crashed as error:
        own = str(error)
    which = "the original model and the second, which is its fault" if own else "the second model alone"
    return f"with its optimizer on, onnxruntime crashes ({own or crash}) on {which}"


def _in_child(folder: Path, timeout: float | None, *job: Any) -> tuple[dict[str, Any], str]:
    """What `_child` writes, and the signal of a crash after it had; `folder` is a place without modules.

    Raises:
        _Crashed: there is no result. BnfoldError: nor is there, for another reason; or the job's own error.
    """
    (folder / JOB).write_bytes(pickle.dumps(job))
    result = folder / RESULT
    result.unlink(missing_ok=True)
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bnfold.verify.process", str(folder)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BnfoldError(f"the check took longer than {timeout:g} s (--check-timeout): ended") from None
    crash = signal.Signals(-done.returncode).name if done.returncode < 0 else ""
    if not result.exists():
        if crash == "SIGKILL":
            raise BnfoldError("the check was killed (SIGKILL), as it is when memory runs out")
        if crash:
            raise _Crashed(crash)
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BnfoldError(f"the check ended with an internal error, please report it: {last}")
    found: dict[str, Any] = json.loads(result.read_text().replace(f"{folder}{os.sep}", ""))
    if "error" in found:
        kind = MemoryError if found["error"] == "MemoryError" else getattr(errors, found["error"])
        raise kind(found["message"])
    return found, crash


def _child(folder: Path) -> None:
    """What the child does: it compares, then tries the optimizer; or, for one model, only that."""
    first, *rest = pickle.loads((folder / JOB).read_bytes())
    found: dict[str, Any] = {}
    if rest:
        second, check = rest
        found = _compared(first, second, check)
        _write(folder, found)
        if found.get("status") == "passed" and found["evaluator"].startswith(OnnxRuntime.label):
            found["notes"] += _refused(first, second)
            _write(folder, found)
    else:
        _refusal(first)
        _write(folder, found)


def _write(folder: Path, found: dict[str, Any]) -> None:
    (folder / RESULT).write_text(json.dumps(found))


def _compared(first: Path, second: Path, check: Check) -> dict[str, Any]:
    try:
        return asdict(models.verify(load(first), load(second), check))
    except MemoryError:
        return {"error": "MemoryError", "message": ""}
    except BnfoldError as error:
        kind = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
        return {"error": kind.__name__, "message": str(error)}


def _refused(first: Path, second: Path) -> list[str]:
    """What onnxruntime's optimizer says against the second model, as a note."""
    said = _refusal(second)
    if not said:
        return []
    which = (
        "the original model and the second, which is its fault"
        if _refusal(first)
        else "the second model alone"
    )
    return [f"with its optimizer on, onnxruntime refuses {which}: {said}"]


def _refusal(path: Path) -> str:
    try:
        OnnxRuntime(load(path), optimized=True)
    except CannotRun as error:
        return str(error)
    return ""


if __name__ == "__main__":
    _child(Path(sys.argv[1]))

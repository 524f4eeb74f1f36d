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
from bnfold.onnx_graph.run.inputs import load_inputs
from bnfold.options import Check
from bnfold.report.verification import OutputError, Verification
from bnfold.verify import models

__all__ = ["verify"]

OPTIONS, RESULT = "options.pickle", "result.json"


class _Crashed(Exception):
    """The child is gone; the message is the signal."""


def verify(original: Loaded, folded: Loaded, check: Check) -> Verification:
    """`models.verify`, in a process of its own if the check says so.

    Raises:
        BnfoldError: the original crashes what runs it, memory or the check's time ran out.
    """
    if not (check.apart or check.timeout is not None):
        return models.verify(original, folded, check)
    with tempfile.TemporaryDirectory(prefix="bnfold-") as name:
        folder = Path(name)
        first, second = (_placed(m, folder / f"{i}.onnx") for i, m in enumerate((original, folded), 1))
        try:
            return _compared(folder, first, second, check)
        except _Crashed as crash:
            said = str(crash)
        try:
            alone = _compared(folder, first, first, check)
        except _Crashed as crash:
            said = f"onnxruntime crashes on the original model ({crash}), so that nothing can be compared"
            raise BnfoldError(f"{said}; --no-verify (verify=False) does without") from None
        reason = f"the second model crashes onnxruntime ({said}), and the first does not"
        return replace(alone, outputs=[], status="failed", reason=reason, notes=[])


def _placed(model: Loaded, path: Path) -> Path:
    """Where the model is as a file."""
    if model.path is not None and not model.edited:
        return model.path.absolute()
    save(model, path, external=True)
    return path


def _compared(folder: Path, first: Path, second: Path, check: Check) -> Verification:
    given = check.inputs
    if isinstance(given, (str, os.PathLike)):
        given = load_inputs(Path(given))
    elif isinstance(given, Mapping):
        given = {name: np.asarray(array) for name, array in given.items()}
    (folder / OPTIONS).write_bytes(pickle.dumps((first, second, replace(check, inputs=given))))
    (folder / RESULT).unlink(missing_ok=True)
    _run_child(folder, check.timeout)
    found: dict[str, Any] = json.loads((folder / RESULT).read_text().replace(f"{folder}{os.sep}", ""))
    if "error" in found:
        kind = MemoryError if found["error"] == "MemoryError" else getattr(errors, found["error"])
        raise kind(found["message"])
    return Verification(**found | {"outputs": [OutputError(**output) for output in found["outputs"]]})


def _run_child(folder: Path, timeout: float | None) -> None:
    """Run it in `folder`, a place without modules. Raises _Crashed, or BnfoldError if it gives no result."""
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
        raise BnfoldError(
            f"the check took longer than {timeout:g} s (--check-timeout), and was ended"
        ) from None
    if done.returncode == -signal.SIGKILL:
        raise BnfoldError("the check was killed (SIGKILL), as it is when memory runs out")
    if done.returncode < 0:
        raise _Crashed(signal.Signals(-done.returncode).name)
    if done.returncode or not (folder / RESULT).exists():
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BnfoldError(f"the check ended with an internal error, please report it: {last}")


def _child(folder: Path) -> None:
    """What the child does."""
    first, second, check = pickle.loads((folder / OPTIONS).read_bytes())
    try:
        found: dict[str, Any] = asdict(models.verify(load(first), load(second), check))
    except MemoryError:
        found = {"error": "MemoryError", "message": ""}
    except BnfoldError as error:
        kind = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
        found = {"error": kind.__name__, "message": str(error)}
    (folder / RESULT).write_text(json.dumps(found))


if __name__ == "__main__":
    _child(Path(sys.argv[1]))

"""A child process that does a job: the same interpreter and the same modules.

Models reach it as files, everything else pickled, and so do results come back. (Both sides are this very
program, and the folder between them is nobody else's.)
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.save import save

__all__ = ["Child", "Crashed"]

JOB, RESULT = "job.pickle", "result.pickle"


class Crashed(Exception):
    """The child is gone without a result; the message is the signal."""


class Child:
    """Does jobs in its folder, one after the other. The folder is gone when this object is, or closed.

    timeout: seconds for each job; None: any time.
    """

    def __init__(self, timeout: float | None) -> None:
        self.folder, self.timeout = Path(tempfile.mkdtemp(prefix="bnfold-")), timeout
        self.close = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._placed = 0

    def placed(self, model: Loaded) -> Path:
        """Where the model is as a file, as the child sees it, whose working folder this is."""
        if model.path is not None and not model.edited:
            return model.path.absolute()
        self._placed += 1
        name = f"{self._placed}.onnx"
        save(model, self.folder / name, external=True)
        return Path(name)

    def run(self, job: Callable[..., Iterator[Any]], *args: Any) -> tuple[Any, str]:
        """The last of what `job(*args)` yields, and the signal of a crash after that ("": there was none).

        job: a function of a module, which the child imports.

        Raises:
            Crashed: it yielded nothing before. BnfoldError: nor did it, for another reason; or its own error.
        """
        (self.folder / JOB).write_bytes(pickle.dumps((job, args)))
        result = self.folder / RESULT
        result.unlink(missing_ok=True)
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(self.folder)],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            said = f"the check took longer than {self.timeout:g} s (--check-timeout): ended"
            raise BnfoldError(said) from None
        crash = signal.Signals(-done.returncode).name if done.returncode < 0 else ""
        if not result.exists():
            if crash == "SIGKILL":
                raise BnfoldError("the check was killed (SIGKILL), as it is when memory runs out")
            if crash:
                raise Crashed(crash)
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise BnfoldError(f"the check ended with an internal error, please report it: {last}")
        found = pickle.loads(result.read_bytes())
        if isinstance(found, (BnfoldError, MemoryError)):
            raise found
        return found, crash


def _work(folder: Path) -> None:
    """What the child does."""
    job, args = pickle.loads((folder / JOB).read_bytes())
    try:
        for found in job(*args):
            _write(folder, found)
    except (BnfoldError, MemoryError) as error:
        _write(folder, error)


def _write(folder: Path, found: Any) -> None:
    """Whole, whatever happens meanwhile."""
    part = folder / f"{RESULT}.part"
    part.write_bytes(pickle.dumps(found))
    part.replace(folder / RESULT)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))

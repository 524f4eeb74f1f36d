"""Runs the tests marked `gpu` in a process of their own, and tells how each ended, even if one hangs."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tools._common import ROOT
from tools._common import command as module

FOLDER = "tests/gpu"  # every test that needs a GPU
PROCESSES = 4
ENDS = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "skipped"}
_END = "|".join(ENDS)
# Of pytest -v, as it is and as pytest-xdist shows it.
_ALONE = re.compile(rf"^(tests/.+?::.+?) ({_END})\b.*$", re.MULTILINE)
_SPREAD = re.compile(rf"^\[gw\d+\] \[ *\d+%\] ({_END}) (tests/.+?::.+?) *$", re.MULTILINE)
_WHY = re.compile(r"^(?:FAILED|ERROR) (tests/.+?::.+?)(?: - (.*))?$", re.MULTILINE)


def command() -> list[str]:
    """What runs them."""
    spread = importlib.util.find_spec("xdist") is not None
    workers = ["-n", str(min(PROCESSES, os.cpu_count() or 1))] if spread else []
    return module("pytest", "-m", "gpu", FOLDER, "-v", "-rfE", *workers, "-p", "no:cacheprovider")


def run(log: Path, seconds: float) -> dict[str, Any]:
    """All tests, for so long at most; the log gets what pytest prints."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command(), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = ends(log.read_text(errors="replace"), status)
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def ends(text: str, status: int | None) -> dict[str, Any]:
    """How the tests of a log ended. status: pytest's, or None if it was stopped."""
    each = {name: ENDS[end] for name, end in _ALONE.findall(text)}
    each.update((name, ENDS[end]) for end, name in _SPREAD.findall(text))
    why = {name: reason for name, reason in _WHY.findall(text) if each.get(name, "failed") == "failed"}
    failures = {name: why.get(name, "") for name, end in each.items() if end == "failed"} | why
    outcome = {0: "passed", 1: "failed", None: "out of time", 5: "no tests"}.get(
        status, f"pytest ended with {status}"
    )
    counts = {end: sum(found == end for found in each.values()) for end in ("passed", "failed", "skipped")}
    if outcome == "passed" and not counts["passed"]:
        outcome = "all skipped"
    return {"outcome": outcome, **counts, "failures": failures}

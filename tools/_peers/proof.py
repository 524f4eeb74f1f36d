"""One proof in a process of its own: `python -m tools._peers.proof A.onnx B.onnx [--certificate FILE]`.

prints a line of JSON: what `bnfold prove` says (`proof`), CPU seconds, and the anonymous memory that the
process held before and at most. bnfold is imported before; what it imports on the way counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bnfold.api.prove
from tools._common import command, run
from tools._peers.peers import sampled

__all__ = ["Failed", "measure"]


class Failed(Exception):
    """A process that did not end well; the text is its last words, or "timeout"."""


def measure(original: Path, other: Path, certificate: Path | None, timeout: float) -> dict[str, Any]:
    """What the process found.

    Raises:
        Failed: it found nothing.
    """
    hint = [] if certificate is None else ["--certificate", certificate]
    lines, failure = run(command("tools._peers.proof", original, other, *hint), timeout)
    if failure or not lines:
        raise Failed(failure or "it says nothing")
    return lines[0]


def cpu() -> float:
    """CPU seconds of all threads of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original")
    parser.add_argument("other")
    parser.add_argument("--certificate")
    arguments = parser.parse_args()
    start = time.perf_counter(), cpu()
    with sampled(0.01) as peak:
        found = bnfold.api.prove.prove(
            arguments.original, arguments.other, certificate=arguments.certificate
        ).to_dict()
    spent = {"cpu_seconds": round(cpu() - start[1], 3), "seconds": round(time.perf_counter() - start[0], 3)}
    print(json.dumps({**spent, **asdict(peak), "proof": found}), flush=True)


if __name__ == "__main__":
    main()

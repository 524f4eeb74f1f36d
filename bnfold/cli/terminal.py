"""What the commands share: files that may be written, and words for a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnfold.errors import UsageError
from bnfold.options import Check

__all__ = [
    "check_of",
    "check_outputs",
    "check_target",
    "complain",
    "in_bytes",
    "printable",
    "say",
    "size",
    "write_json",
]


def check_target(
    path: Path, force: bool, *, never: Sequence[Path | None], replaces: Path | None = None
) -> None:
    """Refuse, before any work, a file that cannot or must not be written.

    `never`: files of this very run, not to be replaced even by force. `replaces`: the input, which force may.
    """
    from bnfold.onnx_graph.file import whole_files as output

    if any(other is not None and _same(path, other) for other in never):
        raise UsageError(f"{path} has two uses in this command; name another file")
    if not force and replaces is not None and _same(path, replaces):
        raise UsageError(f"{path} is the input itself; add --force to write over it, or name another file")
    output.check_target(path, force)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"no permission to write into the folder {path.parent}")


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except (OSError, ValueError):  # one of them is not there yet
        return os.path.realpath(a) == os.path.realpath(b)


def check_of(args: argparse.Namespace) -> Check:
    """The arguments of the check, for the commands that have one."""
    shapes = dict(args.overwrite_input_shape)
    if len(shapes) < len(args.overwrite_input_shape):
        raise UsageError("--overwrite-input-shape names one input twice")
    inputs = None
    if args.input_data_path:
        from bnfold.onnx_graph.run.inputs import load_inputs

        inputs = load_inputs(args.input_data_path)
    verify = not getattr(args, "no_verify", False)
    return Check(verify, inputs, shapes or None, args.seed or 0, args.check_rtol, args.check_atol)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """A report as a file: whole, or not at all."""
    import json

    from bnfold.onnx_graph.file.whole_files import Output

    with Output() as output:
        output.write(path, [json.dumps(data, indent=1).encode() + b"\n"])
        output.commit()


def size(path: Path) -> str:
    """How large a file is, in words such as "3.1 MB"."""
    return in_bytes(path.stat().st_size)


def in_bytes(count: float) -> str:
    """A number of bytes in the unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"


def printable(text: str) -> str:
    """A model's names are whatever its author wrote: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def say(args: argparse.Namespace, text: str) -> None:
    """What only -v asks for, on stderr."""
    if args.verbose:
        print(printable(f"bnfold: {text}"), file=sys.stderr)


def complain(text: str, status: int) -> int:
    """What went wrong, in one line on stderr; gives the exit status back."""
    print("bnfold: " + printable(" ".join(text.split())), file=sys.stderr)
    return status


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse, before any work, what a command that reads a model cannot or must not write."""
    if not args.out:
        if args.save_as_external_data:
            raise UsageError("--save-as-external-data has nothing to do without an output file")
        if args.force and not args.json:
            raise UsageError("--force has nothing to do without an output file")
    read = [path for path in (args.model, args.input_data_path) if path]
    if args.out:
        check_target(args.out, args.force, never=[args.input_data_path], replaces=args.model)
    if args.json:
        check_target(args.json, args.force, never=[*read, args.out])

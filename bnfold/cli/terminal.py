"""What the commands share: files that may be written, and words for a terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnfold.errors import UsageError, shortened


def check_target(
    path: Path | None, force: bool, *, never: Sequence[Path | None], replaces: Path | None = None
) -> None:
    """Refuse, before any work, a file that cannot or must not be written.

    `never`: files of this very run, not to be replaced even by force. `replaces`: the input, which force may.
    """
    from bnfold.onnx_graph.file import whole_files as output

    if path is None:
        return
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


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse, before any work, what a command that reads a model cannot or must not write."""
    check_target(args.out, args.force, never=[args.input_data_path], replaces=args.model)
    check_target(args.json, args.force, never=[args.model, args.input_data_path, args.out])


def finish(args: argparse.Namespace, loaded: Any, report: Any, hint: str = "") -> int:
    """Write the model (a `Loaded`), if it has a place, and tell what became of it; `hint`: if it has none."""
    from bnfold.onnx_graph.file.save import save

    if args.out:
        with timed(args, "written"):
            save(loaded, args.out, force=args.force, external=args.save_as_external_data or None)
    show(args, report)
    found = getattr(report, "verification", None)
    if found is not None and found.status == "not run":
        complain(f"warning: nothing was verified: {found.reason}", 0)
    if args.out:
        print(printable(f"wrote {args.out} ({size(args.model)} -> {size(args.out)})"))
    else:
        print(f"nothing was written: name an output file{hint}")
    return 0


def show(args: argparse.Namespace, report: Any) -> None:
    """A report in words and, if that was asked for, as a JSON file: whole, or not at all."""
    if args.json:
        write(args.json, as_json(report.to_dict()))
    print(printable(str(report)))


def write(path: Path, content: bytes) -> None:
    """A file: whole, or not at all."""
    from bnfold.onnx_graph.file.whole_files import Output

    with Output() as output:
        output.write(path, [content])
        output.commit()


def as_json(data: dict[str, Any]) -> bytes:
    """What a file of JSON holds."""
    return json.dumps(data, indent=1).encode() + b"\n"


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


@contextmanager
def timed(args: argparse.Namespace, what: str) -> Iterator[None]:
    """With -v, how long it took that something was done."""
    begin = time.monotonic()
    yield
    say(args, f"{what} in {time.monotonic() - begin:.2f} s")


def complain(text: str, status: int) -> int:
    """What went wrong, in one line on stderr; gives the exit status back."""
    print("bnfold: " + printable(shortened(" ".join(text.split()))), file=sys.stderr)
    return status

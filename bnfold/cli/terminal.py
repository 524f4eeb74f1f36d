"""What the commands share: files that may be written, and what is said of the work.

Words go to standard output, where `app.main` has put what the flags want there: nothing with --quiet, and
with `--json -`, whose document takes that place, standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnfold.errors import UsageError, shortened
from bnfold.report.summary import in_bytes
from bnfold.report.table import fitted

LOG = logging.getLogger("bnfold")
KEPT = 3  # exit status of --fail-if-kept
YELLOW, GREEN, RED = 33, 32, 31
COLOURS = {  # of words in a report
    r"^kept \d+|  kept  ": YELLOW,
    r"^\d+ folded|^folded into|verification.*: (proved|passed)|: (proved|passed)$": GREEN,
    r"^note:|^verification.*: not run": YELLOW,
    r"  WRONG\b|verification.*: failed": RED,
}


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
    output.check_target(path, force, "add --force to write over it")
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


def finish(args: argparse.Namespace, report: Any, files: Sequence[Path], hint: str = "") -> int:
    """Tell what became of a model, and in which files it is now; `hint`: if it has none."""
    show(args, report)
    if args.out:
        say_wrote(args, report, files)
    else:
        tell(f"nothing was written: name an output file{hint}")
    return 0


def save_model(args: argparse.Namespace, loaded: Any) -> list[Path]:
    """Write the model to OUT, if that was named; give the files that are its parts, the model last."""
    from bnfold.onnx_graph.file.save import save

    if not args.out:
        return []
    return save(loaded, args.out, force=args.force, external=args.save_as_external_data or None)


def show(args: argparse.Namespace, report: Any) -> None:
    """A report in words and, if that was asked for, as JSON: in a file whole, or not at all."""
    document(args, report.to_dict())
    tell(report.text(args.show) if hasattr(args, "show") else str(report))
    parts = (report, getattr(report, "fold", None))
    warn_unchecked(*(getattr(part, name, None) for part in parts for name in ("verification", "precision")))


def warn_unchecked(*checks: Any) -> None:
    """Say on standard error, where no flag and no pipe hides it, that a check could not be made, and why."""
    for found in checks:
        if found is not None and found.status == "not run" and found.reason and sys.stdout is not sys.stderr:
            complain(f"warning: nothing was verified: {found.reason}", 0)


def document(args: argparse.Namespace, data: dict[str, Any]) -> None:
    """The report as JSON, where --json wants it."""
    args.document = data
    if args.json:
        write(args.json, as_json(data))


def say_wrote(args: argparse.Namespace, report: Any, files: Sequence[Path]) -> None:
    """Which files were written: the report, the data, and the model last."""
    if args.json:
        tell(f"wrote {args.json} ({size(args.json)})")
    summary = getattr(report, "summary", None)
    given = args.model.stat().st_size if summary is None else summary.before.bytes
    before = "" if given is None or len(files) > 1 else f"{in_bytes(given)} -> "
    for file in files:
        tell(f"wrote {file} ({before}{size(file)})")


def tell(text: str) -> None:
    """Words on standard output; on a terminal no line is wider than that, and some words have colours."""
    text = printable(text)
    width = columns()
    if width is not None:
        text = painted(fitted(text, width))
    print(text)


def columns() -> int | None:
    """The width of the terminal that words go to; None: it is none, and nothing is cut or wrapped."""
    return max(20, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def painted(text: str) -> str:
    """A text with colours, unless the environment says that it wants none (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    for words, colour in COLOURS.items():
        text = re.sub(words, rf"\033[{colour}m\g<0>\033[0m", text, flags=re.MULTILINE)
    return text


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


def printable(text: str) -> str:
    """A model's names are whatever its author wrote: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long it took that something was done; -v shows it."""
    begin = time.monotonic()
    yield
    LOG.info("%s in %.2f s", what, time.monotonic() - begin)


def gate(args: argparse.Namespace, report: Any) -> int:
    """The exit status: 3 where more was kept than --fail-if-kept allows."""
    kept, most = len(report.kept), args.fail_if_kept
    if most is None or kept <= most:
        return 0
    return complain(f"{kept} kept, and --fail-if-kept allows {most}", KEPT)


def complain(text: str, status: int) -> int:
    """What went wrong, in one line on stderr; gives the exit status back."""
    print("bnfold: " + printable(shortened(" ".join(text.split()))), file=sys.stderr)
    return status

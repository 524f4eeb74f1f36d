"""The command line: the parser, made of what each command says of itself, and how errors are told.

Exit status: 0 done; 1 the check failed, and nothing was written; 2 bad input or usage; 3 more was kept than
--fail-if-kept allows, or a proof is undecided; 130 interrupted.
Whatever does the work is imported by the command that needs it, so `bnfold --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from bnfold import __version__
from bnfold.cli import bench, build, correct, equalize, export, fold, prove, verify
from bnfold.cli.flags import Idle, refuse_idle, take_output
from bnfold.cli.terminal import as_json, columns, complain, printable
from bnfold.errors import BnfoldError, UsageError, VerifyError
from bnfold.report.table import WIDTH

SLOGAN = "Train with batch norm, deploy without it."


class Command(Protocol):
    """A module that is a command: its help, when which of its flags have no effect, what adds its arguments
    to a parser, and what does it and gives the exit status.
    """

    SUMMARY: str
    EPILOG: str
    IDLE: list[Idle]

    def add(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


COMMANDS: dict[str, Command] = {
    "fold": fold,
    "verify": verify,
    "prove": prove,
    "export": export,
    "build": build,
    "bench": bench,
    "equalize": equalize,
    "correct": correct,
}


class _Refused(SystemExit):
    """The command line is wrong. `message`: what is."""

    message = ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refused = _Refused(2)
        refused.message = f"{' '.join(message.split())} (see {self.prog} --help)"
        complain(refused.message, 2)
        raise refused


def parser(only: str = "") -> argparse.ArgumentParser:
    """The parser of `bnfold`; its namespace's `command` is the module that was asked for.

    only: the one command whose flags are wanted, if it is known by then.
    """
    whole = _Parser(prog="bnfold", description=SLOGAN, allow_abbrev=False)
    whole.add_argument("--version", action="version", version=f"bnfold {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = command.SUMMARY
        one = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=command.EPILOG,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.set_defaults(command=command)
        if only in ("", name):
            command.add(one)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status. `argv`: without the program's name (None: sys.argv's)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show must not end the program
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser().print_help(sys.stderr)
        return 2
    # argparse would take what follows for the flag's value, which is optional
    argv = ["--fail-if-kept=0" if word == "--fail-if-kept" else word for word in argv]
    args = argparse.Namespace(verbose=False, quiet=False, document={})
    stdout = sys.stdout
    wanted = "--json=-" in argv or ("--json", "-") in itertools.pairwise(argv)
    try:
        with contextlib.redirect_stdout(sys.stderr if wanted else stdout):
            status = _run(argv, args)
        if wanted:
            stdout.write(as_json(args.document).decode())
        stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output, `head` say, has left; the files are written by then
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 128 + 13  # what a shell reports for a program ended by SIGPIPE


def _not_a_command(word: str) -> str:
    """What to do where the first word is no command; "" if it is one, or a flag."""
    if word in COMMANDS or word.startswith("-"):
        return ""
    if "." in word or os.path.exists(word):
        return f"name a command before {word}, such as: bnfold fold {word} (see bnfold --help)"
    import difflib  # rarely needed, and slow to load

    close = difflib.get_close_matches(word, COMMANDS, 1)
    return (
        f"there is no command {word!r}: did you mean bnfold {close[0]}? (see bnfold --help)" if close else ""
    )


def _run(argv: Sequence[str], args: argparse.Namespace) -> int:
    """The exit status; an error is told in a line, and noted in the document of `--json -`."""
    try:
        if wrong := _not_a_command(argv[0]):
            raise UsageError(wrong)
        reader = parser(argv[0] if argv[0] in COMMANDS else "")
        if unknown := take_output(args, reader.parse_known_args(argv, args)[1]):
            reader.error(f"unrecognized arguments: {' '.join(unknown)}")
        if args.json == Path("-"):
            args.json = None
        command: Command = args.command
        refuse_idle(command.IDLE, argv, args)
        with _voices(args):
            return command.run(args)
    except BrokenPipeError:
        raise
    except _Refused as error:
        return _note_error(args, error, error.message, 2)
    except KeyboardInterrupt as error:
        status, text = 128 + signal.SIGINT, "interrupted"
        return _note_error(args, error, text, complain(text, status))
    except Exception as error:
        status, text = _told(args, error)
        return _note_error(args, error, text, complain(text, status))


def _told(args: argparse.Namespace, error: Exception) -> tuple[int, str]:
    """The exit status and the words for an error."""
    if isinstance(error, VerifyError):
        return 1, str(error)
    if isinstance(error, BnfoldError):
        return 2, str(error)
    if isinstance(error, OSError):
        return 2, f"{error.filename}: {error.strerror or error}" if error.filename else str(error)
    if isinstance(error, MemoryError):
        return 2, f"not enough memory for {args.model}"
    if args.verbose:
        traceback.print_exc()
    kind = type(error).__name__
    return 2, f"internal error, please report it with what -v prints ({kind}: {error})"


def _note_error(args: argparse.Namespace, error: BaseException, text: str, status: int) -> int:
    """Put it into the document of `--json -`, beside the report as far as there is one; give the status."""
    report = getattr(error, "report", None)
    document = args.document or ({} if report is None else report.to_dict())
    kind = "UsageError" if isinstance(error, _Refused) else type(error).__name__
    said = {"kind": kind, "message": " ".join(text.split()), "status": status}
    args.document = {**document, "error": said}
    return status


@contextlib.contextmanager
def _voices(args: argparse.Namespace) -> Iterator[None]:
    """Where words go: nowhere with --quiet; with -v also what the library logs, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    log, level = logging.getLogger("bnfold"), logging.getLogger("bnfold").level
    with contextlib.ExitStack() as stack:
        if args.verbose:
            log.addHandler(handler)
            log.setLevel(logging.INFO)
            stack.callback(log.removeHandler, handler)
            stack.callback(log.setLevel, level)
        if args.quiet:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.callback(WIDTH.reset, WIDTH.set(columns()))
        yield


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line that cannot drive the terminal."""
        return "bnfold: " + printable(" ".join(record.getMessage().split()))

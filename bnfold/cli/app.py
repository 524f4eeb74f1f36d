"""The command line: the parser, made of what each command says of itself, and how errors are told.

Exit status: 0 done; 1 the check failed, and nothing was written; 2 bad input or usage; 130 interrupted.
Whatever does the work is imported by the command that needs it, so `bnfold --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, Protocol

from bnfold import __version__
from bnfold.cli import bench, build, correct, equalize, export, fold, prove, verify
from bnfold.cli.flags import Idle, refuse_idle
from bnfold.cli.terminal import complain
from bnfold.errors import BnfoldError, VerifyError

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bnfold: {' '.join(message.split())} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of `bnfold`; its namespace's `command` is the module that was asked for."""
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
        command.add(one)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status. `argv`: without the program's name (None: sys.argv's)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show must not end the program
            stream.reconfigure(errors="backslashreplace")
    argv, args = sys.argv[1:] if argv is None else argv, argparse.Namespace(verbose=False)
    try:
        parser().parse_args(argv, args)
        command: Command = args.command
        refuse_idle(command.IDLE, argv, args)
        status = command.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return complain("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output, `head` say, has left; the files are written by then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # what a shell reports for a program ended by SIGPIPE
    except VerifyError as error:
        return complain(str(error), 1)
    except BnfoldError as error:
        return complain(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}", 2)
    except MemoryError:
        return complain(f"not enough memory for {args.model}", 2)
    except Exception as error:
        if args.verbose:
            traceback.print_exc()
        kind = type(error).__name__
        return complain(f"internal error, please report it with what -v prints ({kind}: {error})", 2)

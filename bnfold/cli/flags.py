"""The flags that several commands share, in groups; beside each group the options that are made of it.

A group is a table: what argparse wants to know of each flag. An option of the fold is a field of
`bnfold.options.Fold` and a line of FOLD: every command that folds takes it then. Flags that may be repeated
are None where they are not given, so that defaults stand in one place.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from bnfold.cli import shapes
from bnfold.errors import UsageError
from bnfold.options import PRECISIONS, QUANTIZERS, SHARED, TARGETS, Check, Fold
from bnfold.report.ledger import AT_ONCE, SHOW

T = TypeVar("T")
SWITCH = "store_true"
Flags: TypeAlias = Mapping[str, "dict[str, Any]"]

DONE = "\nexit status: 0 done; 1 the check failed, and nothing was written; 2 bad input or usage\n"
DONE_OR_KEPT = DONE.rstrip() + ";\n  3 more was kept than --fail-if-kept allows\n"


def add(
    parser: argparse._ActionsContainer, *groups: Flags, without: Collection[str] = (), **words: str
) -> None:
    """Add the flags of groups to a command, but for `without`. `words`: another help for some, by name."""
    for flag, how in (item for group in groups for item in group.items()):
        if flag not in without:
            name = flag.split()[-1].removeprefix("--").replace("-", "_")
            parser.add_argument(*flag.split(), **how | {"help": words.get(name, how["help"])})


def _flag(words: str, **how: Any) -> dict[str, Any]:
    return {"help": words, **how}


# -- what the values of flags are read as


def parsed(read: Callable[[str], T], valid: Callable[[T], object], words: str) -> Callable[[str], T]:
    """A type for argparse: what `read` makes of a text, unless it raises ValueError or that is not valid."""

    def parse(text: str) -> T:
        try:
            value = read(text)
            if valid(value):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")

    return parse


def named(
    read: Callable[[str], T], valid: Callable[[T], object], words: str
) -> Callable[[str], tuple[str, T]]:
    """The same for NAME:VALUE; the name itself may hold colons."""

    def split(text: str) -> tuple[str, T]:
        name, _, value = text.rpartition(":")
        return name, read(value)

    return parsed(split, lambda pair: pair[0] and valid(pair[1]), f"an input's name and {words}")


class ByName(argparse.Action):
    """Collects what was given as NAME:VALUE; a name that comes twice is refused."""

    def __call__(
        self, parser: argparse.ArgumentParser, to: argparse.Namespace, given: Any, flag: str | None = None
    ) -> None:
        before, (name, value) = getattr(to, self.dest) or {}, given
        if name in before:
            raise UsageError(f"{flag} names one input twice")
        setattr(to, self.dest, {**before, name: value})


def decimal(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise ValueError
    return int(text)


def _ends(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(","))
    return low, high


whole = parsed(decimal, lambda _: True, "a whole number from 0 on")
given = parsed(shapes.given, lambda _: True, "an input, such as 1,3,224,224 or ids:batch,128:int64")
_shape = parsed(shapes.sizes, lambda _: True, "an input's name and sizes, such as x:1,3,224,224")
profile = parsed(
    shapes.profile,
    lambda _: True,
    "an input's smallest, usual and largest shape, such as x:1,3,8,8/4,3,8,8/8,3,8,8",
)
_range = named(_ends, lambda ends: ends[0] <= ends[1], "range, such as x:-1,1")
_seconds = parsed(float, lambda x: 0 < x < math.inf, "a number of seconds above 0, such as 60")
_tolerance = parsed(float, lambda x: 0 <= x < math.inf, "a number from 0 on, such as 1e-5")

# -- the model

MODEL: Flags = {
    "model": _flag("the model; never changed without --force", metavar="IN.onnx", type=Path),
}
WRITING: Flags = {
    "--save-as-external-data": _flag("put the weights into a file beside OUT", action=SWITCH),
    "--no-verify": _flag("do not run both models to check that nothing changed", action=SWITCH),
}

EXPLAIN = "; without it, only explain"


class _ByFlag(argparse.Action):
    """The output, named by a flag: what it stands for, a positional argument, may be left out then."""

    def __init__(self, *args: Any, positional: argparse.Action, **how: Any) -> None:
        super().__init__(*args, **how)
        self.positional = positional

    def __call__(
        self, parser: argparse.ArgumentParser, to: argparse.Namespace, given: Any, flag: str | None = None
    ) -> None:
        setattr(to, self.dest, given)
        self.positional.required = False


def add_output(parser: argparse.ArgumentParser, words: str, name: str = "OUT.onnx") -> None:
    """Add the file to write: as a positional argument, and as -o. With EXPLAIN in `words` none is needed."""
    nargs = "?" if EXPLAIN in words else None
    out = parser.add_argument("out", metavar=name, type=Path, nargs=nargs, help=words)
    how: dict[str, Any] = {"metavar": "FILE", "type": Path, "action": _ByFlag, "positional": out}
    parser.add_argument("-o", "--output", help=f"the same as {name}", **how)


def take_output(args: argparse.Namespace, rest: list[str]) -> list[str]:
    """Put the file to write into `args.out`, however it was given; give the words that mean nothing.

    rest: the words that argparse has left. Where the output may be missing, argparse takes it for missing
    as soon as a flag stands before it.
    """
    if not hasattr(args, "output"):
        return rest
    if args.out is None and rest and not rest[0].startswith("-"):
        args.out, rest = Path(rest[0]), rest[1:]
    if args.output is not None:
        if args.out is not None:
            raise UsageError(f"two outputs are given, {args.out} and {args.output} (-o): name one")
        args.out = args.output
    return rest


# -- the fold

FOLD: Flags = {
    "--precision": _flag(
        "then convert to half precision; inputs and outputs stay float32, tolerances are for this step",
        choices=PRECISIONS,
    ),
    "--skip": _flag("leave the node of this name alone (repeatable)", metavar="NAME", action="append"),
    "--shared": _flag(
        "weights whose users need different changes: copy them, do not fold, or stop (%(default)s)",
        choices=SHARED,
        default=Fold.shared,
    ),
    "--freeze-initializers": _flag(
        "inputs that have a stored value are inputs no longer, so that they can be folded", action=SWITCH
    ),
    "--target": _flag(
        "tensorrt: fuse what no fold removes into operators of bnfold, and store computed constants",
        choices=TARGETS,
        default=Fold.target,
    ),
    "--lower-batch-statistics": _flag(
        "write batch norms in training mode out in standard operators", action=SWITCH
    ),
    "--merge-branches": _flag(
        "one linear node for branches that are summed, or two in a row, where that costs no more",
        action=argparse.BooleanOptionalAction,
        default=Fold.merge_branches,
    ),
    "--for": _flag(
        "what the model will be quantized to: merge only what its rounding bears (a scale for each output "
        "channel, but for per-tensor)",
        dest="quantize_for",
        choices=QUANTIZERS,
    ),
    "--drop-dead-channels": _flag(
        "take out every channel that is proven to be constant, or that nobody reads", action=SWITCH
    ),
    "--input-range": _flag(
        "values of an input that dead channels may be proven with (repeatable); the check keeps to them",
        dest="input_ranges",
        metavar="NAME:LOW,HIGH",
        type=_range,
        action=ByName,
    ),
}


def fold_of(args: argparse.Namespace) -> Fold:
    """The options of the fold; the default of each that the command does not take or that was not given."""
    given = {field.name: getattr(args, field.name, None) for field in fields(Fold)}
    return Fold(**{name: value for name, value in given.items() if value is not None})


# -- the check

TOLERANCES, TIMEOUT = ("--check-rtol", "--check-atol"), "--check-timeout"
CHECK: Flags = {
    "--check-rtol": _flag("largest error, relative to the output's scale", metavar="X", type=_tolerance),
    "--check-atol": _flag("largest absolute error", metavar="X", type=_tolerance),
    "--seed": _flag("seed of the random inputs (0)", metavar="N", type=whole),
    "--input-data-path": _flag("inputs to run with (default: random ones)", metavar="PATH", type=Path),
    "--overwrite-input-shape": _flag(
        "shape of an input in the check, by its name where there are several (repeatable); the model that is "
        "written keeps its own",
        metavar="[NAME:]1,3,224,224",
        type=_shape,
        action=ByName,
    ),
    TIMEOUT: _flag(
        "end the check, and the command with status 2, if it takes longer", metavar="SECONDS", type=_seconds
    ),
}


def check_of(args: argparse.Namespace) -> Check:
    """The options of the check, with the inputs read. A command without --no-verify always checks, and in a
    process of its own.
    """
    verify = not getattr(args, "no_verify", False)
    sizes, seed = args.overwrite_input_shape, args.seed or 0
    tolerances = args.check_rtol, args.check_atol
    return Check(verify, inputs_of(args), sizes, seed, *tolerances, True, args.check_timeout)


def inputs_of(args: argparse.Namespace) -> Any:
    """The arrays of --input-data-path, or None."""
    if not args.input_data_path:
        return None
    from bnfold.onnx_graph.run.inputs import load_inputs

    return load_inputs(args.input_data_path)


# -- the report

OUTPUT: Flags = {
    "--json": _flag(
        "write the report as JSON; -: to standard output, with an error in it if there is one, and all words "
        "to standard error",
        metavar="FILE",
        type=Path,
    ),
    "--force": _flag("write over existing files, the input included, by rename", action=SWITCH),
    "-q --quiet": _flag("say nothing but what went wrong", action=SWITCH),
    "-v --verbose": _flag("say what is done, and how long it took", action=SWITCH),
}
LEDGER: Flags = {
    "--show": _flag(
        f"what is told of the batch norms: all, one by one; those that were kept, by their reasons; or how "
        f"many there are (default: all of up to {AT_ONCE}, else kept)",
        choices=SHOW,
    ),
    "--fail-if-kept": _flag(
        "end with status 3 if more than N (default: 0) of the ledger were kept; what is to be written is "
        "written all the same (with a number: --fail-if-kept=N)",
        metavar="N",
        nargs="?",
        const=0,
        type=whole,
    ),
}

# -- flags without effect


class Idle(NamedTuple):
    """Flags that have no effect in some case, which is a mistake worth telling."""

    flags: Sequence[str]
    why: str
    when: Callable[[argparse.Namespace], object]


def refuse_idle(table: Sequence[Idle], argv: Sequence[str], args: argparse.Namespace) -> None:
    """Refuse a flag that was given and has nothing to do."""
    given = {word.split("=")[0] for word in argv}
    for row in table:
        if row.when(args):
            for flag in filter(given.__contains__, row.flags):
                raise UsageError(f"{flag} has nothing to do{row.why}")


NO_MERGES = Idle(["--for"], " with --no-merge-branches", lambda a: not a.merge_branches)
NO_RANGES = Idle(["--input-range"], " without --drop-dead-channels", lambda a: not a.drop_dead_channels)
NO_JSON = Idle(["--force"], " without --json", lambda a: not a.json)
NO_WORDS = Idle(["--show"], " with --quiet", lambda a: a.quiet)
NO_OUT = (
    Idle(["--save-as-external-data"], " without an output file", lambda a: not a.out),
    Idle(["--force"], " without an output file", lambda a: not (a.out or a.json or getattr(a, "html", None))),
)

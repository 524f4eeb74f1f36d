"""What the command line accepts, and its help."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from bnfold import __version__
from bnfold.cli import arguments_compress, arguments_deploy

Command: TypeAlias = Callable[[argparse.Namespace], int]  # gives the exit status

SLOGAN = "Train with batch norm, deploy without it."

FOLD_EPILOG = """\
examples:
  bnfold fold model.onnx                         explain: what can fold, what cannot, and why
  bnfold fold model.onnx folded.onnx             fold, check that nothing changed, write
  bnfold fold model.onnx folded.onnx --json report.json --overwrite-input-shape x:1,3,224,224
  bnfold fold model.onnx folded.onnx --target tensorrt
  bnfold fold model.onnx half.onnx --precision fp16 --input-data-path images.npz
  bnfold fold model.onnx folded.onnx --no-merge-branches
  bnfold fold model.onnx smaller.onnx --drop-dead-channels --input-range x:0,1

the JSON report:
  {"entries": [            one for each batch norm, and each other per-channel map that was looked at
     {"name": str,         the node
      "op": str,           its operator
      "outcome": str,      "folded" or "kept"
      "into": [str],       the nodes whose weights absorbed it
      "reason": str,       why it was kept, or how it was folded
      "blocked_by": str,   the node or tensor that stopped it, or ""
      "cure": str,         what would let it go, or ""
      "dead_channels": [int]}],   those whose output never changes
   "folded": int, "kept": int,
   "merged": [             linear nodes that became one
     {"name": str,         the one that is left
      "op": str,           its operator
      "replaces": [str],   the nodes that it took in
      "multiplications_before": int, "multiplications_after": int}],   of one run
   "apart": [              linear nodes that read one tensor, or each other, and stay several
     {"names": [str], "reason": str}],
   "rewritten": [          kept batch norms that became other nodes for the target
     {"name": str,         the new node
      "op": str,           its operator, or "standard operators"
      "replaces": [str]}], the nodes whose work it does
   "dropped": {            dead channels, or null without --drop-dead-channels
     "channels": int,      output channels that layers lost, all together
     "parameters": int,    stored numbers fewer
     "multiplications": int,   fewer for one entry of the batch; null if sizes are not known
     "layers": [{          one for each node that lost channels or stored numbers
        "name": str, "op": str,
        "outputs": [int], "inputs": [int],   which channels, as they were counted before
        "parameters": int, "multiplications": int,
        "moved": [{"channel": int, "value": number}]}],   constants that are in its bias now
     "kept": [{            channels that are constant and stay
        "name": str, "op": str, "channels": [int], "reason": str, "blocked_by": str}]},
   "notes": [str],
   "verification": object  as in `bnfold verify --help`, or null if the check was skipped
   "precision": object     what --precision did, or null; docs/report.md has its keys
  }

exit status: 0 done; 1 the check failed, and nothing was written; 2 bad input or usage
"""

VERIFY_EPILOG = """\
examples:
  bnfold verify model.onnx folded.onnx
  bnfold verify model.onnx folded.onnx --input-data-path samples.npz --check-rtol 1e-4

the JSON report:
  {"outputs": [            one for each output that was compared
     {"name": str,         the output
      "dtype": str,        its type
      "max_abs": number,   max|A - B|; null where it is not finite
      "max_rel": number,   max|A - B| / max|A|; for integers the share of entries that differ
      "largest": number,   max|A|
      "ok": bool,          whether the error is within the tolerance
      "note": str}],
   "evaluator": str,       what ran both models
   "status": str,          "passed", "failed" or "not run"
   "reason": str,          why it failed, or was not run
   "rtol": number, "atol": number,   max|A - B| may be atol + rtol * max|A|
   "notes": [str]
  }

exit status: 0 the models agree; 1 they do not; 2 bad input or usage, or neither could be told
"""


EXPORT_EPILOG = """\
examples:
  bnfold export mynet.models:small small.onnx --input-shape 1,3,224,224
  bnfold export mynet.models:small small.onnx --weights small.safetensors --input-shape 1,3,224,224

The factory is called without arguments and returns a torch.nn.Module. It is your own code: it is imported
(from the working folder first) and runs. Weights are data: files that would run code are refused.

exit status: 0 done; 1 the check failed, and nothing was written; 2 bad input or usage
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bnfold: {' '.join(message.split())} (see {self.prog} --help)\n")


def parser(
    fold: Command, verify: Command, export: Command, build: Command, bench: Command, equalize: Command
) -> argparse.ArgumentParser:
    """The parser of `bnfold`; its namespace's `run` is the command that was asked for."""
    whole = _Parser(prog="bnfold", description=SLOGAN, allow_abbrev=False)
    whole.add_argument("--version", action="version", version=f"bnfold {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Command, summary: str, epilog: str) -> _Parser:
        sub: _Parser = commands.add_parser(
            run.__name__,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    one = command(fold, "fold every batch norm that can vanish, and say why the others cannot", FOLD_EPILOG)
    one.add_argument("model", metavar="IN.onnx", type=Path, help="the model; never changed without --force")
    one.add_argument(
        "out", metavar="OUT.onnx", type=Path, nargs="?", help="the folded model; without it, only explain"
    )
    one.add_argument(
        "--precision",
        choices=("fp16", "bf16"),
        help="then convert to half precision; inputs and outputs stay float32, tolerances are for this step",
    )
    _add_fold(one)
    one.add_argument(
        "--drop-dead-channels",
        action="store_true",
        help="take out every channel that is proven to be constant, or that nobody reads",
    )
    one.add_argument(
        "--input-range",
        metavar="NAME:LOW,HIGH",
        type=_range,
        action="append",
        default=[],
        help="values of an input that dead channels may be proven with (repeatable); the check keeps to them",
    )
    _add_check(one)

    two = command(verify, "run two models on the same inputs, and compare what they give", VERIFY_EPILOG)
    two.add_argument("model", metavar="A.onnx", type=Path, help="the model to trust")
    two.add_argument("other", metavar="B.onnx", type=Path, help="the model to judge")
    _add_check(two)

    three = command(
        export, "export a torch module to ONNX, folded, and check it against the module", EXPORT_EPILOG
    )
    three.add_argument("model", metavar="package.module:factory", help="what makes the torch module")
    three.add_argument("out", metavar="OUT.onnx", type=Path, help="the file to write")
    three.add_argument(
        "--weights", metavar="FILE", type=Path, help="its weights: a state_dict, .safetensors or torch's own"
    )
    three.add_argument(
        "--input-shape",
        metavar="1,3,224,224",
        type=_sizes,
        action="append",
        required=True,
        help="shape of an input, in order (repeatable)",
    )
    three.add_argument("--opset", metavar="N", type=_seed, help="version of the default operators")
    _add_fold(three)
    _add_tolerances(three.add_argument_group("the check"))
    _add_output(three)

    arguments_deploy.add(command, build=build, bench=bench, shape=_shape, seed=_seed)
    arguments_compress.add(command, equalize=equalize, check=_add_check)
    return whole


def _add_fold(parser: _Parser) -> None:
    """The flags of the commands that fold."""
    parser.add_argument(
        "--skip",
        metavar="NAME",
        action="append",
        default=[],
        help="leave the node of this name alone (repeatable)",
    )
    parser.add_argument(
        "--shared",
        choices=("duplicate", "skip", "error"),
        default="duplicate",
        help="weights whose users need different changes: copy them, do not fold, or stop (%(default)s)",
    )
    parser.add_argument(
        "--target",
        choices=("onnx", "tensorrt"),
        default="onnx",
        help="tensorrt: fuse what no fold removes into operators of bnfold, and store computed constants",
    )
    parser.add_argument(
        "--lower-batch-statistics",
        action="store_true",
        help="write batch norms in training mode out in standard operators",
    )
    parser.add_argument(
        "--merge-branches",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one linear node for branches that are summed, or two in a row, where that costs no more",
    )
    parser.add_argument(
        "--save-as-external-data", action="store_true", help="put the weights into a file beside OUT"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not run both models to check that nothing changed"
    )


def _add_check(parser: _Parser) -> None:
    """The flags that both commands share."""
    check = parser.add_argument_group("the check")
    _add_tolerances(check)
    check.add_argument(
        "--input-data-path", metavar="PATH", type=Path, help="inputs to run with (default: random ones)"
    )
    check.add_argument(
        "--overwrite-input-shape",
        metavar="NAME:1,3,224,224",
        type=_shape,
        action="append",
        default=[],
        help="shape of an input in the check (repeatable); the model that is written keeps its own",
    )
    _add_output(parser)


def _add_tolerances(check: argparse._ArgumentGroup) -> None:
    check.add_argument(
        "--check-rtol", metavar="X", type=_tolerance, help="largest error, relative to the output's scale"
    )
    check.add_argument("--check-atol", metavar="X", type=_tolerance, help="largest absolute error")
    check.add_argument("--seed", metavar="N", type=_seed, help="seed of the random inputs (0)")


def _add_output(parser: _Parser) -> None:
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON")
    parser.add_argument(
        "--force", action="store_true", help="write over existing files, the input included, by rename"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say how long each step took")


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on, such as 1e-5")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _range(text: str) -> tuple[str, tuple[float, float]]:
    name, colon, ends = text.rpartition(":")
    try:
        low, high = map(float, ends.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not (name and colon and low <= high):
        raise argparse.ArgumentTypeError(f"{text!r} is not an input's name and range, such as x:-1,1")
    return name, (low, high)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes, such as 1,3,224,224")
    return tuple(map(int, sizes))


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, colon, dims = text.rpartition(":")  # the name itself may hold colons
    sizes = dims.split(",")
    if not (name and colon and all(size.isdecimal() and int(size) > 0 for size in sizes)):
        raise argparse.ArgumentTypeError(f"{text!r} is not an input's name and sizes, such as x:1,3,224,224")
    return name, tuple(int(size) for size in sizes)

"""What `bnfold equalize` accepts, and its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Command: TypeAlias = Callable[[argparse.Namespace], int]

EQUALIZE_EPILOG = """\
examples:
  bnfold equalize model.onnx balanced.onnx
  bnfold equalize model.onnx balanced.onnx --split-relu6 --json report.json
  bnfold equalize model.onnx                     explain: which ranges could be balanced, and which not

Batch norms are folded first. Channels between layers are carried at other sizes, all powers of two: float32
computes the same bits, and an int8 scale for a whole weight loses less. Quantize afterwards.

the JSON report:
  {"layers": [             one for each layer with a weight that mixes channels
     {"node": str,         its name
      "op": str,           its operator
      "outputs_before": [number, number],   the largest weight of an output channel: smallest, largest of them
      "outputs_after": [number, number],
      "inputs_before": [number, number],    the same for input channels
      "inputs_after": [number, number],
      "bits_before": number,   lost of int8 scales for whole tensors: by an output channel of the weight in
      "bits_after": number}],  the mean, by an input channel, and of the numbers that it reads
   "regions": [            what is carried at another size
     {"tensor": str,       one that stands for the region
      "channels": [int],   those that change
      "factors": [number], by how much, powers of two
      "tensors": [str],    all that follow it
      "made_by": [str],    the layers whose outputs are multiplied
      "read_by": [str]}],  the layers whose inputs are divided
   "kept": [               tensors at a layer that stay as they are
     {"tensor": str,
      "blocked_by": str,   the node or tensor that stopped it, or ""
      "reason": str,
      "cure": str}],       what would let it go, or ""
   "split": [str],         Clips that got bounds for each channel
   "bits_before": number,  the mean over the layers
   "bits_after": number,
   "notes": [str],
   "fold": object          the report of `bnfold fold`, or null with --no-fold
   "verification": object  as in `bnfold verify --help`, or null if the check was skipped
  }

exit status: 0 done; 1 the check failed, and nothing was written; 2 bad input or usage
"""


def add(
    command: Callable[[Command, str, str], Any], *, equalize: Command, check: Callable[[Any], None]
) -> None:
    """Add the command.

    Args:
        command: makes a parser for a function, with a summary and an epilog.
        equalize: runs `bnfold equalize`.
        check: adds the flags of the check and the output.
    """
    one = command(equalize, "fold, then balance weight ranges for int8, exactly", EQUALIZE_EPILOG)
    one.add_argument("model", metavar="IN.onnx", type=Path, help="the model; never changed without --force")
    one.add_argument(
        "out", metavar="OUT.onnx", type=Path, nargs="?", help="the file to write; without it, only explain"
    )
    one.add_argument("--no-fold", action="store_true", help="leave the batch norms as they are")
    one.add_argument(
        "--split-relu6",
        action="store_true",
        help="where it pays, let a Min with a bound for each channel follow a Clip, such as a Relu6, which "
        "holds all channels together otherwise",
    )
    one.add_argument(
        "--skip",
        metavar="NAME",
        action="append",
        default=[],
        help="the fold leaves the node of this name alone (repeatable)",
    )
    one.add_argument(
        "--shared",
        choices=("duplicate", "skip", "error"),
        default="duplicate",
        help="weights whose users need different changes: copy them, leave them, or stop (%(default)s)",
    )
    one.add_argument(
        "--save-as-external-data", action="store_true", help="put the weights into a file beside OUT"
    )
    one.add_argument(
        "--no-verify", action="store_true", help="do not run the models to check that nothing changed"
    )
    check(one)

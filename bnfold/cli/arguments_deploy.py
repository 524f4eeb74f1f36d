"""What `bnfold build` and `bnfold bench` accept, and their help."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Command: TypeAlias = Callable[[argparse.Namespace], int]
Shape: TypeAlias = "tuple[int, ...]"

BUILD_EPILOG = """\
examples:
  bnfold build model.onnx model.engine
  bnfold build model.onnx model.engine --shapes x:1x3x224x224,8x3x224x224,32x3x224x224
  bnfold build model.onnx model.engine --flavour tensorrt-rtx --compute-capability 8.9
  bnfold build folded.onnx half.engine --precision fp16 --input-data-path images.npz

An engine computes in the types that the ONNX file states; --precision rewrites them for the engine alone.

the JSON report:
  {"builder": str,                 what built the engine, with its version
   "compute_capabilities": [str],  for which GPUs; empty: the builder's own choice
   "shapes": {str: str},           as --shapes takes them, for the inputs with open sizes
   "bytes": int,                   size of the engine
   "seconds": number,              how long it took
   "batch_norms": [                one for each batch norm that is left in the model
     {"name": str,                 the node
      "op": str,                   its operator
      "outcome": str,              "fused" (in the layer of a conv or matmul), "stand-alone", "absent"
      "with": [str],               the convs and matmuls in the same layers
      "layers": [str]}],           the engine's layers
   "relus": [object],              the same for each ReLU
   "layers": [                     all layers of the engine
     {"name": str, "type": str,    in TensorRT's words
      "nodes": [str]}],            what it computes
   "notes": [str], "warnings": [str],  bnfold's and TensorRT's
   "precision": object             what --precision did, or null; docs/report.md has its keys
  }

exit status: 0 done; 1 half precision strays too far; 2 bad input or usage; nothing is written but with 0
"""

BENCH_EPILOG = """\
examples:
  bnfold bench model.onnx folded.onnx
  bnfold bench model.onnx folded.onnx --provider cuda --overwrite-input-shape x:8,3,224,224 --seconds 30
  bnfold bench model.engine folded.engine --json times.json

Each round runs every model once, in a random order; ratios are taken within rounds.

the JSON report:
  {"models": [                     one for each model, in the order given
     {"name": str,                 its file
      "provider": str,             what ran it
      "min": number, "p50": number, "p90": number, "p99": number,   seconds for one run
      "throughput": number,        runs in a second, one after the other
      "ratio": number,             median over the rounds of its time over the first model's
      "ratio_quartiles": [number, number]}],
   "rounds": int,
   "inputs": {str: [int]},         shapes
   "machine": str,
   "notes": [str]
  }

exit status: 0 done; 2 bad input or usage
"""


def add(
    command: Callable[[Command, str, str], Any],
    *,
    build: Command,
    bench: Command,
    shape: Callable[[str], Any],
    seed: Callable[[str], int],
) -> None:
    """Add both commands.

    Args:
        command: makes a parser for a function, with a summary and an epilog.
        build: runs `bnfold build`.
        bench: runs `bnfold bench`.
        shape: reads NAME:1,3,224,224.
        seed: reads a whole number from 0 on.
    """
    one = command(build, "build a TensorRT engine, and say where each batch norm went", BUILD_EPILOG)
    one.add_argument("model", metavar="MODEL.onnx", type=Path, help="the model; it is not changed")
    one.add_argument("engine", metavar="ENGINE", type=Path, help="the file to write, such as model.engine")
    one.add_argument(
        "--shapes",
        metavar="NAME:MIN,OPT,MAX",
        type=_profile,
        action="append",
        default=[],
        help="the smallest, usual and largest shape of an input with open sizes, such as "
        "x:1x3x8x8,8x3x8x8,32x3x8x8; one shape alone stands for all three (repeatable)",
    )
    one.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        help="the types of the engine: fp16 and bf16 convert a float32 model first, as `bnfold fold` does; "
        "fp32 refuses a model that is half already (default: the types of the model)",
    )
    one.add_argument(
        "--input-data-path",
        metavar="PATH",
        type=Path,
        help="inputs on which --precision measures ranges (default: random ones)",
    )
    one.add_argument(
        "--flavour",
        choices=("tensorrt", "tensorrt-rtx"),
        help="what builds (default: tensorrt if it is installed, else tensorrt-rtx, which needs no GPU)",
    )
    one.add_argument(
        "--compute-capability",
        metavar="8.0",
        action="append",
        default=[],
        help="a GPU to build for (repeatable; tensorrt-rtx only)",
    )
    one.add_argument(
        "--timing-cache",
        metavar="FILE",
        type=Path,
        help="measurements of earlier builds: read if it is there, and written anew (tensorrt only)",
    )
    _add_output(one, "list the ReLUs and all layers as well, and all that TensorRT complains of")

    two = command(bench, "time models side by side", BENCH_EPILOG)
    two.add_argument("model", metavar="A.onnx", type=Path, help="the model to compare with")
    two.add_argument(
        "others", metavar="B.onnx", type=Path, nargs="*", help="other models; .engine and .plan are engines"
    )
    two.add_argument(
        "--provider",
        choices=("cpu", "cuda", "tensorrt", "tensorrt-rtx"),
        help="what runs the models (default: cpu; for engines the TensorRT that is installed)",
    )
    two.add_argument(
        "--overwrite-input-shape",
        metavar="NAME:1,3,224,224",
        type=shape,
        action="append",
        default=[],
        help="shape of an input (repeatable); an open batch is 1 otherwise",
    )
    two.add_argument(
        "--input-data-path", metavar="PATH", type=Path, help="inputs to run with (default: random ones)"
    )
    length = two.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        metavar="X",
        type=_seconds,
        default=10.0,
        help="how long to measure, in all (%(default)s)",
    )
    length.add_argument("--runs", metavar="N", type=_count, help="how often each model runs instead")
    two.add_argument(
        "--threads", metavar="N", type=_count, help="of onnxruntime on the CPU (default: its own choice)"
    )
    two.add_argument("--seed", metavar="N", type=seed, help="seed of the random inputs and orders (0)")
    _add_output(two, "say where an internal error arose")


def _add_output(parser: Any, more: str) -> None:
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON")
    parser.add_argument("--force", action="store_true", help="write over existing files, by rename")
    parser.add_argument("-v", "--verbose", action="store_true", help=more)


def _profile(text: str) -> tuple[str, tuple[Shape, Shape, Shape]]:
    name, _, given = text.rpartition(":")  # the name itself may hold colons
    shapes = given.split(",")
    if (
        not name
        or len(shapes) not in (1, 3)
        or not all(re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", s) for s in shapes)
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an input's name and its smallest, usual and largest shape, such as "
            "x:1x3x224x224,8x3x224x224,32x3x224x224"
        )
    sizes = [tuple(map(int, shape.split("x"))) for shape in shapes]
    low, usual, high = sizes * 3 if len(sizes) == 1 else sizes
    return name, (low, usual, high)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value

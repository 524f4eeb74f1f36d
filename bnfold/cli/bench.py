"""`bnfold bench A.onnx [B.onnx ...]`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from bnfold.cli import flags
from bnfold.cli.terminal import check_target, show
from bnfold.errors import UsageError
from bnfold.progress import progress

SUMMARY = "time models side by side"
EPILOG = """\
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
IDLE = [flags.NO_JSON]


def add(parser: argparse.ArgumentParser) -> None:
    count = flags.parsed(flags.decimal, bool, "a whole number from 1 on")
    seconds = flags.parsed(float, lambda x: 0 < x < math.inf, "a number of seconds")
    parser.add_argument("model", metavar="A.onnx", type=Path, help="the model to compare with")
    parser.add_argument(
        "others", metavar="B.onnx", type=Path, nargs="*", help="other models; .engine and .plan are engines"
    )
    parser.add_argument(
        "--provider",
        choices=("cpu", "cuda", "tensorrt", "tensorrt-rtx"),
        help="what runs the models (default: cpu; for engines the TensorRT that is installed)",
    )
    flags.add(
        parser,
        flags.CHECK,
        without=(*flags.TOLERANCES, flags.TIMEOUT),
        seed="seed of the random inputs and orders (0)",
        overwrite_input_shape="shape of an input (repeatable); an open batch is 1 otherwise",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        metavar="X",
        type=seconds,
        default=10.0,
        help="how long to measure, in all (%(default)s)",
    )
    length.add_argument("--runs", metavar="N", type=count, help="how often each model runs instead")
    parser.add_argument(
        "--threads", metavar="N", type=count, help="of onnxruntime on the CPU (default: its own choice)"
    )
    flags.add(
        parser,
        flags.OUTPUT,
        force="write over existing files, by rename",
        verbose="say where an internal error arose",
    )


def run(args: argparse.Namespace) -> int:
    paths = [args.model, *args.others]
    if len(set(paths)) < len(paths):
        raise UsageError("one model is named twice; copy it to time it beside itself")
    check_target(args.json, args.force, never=[*paths, args.input_data_path])

    from bnfold.bench.compare import compare

    with progress("Timing", args.quiet) as advance:
        standings = compare(
            paths,
            provider=args.provider,
            inputs=flags.inputs_of(args),
            shapes=args.overwrite_input_shape,
            threads=args.threads,
            seconds=args.seconds,
            rounds=args.runs,
            seed=args.seed or 0,
            progress=advance,
        )
    show(args, standings)
    return 0

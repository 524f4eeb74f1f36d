"""`bnfold equalize IN.onnx [OUT.onnx]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnfold.cli import flags
from bnfold.cli.terminal import check_outputs, check_target, finish, save_model, timed
from bnfold.progress import progress

SUMMARY = "fold, then balance weight ranges for int8, exactly"
EPILOG = (
    """\
examples:
  bnfold equalize model.onnx balanced.onnx
  bnfold equalize model.onnx balanced.onnx --split-relu6 --json report.json
  bnfold equalize model.onnx balanced.onnx --calibration-data-path images.npz
  bnfold equalize model.onnx smaller.onnx --drop-dead-channels --input-range x:0,1
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
   "trial": {              both quantized and corrected, or null without --calibration-data-path
     "taken": str,         "equalized" or "as it was": what is written
     "equalized_db": [number], "before_db": [number],   signal over noise, one for each set of samples
     "samples": int,       in each set
     "compared": int,      others, that it was measured on
     "evaluator": str},    what ran the models
   "notes": [str],
   "fold": object          the report of `bnfold fold`, or null with --no-fold
   "verification": object, as in `bnfold verify --help`, or null if the check was skipped
   "summary": object       the model before and after, as in `bnfold fold --help`
  }
"""
    + flags.DONE
)
NOT_HERE = ("--precision", "--target")  # what is done to the result, by `bnfold fold`
OF_THE_FOLD = [flag for flag in (*flags.FOLD, "--no-merge-branches") if flag != "--shared"]
IDLE = [
    flags.Idle(OF_THE_FOLD, " with --no-fold", lambda a: a.no_fold),
    flags.NO_MERGES,
    flags.NO_RANGES,
    flags.Idle(list(flags.CHECK), " with --no-verify", lambda a: a.no_verify),
    flags.Idle(["--calibration-data-path"], " with --for int4", lambda a: a.quantize_for == "int4"),
    *flags.NO_OUT,
]
TRIAL: flags.Flags = {
    "--calibration-data-path": {
        "help": "quantize to int8 as it was and equalized, by samples along the first axis of arrays, and "
        "equalize only if that is better",
        "dest": "samples",
        "metavar": "PATH",
        "type": Path,
    }
}


def add(parser: argparse.ArgumentParser) -> None:
    flags.add(parser, flags.MODEL)
    flags.add_output(parser, f"the file to write{flags.EXPLAIN}")
    parser.add_argument("--no-fold", action="store_true", help="leave the batch norms as they are")
    parser.add_argument(
        "--split-relu6",
        action="store_true",
        help="where it pays, let a Min with a bound for each channel follow a Clip, such as a Relu6, which "
        "holds all channels together otherwise",
    )
    flags.add(
        parser,
        flags.FOLD,
        TRIAL,
        flags.WRITING,
        without=NOT_HERE,
        skip="the fold leaves the node of this name alone (repeatable)",
        shared="weights whose users need different changes: copy them, leave them, or stop (%(default)s)",
        no_verify="do not run the models to check that nothing changed",
    )
    flags.add(parser.add_argument_group("the check"), flags.CHECK)
    flags.add(parser, flags.OUTPUT)


def run(args: argparse.Namespace) -> int:
    check_outputs(args)
    check_target(args.out, args.force, never=[args.samples], replaces=args.model)
    check_target(args.json, args.force, never=[args.samples])
    check, options = flags.check_of(args), flags.fold_of(args)

    from bnfold.api.equalize import equalize_loaded
    from bnfold.onnx_graph.describe import Sketch
    from bnfold.onnx_graph.file.loaded import load

    sketch = Sketch()
    with timed("read, balanced and checked"), progress("Equalizing", args.quiet) as advance:
        loaded, report = equalize_loaded(
            load(args.model),
            options,
            check,
            fold=not args.no_fold,
            split_relu6=args.split_relu6,
            calibration=args.samples,
            advance=advance,
            sketch=sketch,
        )
    files = save_model(args, loaded)
    report.summary = sketch.summary(loaded, files)
    return finish(args, report, files)

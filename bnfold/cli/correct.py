"""`bnfold correct QUANTIZED.onnx [OUT.onnx] --float FOLDED.onnx --input-data-path PATH`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnfold.cli import flags
from bnfold.cli.terminal import check_target, finish, save_model, timed
from bnfold.progress import progress

SUMMARY = "correct the biases of a quantized model against its float model"
EPILOG = """\
examples:
  bnfold correct int8.onnx corrected.onnx --float folded.onnx --input-data-path images.npz
  bnfold correct int8.onnx --float folded.onnx --input-data-path images.npz      explain: what it would gain
  bnfold correct int4.onnx corrected.onnx --float folded.onnx --input-data-path images.npz --deviation

QUANTIZED is a QDQ model, as onnxruntime's quantize_static writes it, and --float the file that it was given.
Layer by layer, the mean of each channel over the samples is brought to the float model's by the layer's bias.
The integers of the weights stay what they are.

the JSON report:
  {"layers": [             what was corrected, in order
     {"node": str,         its name
      "op": str,           its operator
      "bits": int,         that the codes of its weight need; 0: it is not quantized
      "mean_before": number,   the error of its output's mean in the quantized model: the root mean square
      "mean_after": number,    over the channels, relative to that of the float layer's values
      "deviation_before": number,   the same of the standard deviation
      "deviation_after": number,
      "bias": str,         the type in which the bias is stored
      "added": bool,       whether there was none
      "scaled": bool,      whether the weight's scales were changed for the deviation
      "note": str}],       among others that the means are those of the sum that it ends
   "left": [               layers that stay as they were
     {"node": str, "op": str, "reason": str}],
   "outputs": [            signal over noise in dB against the float model; null: no noise
     {"name": str, "before": number, "after": number}],
   "samples": int,         that the correction was measured with
   "compared": int,        that the outputs were compared on
   "held_back": bool,      whether those are others
   "weights": int,         whose integers were found to be the same, bit for bit
   "evaluator": str,       what ran the models
   "summary": object       the model before and after, as in `bnfold fold --help`
  }

exit status: 0 done; 1 the outputs became worse, and nothing was written; 2 bad input or usage
"""
IDLE = [*flags.NO_OUT]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="QUANTIZED.onnx", type=Path, help="the model; never changed without --force"
    )
    flags.add_output(parser, f"the file to write{flags.EXPLAIN}")
    parser.add_argument(
        "--float",
        dest="float_model",
        metavar="FOLDED.onnx",
        type=Path,
        required=True,
        help="the float model that was quantized",
    )
    parser.add_argument(
        "--input-data-path",
        metavar="PATH",
        type=Path,
        required=True,
        help="samples, along the first axis of an array for each input, such as those of the calibration",
    )
    parser.add_argument(
        "--deviation",
        action=argparse.BooleanOptionalAction,
        help="match each channel's deviation too, by the weight's scales (default: below 8 bits)",
    )
    flags.add(
        parser,
        flags.WRITING,
        no_verify="do not hold samples back to compare the outputs on",
    )
    flags.add(parser, flags.OUTPUT)


def run(args: argparse.Namespace) -> int:
    given = [args.float_model, args.input_data_path]
    check_target(args.out, args.force, never=given, replaces=args.model)
    check_target(args.json, args.force, never=[args.model, *given, args.out])

    from bnfold.api.correct import correct_loaded
    from bnfold.onnx_graph.describe import Sketch
    from bnfold.onnx_graph.file.loaded import load

    sketch = Sketch()
    with timed("read, corrected and compared"), progress("Correcting", args.quiet) as advance:
        loaded, report = correct_loaded(
            load(args.model),
            load(args.float_model),
            flags.inputs_of(args),
            deviation=args.deviation,
            verify=not args.no_verify,
            advance=advance,
            sketch=sketch,
        )
    files = save_model(args, loaded)
    report.summary = sketch.summary(loaded, files)
    return finish(args, report, files)

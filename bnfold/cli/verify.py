"""`bnfold verify A.onnx B.onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnfold.cli import flags
from bnfold.cli.terminal import check_target, show, timed

SUMMARY = "run two models on the same inputs, and compare what they give"
EPILOG = """\
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
      "ok": bool,          whether the error is within the tolerance, or rounding
      "note": str,
      "rounding": bool}],  beyond the usual tolerance, but no more than the rounding of A
   "evaluator": str,       what ran both models
   "status": str,          "passed", "failed" or "not run"
   "reason": str,          why it failed, or was not run
   "rtol": number, "atol": number,   max|A - B| may be atol + rtol * max|A|
   "notes": [str],
   "proof": object         as in `bnfold prove --help`, where a fold asked for one, or null
  }

exit status: 0 the models agree; 1 they do not; 2 bad input or usage, or neither could be told
"""
IDLE = [flags.NO_JSON]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="A.onnx", type=Path, help="the model to trust")
    parser.add_argument("other", metavar="B.onnx", type=Path, help="the model to judge")
    flags.add(parser.add_argument_group("the check"), flags.CHECK)
    flags.add(parser, flags.OUTPUT)


def run(args: argparse.Namespace) -> int:
    check_target(args.json, args.force, never=[args.model, args.other, args.input_data_path])
    check = flags.check_of(args)

    from bnfold.onnx_graph.file.loaded import load
    from bnfold.verify.process import verify

    with timed("compared"):
        result = verify(load(args.model), load(args.other), check)
    show(args, result)
    return {"passed": 0, "failed": 1}.get(result.status, 2)

"""`bnfold fold IN.onnx [OUT.onnx]`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bnfold.cli import flags
from bnfold.cli.terminal import (
    check_outputs,
    check_target,
    finish,
    gate,
    save_model,
    size,
    tell,
    timed,
    write,
)
from bnfold.options import CHECKS
from bnfold.progress import progress

SUMMARY = "fold every batch norm that can vanish, and say why the others cannot"
EPILOG = (
    """\
examples:
  bnfold fold model.onnx                         explain: what can fold, what cannot, and why
  bnfold fold model.onnx folded.onnx             fold, check that nothing changed, write
  bnfold fold model.onnx folded.onnx --json report.json --overwrite-input-shape x:1,3,224,224
  bnfold fold model.onnx folded.onnx --target tensorrt
  bnfold fold model.onnx half.onnx --precision fp16 --input-data-path images.npz
  bnfold fold model.onnx folded.onnx --no-merge-branches
  bnfold fold model.onnx folded.onnx --for int8
  bnfold fold model.onnx folded.onnx --for int8 --calibration-data-path images.npz
  bnfold fold model.onnx smaller.onnx --drop-dead-channels --input-range x:0,1
  bnfold fold model.onnx folded.onnx --certificate folded.npz
  bnfold fold model.onnx --html report.html

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
      "multiplications_before": int, "multiplications_after": int,   of one run
      "noise": {           what rounding adds, as predicted from the weights, or null
        "target": str,     as in --for; without it "int8-per-tensor"
        "apart_db": number, "merged_db": number}}],   relative to what the nodes give together
   "apart": [              linear nodes that read one tensor, or each other, and stay several
     {"names": [str], "reason": str,
      "noise": object}],   as above, where rounding is the reason
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
   "quantize_for": str,    what --for said, or null
   "guard": {              both plans quantized and corrected, or null without --calibration-data-path
     "taken": str,         "merged" or "apart"
     "merged_db": [number], "apart_db": [number],   signal over noise, one for each set of samples
     "samples": int,       in each set
     "compared": int,      others, that it was measured on
     "evaluator": str},    what ran the models
   "notes": [str],
   "verification": object  as in `bnfold verify --help`, or null if the check was skipped
   "precision": object     what --precision did, or null; docs/report.md has its keys
   "summary": {            the model before and after
     "before": {
        "opset": int,
        "inputs": [str], "outputs": [str],   as "x:1,3,224,224:float32"
        "operators": {str: int},   how often each occurs
        "parameters": int,         stored numbers
        "multiplications": int,    of layers, in one run (an open size counts as 1); null if not known
        "bytes": int},             data files included; null if there is no file
     "after": object,      the same
     "files": [{"path": str, "bytes": int}]}   those of the model that were written
  }
With `--json -` and an error: {"error": {"kind": str, "message": str, "status": int}}, with the keys above
as far as there is a report.
"""
    + flags.DONE_OR_KEPT
)


def unchecked(args: argparse.Namespace) -> bool:
    """Whether it was asked not to check the fold."""
    return bool(args.no_verify or args.check == "none")


IDLE = [
    flags.NO_MERGES,
    flags.Idle(["--lower-batch-statistics"], ": --target tensorrt does more", lambda a: a.target != "onnx"),
    flags.NO_RANGES,
    flags.Idle(
        ["--calibration-data-path"], " without --for int8", lambda a: a.quantize_for in (None, "int4")
    ),
    flags.Idle(["--check"], " with --no-verify", lambda a: a.no_verify),
    flags.Idle(list(flags.TOLERANCES), " with --no-verify", unchecked),
    flags.Idle(list(flags.CHECK), " with --no-verify", lambda a: unchecked(a) and not a.precision),
    flags.NO_WORDS,
    flags.Idle(["--certificate"], " without OUT", lambda a: a.out is None),
    *flags.NO_OUT,
]


BY: flags.Flags = {
    "--check": {
        "help": "run both models, let a proof decide and runs where it cannot, do both, or none (default: "
        "proof; both where inputs or tolerances are given)",
        "choices": [*CHECKS, "none"],
    }
}
PAGE: flags.Flags = {
    "--html": {
        "help": "write the report as a page: both graphs, and the way of each batch norm",
        "metavar": "FILE",
        "type": Path,
    }
}
GUARD: flags.Flags = {
    "--calibration-data-path": {
        "help": "with --for int8: quantize with branches merged and apart, by samples along the first axis "
        "of arrays, and merge only if that is no worse",
        "dest": "calibration",
        "metavar": "PATH",
        "type": Path,
    }
}
CERTIFICATE: flags.Flags = {
    "--certificate": {
        "help": "write what became of each tensor, for bnfold prove",
        "metavar": "FILE",
        "type": Path,
    }
}


def add(parser: argparse.ArgumentParser) -> None:
    flags.add(parser, flags.MODEL)
    flags.add_output(parser, f"the folded model{flags.EXPLAIN}")
    flags.add(parser, flags.FOLD, GUARD, flags.WRITING, CERTIFICATE, PAGE)
    flags.add(parser.add_argument_group("the check"), BY, flags.CHECK)
    flags.add(parser, flags.LEDGER, flags.OUTPUT)


def run(args: argparse.Namespace) -> int:
    check_outputs(args)
    check_target(args.out, args.force, never=[args.calibration], replaces=args.model)
    check_target(args.json, args.force, never=[args.calibration])
    others = [args.model, args.input_data_path, args.calibration, args.out, args.json]
    check_target(args.certificate, args.force, never=others)
    check_target(args.html, args.force, never=[*others, args.certificate])
    args.no_verify = unchecked(args)
    check, options = flags.check_of(args), flags.fold_of(args)
    check = replace(check, check=None if args.check == "none" else args.check)
    options = replace(options, certificate=args.certificate is not None)

    from bnfold.api import fold_onnx as api
    from bnfold.onnx_graph.describe import Sketch
    from bnfold.onnx_graph.file.loaded import load

    sketch = Sketch()
    with timed("read, folded and checked"), progress("Folding", args.quiet) as advance:
        drawn = args.html is not None
        loaded, report = api.fold_loaded(load(args.model), options, check, advance, sketch, drawn)
    files = save_model(args, loaded)
    report.summary = sketch.summary(loaded, files)
    finish(args, report, files, " to fold into it")
    if args.html is not None:
        write(args.html, report.to_html(args.model.name).encode())
        tell(f"wrote {args.html} ({size(args.html)})")
    if report.certificate is not None:
        write(args.certificate, report.certificate.to_bytes())
        tell(f"wrote {args.certificate} ({size(args.certificate)})")
    return gate(args, report)

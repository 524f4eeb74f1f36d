"""`bnfold build MODEL.onnx ENGINE`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.cli import flags
from bnfold.cli.terminal import LOG, as_json, check_target, tell, warn_unchecked
from bnfold.errors import UsageError
from bnfold.options import PRECISIONS, Check
from bnfold.progress import progress
from bnfold.report.summary import in_bytes

if TYPE_CHECKING:
    from bnfold.onnx_graph.file.loaded import Loaded
    from bnfold.report.precision import PrecisionReport

SUMMARY = "build a TensorRT engine, and say where each batch norm went"
EPILOG = """\
examples:
  bnfold build model.onnx model.engine
  bnfold build model.onnx model.engine --shapes x:1,3,224,224/8,3,224,224/32,3,224,224
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
IDLE = [
    flags.Idle(
        ["--input-data-path"], " without --precision fp16 or bf16", lambda a: a.precision not in PRECISIONS
    )
]
WARNINGS = 3  # of TensorRT's that are shown without -v


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx", type=Path, help="the model; it is not changed")
    flags.add_output(parser, "the file to write, such as model.engine", "ENGINE")
    parser.add_argument(
        "--shapes",
        metavar="[NAME:]MIN/OPT/MAX",
        type=flags.profile,
        action=flags.ByName,
        help="the smallest, usual and largest shape of an input with open sizes, such as "
        "x:1,3,8,8/8,3,8,8/32,3,8,8; one shape alone stands for all three, and one input needs no name "
        "(repeatable)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", *PRECISIONS),
        help="the types of the engine: fp16 and bf16 convert a float32 model first, as `bnfold fold` does; "
        "fp32 refuses a model that is half already (default: the types of the model)",
    )
    parser.add_argument(
        "--input-data-path",
        metavar="PATH",
        type=Path,
        help="inputs on which --precision measures ranges (default: random ones)",
    )
    parser.add_argument(
        "--flavour",
        choices=("tensorrt", "tensorrt-rtx"),
        help="what builds (default: tensorrt if it is installed, else tensorrt-rtx, which needs no GPU)",
    )
    parser.add_argument(
        "--compute-capability",
        metavar="8.0",
        action="append",
        default=[],
        help="a GPU to build for (repeatable; tensorrt-rtx only)",
    )
    parser.add_argument(
        "--timing-cache",
        metavar="FILE",
        type=Path,
        help="measurements of earlier builds: read if it is there, and written anew (tensorrt only)",
    )
    flags.add(
        parser,
        flags.OUTPUT,
        force="write over existing files, by rename",
        verbose="list the ReLUs and all layers as well, and all that TensorRT complains of",
    )


def run(args: argparse.Namespace) -> int:
    if args.out.suffix == ".onnx":
        raise UsageError(f"{args.out} would be an engine, not an ONNX model: name it .engine or .plan")
    check_target(args.out, args.force, never=[args.model, args.input_data_path])
    check_target(args.json, args.force, never=[args.model, args.out])
    check_target(args.timing_cache, True, never=[args.model, args.out, args.json])  # is written anew

    from bnfold.onnx_graph.file.data_file import locations_of
    from bnfold.onnx_graph.file.loaded import load
    from bnfold.onnx_graph.file.whole_files import Output
    from bnfold.tensorrt import engine
    from bnfold.tensorrt.model import ParseError

    original = load(args.model)
    for name in locations_of(original.proto):
        for path in (args.out, args.json, args.timing_cache):
            check_target(path, True, never=[args.model.parent / name])
    loaded, types = _in_precision(original, args)
    try:
        with progress("Building", args.quiet) as advance:
            built = engine.build(
                loaded,
                flavour=args.flavour,
                shapes=args.shapes,
                compute_capabilities=args.compute_capability,
                timing_cache=_content(args.timing_cache),
                progress=advance,
            )
    except ParseError as error:
        for detail in error.details:
            LOG.info("%s", detail)
        raise
    with Output() as output:
        if args.timing_cache:
            output.write(args.timing_cache, [built.timing_cache])
        args.document = {**built.to_dict(), "precision": None if types is None else types.to_dict()}
        if args.json:
            output.write(args.json, [as_json(args.document)])
        output.write(args.out, [memoryview(built.plan)])
        output.commit()
    if types is not None:
        tell(str(types))
        warn_unchecked(types)
    for line in _story(built, args.verbose):
        tell(line)
    size, gpus = in_bytes(memoryview(built.plan).nbytes), ", ".join(built.compute_capabilities)
    by = built.builder + f" for compute capability {gpus}" * bool(gpus)
    tell(f"wrote {args.out} ({size}), built by {by} in {built.seconds:.1f} s")
    return 0


def _in_precision(loaded: Loaded, args: argparse.Namespace) -> tuple[Loaded, PrecisionReport | None]:
    """The model in the types that were asked for, and what became of its numbers."""
    if args.precision is None:
        return loaded, None
    if args.precision not in PRECISIONS:
        from bnfold.onnx_graph.run.widened import working_type

        working = working_type(loaded)
        if working != "float32":
            raise UsageError(f"--precision {args.precision}: the model computes in {working} already")
        return loaded, None
    from bnfold.api.convert import convert

    usual = {name: sizes[1] for name, sizes in (args.shapes or {}).items()}
    inputs = flags.inputs_of(args)
    how = Check(inputs=inputs, shapes=None if inputs else usual, apart=True)
    return convert(loaded, args.precision, how)


def _content(cache: Path | None) -> bytes | None:
    """Of a timing cache; nothing yet if there is none."""
    if cache is None:
        return None
    return cache.read_bytes() if cache.exists() else b""


def _story(built: Any, verbose: bool) -> list[str]:
    """What is told of an engine, line by line."""
    lines = []
    if built.placement is not None:
        lines += built.placement.lines(everything=verbose)
        if any(place.op == "BatchNormalization" for place in built.placement.batch_norms):
            lines.append("note: `bnfold fold` says which of these can vanish from the model, and folds them")
    lines += [f"note: {note}" for note in built.notes]
    shown = built.warnings if verbose else built.warnings[:WARNINGS]
    lines += [f"warning of TensorRT's: {text}" for text in shown]
    if len(shown) < len(built.warnings):
        lines.append(f"and {len(built.warnings) - len(shown)} more warnings; -v lists them")
    return lines

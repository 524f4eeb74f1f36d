"""The commands of deployment: `bnfold build`, `bnfold bench`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.cli.terminal import (
    check_target,
    in_bytes,
    printable,
    say,
    write_json,
)
from bnfold.errors import UsageError
from bnfold.options import Check
from bnfold.progress import progress

if TYPE_CHECKING:
    from bnfold.onnx_graph.file.loaded import Loaded
    from bnfold.report.precision import PrecisionReport

HALF = ("fp16", "bf16")
WARNINGS = 3  # of TensorRT's that are shown without -v


def build(args: argparse.Namespace) -> int:
    """`bnfold build MODEL.onnx ENGINE`."""
    if args.engine.suffix == ".onnx":
        raise UsageError(f"{args.engine} would be an engine, not an ONNX model: name it .engine or .plan")
    shapes = _once("--shapes", args.shapes)
    if args.input_data_path and args.precision not in HALF:
        raise UsageError("--input-data-path has nothing to do without --precision fp16 or bf16")
    check_target(args.engine, args.force, never=[args.model, args.input_data_path])
    if args.json:
        check_target(args.json, args.force, never=[args.model, args.engine])
    if args.timing_cache:  # which is meant to be written anew
        check_target(args.timing_cache, True, never=[args.model, args.engine, args.json])

    import json

    from bnfold.onnx_graph.file import loaded as files
    from bnfold.onnx_graph.file.data_file import locations_of
    from bnfold.onnx_graph.file.whole_files import Output
    from bnfold.tensorrt import engine
    from bnfold.tensorrt.model import ParseError

    original = files.load(args.model)
    for name in locations_of(original.proto):
        for path in filter(None, (args.engine, args.json, args.timing_cache)):
            check_target(path, True, never=[args.model.parent / name])
    loaded, types = _in_precision(original, args)
    try:
        with progress("Building") as advance:
            built = engine.build(
                loaded,
                flavour=args.flavour,
                shapes=shapes,
                compute_capabilities=args.compute_capability,
                timing_cache=_content(args.timing_cache),
                progress=advance,
            )
    except ParseError as error:
        for detail in error.details:
            say(args, detail)
        raise
    with Output() as output:
        if args.timing_cache:
            output.write(args.timing_cache, [built.timing_cache])
        if args.json:
            found = {**built.to_dict(), "precision": None if types is None else types.to_dict()}
            output.write(args.json, [json.dumps(found, indent=1).encode() + b"\n"])
        output.write(args.engine, [memoryview(built.plan)])
        output.commit()
    if types is not None:
        print(printable(str(types)))
    for line in _story(built, args.verbose):
        print(printable(line))
    target = f" for compute capability {', '.join(built.compute_capabilities)}" * bool(
        built.compute_capabilities
    )
    size = in_bytes(memoryview(built.plan).nbytes)
    print(
        printable(f"wrote {args.engine} ({size}), built by {built.builder}{target} in {built.seconds:.1f} s")
    )
    return 0


def bench(args: argparse.Namespace) -> int:
    """`bnfold bench A.onnx [B.onnx ...]`."""
    paths = [args.model, *args.others]
    shapes = _once("--overwrite-input-shape", args.overwrite_input_shape)
    if len(set(paths)) < len(paths):
        raise UsageError("one model is named twice; copy it to time it beside itself")
    if args.json:
        check_target(args.json, args.force, never=[*paths, args.input_data_path])
    elif args.force:
        raise UsageError("--force has nothing to do without --json")

    from bnfold.bench.compare import compare
    from bnfold.onnx_graph.run.inputs import load_inputs

    with progress("Timing") as advance:
        standings = compare(
            paths,
            provider=args.provider,
            inputs=load_inputs(args.input_data_path) if args.input_data_path else None,
            shapes=shapes,
            threads=args.threads,
            seconds=args.seconds,
            rounds=args.runs,
            seed=args.seed or 0,
            progress=advance,
        )
    if args.json:
        write_json(args.json, standings.to_dict())
    print(printable(str(standings)))
    return 0


def _in_precision(loaded: Loaded, args: argparse.Namespace) -> tuple[Loaded, PrecisionReport | None]:
    """The model in the types that were asked for, and what became of its numbers."""
    if args.precision is None:
        return loaded, None
    if args.precision not in HALF:
        from bnfold.onnx_graph.run.widened import working_type

        working = working_type(loaded)
        if working != "float32":
            raise UsageError(f"--precision {args.precision}: the model computes in {working} already")
        return loaded, None
    from bnfold.api.convert import convert
    from bnfold.onnx_graph.run.inputs import load_inputs

    usual = {name: sizes[1] for name, sizes in args.shapes}
    inputs = load_inputs(args.input_data_path) if args.input_data_path else None
    return convert(loaded, args.precision, Check(inputs=inputs, shapes=None if inputs else usual))


def _once(flag: str, given: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(given)) < len(given):
        raise UsageError(f"{flag} names one input twice")
    return dict(given)


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

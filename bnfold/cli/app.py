"""The command line: `bnfold fold`, `verify`, `export`, and so on. One thin function for each command.

Exit status: 0 done; 1 the check failed, and nothing was written; 2 bad input or usage; 130 interrupted.
Whatever does the work is imported by the command that needs it, so `bnfold --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence

from bnfold.cli.build import bench, build
from bnfold.cli.equalize import equalize
from bnfold.cli.flags import parser
from bnfold.cli.terminal import (
    check_of,
    check_outputs,
    check_target,
    complain,
    printable,
    say,
    size,
    write_json,
)
from bnfold.errors import BnfoldError, UsageError, VerifyError
from bnfold.options import Fold
from bnfold.progress import progress


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status. `argv`: without the program's name (None: sys.argv's)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show must not end the program
            stream.reconfigure(errors="backslashreplace")
    commands = parser(fold=fold, verify=verify, export=export, build=build, bench=bench, equalize=equalize)
    args = commands.parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return complain("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output, `head` say, has left; the files are written by then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # what a shell reports for a program ended by SIGPIPE
    except VerifyError as error:
        return complain(str(error), 1)
    except BnfoldError as error:
        return complain(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}", 2)
    except MemoryError:
        return complain(f"not enough memory for {args.model}", 2)
    except Exception as error:
        if args.verbose:
            traceback.print_exc()
        kind = type(error).__name__
        return complain(f"internal error, please report it with what -v prints ({kind}: {error})", 2)


def fold(args: argparse.Namespace) -> int:
    """`bnfold fold IN.onnx [OUT.onnx]`."""
    _refuse_idle_flags(args)
    check_outputs(args)

    check = check_of(args)

    from bnfold.api import fold_onnx as api
    from bnfold.onnx_graph.file.save import save

    options = Fold(
        shared=args.shared,
        skip=args.skip,
        target=args.target,
        lower_batch_statistics=args.lower_batch_statistics,
        merge_branches=args.merge_branches,
        drop_dead_channels=args.drop_dead_channels,
        input_ranges=dict(args.input_range),
        precision=args.precision,
    )
    begin = time.monotonic()
    with progress("Folding") as advance:
        loaded, report = api.fold_file(
            args.model,
            options,
            check,
            advance,
        )
    say(args, f"read, folded and checked in {time.monotonic() - begin:.2f} s")
    if args.out:
        begin = time.monotonic()
        save(loaded, args.out, force=args.force, external=args.save_as_external_data or None)
        say(args, f"written in {time.monotonic() - begin:.2f} s")
    if args.json:
        write_json(args.json, report.to_dict())
    print(printable(str(report)))
    if report.verification is not None and report.verification.status == "not run":
        complain(f"warning: nothing was verified: {report.verification.reason}", 0)
    if args.out:
        print(printable(f"wrote {args.out} ({size(args.model)} -> {size(args.out)})"))
    else:
        print("nothing was written: name an output file to fold into it")
    return 0


def verify(args: argparse.Namespace) -> int:
    """`bnfold verify A.onnx B.onnx`."""
    if args.json:
        check_target(args.json, args.force, never=[args.model, args.other, args.input_data_path])
    elif args.force:
        raise UsageError("--force has nothing to do without --json")

    check = check_of(args)

    from bnfold.onnx_graph.file import loaded as files
    from bnfold.verify.models import verify as compare

    begin = time.monotonic()
    result = compare(files.load(args.model), files.load(args.other), check)
    say(args, f"compared in {time.monotonic() - begin:.2f} s")
    if args.json:
        write_json(args.json, result.to_dict())
    print(printable(str(result)))
    return {"passed": 0, "failed": 1}.get(result.status, 2)


def export(args: argparse.Namespace) -> int:
    """`bnfold export package.module:factory OUT.onnx`."""
    check_target(args.out, args.force, never=[args.weights])
    if args.json:
        check_target(args.json, args.force, never=[args.weights, args.out])
    try:
        import torch
    except ModuleNotFoundError:
        raise UsageError("bnfold export needs torch: pip install 'bnfold[torch]'") from None

    from bnfold.api import export as api_export
    from bnfold.cli.factory import load_module

    begin = time.monotonic()
    module = load_module(args.model, args.weights)
    torch.manual_seed(args.seed or 0)
    inputs = tuple(torch.randn(shape) for shape in args.input_shape)
    report = api_export.export(
        module,
        inputs,
        args.out,
        opset=args.opset,
        external_data=args.save_as_external_data or None,
        force=args.force,
        verify=not args.no_verify,
        shared=args.shared,
        skip=args.skip,
        target=args.target,
        lower_batch_statistics=args.lower_batch_statistics,
        merge_branches=args.merge_branches,
        rtol=args.check_rtol,
        atol=args.check_atol,
    )
    say(args, f"exported, folded and checked in {time.monotonic() - begin:.2f} s")
    if args.json:
        write_json(args.json, report.to_dict())
    print(printable(str(report)))
    print(printable(f"wrote {args.out} ({size(args.out)})"))
    return 0


def _refuse_idle_flags(args: argparse.Namespace) -> None:
    """A flag that would have no effect is a mistake worth telling."""
    if args.lower_batch_statistics and args.target != "onnx":
        raise UsageError("--lower-batch-statistics has nothing to do: --target tensorrt does more")
    if args.input_range and not args.drop_dead_channels:
        raise UsageError("--input-range has nothing to do without --drop-dead-channels")
    if len(dict(args.input_range)) < len(args.input_range):
        raise UsageError("--input-range names one input twice")
    if args.no_verify:
        measured = () if args.precision else ("input_data_path", "overwrite_input_shape", "seed")
        for flag in ("check_rtol", "check_atol", *measured):
            if getattr(args, flag) not in (None, []):
                raise UsageError(f"--{flag.replace('_', '-')} has nothing to do with --no-verify")

"""The command of compression: `bnfold equalize`."""

from __future__ import annotations

import argparse
import time

from bnfold.cli.terminal import (
    check_of,
    check_outputs,
    complain,
    printable,
    say,
    size,
    write_json,
)
from bnfold.errors import UsageError
from bnfold.options import Fold


def equalize(args: argparse.Namespace) -> int:
    """`bnfold equalize IN.onnx [OUT.onnx]`."""
    _refuse_idle_flags(args)
    check_outputs(args)
    check = check_of(args)

    from bnfold.api import equalize as api_equalize
    from bnfold.onnx_graph.file.loaded import load
    from bnfold.onnx_graph.file.save import save

    begin = time.monotonic()
    options, model = Fold(args.shared, args.skip), load(args.model)
    loaded, report = api_equalize.equalize_loaded(
        model, options, check, fold=not args.no_fold, split_relu6=args.split_relu6
    )
    say(args, f"read, balanced and checked in {time.monotonic() - begin:.2f} s")
    if args.out:
        save(loaded, args.out, force=args.force, external=args.save_as_external_data or None)
    if args.json:
        write_json(args.json, report.to_dict())
    print(printable(str(report)))
    if report.verification is not None and report.verification.status == "not run":
        complain(f"warning: nothing was verified: {report.verification.reason}", 0)
    if args.out:
        print(printable(f"wrote {args.out} ({size(args.model)} -> {size(args.out)})"))
    else:
        print("nothing was written: name an output file")
    return 0


def _refuse_idle_flags(args: argparse.Namespace) -> None:
    """A flag that would have no effect is a mistake worth telling."""
    if args.no_fold and args.skip:
        raise UsageError("--skip has nothing to do with --no-fold")
    if args.no_verify:
        for flag in ("check_rtol", "check_atol", "input_data_path", "overwrite_input_shape", "seed"):
            if getattr(args, flag) not in (None, []):
                raise UsageError(f"--{flag.replace('_', '-')} has nothing to do with --no-verify")

"""`bnfold export package.module:factory OUT.onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnfold.cli import flags
from bnfold.cli.terminal import check_target, finish, gate, timed
from bnfold.errors import UsageError

SUMMARY = "export a torch module to ONNX, folded, and check it against the module"
EPILOG = (
    """\
examples:
  bnfold export mynet.models:small small.onnx --input-shape 1,3,224,224
  bnfold export mynet.models:small small.onnx --weights small.safetensors --input-shape 1,3,224,224
  bnfold export mynet.models:small small.onnx --input-shape 1,3,224,224 --input-name image --output-name score
  bnfold export mynet.models:small half.onnx --input-shape 1,3,224,224 --precision fp16
  bnfold export mynet.models:small slim.onnx --input-shape 1,3,8,8 --drop-dead-channels --input-range x:0,1

The factory is called without arguments and returns a torch.nn.Module. It is your own code: it is imported
(from the working folder first) and runs. Weights are data: files that would run code are refused.
Inputs have the names of the parameters of its forward, unless they are given others.
"""
    + flags.DONE_OR_KEPT
)
IDLE = [
    flags.NO_MERGES,
    flags.NO_RANGES,
    flags.NO_WORDS,
    flags.Idle([flags.TIMEOUT], " with --no-verify", lambda a: a.no_verify and not a.precision),
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="package.module:factory", help="what makes the torch module")
    parser.add_argument("out", metavar="OUT.onnx", type=Path, help="the file to write")
    parser.add_argument(
        "--weights", metavar="FILE", type=Path, help="its weights: a state_dict, .safetensors or torch's own"
    )
    parser.add_argument(
        "--input-shape",
        metavar="1,3,224,224",
        type=flags.sizes,
        action="append",
        required=True,
        help="shape of an input, in order (repeatable)",
    )
    for what, place in (("input", "the parameter of forward"), ("output", "torch")):
        parser.add_argument(
            f"--{what}-name",
            metavar="NAME",
            action="append",
            default=[],
            help=f"name of an {what}, in order (repeatable; default: that of {place})",
        )
    parser.add_argument("--opset", metavar="N", type=flags.whole, help="version of the default operators")
    flags.add(parser, flags.FOLD, flags.WRITING, without=("--freeze-initializers",))
    check = parser.add_argument_group("the check")
    without = ("--input-data-path", "--overwrite-input-shape")
    flags.add(check, flags.CHECK, without=without)
    flags.add(parser, flags.LEDGER, flags.OUTPUT)


def run(args: argparse.Namespace) -> int:
    check_target(args.out, args.force, never=[args.weights])
    check_target(args.json, args.force, never=[args.weights, args.out])
    options = flags.fold_of(args)
    try:
        import torch
    except ModuleNotFoundError:
        raise UsageError("bnfold export needs torch: pip install 'bnfold[torch]'") from None

    from bnfold.api.export import OTHERS, export
    from bnfold.cli.factory import load_module, random_inputs

    with timed("exported, folded and checked"):
        module = load_module(args.model, args.weights)
        torch.manual_seed(args.seed or 0)
        report = export(
            module,
            random_inputs(module, args.input_shape, args.input_ranges or {}, args.input_name),
            args.out,
            input_names=args.input_name,
            output_names=args.output_name,
            opset=args.opset,
            external_data=args.save_as_external_data or None,
            force=args.force,
            verify=not args.no_verify,
            rtol=args.check_rtol,
            atol=args.check_atol,
            apart=True,
            timeout=args.check_timeout,
            **{name: value for name, value in vars(options).items() if name not in OTHERS},
        )
    files = [] if report.summary is None else report.summary.files
    finish(args, report, [Path(file.path) for file in files])
    return gate(args, report)

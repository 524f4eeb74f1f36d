"""`bnfold export package.module:factory OUT.onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bnfold.cli import flags
from bnfold.cli.terminal import check_target, finish, gate, timed
from bnfold.errors import UsageError
from bnfold.origin import extra

SUMMARY = "export a torch module to ONNX, folded, and check it against the module"
EPILOG = (
    """\
examples:
  bnfold export mynet.models:small small.onnx --input 1,3,224,224
  bnfold export mynet.models:small small.onnx --weights small.safetensors --input image:batch,3,224,224
  bnfold export mynet.models:small small.onnx --arg width=2 --arg pretrained=False --input 1,3,224,224
  bnfold export 'mynet.models:small(width=2)' small.onnx --input 1,3,224,224
  bnfold export mynet.text:encoder text.onnx --input ids:batch,length=128:int64 --input mask:batch,length:bool
  bnfold export mynet.models:small small.onnx --input 1,3,224,224 --input-names image --output-names score
  bnfold export mynet.models:small half.onnx --input 1,3,224,224 --precision fp16
  bnfold export mynet.models:small slim.onnx --input 1,3,8,8 --drop-dead-channels --input-range x:0,1

The factory returns a torch.nn.Module. It is your own code: it is imported (from the working folder first) and
runs, and so does a Python expression in its place. Weights are data: files that would run code are refused.

An input is [NAME:]SHAPE[:TYPE]. A NAME that is a parameter of the module's forward is that one; the other
inputs are its parameters in their order, and NAME is what the file calls them. A size that is a word stays
open, and has that name in the file; with a number behind it, height=512, that is its size in the example
(otherwise 2 on the first axis, and 64 on the others). TYPE is numpy's name (default: that of the
weights).
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
    flags.add_output(parser, "the file to write")
    parser.add_argument(
        "--weights", metavar="FILE", type=Path, help="its weights: a state_dict, .safetensors or torch's own"
    )
    parser.add_argument(
        "--arg",
        dest="arguments",
        metavar="NAME=VALUE",
        type=_argument,
        action=flags.ByName,
        help="an argument of the factory: a Python value, such as 2, True or [1,2], else text (repeatable)",
    )
    parser.add_argument(
        "--input",
        "--input-shape",
        dest="inputs",
        metavar="[NAME:]SHAPE[:TYPE]",
        type=flags.given,
        action="append",
        required=True,
        help="an input, such as 1,3,224,224 or image:batch,3,224,224 or ids:batch,128:int64 (repeatable)",
    )
    for what, place in (("input", "the parameter of forward"), ("output", "torch")):
        parser.add_argument(
            f"--{what}-names",
            f"--{what}-name",
            metavar="NAME,NAME",
            type=lambda text: text.split(","),
            action="extend",
            default=[],
            help=f"names of the file's {what}s, in order (repeatable; default: that of {place})",
        )
    parser.add_argument("--opset", metavar="N", type=flags.whole, help="version of the default operators")
    flags.add(parser, flags.FOLD, flags.WRITING, without=("--freeze-initializers",))
    check = parser.add_argument_group("the check")
    without = ("--input-data-path", "--overwrite-input-shape")
    flags.add(check, flags.CHECK, without=without)
    flags.add(parser, flags.LEDGER, flags.OUTPUT)


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name and a value, such as width=2")
    return name, value


def run(args: argparse.Namespace) -> int:
    check_target(args.out, args.force, never=[args.weights])
    check_target(args.json, args.force, never=[args.weights, args.out])
    options = flags.fold_of(args)
    try:
        import torch
    except ModuleNotFoundError:
        raise UsageError(f"bnfold export needs torch: {extra('torch')}") from None

    from bnfold.api.export import OTHERS, export
    from bnfold.cli.example import example
    from bnfold.cli.factory import load_module, value_of

    with timed("exported, folded and checked"):
        arguments = {name: value_of(text) for name, text in (args.arguments or {}).items()}
        module = load_module(args.model, args.weights, arguments)
        torch.manual_seed(args.seed or 0)
        given = example(module, args.inputs, args.input_ranges or {}, args.input_names)
        report = export(
            module,
            given.args,
            args.out,
            given.kwargs,
            dynamic_shapes=given.dynamic_shapes,
            input_names=given.names,
            output_names=args.output_names,
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

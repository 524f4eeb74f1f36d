"""`bnfold prove A.onnx B.onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnfold.cli import flags
from bnfold.cli.terminal import check_target, show, timed

SUMMARY = "prove node by node that a model computes what another does"
EPILOG = """\
examples:
  bnfold prove model.onnx folded.onnx
  bnfold prove model.onnx folded.onnx --certificate folded.npz
  bnfold prove model.onnx simplified.onnx --json proof.json

B may be the work of any tool. Tensors of one name are claimed to be equal, and each claim is proved from
those before it; docs/proof.md says how, and what is not proved. The certificate of a fold tells what became
of tensors that are no longer what they were: every one of its claims has to hold.

the JSON report:
  {"status": str,          "proved", "refuted" or "undecided"
   "claims": {"identical": int, "weights": int, "sums": int, "channels": int, "evaluated": int},   that hold
   "ulps": number,         the largest error of a stored number, in units in the last place
   "refusal": {            what ended the proof, or null
     "node": str, "tensor": str, "reason": str,
     "wrong": bool,        whether it is known to be false, not only unknown
     "entry": {"what": str, "at": [int], "value": number, "expected": number}},   or null
   "begins": {...},        where the models begin to differ, of what the refusal depends on; or null
   "agreed": [{...}],      claims that hold as far as float32 tells, which is too little for a proof
   "dropped": [{...}],     claims that did not hold and were not needed
   "premises": [str],      what it takes from the certificate about inputs
   "ran": bool,            whether B was run in the end
   "sizes": {name: [int]}  of the inputs, where shapes were needed
  }

exit status: 0 proved; 1 refuted; 2 bad input or usage; 3 undecided
"""
IDLE = [flags.NO_JSON]
STATUS = {"proved": 0, "refuted": 1, "undecided": 3}


CERTIFICATE: flags.Flags = {
    "--certificate": {
        "help": "of the fold from A to B: bnfold fold wrote it",
        "metavar": "FILE",
        "type": Path,
    }
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="A.onnx", type=Path, help="the model to trust")
    parser.add_argument("other", metavar="B.onnx", type=Path, help="the model to judge")
    wanted = ("--overwrite-input-shape", "--seed")
    flags.add(parser, {words: how for words, how in flags.CHECK.items() if words.startswith(wanted)})
    flags.add(parser, CERTIFICATE, flags.OUTPUT)


def run(args: argparse.Namespace) -> int:
    check_target(args.json, args.force, never=[args.model, args.other, args.certificate])

    from bnfold.api.prove import prove

    with timed("decided"):
        shapes, seed = args.overwrite_input_shape, args.seed or 0
        proof = prove(args.model, args.other, certificate=args.certificate, shapes=shapes, seed=seed)
    show(args, proof)
    return STATUS[proof.status]

"""What one run of both models has to say of a proof. It never proves anything.

1. A proof that holds: the folded model has to run, or it is of no use.
2. A claim that is not known to hold: a run may show another output, and is a counterexample then.
3. Without a certificate, a claim that is far off: between claims by name not all is seen, such as a channel
   that is constant or zero. So large an error shows, or it is none.
"""

from __future__ import annotations

import math

from bnfold.certificate import Certificate
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.proof.evaluate import NEAR
from bnfold.proof.known import KnownOfFile
from bnfold.proof.result import Proof, Refusal

__all__ = ["MODEL", "SHOWN", "heard"]

MODEL = "the model"  # who is to blame where it is no node
SHOWN = "one run shows another output"
LEAST = 0.01  # as much of a wrong number would be seen in some output
HIDDEN = "it does not agree, as far as can be seen, and a run shows no difference"


def heard(proof: Proof, known: KnownOfFile, folded: Loaded, certificate: Certificate | None) -> Proof:
    """The same, with what one run of the folded model says: it has to run, and may be a counterexample."""
    refusal = proof.refusal
    if refusal is None:
        proof.ran, broken = known.runs(folded)
        proof.refusal = Refusal(MODEL, "", broken, True) if broken else None
    elif not refusal.wrong:
        broken, entry = known.trial(folded, any(one.wrong for one in proof.dropped))
        if broken:
            proof.refusal = Refusal(MODEL, "", broken, True)
        elif entry is not None:
            proof.refusal = Refusal(refusal.node, refusal.tensor, SHOWN, True, entry)
    elif (
        certificate is None
        and (off := _far_off(refusal))
        and known.alike(folded, refusal.tensor, LEAST * off)
    ):
        # A fact that no claim speaks of, such as a channel that is constant: so large an error would show.
        proof.refusal = Refusal(refusal.node, refusal.tensor, HIDDEN, False, refusal.entry)
    proof.sizes = known.sizes
    return proof


def _far_off(refusal: Refusal) -> float:
    """By how much a number is off that is another one altogether, between claims; else 0."""
    entry = refusal.entry
    if refusal.of_inputs or entry is None or math.isclose(entry.value, entry.expected, rel_tol=NEAR):
        return 0.0
    return abs(entry.value - entry.expected)

"""Proving that one ONNX model computes what another does, without running both on samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from bnfold.errors import UsageError

if TYPE_CHECKING:
    from bnfold.certificate import Certificate
    from bnfold.onnx_graph.file.loaded import Loaded
    from bnfold.proof.result import Proof

__all__ = ["prove"]


def prove(
    original: str | Path | onnx.ModelProto,
    other: str | Path | onnx.ModelProto,
    *,
    certificate: str | Path | Certificate | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Proof:
    """Prove that `other` computes what `original` does, but for the rounding of its stored numbers.

    Whoever made `other` may have been any tool: tensors are compared by name, and those that differ are
    looked behind. See docs/proof.md for what is proved and what is not.

    Args:
        original: the model to trust: a path, or the model.
        other: the model to judge.
        certificate: of the fold that made it: `report.certificate`, or the file that `bnfold fold` wrote. All
            of its claims have to hold; a tensor that it does not name is claimed to be what it was.
        shapes: of inputs that the model leaves open, by name.
        seed: of the numbers that parts of the models are evaluated on.

    Returns:
        A Proof. `status` is "proved", "refuted" or "undecided"; `refusal` says which node, and why.

    Raises:
        ModelError: a model cannot be read, or is damaged.
        UsageError: `shapes` does not fit, or the certificate is damaged, or of other models where it fails.
    """
    from bnfold.certificate import read_certificate
    from bnfold.onnx_graph.file.loaded import load
    from bnfold.proof.decide import prove as decide

    a, b = load(original), load(other)
    if isinstance(certificate, (str, Path)):
        certificate = read_certificate(certificate)
    proof = decide(a, b, certificate, shapes=shapes, seed=seed)
    if certificate is not None and proof.status != "proved":
        _check(certificate, a, b)
    return proof


def _check(certificate: Certificate, a: Loaded, b: Loaded) -> None:
    """Whether the models are those of the certificate. A proof holds whatever its hints came from, and to
    read large models for their hash takes a while: so it is asked only where the proof fails.

    Raises:
        UsageError: one is another.
    """
    from bnfold.certificate import digest

    for loaded, expected, which in ((a, certificate.original, "first"), (b, certificate.folded, "second")):
        if digest(loaded.inlined()) != expected:
            raise UsageError(f"the certificate is of another fold: the {which} model is another")

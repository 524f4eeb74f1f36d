"""From a torch module to a folded, verified ONNX file: export, fold, check against the module, save."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold.api.fold_onnx import check_options, fold_file
from bnfold.errors import UsageError, VerifyError, first_line
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.file.whole_files import check_target
from bnfold.onnx_graph.run import widened as precision
from bnfold.onnx_graph.run.evaluators import CannotRun, evaluate
from bnfold.report.fold import Report
from bnfold.report.verification import Verification
from bnfold.torch_graph import to_onnx
from bnfold.torch_graph.arrays import to_array
from bnfold.verify.difference import TOLERANCES, Truth, compare
from bnfold.verify.models import first_bad
from bnfold.verify.modules import outputs, verdict

__all__ = ["export"]


def export(
    module: nn.Module,
    example_inputs: Any,
    path: str | Path,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    external_data: bool | None = None,
    force: bool = False,
    verify: bool = True,
    shared: str = "duplicate",
    skip: Collection[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    target: str = "onnx",
    lower_batch_statistics: bool = False,
    merge_branches: bool = True,
) -> Report:
    """Export a torch module to ONNX, folded, and checked against the module itself in float64.

    Args:
        module: exported as for inference: if it is in training mode, in eval mode, and left as it was found.
            In a module that is in eval mode, batch norms in training mode are meant to be, and are kept.
        example_inputs: a tensor, or a tuple of positional arguments.
        path: the file to write; it appears whole, after the check, or not at all.
        kwargs: keyword arguments.
        dynamic_shapes: as for `torch.export.export`.
        opset: of the default domain; None: what torch's exporter takes.
        external_data: large tensors go to a file beside it; None: where one file could not hold them.
        force: replace a file at `path`.
        verify: run the folded file on the example inputs and compare with the module.
        shared: what to do with stored values whose users need different ones: "duplicate", "skip", "error".
        skip: names of batch norms to leave alone, as the ledger tells them.
        rtol: tolerance of the check, against the largest absolute value of each output; None: by type.
        atol: absolute tolerance, added to it.
        target: as for `fold_onnx`.
        lower_batch_statistics: as for `fold_onnx`.
        merge_branches: as for `fold_onnx`.

    Returns:
        The ledger, with the check.

    Raises:
        UsageError: something is at `path`, torch cannot export the module, or a name is unknown.
        VerifyError: the file does not compute what the module does; nothing is written, and the message names
            the first fold that broke it.
    """
    check_options(shared, skip, target)
    if not isinstance(module, nn.Module):
        raise UsageError(f"export takes a torch.nn.Module, not {type(module).__name__}")
    file = Path(path)
    check_target(file, force)
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    options = dict(kwargs or {})
    with tempfile.TemporaryDirectory(prefix=".bnfold-", dir=file.parent) as folder, _for_inference(module):
        # Both keep their weights in files beside them: from there they are mapped, and take no memory.
        raw, whole = Path(folder) / "raw.onnx", Path(folder) / "folded.onnx"
        large = _bytes(module) > 1 << 30 if external_data is None else external_data
        moving = to_onnx.write(module, args, options, raw, dynamic_shapes, opset)
        how: dict[str, Any] = {"target": target, "lower_batch_statistics": lower_batch_statistics}
        folded, report = fold_file(
            raw, verify=False, shared=shared, skip=skip, merge_branches=merge_branches, **how
        )
        if moving:
            many = "batch norms in training mode use" if moving > 1 else "batch norm in training mode uses"
            report.notes.append(f"{moving} {many} the statistics of each batch, in the file as well")
        save(folded, whole, external=True)
        folded = load(whole)
        if verify:
            check = _Check(module, args, options, rtol, atol)
            report.verification = check(folded)
            if report.verification.status == "failed":
                order = [entry.name for entry in report.folded]

                def passes(count: int) -> bool:
                    rest = [*skip, *order[count:]]
                    part, _ = fold_file(
                        raw, verify=False, shared=shared, skip=rest, merge_branches=False, **how
                    )
                    return check(part).status != "failed"

                if report.merged and passes(len(order)):
                    bad = "no fold broke it, but the merging of branches did (merge_branches=False)"
                else:
                    first = order[first_bad(len(order), passes) - 1] if order and passes(0) else ""
                    bad = f"the first fold that broke it is {first or 'none: the export'}"
                raise VerifyError(
                    f"the file does not compute what the module does: {bad}\n{report.verification}"
                )
            if report.verification.status == "not run":
                report.notes.append(f"not verified: {report.verification.reason}")
        save(folded, file, force=force, external=large)
    return report


@contextlib.contextmanager
def _for_inference(module: nn.Module) -> Iterator[None]:
    """In eval mode, if the module as a whole is in training mode; afterwards as before."""
    modes = {part: part.training for part in module.modules()}
    try:
        if module.training:
            module.eval()
        yield
    finally:
        if modes[module]:
            module.train()  # which may do more than set a flag
        for part, mode in modes.items():
            part.training = mode


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


class _Check:
    """The folded file beside the module: in its own type, and in float64."""

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        rtol: float | None,
        atol: float | None,
    ) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.inputs = [to_array(leaf) for leaf in leaves]
        self.rtol, self.atol = rtol, atol
        self.notes: list[str] = []
        self.own = _arrays(outputs(module, args, kwargs))
        self.exact: list[Any] | None = None
        try:
            self.exact = _arrays(outputs(module, args, kwargs, exact=True))
        except Exception as error:  # of any kind: it may write into what is stored, or leave Python
            self.notes.append(f"compared with the module as it is, not in float64: {first_line(error)}")

    def __call__(self, folded: Loaded) -> Verification:
        kind = precision.working_type(folded)
        usual = TOLERANCES[kind]
        tolerance = usual._replace(
            rtol=usual.rtol if self.rtol is None else self.rtol,
            atol=usual.atol if self.atol is None else self.atol,
        )
        names = [value.name for value in folded.proto.graph.input]
        try:
            found, by = evaluate(folded, dict(zip(names, self.inputs, strict=True)))
        except CannotRun as error:
            return Verification([], "", "not run", str(error), tolerance.rtol, tolerance.atol, self.notes)
        errors = []
        for i, output in enumerate(folded.proto.graph.output):  # a value may be several outputs
            own, exact = self.own[i], None if self.exact is None else self.exact[i]
            if own.dtype.kind == "c":
                self.notes.append(f"{output.name} is complex, pairs of numbers in the file: not compared")
                continue
            best = own if exact is None or exact.dtype.kind != "f" else exact.astype(own.dtype)
            truth = None if exact is None else Truth(exact, own)
            errors += compare(output.name, best, found[output.name], tolerance, truth=truth)
        status, reason = verdict(errors)
        by = f"{by}, against torch {torch.__version__}" + (" in float64" if self.exact is not None else "")
        return Verification(errors, by, status, reason, tolerance.rtol, tolerance.atol, self.notes)


def _arrays(leaves: list[Any]) -> list[Any]:
    """What becomes an output of the file: None does not, and a number does."""
    return [np.asarray(leaf) for leaf in leaves if leaf is not None]

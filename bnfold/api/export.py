"""From a torch module to a folded, verified ONNX file: export, fold, check against the module, save."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bnfold.api import convert
from bnfold.api.fold_onnx import front_end, noting, passes_of, ranges_in
from bnfold.api.pipeline import fold, run
from bnfold.errors import UsageError
from bnfold.onnx_graph.describe import Sketch
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.file.whole_files import check_target
from bnfold.options import Check, Fold, refuse_others
from bnfold.report.fold import Report
from bnfold.report.table import first
from bnfold.report.verification import Verification
from bnfold.torch_graph import to_onnx
from bnfold.verify.blame import Part, judge
from bnfold.verify.exported import AgainstModule
from bnfold.wrappers import plain_arguments, plain_module

__all__ = ["OTHERS", "export"]

EXPORT = "the first fold that broke it is none: the export"
TORCHS = {  # keywords of torch.onnx.export, and what says the same
    "args": "example_inputs",
    "dynamic_axes": 'dynamic_shapes=({0: "batch"},)',
    "f": "path",
    "opset_version": "opset",
}
OTHERS = {  # options of the fold that have nothing to do here
    "calibration": "fold the file that it writes, with calibration= (--calibration-data-path)",
    "certificate": "there is no file of the module before the fold",
    "freeze_initializers": "no input of the file has a stored value",
}
RANDOM = (
    "{} draws random numbers in inference too (drop-out that is always on, say), so that the file cannot be "
    "compared with the module: verify=False (--no-verify) exports it unchecked"
)


def export(
    module: nn.Module,
    example_inputs: Any,
    path: str | Path,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
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
    precision: str | None = None,
    merge_branches: bool = True,
    drop_dead_channels: bool = False,
    input_ranges: Mapping[str, tuple[Any, Any]] | None = None,
    apart: bool = False,
    timeout: float | None = None,
    quantize_for: str | None = None,
    **others: Any,
) -> Report:
    """Export a torch module to ONNX, folded, and checked against the module itself in float64.

    Args:
        module: exported as for inference: if it is in training mode, in eval mode, and left as it was found.
            In a module that is in eval mode, batch norms in training mode are meant to be, and are kept. Of a
            wrapper (DataParallel, DistributedDataParallel, torch.compile) what is inside it.
        example_inputs: a tensor, or a tuple of positional arguments.
        path: the file to write; it appears whole, after the check, or not at all.
        kwargs: keyword arguments.
        dynamic_shapes: as for `torch.export.export`, or with a name for a size, {0: "batch"}; names, those of
            `torch.export.Dim` too, are in the file. A free size may be 1 in the example.
        input_names: names of the file's inputs, in order; those beyond keep the names of the parameters of
            `forward`.
        output_names: names of its outputs.
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
        precision: as for `fold_onnx`: the checked file is converted, and the result compared with float32 on
            the example inputs, by `rtol` and `atol`.
        merge_branches: as for `fold_onnx`.
        drop_dead_channels: as for `fold_onnx`.
        input_ranges: as for `fold_onnx`; the example inputs must keep to them.
        apart: run the file in a process of its own, so that a crash in what runs it is raised as an error.
        timeout: seconds that one run of the file may take there; with it, it is apart.
        quantize_for: as for `fold_onnx`.
        others: options of `fold_onnx` that have nothing to do here, which are refused by name.

    Returns:
        The report, with the check, and a summary of the files before (as torch exports it) and after.

    Raises:
        UsageError: something is at `path`, torch cannot export the module, or a name is unknown.
        VerifyError: the file does not compute what the module does; nothing is written, and the message names
            the first fold that broke it.
    """
    for name in TORCHS.keys() & others:
        raise UsageError(f"export has no {name}, as torch.onnx.export has: {TORCHS[name]} says it here")
    for name in OTHERS.keys() & others:
        refuse_others("export", {name: True}, OTHERS[name])
    refuse_others("export", others, "the example inputs are what the file is checked on")
    options = Fold(
        shared=shared,
        skip=skip,
        target=target,
        lower_batch_statistics=lower_batch_statistics,
        merge_branches=merge_branches,
        drop_dead_channels=drop_dead_channels,
        input_ranges=input_ranges,
        precision=precision,
        quantize_for=quantize_for,
    )
    check = Check(verify, rtol=rtol, atol=atol, apart=apart, timeout=timeout)
    module = plain_module(module, "export")
    file = Path(path)
    check_target(file, force)
    args = plain_arguments(module, example_inputs, "export")
    with tempfile.TemporaryDirectory(prefix=".bnfold-", dir=file.parent) as folder, _for_inference(module):
        # Both keep their weights in files beside them: from there they are mapped, and take no memory.
        raw, whole = Path(folder) / "raw.onnx", Path(folder) / "folded.onnx"
        large = _bytes(module) > 1 << 30 if external_data is None else external_data
        written = to_onnx.write(
            module, args, dict(kwargs or {}), raw, dynamic_shapes, opset, input_names, output_names
        )
        if verify and written.random:
            raise UsageError(RANDOM.format(first(written.random, 4)))
        ranges = ranges_in(load(raw), options)
        front, passes = front_end(check), passes_of(options, ranges)
        sketch = Sketch()
        done = fold(noting(front, sketch), load(raw), options, "model", verify=False, passes=passes)
        report = done.report
        report.notes += _notes(written)
        save(done.model, whole, external=True)
        folded = load(whole)
        check = replace(check, ranges=ranges)
        by_type = check if precision is None else replace(check, rtol=None, atol=None)
        against = AgainstModule(module, args, dict(kwargs or {}), by_type, load(raw))
        feed = against.feed()
        if verify:

            def again(part: Part) -> Verification:
                return against(run(front, load(raw), options, passes, part).model)

            said = "the file does not compute what the module does"
            judge(report, against(folded), done.work(passes), again, said, EXPORT)
        if precision is not None:
            how = replace(check, inputs=feed)
            folded, report.precision = convert.convert(folded, precision, how, original=load(raw))
        files = save(folded, file, force=force, external=large)
        report.summary = sketch.summary(folded, files)
    return report


def _notes(written: to_onnx.Written) -> list[str]:
    """What the file has of the module that is not plain to see."""
    notes, count = [], written.own_statistics
    if count:
        many = "batch norms in training mode use" if count > 1 else "batch norm in training mode uses"
        notes.append(f"{count} {many} the statistics of each batch, in the file as well")
    if written.random:
        notes.append(f"{first(written.random, 4)} draws random numbers, in the file as well")
    if written.changed:
        notes.append(
            f"the module writes into {first(written.changed, 4)}; the file does not, and keeps today's values"
        )
    if written.unnamed:
        names = first(written.unnamed, 4)
        notes.append(
            f"no size is called {names} in the file: torch found it to be fixed, or equal to another"
        )
    return notes


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

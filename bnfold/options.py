"""What a caller may ask for, as two frozen objects that are checked once: how to fold, and how to check it.

The public functions keep their keywords and pack them into these; the command line makes the same objects of
its flags. An option that is added here and read where it matters is known everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from bnfold.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack

__all__ = [
    "CHECKS",
    "PRECISIONS",
    "QUANTIZERS",
    "Check",
    "CheckKeywords",
    "Fold",
    "FoldKeywords",
    "choice",
    "known",
    "refuse_others",
]

SHARED = ("duplicate", "skip", "error")
TARGETS = ("onnx", "tensorrt")
CHECKS = ("run", "proof", "both")
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16"}
QUANTIZERS = {"int8": (8, True), "int8-per-tensor": (8, False), "int4": (4, True)}  # bits; a scale a channel
BRANCHES_FROM = 8  # bits of a weight: with less, branches stay apart
INPUT_RANGES = "input ranges have nothing to do unless dead channels are dropped"


class CheckKeywords(TypedDict, total=False):
    """The fields of `Check`, as keywords of a function."""

    verify: bool
    inputs: Any
    shapes: Mapping[str, Sequence[int]] | None
    seed: int
    rtol: float | None
    atol: float | None
    apart: bool
    timeout: float | None
    check: str | None


class FoldKeywords(TypedDict, total=False):
    """The fields of `Fold`, as keywords of a function."""

    shared: str
    skip: Collection[str]
    freeze_initializers: bool
    target: str
    lower_batch_statistics: bool
    merge_branches: bool
    drop_dead_channels: bool
    input_ranges: Mapping[str, tuple[Any, Any]] | None
    precision: str | None
    certificate: bool
    quantize_for: str | None
    calibration: Any


@dataclass(frozen=True, eq=False)
class Check:
    """How a result is compared with what it was made of.

    verify: whether at all. inputs: arrays by input name, or in order (a file or a folder of them, for ONNX;
    a tuple of arguments, for torch programs); None: generated from `seed`, in these `shapes` where a model
    leaves sizes open. rtol, atol: max|difference| may be atol + rtol * max|output|; None: by the type that
    the model computes in (verify/difference.py). apart: in a process of its own, so that a crash in what
    runs the models is told as an error. timeout: seconds that it may take there (with it, it is apart).
    ranges: what values inputs keep to, by name, as float64 arrays of their ranks
    (onnx_graph/run/input_ranges.py). check: by running the models ("run"), by a "proof", with runs where
    that is undecided, or by "both"; None: by a proof, and by both where inputs or tolerances are given.
    """

    verify: bool = True
    inputs: Any = None
    shapes: Mapping[str, Sequence[int]] | None = None
    seed: int = 0
    rtol: float | None = None
    atol: float | None = None
    apart: bool = False
    timeout: float | None = None
    ranges: Mapping[str, tuple[Any, Any]] | None = None
    check: str | None = None

    def __post_init__(self) -> None:
        if self.inputs is not None and self.shapes:
            raise UsageError("give inputs, or shapes of inputs to generate, not both")
        for name, shape in (self.shapes or {}).items():
            if not all(hasattr(size, "__index__") and size > 0 for size in shape):
                raise UsageError(f"shapes[{name!r}]={tuple(shape)} are not all whole numbers from 1 on")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name}={value!r} is not a number from 0 on, such as 1e-5")
        if self.check is not None:
            choice("check", self.check, CHECKS)
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UsageError(f"timeout={self.timeout!r} is not a number of seconds above 0")

    @property
    def by(self) -> str:
        """One of CHECKS: `check`; where that is None, both if anything was said about runs, else a proof."""
        said = self.inputs is not None or self.rtol is not None or self.atol is not None
        return self.check or ("both" if said else "proof")

    @property
    def in_child(self) -> bool:
        """Whether it is done in a process of its own."""
        return self.apart or self.timeout is not None


@dataclass(frozen=True, eq=False)
class Fold:
    """What is done to a model; `bnfold.fold_onnx` says what each option means."""

    shared: str = "duplicate"
    skip: Collection[str] = ()
    freeze_initializers: bool = False
    target: str = "onnx"
    lower_batch_statistics: bool = False
    merge_branches: bool = True
    drop_dead_channels: bool = False
    input_ranges: Mapping[str, tuple[Any, Any]] | None = None
    precision: str | None = None
    certificate: bool = False
    quantize_for: str | None = None
    calibration: Any = None

    def __post_init__(self) -> None:
        choice("shared", self.shared, SHARED)
        choice("target", self.target, TARGETS)
        if self.precision is not None:
            choice("precision", self.precision, PRECISIONS)
        if self.quantize_for is not None:
            choice("quantize_for", self.quantize_for, QUANTIZERS)
            if not self.merge_branches:
                raise UsageError("quantize_for says what is merged, and merge_branches=False that nothing is")
        if self.calibration is not None:
            self._refuse_guard()
        if isinstance(self.skip, str):
            raise UsageError(f"skip takes a collection of names, not one string: skip=[{self.skip!r}]")
        if self.input_ranges and not self.drop_dead_channels:
            raise UsageError(INPUT_RANGES)

    def _refuse_guard(self) -> None:
        """Raises UsageError where calibration data has nothing to decide, or onnxruntime no quantizer."""
        if self.quantize_for is None or QUANTIZERS[self.quantize_for][0] < BRANCHES_FROM:
            raise UsageError(
                "calibration data has nothing to do unless quantize_for is int8 or int8-per-tensor"
            )
        if self.target != "onnx" or self.precision is not None:
            raise UsageError("with calibration data the fold is quantized: take no target and no precision")


def choice(name: str, value: str, valid: Collection[str]) -> None:
    """Refuse a value that is none of the valid ones, and name those."""
    if value not in valid:
        raise UsageError(f"{name}={value!r} is unknown. Note: valid choices are {', '.join(valid)}")


def known(name: str, values: Iterable[str], valid: Sequence[str], what: str) -> None:
    """Refuse names that are none of many, and give the first few of those. what: goes on after "no"."""
    for value in values:
        if value not in valid:
            some = ", ".join(valid[:8]) + (", ..." if len(valid) > 8 else "")
            raise UsageError(f"{name} {value!r}: no {what}. Note: valid choices are {some or '(none)'}")


def refuse_others(function: str, given: Mapping[str, Any], why: str) -> None:
    """Refuse options that a function does not take: those of other functions by name, with the reason.

    Raises:
        UsageError: an option of `Fold` or `Check`. TypeError: no option of bnfold at all, as Python says it.
    """
    known = {field.name for field in (*fields(Check), *fields(Fold))} - {"ranges"}
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        raise UsageError(f"{function} has no {name}: {why}")

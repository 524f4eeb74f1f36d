"""The shapes that an engine is built for: a smallest, a usual and a largest one for each open input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bnfold.errors import ModelError, UsageError
from bnfold.onnx_graph.run.inputs import Input

__all__ = ["Profile", "as_text", "profiles", "sizes_text"]

Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]  # smallest, usual (what it is tuned for), largest

WORDS = ("smallest", "usual", "largest")
EXAMPLE = {True: (1, 8, 32), False: (64, 128, 256)}  # sizes for an open axis: the batch, or another one
# As TensorRT 11 and TensorRT-RTX 1.7 take them.
TYPES = (
    *("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float4_e2m1fn"),
    *("int64", "int32", "int8", "uint8", "int4", "bool"),
)
LARGEST = (1 << 31) - 1  # TensorRT cuts off what is above


def sizes_text(shape: Iterable[int]) -> str:
    """1x3x8x8."""
    return "x".join(map(str, shape))


def as_text(profile: Profile) -> str:
    """As `--shapes` takes it: 1x3x8x8,8x3x8x8,32x3x8x8."""
    return ",".join(map(sizes_text, profile))


def _three(shapes: Sequence[tuple[int, ...]], of: Input | None) -> Profile:
    """The smallest, usual and largest of what was given; 1,4,8 are three where there is one axis."""
    if (
        len(shapes) == 1
        and len(shapes[0]) == 3
        and of is not None
        and of.dims is not None
        and len(of.dims) == 1
    ):
        shapes = [(size,) for size in shapes[0]]
    low, usual, high = shapes if len(shapes) == 3 else tuple(shapes) * 3
    return low, usual, high


def profiles(
    inputs: Sequence[Input], given: Mapping[str, Sequence[tuple[int, ...]]], where: str = ""
) -> dict[str, Profile]:
    """Those of the inputs that have open sizes, checked against the model.

    Args:
        inputs: of the model.
        given: by name, or without one ("") where there is one input; a shape alone stands for all three.
        where: how a message about the model begins.

    Raises:
        UsageError: an input is unknown or has no shapes, or shapes do not fit the model, each other, or those
        of another input with the same symbol.
        ModelError: TensorRT cannot take such an input at all.
    """
    _refuse_unfit(inputs, where)
    known = {i.name: i for i in inputs}
    if "" in given and len(inputs) == 1:  # the one input of a model needs no name
        given = {inputs[0].name: given[""]}
    full = {name: _three(profile, known.get(name)) for name, profile in given.items()}
    for name, profile in full.items():
        if name not in known:
            choices = ", ".join(f"{i.name}: {i}" for i in inputs) or "none"
            raise UsageError(f"--shapes: the model has no input {name!r}. Note: its inputs are {choices}")
        _check(known[name], profile)
    open_ones = [i for i in inputs if not all(isinstance(dim, int) for dim in i.dims or ())]
    missing = [i for i in open_ones if i.name not in full]
    if missing:
        names = ", ".join(f"{i.name}: {i}" for i in missing)
        example = " ".join(f"--shapes '{i.name}:{as_text(_example(i))}'" for i in missing)
        raise UsageError(
            f"sizes are open in the input{'s' * (len(missing) > 1)} {names}: an engine needs the smallest, "
            f"the usual and the largest shape, such as {example}"
        )
    _check_symbols(open_ones, full)
    return {i.name: full[i.name] for i in open_ones}


def _refuse_unfit(inputs: Sequence[Input], where: str) -> None:
    for i in inputs:
        if i.dtype.name not in TYPES:  # its parser tells that on stderr, without the name of the input
            raise ModelError(
                f"{where}the input {i.name!r} is {i}, a type that TensorRT does not take. Note: valid "
                f"choices are {', '.join(TYPES)}"
            )
        if i.dims is None:  # TensorRT would take it for a single number
            raise ModelError(
                f"{where}the model does not say how many axes its input {i.name!r} has, which "
                "an engine must know: export it with a shape (open sizes may have names)"
            )
        for dim in i.dims:
            if isinstance(dim, int) and dim > LARGEST:
                raise ModelError(f"{where}the input {i.name!r} is {i}, and TensorRT's sizes end at {LARGEST}")


def _check(i: Input, profile: Profile) -> None:
    dims = i.dims or ()
    for word, shape in zip(WORDS, profile, strict=True):
        where = f"--shapes: the input {i.name!r} is {i}, but its {word} shape is given as {sizes_text(shape)}"
        if len(shape) != len(dims):
            raise UsageError(f"{where}: {len(shape)} axes instead of {len(dims)}")
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if isinstance(dim, int) and dim != size:
                raise UsageError(f"{where}: axis {axis} is {size} instead of {dim}")
            if size > LARGEST:
                raise UsageError(f"{where}: TensorRT's sizes end at {LARGEST}")
    for axis, sizes in enumerate(zip(*profile, strict=True)):
        if list(sizes) != sorted(sizes):
            given = ", ".join(f"{word} {size}" for word, size in zip(WORDS, sizes, strict=True))
            raise UsageError(
                f"--shapes: axis {axis} of the input {i.name!r} is given as {given}; it must not fall: the "
                "order is smallest,usual,largest"
            )


def _check_symbols(inputs: Sequence[Input], given: Mapping[str, Profile]) -> None:
    """TensorRT takes sizes of one name for one size."""
    seen: dict[str, tuple[Shape, str]] = {}
    for i in inputs:
        for dim, sizes in zip(i.dims or (), zip(*given[i.name], strict=True), strict=True):
            if not isinstance(dim, str):
                continue
            before, whose = seen.setdefault(dim, (sizes, i.name))
            if before != sizes:
                here, there = (",".join(map(str, each)) for each in (sizes, before))
                raise UsageError(
                    f"--shapes: {dim!r} is {here} in the input {i.name!r} and {there} in the input "
                    f"{whose!r}, but one name stands for one size"
                )


def _example(i: Input) -> Profile:
    dims = enumerate(i.dims or ())
    each = [(dim,) * 3 if isinstance(dim, int) else EXAMPLE[axis == 0] for axis, dim in dims]
    smallest, usual, largest = zip(*each, strict=True)
    return smallest, usual, largest

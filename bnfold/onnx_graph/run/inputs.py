"""Inputs to run a model with: read from files, taken from the caller, or generated from a seed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnfold.errors import ModelError, UsageError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import as_text

Array = np.ndarray[Any, Any]
Dim = int | str | None  # a size, a name for one, or nothing known

# Sizes to try for dimensions that the model leaves open: what image models take most often first.
SIZES = (224, 64, 32, 256, 48, 16, 8, 4, 1)
# Then lengths of sound, for the last axis of floats of rank 2 or 3.
LENGTHS = (4096, 16000)
# What a guess may make: numbers in all inputs, and in the largest activation by rough estimate. Only the
# smallest guess may be larger.
LARGEST, LARGEST_ACTIVATION = 1 << 22, 1 << 23
# Two shows what one hides: a value that leaks from one sample of the batch to the next.
BATCHES = (2, 1)
MOST = 1 << 25  # numbers in one input that is made up, also where its shape is given


class NoGuess(UsageError):
    """The model does not say enough about an input to make one up."""


@dataclass(frozen=True)
class Input:
    """A graph input that has to be fed. `dims` is None where not even the rank is known."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[Dim, ...] | None

    def __str__(self) -> str:
        if self.dims is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} ({', '.join('?' if d is None else str(d) for d in self.dims)})"


@dataclass(frozen=True)
class Sample:
    """An array from a file. It belongs to the input of its name, else to the one at its position."""

    array: Array
    name: str
    position: int
    source: str


Given = str | Path | Sequence[Any] | Mapping[str, Any]  # an array alone is the first input


def wanted(loaded: Loaded) -> list[Input]:
    """The inputs that must be fed, in order: those without an initializer of the same name.

    Raises:
        NoGuess: an input is no tensor (a sequence, an optional, a map).
    """
    graph = loaded.proto.graph
    defaults = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    found = []
    for value in graph.input:
        if value.name in defaults:
            continue
        kind = value.type.WhichOneof("value")
        if kind not in ("tensor_type", None):
            raise NoGuess(f"the input {value.name!r} is not a tensor ({kind}); such inputs cannot be fed")
        found.append(_input(value.name, value.type.tensor_type))
    return found


def describe(typ: onnx.TypeProto) -> str | Input:
    """What a graph input or output is: an Input without a name for a tensor, else words."""
    kind = typ.WhichOneof("value")
    return _input("", typ.tensor_type) if kind in ("tensor_type", None) else str(kind).removesuffix("_type")


def compatible(a: str | Input, b: str | Input) -> bool:
    """Whether two descriptions can be of the same value: unknown sizes and symbols agree with anything."""
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    if a.dtype != b.dtype:
        return False
    if a.dims is None or b.dims is None:
        return True
    sizes = zip(a.dims, b.dims, strict=False)
    return len(a.dims) == len(b.dims) and all(
        x == y or not isinstance(x, int) or not isinstance(y, int) for x, y in sizes
    )


def _input(name: str, tensor: onnx.TypeProto.Tensor) -> Input:
    dims: tuple[Dim, ...] | None = None
    if tensor.HasField("shape"):
        dims = tuple(
            # some exporters write "?" for each size that they do not know: it names nothing
            d.dim_value
            if d.HasField("dim_value") and d.dim_value >= 0
            else (as_text(d.dim_param).strip("?") or None)
            for d in tensor.shape.dim
        )
    return Input(name, element_type(tensor.elem_type or onnx.TensorProto.FLOAT), dims)


def element_type(code: int) -> np.dtype[Any]:
    """numpy's dtype for a TensorProto.DataType (ml_dtypes' for bfloat16, float8 and the like)."""
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except KeyError:
        raise ModelError(f"there is no element type {code}; the model is damaged: export it again") from None


def load_inputs(path: str | Path) -> list[Sample]:
    """Read arrays from an .npz (by input name), an .npy, a .pb (TensorProto), or a folder of input_*.pb.

    Raises:
        UsageError: nothing there, or not such a file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("input_*.pb"), key=_number)
        if not files:
            raise UsageError(f"there are no input_*.pb in the folder {path}")
        return [_read_pb(file, i) for i, file in enumerate(files)]
    if not path.is_file():
        raise UsageError(f"there is no file {path} to read inputs from")
    if path.suffix == ".pb":
        return [_read_pb(path, 0)]
    if path.suffix not in (".npz", ".npy"):
        raise UsageError(
            f"{path}: cannot read inputs from this kind of file. Note: valid choices are .npz, .npy, .pb"
        )
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return [Sample(content, "", 0, str(path))]
        with content:
            return [Sample(content[name], name, i, f"{path}:{name}") for i, name in enumerate(content.files)]
    except Exception as error:  # numpy's readers raise whatever the bytes bring about
        raise UsageError(f"{path} is not a readable {path.suffix} file: {error}") from None


def samples_of(given: Any) -> list[Sample]:
    """Those of a file, a list of arrays, or one array."""
    if isinstance(given, (str, os.PathLike)):
        return load_inputs(Path(given))
    arrays = [given] if hasattr(given, "__array__") else given
    return [
        one if isinstance(one, Sample) else Sample(np.asarray(one), "", at, f"inputs[{at}]")
        for at, one in enumerate(arrays)
    ]


def feed_from(inputs: Sequence[Input], given: Given) -> dict[str, Array]:
    """The arrays of `given`, each checked against the input it is for: by its name, else by its position.

    Raises:
        UsageError: an input is missing, a name unknown, or a type or shape does not fit; it says what was
        expected.
    """
    if isinstance(given, Mapping):
        named = {str(name): np.asarray(array) for name, array in given.items()}
    else:
        names = {i.name for i in inputs}
        named = {}
        for sample in samples_of(given):
            at_position = (
                inputs[sample.position].name
                if sample.position < len(inputs)
                else sample.name or sample.source
            )
            # Names inside .pb files are often another framework's; a name inside an .npz is the user's word.
            by_name = sample.name in names or (sample.name and not sample.source.endswith(".pb"))
            name = sample.name if by_name else at_position
            if name in named:
                raise UsageError(f"{sample.source} is the second array for the input {name!r}")
            named[name] = sample.array
    choices = ", ".join(f"{i.name}: {i}" for i in inputs) or "none"
    for name in named:
        if name not in {i.name for i in inputs}:
            raise UsageError(f"the model has no input {name!r} to feed. Note: its inputs are {choices}")
    for i in inputs:
        if i.name not in named:
            raise UsageError(
                f"no value was given for the input {i.name!r}. Note: the model's inputs are {choices}"
            )
    sizes: dict[str, tuple[int, str]] = {}
    return {i.name: _fitted(i, named[i.name], sizes) for i in inputs}


def generate(
    inputs: Sequence[Input],
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    positive: bool = False,
    growth: float = 1.0,
) -> Iterator[dict[str, Array]]:
    """Random inputs: one feed for each guess at the sizes that the model leaves open, the likeliest first.

    Floats are standard normal (`positive`: uniform from 0 to 1, for models that take roots or logarithms),
    integers 0 or 1 (they are mostly token numbers, masks and indices, and 1 is in nearly any range), bytes 0
    to 255. The first axis is taken for the batch, equal names for equal sizes. `shapes` sets the shape of
    inputs by name. Guesses are bounded (LARGEST); `growth` says how much larger activations are.

    Raises:
        UsageError: `shapes` names an unknown input or contradicts the model; NoGuess: an input's rank is
        unknown, or memory is too small.
    """
    shapes = by_name(inputs, shapes)
    known = {i.name for i in inputs}
    sizes: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        if name not in known:
            raise UsageError(f"a shape was given for {name!r}, but the model's inputs are {sorted(known)}")
        _check_shape(next(i for i in inputs if i.name == name), shape, sizes)
    for i in inputs:
        if i.dims is None and i.name not in shapes:
            raise NoGuess(
                f"the model does not say how many axes its input {i.name!r} has; give its shape "
                f"(--overwrite-input-shape {i.name}:1,3,224,224, or shapes={{{i.name!r}: (1, 3, 224, 224)}})"
            )
    bound = {symbol: size for symbol, (size, _) in sizes.items()}
    guesses = _guesses(inputs, shapes, bound)
    count = [sum(map(math.prod, guess)) for guess in guesses]
    limit = min(LARGEST, LARGEST_ACTIVATION / growth)
    small = [guess for guess, numbers in zip(guesses, count, strict=True) if numbers <= limit]
    made = False
    for guess in small or [guesses[count.index(min(count))]]:
        rng = np.random.default_rng(seed)
        try:
            feed = {i.name: _random(rng, i, s, positive) for i, s in zip(inputs, guess, strict=True)}
        except MemoryError:
            continue
        made = True
        yield feed
    if not made:
        raise NoGuess(f"inputs of {min(count):,} numbers do not fit into memory; give smaller ones")


def by_name(inputs: Sequence[Input], shapes: Mapping[str, Sequence[int]] | None) -> dict[str, Sequence[int]]:
    """Shapes by the names of inputs; "" stands for the one input of a model.

    Raises:
        UsageError: a shape has no name, and there are several inputs.
    """
    shapes = dict(shapes or {})
    if "" in shapes and all(i.name for i in inputs):
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs) or "none"
            raise UsageError(f"name the input that the shape is for: the model's inputs are {names}")
        shapes = {inputs[0].name: shapes.pop(""), **shapes}
    return shapes


def growth(loaded: Loaded) -> float:
    """How much larger an activation is than the inputs, roughly: by the channels of the first convolution."""
    weights = {t.name: t.dims for t in loaded.proto.graph.initializer}
    for node in loaded.proto.graph.node:
        if node.op_type != "Conv" or len(node.input) < 2:
            continue
        if len(dims := weights.get(node.input[1], ())) > 2:
            strides = next((a.ints for a in node.attribute if a.name == "strides"), ())
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            return float(max(dims[0], 1) / max(dims[1] * groups * math.prod(strides), 1))
    return 1.0


def _guesses(
    inputs: Sequence[Input], shapes: Mapping[str, Sequence[int]], bound: Mapping[str, int]
) -> list[tuple[tuple[int, ...], ...]]:
    """Shapes of all inputs together, each guess once, the likeliest first."""
    sound = [i.dims[-1] for i in inputs if _may_be_sound(i) and i.dims and not isinstance(i.dims[-1], int)]
    found: dict[tuple[tuple[int, ...], ...], None] = {}
    for size in (*SIZES, *(LENGTHS if sound else ())):
        known = dict(bound)
        if size in LENGTHS:
            known = {dim: size for dim in sound if isinstance(dim, str)} | known
        for batch in BATCHES:
            guess = tuple(
                tuple(shapes[i.name])
                if i.name in shapes
                else tuple(_size(d, axis, i, batch, size, known) for axis, d in enumerate(i.dims or ()))
                for i in inputs
            )
            found[guess] = None
    return list(found)


def _may_be_sound(i: Input) -> bool:
    return i.dims is not None and len(i.dims) in (2, 3) and i.dtype.kind == "f"


def _size(dim: Dim, axis: int, i: Input, batch: int, size: int, bound: Mapping[str, int]) -> int:
    rank = len(i.dims or ())
    if isinstance(dim, int):
        return dim
    if dim is not None and dim in bound:
        return bound[dim]
    if axis == 0:
        return batch
    if size in LENGTHS and not (_may_be_sound(i) and axis == rank - 1):
        size = 1  # of channels, say
    return 3 if axis == 1 and rank == 4 else size  # an image's channels


def _random(rng: np.random.Generator, i: Input, shape: tuple[int, ...], positive: bool) -> Array:
    if len(shape) > 32:  # numpy has no more
        raise NoGuess(f"the input {i.name!r} has {len(shape)} axes")
    if math.prod(shape) > MOST:
        raise NoGuess(f"the input {i.name!r} has {math.prod(shape):,} entries, too many to make up; give it")
    kind = i.dtype.kind
    array: Array
    if kind == "b":
        array = np.asarray(rng.random(shape) < 0.5)
    elif kind == "c":
        array = np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    elif kind in "OUS":
        return np.full(shape, "a", object)
    elif i.dtype in (np.uint8, np.int8):
        array = np.asarray(rng.integers(np.iinfo(i.dtype).min, np.iinfo(i.dtype).max + 1, shape))
    elif kind in "iu" or "int" in i.dtype.name:
        array = np.asarray(rng.integers(0, 2, shape))
    else:
        array = np.asarray(rng.random(shape) if positive else rng.standard_normal(shape))
    return array.astype(i.dtype)


def nudged(feed: Mapping[str, Array], seed: int) -> dict[str, Array] | None:
    """The same inputs with each float32 or float64 number made a rounding step larger or smaller, at random.

    None if there are no such numbers.
    """
    rng = np.random.default_rng(seed)
    found = {name: array for name, array in feed.items() if array.dtype in (np.float32, np.float64)}
    for name, array in found.items():
        found[name] = np.nextafter(array, array * rng.choice((0, 2), array.shape).astype(array.dtype))
    return {**feed, **found} if found else None


def near(feed: Mapping[str, Array], more: int) -> dict[str, Array] | None:
    """The same inputs with all floating point numbers a little smaller, so that everything is rounded anew.

    None if there are no such numbers. more: 1, 2, ...
    """
    floats = {n for n, array in feed.items() if array.dtype.kind in "fc" or array.dtype.name == "bfloat16"}
    if not floats:
        return None
    return {
        n: (array * (1 - more / 77)).astype(array.dtype) if n in floats else array
        for n, array in feed.items()
    }


def _fitted(i: Input, array: Array, sizes: dict[str, tuple[int, str]]) -> Array:
    """`array` in the input's type, if nothing but float precision is lost; its shape checked."""
    _check_shape(i, array.shape, sizes)
    if array.dtype == i.dtype:
        return array
    if i.dtype.kind in "OUS" and array.dtype.kind in "OUS":
        return array.astype(object)
    floating = i.dtype.kind not in "biuOUS" and "int" not in i.dtype.name
    if array.dtype.kind in "biuf" or (floating and array.dtype.name == "bfloat16"):
        with np.errstate(all="ignore"):
            cast = array.astype(i.dtype)
        if floating or (array.dtype.kind in "biu" and np.array_equal(cast, array)):
            return cast
    raise UsageError(f"the input {i.name!r} takes {i}, but {array.dtype} was given")


def _check_shape(i: Input, shape: Sequence[int], sizes: dict[str, tuple[int, str]]) -> None:
    """Against the model's pattern; `sizes` remembers what each symbol stood for, and where."""
    where = f"the input {i.name!r} takes {i}, but its given shape is {tuple(shape)}"
    if i.dims is None:
        return
    if len(shape) != len(i.dims):
        raise UsageError(f"{where}: {len(shape)} axes instead of {len(i.dims)}")
    for axis, (dim, size) in enumerate(zip(i.dims, shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise UsageError(f"{where}: axis {axis} is {size} instead of {dim}")
        if isinstance(dim, str):
            before, whose = sizes.setdefault(dim, (size, i.name))
            if before != size:
                raise UsageError(f"{where}: {dim!r} is {size} here and {before} in the input {whose!r}")


def _read_pb(path: Path, position: int) -> Sample:
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise ValueError("no element type")
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise UsageError(f"{path} does not hold an ONNX tensor: {error}") from None
    return Sample(array, tensor.name, position, str(path))


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.stem)
    return int(digits.group()) if digits else 0, path.name

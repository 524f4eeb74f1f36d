"""A plugin library in Python's hands: harness.cpp, with TensorRT's structures and enumerations."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_longlong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUILD, RUNTIME = 0, 1  # TensorRTPhase
TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bfloat16": 7}
FORMATS = {"LINEAR": 0, "CHW2": 1, "HWC8": 2, "CHW32": 5, "DHWC8": 6, "HWC": 8, "HWC16": 11, "DHWC": 12}
FIELD_FLOAT32, FIELD_INT32 = 1, 5  # PluginFieldType
OPS = tuple(
    f"Bnfold{norm}{fused}"
    for norm in ("BatchNorm", "BatchStatNorm")
    for fused in ("", "Relu", "Add", "AddRelu")
)


class Field(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32)]


class Fields(ctypes.Structure):
    _fields_ = [("count", c_int32), ("fields", POINTER(Field))]


class Dims(ctypes.Structure):
    _fields_ = [("rank", c_int32), ("d", c_int64 * 8)]

    @classmethod
    def of(cls, shape: Sequence[int]) -> Dims:
        # As many as fit: the rank may be a wrong one.
        return cls(len(shape), (c_int64 * 8)(*shape[:8]))


class Desc(ctypes.Structure):
    _fields_ = [("dims", Dims), ("type", c_int32), ("format", c_int32), ("scale", c_float)]


class DynamicDesc(ctypes.Structure):
    _fields_ = [("desc", Desc), ("min", Dims), ("max", Dims), ("opt", Dims)]


@dataclass(frozen=True)
class Tensor:
    """What a plugin hears of an input or output. least, most: bounds of a shape that is not known."""

    shape: tuple[int, ...]
    type: str = "float32"
    format: str = "LINEAR"
    least: tuple[int, ...] | None = None
    most: tuple[int, ...] | None = None

    def desc(self) -> Desc:
        return Desc(Dims.of(self.shape), TYPES[self.type], FORMATS[self.format], 0)

    def dynamic(self) -> DynamicDesc:
        least, most = self.least or self.shape, self.most or self.shape
        return DynamicDesc(self.desc(), Dims.of(least), Dims.of(most), Dims.of(most))


class Harness:
    """The library at `path`, opened without TensorRT."""

    def __init__(self, harness: Path, path: Path) -> None:
        self.opened = ctypes.CDLL(str(harness))
        for name, gives in {
            "harness_error": c_char_p,
            "harness_log": c_char_p,
            "creator_text": c_char_p,
            "creator_fields": POINTER(Fields),
            "creator_create": c_void_p,
            "plugin_text": c_char_p,
            "plugin_clone": c_void_p,
            "plugin_attach": c_void_p,
            "plugin_fields": POINTER(Fields),
            "plugin_workspace": c_longlong,
        }.items():
            getattr(self.opened, name).restype = gives
        self.count = self.opened.harness_open(str(path).encode())
        if self.count < 0:
            raise OSError(self.opened.harness_error().decode())
        self.names = [self.text(index, 0) for index in range(self.count)]

    def text(self, creator: int, which: int) -> str:
        """Name, version or namespace."""
        return str(self.opened.creator_text(creator, which), "utf-8")

    def fields(self, op: str) -> list[tuple[str, int]]:
        """Those that a creator asks for: name and type."""
        found = self.opened.creator_fields(self.names.index(op)).contents
        return [(found.fields[i].name.decode(), found.fields[i].type) for i in range(found.count)]

    def log(self) -> str:
        """What was told since the last call."""
        return str(self.opened.harness_log(), "utf-8")

    def create(self, op: str, fields: Sequence[Any], phase: int = BUILD, name: str = "node") -> Plugin | None:
        """A plugin, from (name, value) pairs or what one serialized; or None, and the log says why."""
        kept = [each if isinstance(each, Field) else _field(*each) for each in fields]
        given = Fields(len(kept), (Field * len(kept))(*kept))
        made = self.opened.creator_create(self.names.index(op), name.encode(), ctypes.byref(given), phase)
        return Plugin(self.opened, made) if made else None


def _field(name: str, value: float) -> Field:
    number = c_float(value) if isinstance(value, float) else c_int32(value)
    kind = FIELD_FLOAT32 if isinstance(value, float) else FIELD_INT32
    field = Field(name.encode(), ctypes.cast(ctypes.pointer(number), c_void_p), kind, 1)
    field.number = number  # kept for as long as the field
    return field


class Plugin:
    """One plugin. Methods give a status, 0 for good, unless they say otherwise."""

    def __init__(self, library: ctypes.CDLL, plugin: int) -> None:
        self.opened, self.plugin = library, c_void_p(plugin)

    def __del__(self) -> None:
        self.opened.plugin_delete(self.plugin)

    def text(self, which: int) -> str:
        """Name, version, namespace, timing cache ID or metadata."""
        return str(self.opened.plugin_text(self.plugin, which), "utf-8")

    def texts(self) -> list[str]:
        return [self.text(which) for which in range(5)]

    def clone(self) -> Plugin:
        return Plugin(self.opened, self.opened.plugin_clone(self.plugin))

    def attach(self) -> Plugin:
        return Plugin(self.opened, self.opened.plugin_attach(self.plugin))

    def fields(self) -> list[Field]:
        """To serialize."""
        found = self.opened.plugin_fields(self.plugin).contents
        return [found.fields[i] for i in range(found.count)]

    def outputs(self) -> int:
        return int(self.opened.plugin_outputs(self.plugin))

    def types(self, *types: str) -> tuple[int, int]:
        """Status, and the output's type."""
        output, inputs = c_int(-1), (c_int32 * len(types))(*(TYPES[each] for each in types))
        status = self.opened.plugin_types(self.plugin, ctypes.byref(output), inputs, len(types))
        return status, output.value

    def shapes(self, *shapes: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Status, and the output's shape; -1 is an expression."""
        output, inputs = Dims(), (Dims * len(shapes))(*map(Dims.of, shapes))
        status = self.opened.plugin_shapes(self.plugin, inputs, len(shapes), ctypes.byref(output))
        return status, tuple(-1 if d < 0 else d for d in output.d[: output.rank])

    def supports(self, *tensors: Tensor) -> bool:
        """Whether the inputs and the output, asked one after another, may be of these types and formats."""
        given = (DynamicDesc * len(tensors))(*(each.dynamic() for each in tensors))
        ask = self.opened.plugin_supports
        return all(ask(self.plugin, place, given, len(tensors) - 1) for place in range(len(tensors)))

    def configure(self, *tensors: Tensor) -> int:
        given = (DynamicDesc * len(tensors))(*(each.dynamic() for each in tensors))
        return int(self.opened.plugin_configure(self.plugin, given, len(tensors) - 1))

    def workspace(self, *tensors: Tensor) -> int:
        """Bytes."""
        given = (DynamicDesc * len(tensors))(*(each.dynamic() for each in tensors))
        return int(self.opened.plugin_workspace(self.plugin, given, len(tensors) - 1))

    def change(self, *tensors: Tensor) -> int:
        given = (Desc * len(tensors))(*(each.desc() for each in tensors))
        return int(self.opened.plugin_change(self.plugin, given, len(tensors) - 1))

    def enqueue(
        self, tensors: Sequence[Tensor], memory: Sequence[int], workspace: int, stream: int = 0
    ) -> int:
        """memory: the addresses of the inputs and the output."""
        given = (Desc * len(tensors))(*(each.desc() for each in tensors))
        pointers = (c_void_p * len(memory))(*memory)
        return int(
            self.opened.plugin_enqueue(
                self.plugin, given, len(tensors) - 1, pointers, c_void_p(workspace), c_void_p(stream)
            )
        )

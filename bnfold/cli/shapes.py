"""`[NAME:]SHAPE[:TYPE]`: how the command line takes inputs, and how it prints them.

    1,3,224,224                  the one input of a model
    image:1,3,224,224            an input by its name, which may hold colons
    image:batch,3,224,224        a size that is left open, and its name in the file
    image:batch=4,3,224,224      the same, where the example of an export has 4
    ids:batch,128:int64          with the type of its numbers
    scale::float32               a single number
    image:1x3x224x224            the same as with commas

It is split from the right: a type, if there is one; the sizes; the rest is the name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["TYPES", "Given", "Size", "given", "profile", "sizes"]

TYPES = (
    *("float32", "float64", "float16", "bfloat16", "bool"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
)


# a type that there is not; it would be taken for the name of a size
_OTHER_TYPE = r"(u?int|b?float|bool|complex|str|half|double|long|short|u?char)\w*"


class Size(NamedTuple):
    """One size. value: None where it is open and nothing was said of the example. name: "" where it is not
    open.
    """

    value: int | None
    name: str = ""


class Given(NamedTuple):
    """An input as it was given. name: "" for the one at its position. dtype: "" where nothing was said."""

    name: str
    sizes: tuple[Size, ...]
    dtype: str = ""


def given(text: str) -> Given:
    """Read `[NAME:]SHAPE[:TYPE]`; raises ValueError if it is none."""
    parts = text.split(":")
    dtype = parts.pop() if len(parts) > 1 and parts[-1] in TYPES else ""
    shape, name = parts[-1], ":".join(parts[:-1])
    if (len(parts) > 1 and not name) or not (shape or dtype) or re.fullmatch(_OTHER_TYPE, shape):
        raise ValueError
    if re.fullmatch(r"\d+(x\d+)+", shape):
        shape = shape.replace("x", ",")
    return Given(name, tuple(map(_size, shape.split(","))) if shape else (), dtype)


def sizes(text: str) -> tuple[str, tuple[int, ...]]:
    """The same where every size is a number: the name and the sizes. Raises ValueError."""
    found = given(text)
    numbers = tuple(size.value for size in found.sizes if size.value is not None and not size.name)
    if len(numbers) < len(found.sizes):
        raise ValueError
    return found.name, numbers


def profile(text: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """`[NAME:]SMALLEST/USUAL/LARGEST`, or one shape for all three; the older form `1x3,4x3,8x3` as well.

    Raises ValueError.
    """
    name, colon, value = text.rpartition(":")
    old = "x" in value and "/" not in value
    parts = [sizes(part)[1] for part in value.split("," if old else "/")]
    if (colon and not name) or len(parts) not in (1, 3):
        raise ValueError
    return name, tuple(parts)


def _size(text: str) -> Size:
    """A number from 1 on, a name, or NAME=NUMBER."""
    match = re.fullmatch(r"(?:([^\W\d]\w*)(?:=|$))?(\d*)", text)
    if match is None or not text or text.endswith("="):
        raise ValueError
    name, number = match[1] or "", match[2]
    if number and int(number) == 0:
        raise ValueError
    return Size(int(number) if number else None, name)

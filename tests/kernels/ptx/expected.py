"""What each arithmetic opcode of PTX gives, in numpy, apart from opcodes.py, which is tested by it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
KINDS: dict[str, Any] = {
    **{
        f"{sign}{bits}": f"{'i' if sign == 's' else 'u'}{bits // 8}"
        for sign in "us"
        for bits in (8, 16, 32, 64)
    },
    "f32": "f4",
    "f64": "f8",
    "pred": "u4",
}


def exact(function: Callable[..., int], bits: int) -> Callable[..., Array]:
    """Of Python's integers, value by value, cut to so many bits."""

    def found(*operands: Array) -> Array:
        each = [function(*map(int, row)) % 2**bits for row in zip(*operands, strict=True)]
        return np.array(each, dtype=f"u{bits // 8}")

    return found


def wide(array: Array) -> Array:
    return array.astype(f"{array.dtype.kind}{2 * array.dtype.itemsize}")


def fused(a: Array, b: Array, c: Array) -> Array:
    """With one rounding."""
    if a.dtype == np.float32:
        return (a.astype(np.longdouble) * b + c).astype(np.float32)
    found = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        plain = x * y + z
        usual = all(map(np.isfinite, (x, y, z))) and plain != 0 and np.isfinite(plain)
        found.append(float(Fraction(x) * Fraction(y) + Fraction(z)) if usual else plain)
    return np.array(found)


def divided(a: int, b: int) -> int:
    """Towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def inserted(bits: int, into: int, at: int, count: int) -> int:
    at, count = at % 256, count % 256
    for place in range(at, min(32, at + count)):
        bit = bits >> (place - at) & 1
        into = into & ~(1 << place) | bit << place
    return into


def permuted(a: int, b: int, selector: int) -> int:
    table, found = (b << 32 | a).to_bytes(8, "little"), []
    for place in range(4):
        nibble = selector >> 4 * place & 15
        byte = table[nibble & 7]
        found.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(found), "little")


def by_table(a: int, b: int, c: int, table: int) -> int:
    places = range(32)
    return sum((table >> ((a >> n & 1) * 4 + (b >> n & 1) * 2 + (c >> n & 1)) & 1) << n for n in places)


def shifted(a: int, count: int, bits: int, left: bool) -> int:
    count = min(count, bits)
    return a << count if left else a >> count


def extreme(larger: bool, whole: bool) -> Callable[..., Array]:
    """The larger or smaller of two; of a NaN and a number the number, unless `whole`."""

    def found(a: Array, b: Array) -> Array:
        result = np.fmax(a, b) if larger else np.fmin(a, b)
        zeros = (a == 0) & (b == 0)
        negative = (np.signbit(a) & np.signbit(b)) if larger else (np.signbit(a) | np.signbit(b))
        result = np.where(zeros, np.where(negative, -0.0, 0.0), result).astype(a.dtype)
        return np.where(np.isnan(a) | np.isnan(b), np.nan, result).astype(a.dtype) if whole else result

    return found


def rounded(a: Array, kind: str, relu: bool) -> Array:
    """The bits of 16-bit floats."""
    a = np.where(a <= 0, 0, a).astype(a.dtype) if relu else a
    if kind == "f16":
        found = a.astype(np.float16).view(np.uint16)
    else:
        found = torch.from_numpy(a.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return np.where(np.isnan(a), np.uint16(0x7FFF), found)


def unrounded(bits: Array, kind: str) -> Array:
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def halves(word: Array, kind: str) -> tuple[Array, Array]:
    return tuple(unrounded((word >> n).astype(np.uint16), kind) for n in (16, 0))  # type: ignore[return-value]


def related(name: str, a: Array, b: Array) -> Array:
    """A comparison, by PTX's name."""
    either = (a != a) | (b != b)
    simple: dict[str, Callable[[], Array]] = {
        "eq": lambda: a == b,
        "ne": lambda: (a != b) & ~either,
        "lt": lambda: a < b,
        "le": lambda: a <= b,
        "gt": lambda: a > b,
        "ge": lambda: a >= b,
        "lo": lambda: a < b,
        "ls": lambda: a <= b,
        "hi": lambda: a > b,
        "hs": lambda: a >= b,
        "nan": lambda: either,
        "num": lambda: ~either,
    }
    return simple[name]() if name in simple else simple[name[:-1]]() | either


def flushed(a: Array) -> Array:
    """Zero for what is smaller than a normal number."""
    return np.where(np.abs(a) < np.finfo(a.dtype).tiny, np.copysign(a.dtype.type(0), a), a)


PLAIN: dict[str, Callable[..., Array]] = {
    "mov": lambda a: a,
    **dict.fromkeys(("add", "add.rn"), lambda a, b: a + b),
    **dict.fromkeys(("sub", "sub.rn"), lambda a, b: a - b),
    **dict.fromkeys(("mul", "mul.rn", "mul.lo"), lambda a, b: a * b),
    "mul.wide": lambda a, b: wide(a) * wide(b),
    "mad.lo": lambda a, b, c: a * b + c,
    "mad.wide": lambda a, b, c: wide(a) * wide(b) + c,
    "fma.rn": fused,
    "div.rn": lambda a, b: a / b,
    "rcp.rn": lambda a: 1 / a,
    "rcp.approx.ftz": lambda a: flushed(1 / flushed(a)),
    "sqrt.rn": np.sqrt,
    "neg": lambda a: -a,
    "abs": np.abs,
    "not": lambda a: ~a,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "selp": lambda a, b, c: np.where(c != 0, a, b),
    "min.NaN": extreme(False, True),
    "max.NaN": extreme(True, True),
}


def wanted(opcode: str, *given: Array) -> Array:
    """What an opcode gives."""
    words = opcode.split(".")
    name, kind = ".".join(words[:-1]), words[-1]
    first = given[0]
    bits = 8 * first.dtype.itemsize
    if words[0] == "setp":
        return related(words[1], *given).astype("u4")
    if words[0] == "set":
        pairs = zip(*(halves(each, kind.removesuffix("x2")) for each in given), strict=True)
        upper, lower = (related(words[1], a, b) for a, b in pairs)
        return np.where(upper, 0xFFFF0000, 0).astype("u4") | np.where(lower, 0xFFFF, 0).astype("u4")
    if words[0] == "cvt":
        return converted(words[1:], *given)
    if words[0] == "dp4a":
        parts = (
            each.view(np.uint8 if word == "u32" else np.int8).reshape(-1, 4).astype(np.int64)
            for each, word in zip(given[:2], words[1:], strict=True)
        )
        return exact(lambda total, c: total + c, 32)(np.multiply(*parts).sum(1), given[2])
    if kind == "pred":
        return (first == 0).astype("u4") if name == "not" else PLAIN[name](*given)
    if name in ("min", "max"):
        if first.dtype.kind == "f":
            return extreme(name == "max", False)(*given)
        return {"min": np.minimum, "max": np.maximum}[name](*given)
    integers: dict[str, Callable[..., int]] = {
        "mul.hi": lambda a, b: a * b >> bits,
        "div": lambda a, b: divided(a, b) if b else 0,
        "rem": lambda a, b: a - divided(a, b) * b if b else 0,
        "shl": lambda a, count: shifted(a, count, bits, True),
        "shr": lambda a, count: shifted(a, count, bits, False),
        "bfi": inserted,
        "prmt": permuted,
        "lop3": by_table,
        "shf.l.wrap": lambda low, high, count: (high << 32 | low) << count % 32 >> 32,
        "shf.r.wrap": lambda low, high, count: (high << 32 | low) >> count % 32,
    }
    if name in integers:
        return exact(integers[name], bits)(*given)
    return PLAIN[name](*given)


def converted(words: list[str], *given: Array) -> Array:
    *how, to, of = words
    a = given[0]
    half = to.removesuffix("x2")
    if half in ("f16", "bf16"):
        found = [rounded(each, half, "relu" in how).astype("u4") for each in given]
        return found[0] << 16 | found[1] if to.endswith("x2") else found[0].astype("u2")
    if of in ("f16", "bf16"):
        return unrounded(a, of)
    if how and how[0] in ("rzi", "rni"):
        whole = np.trunc(a) if how[0] == "rzi" else np.round(a)
        limits = np.iinfo(KINDS[to])
        each = [0 if value != value else int(min(max(value, -1e30), 1e30)) for value in whole.tolist()]
        return np.array([min(max(value, limits.min), limits.max) for value in each], KINDS[to])
    return a.astype(KINDS[to])

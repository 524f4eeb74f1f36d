"""What each arithmetic opcode of PTX computes, as a table of C++ expressions; a, b, c, d are its operands.

An opcode that is not here, or has another word in it (.ftz, .approx, .sat, another rounding), is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

SIGNED = ("s16", "s32", "s64")
INTEGERS = ("u16", "u32", "u64", *SIGNED)
BITS = ("b16", "b32", "b64")
FLOATS = ("f32", "f64")
ALL = (*INTEGERS, *BITS, *FLOATS)
PLAIN = {"b8": "u8", "b16": "u16", "b32": "u32", "b64": "u64"}  # what bits are in C++
WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
NARROW = ("u8", "s8")


@dataclass(frozen=True)
class Rule:
    """text: the expression. takes: the type of each source. gives: that of the result."""

    text: str
    takes: tuple[str, ...]
    gives: str


def _same(text: str, kinds: tuple[str, ...], count: int, *more: str) -> dict[str, Rule]:
    """By type: `count` sources and the result are of the instruction's type, then come `more`."""
    return {
        kind: Rule(text, (*[PLAIN.get(kind, kind)] * count, *more), PLAIN.get(kind, kind)) for kind in kinds
    }


def _wide(text: str, *last: str) -> dict[str, Rule]:
    """The result, and the third source, are twice as wide."""
    return {
        kind: Rule(text.replace("W", wide), (kind, kind, *(wide for _ in last)), wide)
        for kind, wide in WIDE.items()
    }


_PRED = ("pred",)
_COUNTED: dict[str, list[dict[str, Rule]]] = {
    "mov": [_same("{a}", (*ALL, "pred"), 1)],
    "add": [_same("{a} + {b}", (*INTEGERS, *FLOATS), 2)],
    "add.rn": [_same("{a} + {b}", FLOATS, 2)],
    "sub": [_same("{a} - {b}", (*INTEGERS, *FLOATS), 2)],
    "sub.rn": [_same("{a} - {b}", FLOATS, 2)],
    "mul": [_same("{a} * {b}", FLOATS, 2)],
    "mul.rn": [_same("{a} * {b}", FLOATS, 2)],
    "mul.lo": [_same("{a} * {b}", INTEGERS, 2)],
    "mul.hi": [_same("high({a}, {b})", ("u32", "s32", "u64", "s64"), 2)],
    "mul.wide": [_wide("W({a}) * W({b})")],
    "mad.lo": [_same("{a} * {b} + {c}", INTEGERS, 3)],
    "mad.wide": [_wide("W({a}) * W({b}) + {c}", "third")],
    "fma.rn": [_same("std::fma({a}, {b}, {c})", FLOATS, 3)],
    "div": [_same("{a} / {b}", INTEGERS, 2)],
    "rem": [_same("{a} % {b}", INTEGERS, 2)],
    "div.rn": [_same("{a} / {b}", FLOATS, 2)],
    "rcp.rn": [_same("1 / {a}", FLOATS, 1)],
    "rcp.approx.ftz": [_same("flushed(1 / flushed({a}))", ("f32",), 1)],
    "sqrt.rn": [_same("std::sqrt({a})", FLOATS, 1)],
    "neg": [_same("-{a}", (*SIGNED, *FLOATS), 1)],
    "abs": [_same("{a} < 0 ? -{a} : {a}", SIGNED, 1), _same("std::fabs({a})", FLOATS, 1)],
    "not": [_same("~{a}", BITS, 1), _same("!{a}", _PRED, 1)],
    "and": [_same("{a} & {b}", (*BITS, "pred"), 2)],
    "or": [_same("{a} | {b}", (*BITS, "pred"), 2)],
    "xor": [_same("{a} ^ {b}", (*BITS, "pred"), 2)],
    "shl": [_same("shifted_left({a}, {b})", BITS, 1, "u32")],
    "shr": [_same("shifted_right({a}, {b})", (*INTEGERS, *BITS), 1, "u32")],
    "bfi": [_same("inserted({a}, {b}, {c}, {d})", ("b32",), 2, "u32", "u32")],
    "prmt": [_same("permuted({a}, {b}, {c})", ("b32",), 3)],
    "lop3": [_same("by_table({a}, {b}, {c}, {d})", ("b32",), 4)],
    "shf.l.wrap": [_same("funnel_left({a}, {b}, {c})", ("b32",), 3)],
    "shf.r.wrap": [_same("funnel_right({a}, {b}, {c})", ("b32",), 3)],
    "min": [_same("{a} < {b} ? {a} : {b}", INTEGERS, 2), _same("smallest({a}, {b})", FLOATS, 2)],
    "max": [_same("{a} > {b} ? {a} : {b}", INTEGERS, 2), _same("largest({a}, {b})", FLOATS, 2)],
    "min.NaN": [_same("unordered({a}, {b}) ? nan32() : smallest({a}, {b})", ("f32",), 2)],
    "max.NaN": [_same("unordered({a}, {b}) ? nan32() : largest({a}, {b})", ("f32",), 2)],
    "selp": [_same("{c} ? {a} : {b}", ALL, 2, "pred")],
}

COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
_OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def _ordered(sign: str) -> str:
    """A comparison of floats that is false of a NaN."""
    return "({a} < {b} || {a} > {b})" if sign == "!=" else f"({{a}} {sign} {{b}})"


FLOAT_COMPARED = {name: _ordered(sign) for name, sign in COMPARED.items()}
FLOAT_COMPARED |= {
    f"{name}u": f"!{_ordered(COMPARED[_OPPOSITE[name]])}" for name in COMPARED
}  # or one is NaN
FLOAT_COMPARED |= {"nan": "unordered({a}, {b})", "num": "!unordered({a}, {b})"}


def _comparisons() -> dict[str, Rule]:
    found = {}
    kinds = [(name, f"({{a}} {sign} {{b}})", (*INTEGERS, *BITS)) for name, sign in COMPARED.items()]
    kinds += [(name, f"({{a}} {sign} {{b}})", ("u16", "u32", "u64")) for name, sign in _UNSIGNED.items()]
    kinds += [(name, text, FLOATS) for name, text in FLOAT_COMPARED.items()]
    for name, text, types in kinds:
        for kind in types:
            own = PLAIN.get(kind, kind)
            found[f"setp.{name}.{kind}"] = Rule(text, (own, own), "pred")
    for (name, text), kind in product(FLOAT_COMPARED.items(), _HALVES):
        compare = f"[](f32 a, f32 b) {{{{ return {text.format(a='a', b='b')}; }}}}"
        found[f"set.{name}.u32.{kind}x2"] = Rule(
            f"compared({{a}}, {{b}}, from_{kind}, {compare})", ("u32", "u32"), "u32"
        )
    return found


_HALVES = ("f16", "bf16")


def _conversions() -> dict[str, Rule]:
    integers = (*INTEGERS, *NARROW)
    found = {
        f"cvt.{to}.{of}": Rule(f"static_cast<{to}>({{a}})", (of,), to) for to in integers for of in integers
    }
    for to, of in product(FLOATS, integers):
        found[f"cvt.rn.{to}.{of}"] = Rule(f"static_cast<{to}>({{a}})", (of,), to)
    for to, of in product(INTEGERS, FLOATS):
        found[f"cvt.rzi.{to}.{of}"] = Rule(f"to_integer<{to}>({{a}})", (of,), to)
        found[f"cvt.rni.{to}.{of}"] = Rule(f"to_integer<{to}>(std::nearbyint({{a}}))", (of,), to)
    found["cvt.rn.f32.f64"] = Rule("static_cast<f32>({a})", ("f64",), "f32")
    found["cvt.f64.f32"] = Rule("static_cast<f64>({a})", ("f32",), "f64")
    for kind in _HALVES:
        found[f"cvt.f32.{kind}"] = Rule(f"from_{kind}({{a}})", ("u16",), "f32")
        for word, each in (("", "{}"), (".relu", "rectified({})")):
            a, b = each.format("{a}"), each.format("{b}")
            found[f"cvt.rn{word}.{kind}.f32"] = Rule(f"{kind}({a})", ("f32",), "u16")
            two = f"pair({kind}({a}), {kind}({b}))"
            found[f"cvt.rn{word}.{kind}x2.f32"] = Rule(two, ("f32", "f32"), "u32")
    return found


RULES: dict[str, Rule] = {
    f"{name}.{kind}": rule
    for name, groups in _COUNTED.items()
    for group in groups
    for kind, rule in group.items()
}
RULES |= _comparisons()
RULES |= _conversions()
for first, second in product(("s32", "u32"), repeat=2):  # sums of products of bytes
    result = "u32" if (first, second) == ("u32", "u32") else "s32"
    bytes_ = ", ".join(f"{each[0]}8" for each in (first, second))
    RULES[f"dp4a.{first}.{second}"] = Rule(
        f"dotted<{bytes_}>({{a}}, {{b}}) + {{c}}", ("u32", "u32", result), result
    )

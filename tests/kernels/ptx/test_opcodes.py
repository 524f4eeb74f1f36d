"""Each arithmetic opcode that translate.py knows, against numpy; and what it does not know is told."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.kernels.host import HostError, unavailable
from tests.kernels.ptx.compiled import PtxHost
from tests.kernels.ptx.expected import KINDS, Array, wanted
from tests.kernels.ptx.opcodes import FLOAT_COMPARED, RULES
from tests.kernels.ptx.parse import PtxError, parsed
from tests.kernels.ptx.translate import translated

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

COUNT = 256  # values of each operand, one for each thread
REGISTERS = {"u8": "b16", "s8": "b16", "f32": "f32", "f64": "f64"}  # others: bits of their size
# Numbers at which something changes, among random ones.
EDGES = [
    0,
    1,
    -1,
    2,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
]
FLOATS = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 65504.0, 65519.0, 65520.0, 1e-8, 6e-8, 3e38, 1e-40]
FLOATS += [0.5, 1.5, 2.5, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11]  # halfway between two others


def values(kind: str, operand: int) -> Array:
    """Those of one operand: the same whenever this is called."""
    random = np.random.default_rng([sum(kind.encode()), operand])
    if kind == "pred":
        return random.integers(0, 2, COUNT).astype("u4")
    dtype = np.dtype(KINDS[kind])
    if dtype.kind == "f":
        found = random.standard_normal(COUNT) * 10.0 ** random.integers(-6, 6, COUNT)
        edges = np.array(FLOATS)
    else:
        found = np.frombuffer(random.bytes(8 * COUNT), "u8").copy()
        edges = np.array([each % 2**64 for each in EDGES], dtype="u8")
    places = random.permutation(COUNT)[: COUNT // 2]
    found[places] = random.choice(edges, len(places))
    with np.errstate(all="ignore"):
        return found.astype(f"u{dtype.itemsize}").view(dtype) if dtype.kind != "f" else found.astype(dtype)


# running them


def register(kind: str) -> str:
    return REGISTERS.get(kind) or ("pred" if kind == "pred" else f"b{kind[1:]}")


def program(opcodes: list[str]) -> str:
    """A kernel that runs each opcode once in each thread: operands in, results out, 8 bytes for each."""
    lines = ["mov.u32 %t, %tid.x;", "mul.wide.u32 %at, %t, 8;"]
    lines += ["ld.param.u64 %in, [operands];", "ld.param.u64 %out, [results];"]
    lines += ["add.s64 %in, %in, %at;", "add.s64 %out, %out, %at;"]
    slot = 0
    for number, opcode in enumerate(opcodes):
        rule, names = RULES[opcode], []
        for place, kind in enumerate(rule.takes):
            name = f"%{register(kind)}_{place}"
            if kind == "pred":
                lines += [f"ld.global.u32 %word, [%in+{slot * COUNT * 8}];", f"setp.ne.s32 {name}, %word, 0;"]
            else:
                lines.append(f"ld.global.{kind} {name}, [%in+{slot * COUNT * 8}];")
            names.append(name)
            slot += 1
        gives, result = rule.gives, f"%{register(rule.gives)}_9"
        lines.append(f"{opcode} {result}, {', '.join(names)};")
        if gives == "pred":
            lines.append(f"selp.u32 %word, 1, 0, {result};")
            gives, result = "u32", "%word"
        lines.append(f"st.global.{gives} [%out+{number * COUNT * 8}], {result};")
    kinds = ["pred", "b16", "b32", "b64", "f32", "f64"]
    declared = [f".reg .{kind} %{kind}_<10>;" for kind in kinds]
    declared += [
        ".reg .b32 %t;",
        ".reg .b32 %word;",
        *(f".reg .b64 %{name};" for name in ("at", "in", "out")),
    ]
    text = "\n\t".join([*declared, *lines, "ret;"])
    return f".visible .entry test(\n\t.param .u64 operands,\n\t.param .u64 results\n)\n{{\n\t{text}\n}}\n"


def operands(opcode: str) -> list[Array]:
    kinds = RULES[opcode].takes
    found = [values(kind, place) for place, kind in enumerate(kinds)]
    if opcode.startswith(("div.", "rem.")) and ".rn" not in opcode:
        found[1] = np.where(found[1] == 0, 3, found[1]).astype(found[1].dtype)
        if found[0].dtype.kind == "i":  # no integer holds the least by -1
            found[1] = np.where(found[1] == -1, 3, found[1]).astype(found[1].dtype)
    if opcode.startswith(("shl.", "shr.", "bfi.")):
        found[-1] = found[-1] % 80
    return found


@pytest.fixture(scope="module")
def ran() -> dict[str, Array]:
    """What each opcode gave."""
    opcodes = list(RULES)
    given = [each for opcode in opcodes for each in operands(opcode)]
    memory = np.zeros((len(given), COUNT, 8), np.uint8)
    for row, each in zip(memory, given, strict=True):
        row[:, : each.dtype.itemsize] = each.view(np.uint8).reshape(COUNT, -1)
    results = np.zeros((len(opcodes), COUNT, 8), np.uint8)
    PtxHost(program(opcodes)).launch("PTX", grid=1, block=COUNT, arguments=[memory, results])
    found = {}
    for opcode, row in zip(opcodes, results, strict=True):
        dtype = np.dtype(KINDS[RULES[opcode].gives])
        found[opcode] = np.ascontiguousarray(row[:, : dtype.itemsize]).view(dtype).reshape(COUNT)
    return found


FAMILIES = sorted({opcode.split(".")[0] for opcode in RULES})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values(ran: dict[str, Array], family: str) -> None:
    for opcode in RULES:
        if opcode.split(".")[0] != family:
            continue
        given, found = operands(opcode), ran[opcode]
        expected = wanted(opcode, *given)
        assert expected.dtype.itemsize == found.dtype.itemsize, opcode
        if found.dtype.kind == "f":
            same = (found == expected) & (np.signbit(found) == np.signbit(expected))
            same |= np.isnan(found) & np.isnan(expected)
        else:
            same = found.view(f"u{found.dtype.itemsize}") == expected.view(f"u{found.dtype.itemsize}")
        wrong = np.flatnonzero(~same)
        assert not len(wrong), (
            opcode,
            [each[wrong[:3]] for each in given],
            found[wrong[:3]],
            expected[wrong[:3]],
        )


def test_comparisons_are_those_of_ptx() -> None:
    assert len(FLOAT_COMPARED) == 14


# the others


MEMORY = """
.visible .entry test(
	.param .u64 numbers,
	.param .u64 words,
	.param .u64 found
)
{
	.reg .b16 %h<5>;
	.reg .b32 %r<20>;
	.reg .f32 %f<3>;
	.reg .b64 %d<10>;
	.reg .pred %p<2>;
	ld.param.u64 %d1, [numbers];
	ld.param.u64 %d2, [words];
	ld.param.u64 %d3, [found];
	cvta.to.global.u64 %d1, %d1;
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %d4, %r1, 16;
	add.s64 %d1, %d1, %d4;
	add.s64 %d3, %d3, %d4;
	cvt.u32.u64 %r10, %d4;
	cp.async.cg.shared.global [%r10], [%d1], 16;
	cp.async.commit_group;
	prefetch.global.L2 [%d1];
	cp.async.wait_group 0;
	ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%r10];
	mov.b64 %d5, {%r2, %r3};
	mov.b64 {%r6, _}, %d5;
	mov.b32 {%h1, %h2}, %r3;
	mov.b32 %r7, {%h2, %h1};
	bar.sync 0;
	xor.b32 %r8, %r10, 16;
	st.shared.v2.b32 [%r8], {%r6, %r7};
	bar.sync 0;
	ld.shared.b32 %r6, [%r10];
	cvt.u64.u32 %d6, %r10;
	cvta.shared.u64 %d6, %d6;
	ld.b32 %r7, [%d6+4];
	mov.u32 %r11, 31;
	mov.u32 %r12, -1;
	shfl.sync.bfly.b32 %r9|%p1, %r4, 1, %r11, %r12;
	atom.add.release.gpu.global.u32 %r13, [%d2], 2;
	atom.global.add.u32 _, [%d2+4], 1;
	ld.acquire.gpu.global.u32 %r14, [%d2+4];
	ld.volatile.global.u32 %r14, [%d2+4];
	setp.ge.s32 %p1, %r1, 32;
	@%p1 bra $L__first;
	add.s32 %r9, %r9, 1000;
$L__first:
	@!%p1 ld.global.nc.L1::no_allocate.s8 %r5, [%d1+12];
	st.global.cs.v4.u32 [%d3], {%r6, %r7, %r9, %r5};
	membar.gl;
	ret;
}
"""


def checked(text: str, *seeds: int) -> None:
    """What MEMORY should do, done by a text that may be another."""
    for seed in seeds:
        checked_once(text, seed)


def checked_once(text: str, seed: int) -> None:
    count = 64
    numbers = np.random.default_rng(0).integers(0, 2**32, (count, 4), dtype=np.uint32)
    words, found = np.zeros(2, np.uint32), np.zeros((count, 4), np.uint32)
    code = PtxHost(text)
    code.launch("PTX", grid=1, block=count, shared=16 * count, arguments=[numbers, words, found], seed=seed)
    other = numbers[np.arange(count) ^ 1]
    assert words.tolist() == [2 * count, count]
    assert np.array_equal(found[:, 0], other[:, 0])
    assert np.array_equal(found[:, 1], other[:, 1] << 16 | other[:, 1] >> 16)
    assert np.array_equal(
        found[:, 2], other[:, 2] + np.where(np.arange(count) < 32, 1000, 0).astype(np.uint32)
    )
    byte = (numbers[:, 3] & 255).astype(np.uint8).view(np.int8).astype(np.int32).view(np.uint32)
    assert np.array_equal(found[:, 3], np.where(np.arange(count) < 32, byte, numbers[:, 3]))


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_memory_and_threads(seed: int) -> None:
    checked(MEMORY, seed)


@pytest.mark.parametrize("line", ["cp.async.wait_group 0;", "cp.async.commit_group;", "bar.sync 0;"])
def test_a_missing_wait_is_seen(line: str) -> None:
    """Copies are made late by the seeds up to 3."""
    assert line in MEMORY
    with pytest.raises((AssertionError, HostError)):
        checked(MEMORY.replace(line, ""), 1, 2, 3)


@pytest.mark.parametrize(
    ("place", "instead"),
    [
        ("st.shared.v2.b32 [%r8]", "st.shared.v2.b32 [%r8+1024]"),
        ("ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%r10]", "ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%r10+8]"),
        ("[%d3], {%r6", "[%d3+4], {%r6"),
        ("ld.acquire.gpu.global.u32 %r14, [%d2+4]", "ld.acquire.gpu.global.u32 %r14, [4]"),
    ],
)
def test_accesses_that_a_device_refuses(place: str, instead: str) -> None:
    assert place in MEMORY
    code, memory = PtxHost(MEMORY.replace(place, instead)), np.zeros(4096, np.uint8)
    with pytest.raises(Exception, match=r"misaligned|beyond|null pointer"):
        code.launch("PTX", grid=1, block=64, shared=1024, arguments=[memory, memory, memory])


@pytest.mark.parametrize(
    "instruction",
    [
        "add.ftz.f32 %f1, %f1, %f2",
        "cvt.rz.f16.f32 %h1, %f1",
        "cvt.rz.bf16x2.f32 %r1, %f1, %f1",
        "ex2.approx.f32 %f1, %f1",
        "div.full.f32 %f1, %f1, %f1",
        "fma.rz.f32 %f1, %f1, %f1, %f1",
        "ld.global.b128 %d1, [%d1]",
        "ld.const.u32 %r1, [%d1]",
        "st.release.gpu.global.u32 [%d1], %r1",
        "atom.global.cas.b32 %r1, [%d1], %r1, %r2",
        "shfl.sync.down.b32 %r1, %r1, 1, 31, -1",
        "bar.red.popc.u32 %r1, 0, %p1",
        "bar.sync 1",
        "cp.async.ca.shared.global [%r1], [%d1], 4",
        "mapa.shared::cluster.u32 %r1, %r1, 0",
        "cvta.local.u64 %d1, %d1",
        "brx.idx %r1, table",
        "call.uni printf, (%r1)",
        "add.s32 %r1, %r1",
        "add.s32 %r1, %r1, %unknown",
    ],
)
def test_what_is_unknown_is_named(instruction: str) -> None:
    text = MEMORY.replace("membar.gl;", f"{instruction};")
    line = text[: text.index(f"\t{instruction};\n\tret;")].count("\n") + 1
    with pytest.raises(PtxError, match=rf"line {line}: {re.escape(instruction.split()[0])}"):
        translated(parsed(text))


def test_text_that_is_no_kernel() -> None:
    with pytest.raises(PtxError, match=r"no \.entry"):
        parsed(".version 9.0\n")
    with pytest.raises(PtxError, match=r"line \d+: \.local"):
        parsed(MEMORY.replace("membar.gl;", ".local .b8 depot[8];"))

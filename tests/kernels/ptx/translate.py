"""Makes C++ of the PTX of one kernel, for the machine of tests/kernels: what the compiler made is what runs.

Each instruction becomes a statement. What waits, and what may be done late, is done by host_machine.cpp, as
for the kernels' own source. The memory model is not part of it: fences do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.kernels.ptx.opcodes import PLAIN, RULES
from tests.kernels.ptx.parse import SIZES, Entry, Instruction, Label, PtxError, Registers, Scope

_CLASSES = {"pred": "pred", "f32": "f32", "f64": "f64", **PLAIN}  # of registers, in C++
_FLOATING = {"f32", "f64"}
_SPECIAL = {"%tid.x": "thread", "%ntid.x": "threads", "%ctaid.x": "block", "%nctaid.x": "blocks"}
_INTEGER = re.compile(r"-?(\d+|0[xX][0-9a-fA-F]+)U?$")
_ADDRESS = re.compile(r"^\[(.+?)(?:\s*\+\s*(-?\d+))?\]$")
# Words of loads and stores that change nothing here: caches, and how others see them.
_HINTS = {"nc", "cs", "cg", "ca", "lu", "wt", "weak", "relaxed", "gpu", "L1::no_allocate", "L1::evict_last"}
_WAITING = {"volatile", "acquire"}
_SPACES = {"global", "shared", "shared::cta", "param"}


def translated(entry: Entry) -> str:
    """A C++ file that exports bnfold_launch for this kernel.

    Raises:
        PtxError: an instruction is unknown, or has operands that are; the text names it and its line.
    """
    return Translation(entry).text()


class Translation:
    """One kernel's."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.kinds: dict[str, str] = {}  # of registers, in C++
        for item in entry.items:
            if isinstance(item, Registers):
                names = [item.name] if item.count is None else [f"{item.name}{n}" for n in range(item.count)]
                self.kinds.update(dict.fromkeys(names, _CLASSES[item.type]))

    def text(self) -> str:
        body = "\n".join(self.item(item) for item in self.entry.items)
        sizes = ", ".join(str(SIZES[kind[1:]]) for kind in self.entry.parameters.values())
        return (
            '#include "host_ptx.h"\n'
            "using namespace bnfold::ptx;\nnamespace host = bnfold::host;\nnamespace port = bnfold::port;\n"
            f"static void kernel(const host::Argument* arguments) {{\n{body}\n}}\n"
            "const char* bnfold_launch(int, const host::Launch* shape, const host::Argument* arguments, "
            "int count) {\n"
            f"    static const int sizes[] = {{{sizes}}};\n"
            f"    return launch(kernel, sizes, {len(self.entry.parameters)}, *shape, arguments, count);\n}}\n"
        )

    def item(self, item: Instruction | Label | Registers | Scope) -> str:
        if isinstance(item, Scope):
            return item.text
        if isinstance(item, Label):
            return f"{_plain(item.name)}:;"
        if isinstance(item, Registers):
            names = [item.name] if item.count is None else [f"{item.name}{n}" for n in range(item.count)]
            return f"{_CLASSES[item.type]} {', '.join(map(_plain, names))};" if names else ""
        statement = self.statement(item)
        if item.guard:
            sign, name = ("!", item.guard[1:]) if item.guard[0] == "!" else ("", item.guard)
            return f"if ({sign}{self.register(item, name)}) {{ {statement} }}"
        return statement

    def statement(self, it: Instruction) -> str:
        try:
            own = _STATEMENTS.get(it.words[0])
            found = own(self, it) if own is not None else None
            if found is None:
                rule = RULES.get(it.opcode)
                if rule is None:
                    raise PtxError(f"unknown: {it}")
                result, *sources = it.operands
                operands = (
                    self.value(it, each, kind) for each, kind in zip(sources, rule.takes, strict=True)
                )
                value = rule.text.format(**dict(zip("abcd", operands, strict=False)))
                found = self.set(it, result, rule.gives, value)
        except (ValueError, IndexError, KeyError) as error:  # another number of operands, an unknown type
            raise PtxError(f"cannot be read: {it} ({error})") from error
        return found

    # operands

    def register(self, it: Instruction, name: str) -> str:
        if name not in self.kinds:
            raise PtxError(f"no register {name}: {it}")
        return _plain(name)

    def value(self, it: Instruction, operand: str, kind: str) -> str:
        """A source, as a C++ expression of a type."""
        if operand in _SPECIAL:
            return f"static_cast<{kind}>(host::current->{_SPECIAL[operand]})"
        if operand in self.kinds:
            return _as(kind, self.kinds[operand], _plain(operand))
        if operand.startswith("0f"):
            return f"as<{kind}>(u32{{0x{operand[2:]}}})"
        if operand.startswith("0d"):
            return f"as<{kind}>(u64{{0x{operand[2:]}}})"
        if kind == "pred" and operand in ("0", "1", "-1"):
            return "false" if operand == "0" else "true"
        if _INTEGER.match(operand):
            number = operand.removesuffix("U")
            return f"static_cast<{kind}>({number}{'ull' if 'x' in number.lower() else 'll'})"
        if operand in self.entry.shared:
            return f"static_cast<{kind}>(0)"  # where dynamic shared memory begins
        if operand in self.entry.values:
            return f"static_cast<{kind}>({self.entry.values[operand]})"
        raise PtxError(f"unknown operand {operand}: {it}")

    def set(self, it: Instruction, place: str, kind: str, value: str) -> str:
        """A register gets a value of a type; "_" gets none."""
        if place == "_":
            return f"static_cast<void>({value});"
        name, own = self.register(it, place), self.kinds[place]
        if own == kind:
            return f"{name} = {value};"
        if _FLOATING & {own, kind}:
            return f"set({name}, static_cast<{kind}>({value}));"
        return f"{name} = static_cast<{kind}>({value});"  # extended by its own sign, if at all

    def address(self, it: Instruction, operand: str, shared: bool, size: int) -> str:
        """A place in memory, as a char*, checked for that many bytes."""
        found = _ADDRESS.match(operand)
        if found is None:
            raise PtxError(f"no address: {it}")
        base, offset = found.groups()
        kind = self.kinds.get(base, "u64")
        place = f"{self.value(it, base, kind)} + ({offset or 0})"
        return f"{'shared' if shared else 'global'}(static_cast<u64>({place}), {size}, {it.line})"


# statements: what is no arithmetic; None: it is


def _vector(it: Instruction) -> int:
    return next((int(word[1:]) for word in it.words if word in ("v2", "v4")), 1)


def _access(it: Instruction, operand: str) -> tuple[str, bool, list[str]]:
    """Type, whether in shared memory, and the registers, of a load or store whose words are known."""
    *words, kind = it.words[1:]
    unknown = [word for word in words if word not in _HINTS | _WAITING | _SPACES | {"v2", "v4"}]
    registers = [each.strip() for each in operand.strip("{}").split(",")]
    if unknown or len(registers) != _vector(it):
        raise PtxError(f"unknown: {it}")
    return PLAIN.get(kind, kind), "shared" in words or "shared::cta" in words, registers


def _load(self: Translation, it: Instruction) -> str:
    place, source = it.operands
    kind, shared, registers = _access(it, place)
    if "param" in it.words:
        number = list(self.entry.parameters).index(source.strip("[]"))
        return self.set(it, place, kind, f"argument<{kind}>(arguments, {number})")
    size = SIZES[kind[1:]]
    address = self.address(it, source, shared, size * len(registers))
    wait = f'host::wait("{it.opcode}", "PTX", {it.line}); ' if _WAITING & {*it.words} else ""
    loads = (
        self.set(it, each, kind, f"load<{kind}>(place + {number * size})")
        for number, each in enumerate(registers)
    )
    if len(registers) == 1:
        return wait + self.set(it, registers[0], kind, f"load<{kind}>({address})")
    return f"{{ {wait}const char* place = {address}; {' '.join(loads)} }}"


def _store(self: Translation, it: Instruction) -> str:
    target, source = it.operands
    kind, shared, registers = _access(it, source)
    if _WAITING & {*it.words}:
        raise PtxError(f"unknown: {it}")
    size = SIZES[kind[1:]]
    address = self.address(it, target, shared, size * len(registers))
    stores = (
        f"store<{kind}>(place + {number * size}, {self.value(it, each, kind)});"
        for number, each in enumerate(registers)
    )
    if len(registers) == 1:
        return f"store<{kind}>({address}, {self.value(it, source, kind)});"
    return f"{{ char* place = {address}; {' '.join(stores)} }}"


def _atom(self: Translation, it: Instruction) -> str:
    *words, kind = it.words[1:]
    if (
        kind not in ("u32", "s32")
        or "add" not in words
        or not {*words} <= {*("add", "global", "gpu", "relaxed", "acquire", "release", "acq_rel")}
    ):
        raise PtxError(f"unknown: {it}")
    place, target, value = it.operands
    address = self.address(it, target, False, 4)
    return self.set(
        it, place, kind, f"add_atomically<{kind}>({address}, {self.value(it, value, kind)}, {it.line})"
    )


def _move(self: Translation, it: Instruction) -> str | None:
    """Of several registers into one, or of one into several; the first has the lowest bits."""
    place, source = it.operands
    kind = PLAIN.get(it.words[-1], it.words[-1])
    if not (place + source).count("{"):
        return None
    parts = [each.strip() for each in (place if place[0] == "{" else source).strip("{}").split(",")]
    bits = 8 * SIZES[kind[1:]] // len(parts)
    if place[0] == "{":
        given = f"const auto whole = {self.value(it, source, kind)};"
        sets = (self.set(it, each, f"u{bits}", f"whole >> {bits * n}") for n, each in enumerate(parts))
        return f"{{ {given} {' '.join(sets)} }}"
    value = " | ".join(
        f"static_cast<{kind}>({self.value(it, each, f'u{bits}')}) << {bits * n}"
        for n, each in enumerate(parts)
    )
    return self.set(it, place, kind, value)


def _shuffle(self: Translation, it: Instruction) -> str:
    place, source, *rest = it.operands
    if it.opcode != "shfl.sync.bfly.b32" or len(rest) != 3:
        raise PtxError(f"unknown: {it}")
    numbers = ", ".join(self.value(it, each, "s32") for each in rest)
    place, _, whether = place.partition("|")
    value = f"shuffled({self.value(it, source, 'u32')}, {numbers}, {it.line})"
    return self.set(it, place, "u32", value) + (self.set(it, whether, "pred", "true") if whether else "")


def _barrier(self: Translation, it: Instruction) -> str:
    known = {
        "bar.sync": f'host::sync_block("PTX", {it.line});',
        "barrier.sync": f'host::sync_block("PTX", {it.line});',
        "barrier.cluster.arrive": f'port::arrive_cluster("PTX", {it.line});',
        "barrier.cluster.arrive.release": f'port::arrive_cluster("PTX", {it.line});',
        "barrier.cluster.wait": f'port::wait_cluster("PTX", {it.line});',
        "barrier.cluster.wait.acquire": f'port::wait_cluster("PTX", {it.line});',
    }
    opcode = it.opcode.removesuffix(".aligned")
    if opcode not in known or it.operands not in ((), ("0",)):
        raise PtxError(f"unknown: {it}")
    return known[opcode]


def _of_peer(self: Translation, it: Instruction) -> str:
    place, source, rank = it.operands
    if it.opcode != "mapa.u64":
        raise PtxError(f"unknown: {it}")
    here = f"reinterpret_cast<const void*>({self.value(it, source, 'u64')})"
    return self.set(
        it,
        place,
        "u64",
        f'reinterpret_cast<u64>(host::of_peer({here}, 1, {self.value(it, rank, "s32")}, "PTX", {it.line}))',
    )


def _convert_address(self: Translation, it: Instruction) -> str:
    """Generic addresses are the host's."""
    base = "reinterpret_cast<u64>(host::current->shared)"
    place, source = it.operands
    value = self.value(it, source, "u64")
    known = {
        "cvta.to.global.u64": value,
        "cvta.global.u64": value,
        "cvta.shared.u64": f"{value} + {base}",
        "cvta.to.shared.u64": f"{value} - {base}",
    }
    if it.opcode not in known:
        raise PtxError(f"unknown: {it}")
    return self.set(it, place, "u64", known[it.opcode])


def _copy(self: Translation, it: Instruction) -> str:
    """Copies into shared memory that are made late."""
    if it.opcode == "cp.async.commit_group":
        return "port::end_group();"
    if it.opcode == "cp.async.wait_all":
        return "port::end_group(); port::wait_groups<0>();"
    if it.opcode == "cp.async.wait_group":
        return f"port::wait_groups<{int(it.operands[0])}>();"
    words = [word for word in it.words if not word.startswith("L2::")]
    if ".".join(words) not in ("cp.async.cg.shared.global", "cp.async.cg.shared::cta.global"):
        raise PtxError(f"unknown: {it}")
    to, source, size = it.operands
    if size != "16":
        raise PtxError(f"unknown: {it}")
    place, given = self.address(it, to, True, 16), self.address(it, source, False, 16)
    kinds = "reinterpret_cast<port::Bits16*>", "reinterpret_cast<const port::Bits16*>"
    return f'port::copy_async({kinds[0]}({place}), {kinds[1]}({given}), "PTX", {it.line});'


def _prefetch(self: Translation, it: Instruction) -> str:
    if it.opcode != "prefetch.global.L2":
        raise PtxError(f"unknown: {it}")
    return f"port::prefetch({self.address(it, it.operands[0], False, 1)});"


def _branch(self: Translation, it: Instruction) -> str:
    if it.opcode not in ("bra", "bra.uni"):
        raise PtxError(f"unknown: {it}")
    return f"goto {_plain(it.operands[0])};"


def _end(self: Translation, it: Instruction) -> str:
    return "return;"


def _fence(self: Translation, it: Instruction) -> str:
    return ";"


_STATEMENTS: dict[str, Callable[[Translation, Instruction], str | None]] = {
    "ld": _load,
    "st": _store,
    "atom": _atom,
    "mov": _move,
    "shfl": _shuffle,
    "bar": _barrier,
    "barrier": _barrier,
    "mapa": _of_peer,
    "cvta": _convert_address,
    "cp": _copy,
    "prefetch": _prefetch,
    "bra": _branch,
    "ret": _end,
    "exit": _end,
    "membar": _fence,
    "fence": _fence,
}


def _as(kind: str, own: str, register: str) -> str:
    """A register of one type read as another: its bits, or the lowest of them. C++ does that for integers."""
    if own == kind:
        return register
    return f"as<{kind}>({register})" if _FLOATING & {own, kind} else f"static_cast<{kind}>({register})"


def _plain(name: str) -> str:
    """A name of PTX in C++."""
    return name.replace("%", "_").replace("$", "l_")

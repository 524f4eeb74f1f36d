"""tools/kernel_cost: what it makes of machine code, its model, its file; and the counts that kernels must
keep to.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bnfold.kernels.launch import Device
from tools._common import RESULTS
from tools._cost import flow, goals, kernel_cost, latency, loops, sass, simulate, tables
from tools._cost.assumptions import MODEL
from tools._cost.devices import DEVICES, Hardware, limits
from tools._cost.pipes import counted, in_flight
from tools._cost.predict import Snapshot, copied, floor, predicted
from tools._gpu.layers import PASSES, Case, cases

COLUMNS = "bnfold::Layout::columns"

# machine code


def listing(*lines: str) -> tuple[sass.Instruction, ...]:
    """As the disassembler writes it: a line is a label, or an instruction."""
    text = []
    for line in lines:
        text.append(line if line.startswith(".L") else f"        /*{16 * len(text):04x}*/    {line} ;")
    return sass.parsed("\n".join(text))


# A load loop of two vectors: it stages them, the second only if there is one; and a loop that writes, in
# which a residual and a mask are optional.
KERNEL = listing(
    "S2R R0, SR_TID.X",
    ".L_x_1:",
    "LDG.E.NA.128.CONSTANT R4, desc[UR6][R2.64]",
    "LDG.E.NA.128.CONSTANT R8, desc[UR6][R12.64]",
    "FADD R20, R20, R4",
    "STS.128 [R30], R4",
    "@!P1 BRA `(.L_x_2)",
    "FADD R20, R20, R8",
    "STS.128 [R31], R8",
    ".L_x_2:",
    "IADD3 R0, R0, 0x400, RZ",
    "@P0 BRA `(.L_x_1)",
    "SHFL.BFLY PT, R21, R20, 0x10, 0x1f",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    ".L_x_3:",
    "LDS.128 R4, [R30]",
    "@!P2 BRA `(.L_x_4)",
    "LDG.E.NA.128.CONSTANT R8, desc[UR6][R12.64]",
    "FADD R4, R4, R8",
    ".L_x_4:",
    "F2FP.BF16.F32.PACK_AB R4, R5, R4",
    "STG.E.EF.128 desc[UR6][R2.64], R4",
    "@!P3 BRA `(.L_x_5)",
    "STG.E.U8 desc[UR6][R14.64], R9",
    ".L_x_5:",
    "@P0 BRA `(.L_x_3)",
    "EXIT",
)
ABOUT = loops.named(f"bnfold::forward<bnfold::bfloat16, float, 8, {COLUMNS}, bnfold::Exchange::none>")


def test_loops_are_told_by_what_they_do() -> None:
    assert [(each.role, each.loop.first, each.loop.last) for each in loops.roles(KERNEL, ABOUT)] == [
        ("load", 1, 9),
        ("write", 12, 20),
    ]
    assert loops.Kernel("forward", "bnfold::bfloat16", 8, "columns", "none") == ABOUT
    with pytest.raises(ValueError, match="no kernel"):
        loops.named("memset")


def test_the_shortest_way_with_the_most_vectors_counts() -> None:
    found = loops.costs(KERNEL, ABOUT)
    load, write = found["load"]["alone"], found["write"]
    assert (load.issue, load.memory, load.shared, load.through) == (9 / 2, 2, 4, 4)
    assert load.in_flight == 2
    assert [write[fusion].issue for fusion in loops.FUSIONS[:3]] == [6, 6, 9]
    assert [write[fusion].through for fusion in loops.FUSIONS[:3]] == [4, 4, 9]
    assert write["alone"].alu == 1


def test_a_merge_of_sets_is_no_sweep() -> None:
    """Both read 16 bytes of shared memory and add much; one adds what other lanes have."""
    adds = ["FADD R20, R20, R4"] * 8
    ends = ["@P0 BRA `(.L_x_1)", "EXIT"]
    sweep = listing("S2R R0, SR_TID.X", ".L_x_1:", "LDS.128 R4, [R30]", *adds, *ends)
    shuffle = "SHFL.BFLY PT, R4, R20, 0x10, 0x1f"
    merge = listing("S2R R0, SR_TID.X", ".L_x_1:", "LDS.128 R4, [R30]", *adds[:4], shuffle, *adds[4:], *ends)
    assert [each.role for each in loops.roles(sweep, ABOUT)] == ["sweep"]
    assert loops.roles(merge, ABOUT) == []


def test_slow_paths_are_no_loops() -> None:
    code = listing(
        "MOV R0, R1",
        "BRA.DIV UR4, `(.L_x_9)",
        ".L_x_8:",
        "FADD R0, R0, R1",
        "CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_rn_f64_full)",
        "EXIT",
        ".L_x_9:",
        "SHFL.BFLY P2, R27, R26, R29, R25",
        "BRA `(.L_x_8)",
    )
    assert flow.loops(code) == ()


# A ring: a loop over turns, in each of which either the blocks' sums are awaited, or vectors are written,
# copied and summed; and now and then sums are told.
RING = listing(
    "S2R R0, SR_TID.X",
    ".L_x_1:",
    "@P0 BRA `(.L_x_4)",
    ".L_x_2:",
    "LDG.E.STRONG.GPU R9, desc[UR6][R2.64]",
    "@!P1 BRA `(.L_x_2)",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    ".L_x_3:",
    "LDG.E.64 R12, desc[UR6][R10.64]",
    "FADD R14, R14, R12",
    "VIADD R11, R11, 0x40",
    "@P2 BRA `(.L_x_3)",
    "BRA `(.L_x_6)",
    ".L_x_4:",
    "LDS.128 R4, [R30]",
    "STG.E.EF.128 desc[UR6][R2.64], R4",
    "LDGSTS.E.BYPASS.128 [R30], desc[UR6][R2.64]",
    "FADD R20, R20, R4",
    "@P3 BRA `(.L_x_4)",
    ".L_x_6:",
    "@P4 BRA `(.L_x_7)",
    "SHFL.BFLY PT, R21, R20, 0x10, 0x1f",
    "ATOMG.E.ADD.STRONG.GPU PT, R22, desc[UR6][R70.64], R21",
    ".L_x_7:",
    "@P5 BRA `(.L_x_1)",
    "EXIT",
)


def test_a_ring_and_what_it_waits_for() -> None:
    known = loops.roles(RING, ABOUT)
    assert [(each.role, each.loop.first, each.loop.last) for each in known] == [("ring", 10, 14)]
    found = latency.between(RING, known)
    assert latency.CYCLES["SHFL"] < found.window < 60
    assert latency.CYCLES["ATOMG"] < found.barrier < 900
    assert latency.CYCLES["LDG"] < found.merge < 500
    assert (found.sets, found.letter) == (3, pytest.approx(found.merge / 2, rel=0.2))  # two ranks a turn


def test_the_loops_of_a_long_ring_copy_what_comes_behind() -> None:
    """Copies may have ended. A turn that was copied once more is waited for."""
    take, copy = (
        "LDS.128 R4, [R30]",
        ["@P1 BRA `({0})", "LDGSTS.E.BYPASS.128 [R30], desc[UR6][R2.64]", "{0}:"],
    )
    adds = [f"FADD R2{i}, R2{i}, R4" for i in range(8)]
    wait, store = "DEPBAR.LE SB0, 0x2", "STG.E.EF.128 desc[UR6][R2.64], R4"
    code, spans = ["S2R R0, SR_TID.X"], []
    for n, body in enumerate(([wait, take, *adds, *copy], [wait, take, *adds], [take, store, *copy])):
        lines = [f".L_x_{n}:", *(each.format(f".L_x_1{n}") for each in body), f"@P0 BRA `(.L_x_{n})"]
        spans.append(sum(not each.startswith(".L") for each in lines))
        code += lines
    again = [".L_x_9:", wait, take, store, *(each.format(".L_x_19") for each in copy), "@P0 BRA `(.L_x_9)"]
    about = dataclasses.replace(ABOUT, exchange="long_ring")
    known = loops.roles(listing(*code, *again, "EXIT"), about)
    assert [each.role for each in known] == ["load", "sweep", "write", "again"]
    assert [each.loop.last - each.loop.first + 1 for each in known] == [*spans, 6]
    costs = loops.costs(listing(*code, *again, "EXIT"), about)
    assert {role: each["alone"].issue for role, each in costs.items()} == {
        "load": spans[0], "sweep": spans[1], "write": spans[2], "again": 6
    }  # fmt: skip


def test_a_unit_that_is_loaded_before_the_one_before_is_heard_of() -> None:
    load = ["LDG.E.NA.128.CONSTANT R4, desc[UR6][R2.64]", "STS.128 [R30], R4", "FADD R20, R20, R4"]
    arrive = "ATOMG.E.ADD.STRONG.GPU PT, R22, desc[UR6][R70.64], R21"
    wait = [".L_x_2:", "LDG.E.STRONG.GPU R9, desc[UR6][R8.64]", "@!P1 BRA `(.L_x_2)"]
    parts = [".L_x_3:", *load, "@P0 BRA `(.L_x_3)"]
    unit, end = ".L_x_1:", ["@P5 BRA `(.L_x_1)", "EXIT"]
    serial = listing("S2R R0, SR_TID.X", unit, *parts, arrive, *wait, *end)
    split = listing("S2R R0, SR_TID.X", unit, arrive, *parts, *wait, *end)
    assert not latency.splits(serial, loops.roles(serial, ABOUT))
    assert latency.splits(split, loops.roles(split, ABOUT))


def test_ways_of_a_range() -> None:
    span = flow.blocks(RING, 1, 18)
    before, after = flow.around(span, 16)
    assert before == [1, 15, 16]
    assert after == [18]
    assert flow.passed(span, 10, 18) == {10, 15, 16, 18}


def test_narrow_reads_of_vectors_share_banks() -> None:
    code = listing("LDS.U16 R4, [R30]", "LDS R5, [R31]", "STG.E.EF.128 desc[UR6][R2.64], R4")
    assert counted(code, code, 1, (128, 16), False).shared == 4 + 1
    alone = code[:2]
    assert counted(alone, alone, 1, (128, 16), False).shared == 1 + 1


def test_loads_in_flight_end_at_their_use() -> None:
    one = ["LDG.E.128 R4, desc[UR6][R2.64]", "FADD R0, R0, R4"]
    assert in_flight(listing(*one, *one)) == 1
    assert in_flight(listing(one[0], "LDG.E.128 R8, desc[UR6][R2.64]", one[1], "FADD R0, R0, R11")) == 2


def test_between_the_loops() -> None:
    found = latency.between(KERNEL, loops.roles(KERNEL, ABOUT))
    assert found.begin > 0
    assert latency.CYCLES["BAR"] < found.window < 200
    assert (found.barrier, found.merge) == (0, 0)
    other = latency.Between(merge=1000, sets=7, letter=100, channels=600)
    assert other.merging(ranks=132, channels=16, warps=16) == 1000 - 2 * 100
    assert other.merging(ranks=8, channels=32, warps=16) == (1000 - 600) + (600 - 600)


def test_without_the_disassembler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BNFOLD_NVDISASM", str(tmp_path / "none"))
    with pytest.raises(sass.NoDisassembler, match=r"pip install .* -r tools/_setup/nvdisasm\.txt"):
        sass.disassembler()


# the model

SHARE = simulate.Share(bandwidth=32, l2=40, latency=800, l2_latency=350, backlog=1e5)
PIECE = 8192.0


def one(early: float = 0, barrier: float = 2000) -> simulate.Pass:
    return simulate.Pass(
        share=SHARE,
        pieces=12,
        windows=1,
        load=simulate.Loop(60, reads=PIECE, in_flight=4),
        sweep=0,
        write=simulate.Loop(60, writes=PIECE),
        again=simulate.Loop(60, reads=PIECE, writes=PIECE),
        at_hand=12,
        barrier=barrier,
        early=early,
    )


def test_overlap_shortens_and_nothing_beats_the_memory() -> None:
    passes = [one()] * 8
    least = 2 * 8 * 12 * PIECE / SHARE.bandwidth
    serial = simulate.serial(passes, 0)
    early = simulate.serial([one(early=6 * PIECE)] * 8, 0)
    split = simulate.split(passes, 0)
    ring = simulate.ring(passes, 0, capacity=26)
    assert least <= ring < split < serial
    assert least < early < serial
    assert serial - simulate.serial([one(barrier=1000)] * 8, 0) == pytest.approx(8 * 1000, rel=0.5)


def test_a_ring_as_large_as_a_unit_gains_less() -> None:
    passes = [one()] * 8
    assert simulate.ring(passes, 0, capacity=26) < simulate.ring(passes, 0, capacity=12)


@pytest.mark.parametrize("lost", [False, True])
def test_a_ring_of_units_that_it_does_not_hold(lost: bool) -> None:
    """Six pieces of 24 stay; of the others the cache has a third."""

    def unit(**more: Any) -> simulate.Pass:
        again = simulate.Loop(60, writes=PIECE)
        return dataclasses.replace(one(), pieces=24, again=again, in_cache=1 / 3, lost=lost, **more)

    least = 8 * (2 * 24 + 18 * 2 / 3) * PIECE / SHARE.bandwidth
    alone = simulate.long_ring([unit()] * 8, 0, capacity=6)
    asked = simulate.long_ring([unit(early=6 * PIECE)] * 8, 0, capacity=6)
    assert least * 0.95 < asked < alone
    assert simulate.long_ring([unit()] * 8, 0, capacity=12) < alone
    window = dataclasses.replace(one(), pieces=24, windows=4, at_hand=6, in_cache=1 / 3)
    assert alone < simulate.serial([window] * 8, 0)


def test_few_loads_in_flight_wait_for_latency() -> None:
    def time(ahead: float) -> float:
        memory = simulate.Memory(SHARE, 0)
        return simulate.streamed(memory, 0, 100, simulate.Loop(1, reads=PIECE, in_flight=ahead))

    assert time(1) == pytest.approx(100 * (PIECE / 32 + 800), rel=0.01)
    assert time(8) == pytest.approx(100 * PIECE / 32, rel=0.05)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_a_copy_is_as_fast_as_the_memory_but_for_its_launch(device: Hardware) -> None:
    least = 2 * 400e6 / device.bandwidth / 1e3
    assert least < copied(device.name, 2 * 400e6) < 1.03 * least + 2.5
    small = 2 * 25e6 / DEVICES["H200"].bandwidth / 1e3
    assert 0.7 < small / copied("H200", 2 * 25e6) < 0.9


def test_the_launch_table_is_asked_with_what_it_knows() -> None:
    found = limits(DEVICES["A100"], Device)
    assert (found.capability, found.multiprocessors, found.clusters) == ((8, 0), 108, 1)

    @dataclasses.dataclass
    class Newer:
        capability: tuple[int, int]
        at_once: tuple[int, ...] = ()
        spare: int = 0

    assert limits(DEVICES["H200"], Newer) == Newer((9, 0), (66, 32, 16))


# the file


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "kernel_cost.json").read_text())
    return found


def test_the_file_is_what_the_model_makes_of_its_counts(result: dict[str, Any]) -> None:
    assert result["model"] == dataclasses.asdict(MODEL), "the model has changed: tools/kernel_cost --stored"
    assert "nothing here was measured" in result["about"]
    keys = [case.key for case in cases()]
    for name, each in result["snapshots"].items():
        snapshot = Snapshot(each)
        assert list(each["us"]) == keys
        for case in cases([128], ["bfloat16"], fusions=["alone", "add_relu"])[::5]:
            for device in DEVICES:
                us = [round(predicted(snapshot, device, case, which), 1) for which in PASSES]
                assert each["us"][case.key][device] == us
        assert result["goals"][name] == goals.decided(snapshot)
        assert all(instance["spilled"] == 0 for instance in each["instances"])
    assert result["snapshots"]["before"]["commit"] == "84d6a49"


def test_no_time_is_below_the_floor(result: dict[str, Any]) -> None:
    for each in result["snapshots"].values():
        for case in cases([128, 256], ["bfloat16", "float32"]):
            for device in DEVICES:
                for which, us in zip(PASSES, each["us"][case.key][device], strict=True):
                    assert us >= floor(device, case, which)


def test_before_as_the_review_counted_it(result: dict[str, Any]) -> None:
    """By hand, of the same code: 47, 46 and 196 instructions forward, 116 in backward's first loop, 203 in
    apply.
    """
    snapshot = Snapshot(result["snapshots"]["before"])
    case = Case(cases()[1].layer, 128, "bfloat16", "channels_last", "alone")
    issued = {
        which: {
            role: count.issue
            for role, count in snapshot.counts(snapshot.launch("H200", case, which), "alone").items()
        }
        for which in PASSES
    }
    assert issued["forward"] == {"load": 47.25, "sweep": 46.5, "write": 196.5, "again": 200.5}
    assert issued["backward"]["load"] == 116
    assert issued["eval"] == {"stream": 202.75}


def test_the_tables_of_the_page(result: dict[str, Any]) -> None:
    assert "| before | forward | write | 196 |" in tables.counts(result)
    assert "| 256x56x56 | 4 | 206 | 95.6 | 97% |" in tables.layers(result)
    assert "not met" in tables.goals(result)
    written = kernel_cost.written(result)
    assert json.loads(written) == result
    assert max(map(len, written.splitlines())) < 2000


def test_arguments() -> None:
    options = kernel_cost.parsed(["--stored", "--device", "L4", "A100", "--behind", "add_relu"])
    assert (options.device, options.behind, options.stored) == (["L4", "A100"], "add_relu", True)
    with pytest.raises(SystemExit):
        kernel_cost.parsed(["--stored", "--commit", "HEAD"])

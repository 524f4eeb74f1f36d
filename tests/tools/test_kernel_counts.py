"""Counts that the kernels keep to: what a warp executes for each vector, as compiled for an H100."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bnfold.kernels.launch import KERNELS
from tests.kernels.fresh import fresh
from tools._common import ROOT
from tools._cost import collect, loops, sass

ARCH = "sm_90"
COLUMNS = "bnfold::Layout::columns"
# What a vector passes, each loop once, by how blocks exchange. In a long ring it stays, or is copied again.
ONCE = [("load", "sweep", "write", "stream")]
WAYS = {"ring": [("ring",)], "long_ring": [("sweep", "write"), ("load", "again")]}
# With channels last, bfloat16: what follows, and the most instructions that these take together for a vector.
MOST = {
    "forward<bnfold::bfloat16, float, 8, {}, bnfold::Exchange::grid>": {"alone": 110},
    "backward<bnfold::bfloat16, float, 8, {}, bnfold::Exchange::grid>": {"alone": 180},
    "forward<bnfold::bfloat16, float, 8, {}, bnfold::Exchange::ring>": {"alone": 110, "add_relu": 140},
    "backward<bnfold::bfloat16, float, 8, {}, bnfold::Exchange::ring>": {"alone": 180, "add_relu": 180},
    "forward<bnfold::bfloat16, float, 8, {}, bnfold::Exchange::long_ring>": {"alone": 115},
    "backward<bnfold::bfloat16, float, 8, {}, bnfold::Exchange::long_ring>": {"alone": 180, "add_relu": 220},
    "apply<bnfold::bfloat16, float, float, 8, {}>": {"alone": 40, "masked": 64},
}


@pytest.mark.parametrize("kernel", MOST, ids=lambda name: name.partition("<")[0])
def test_no_loop_costs_more(
    kernel: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    pytest.importorskip("cuda.core", reason="the compiler comes with the extra `gpu`")
    try:
        sass.disassembler()
    except sass.NoDisassembler as error:
        pytest.skip(str(error))
    monkeypatch.setenv("BNFOLD_CACHE", str(ROOT / ".cache" / "cubins"))
    name = f"bnfold::{kernel.format(COLUMNS)}"
    source = KERNELS[kernel.partition("<")[0]].source
    found = collect.counted(fresh("compile").compiled(source, name, ARCH), name)
    assert found["spilled"] == 0
    for fusion, most in MOST[kernel].items():
        each = {role: counts.get(fusion, counts["alone"])["issue"] for role, counts in found["loops"].items()}
        record_property("measured", f"{name} {fusion}: " + ", ".join(f"{r} {n:g}" for r, n in each.items()))
        for way in WAYS.get(loops.named(name).exchange, ONCE):
            assert 0 < sum(each.get(role, 0) for role in way) <= most

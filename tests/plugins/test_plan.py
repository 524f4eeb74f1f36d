"""The launch table in C++ is the one of launch.py, and the plugin's kernels are those that it lists."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from bnfold.kernels.launch import Device, Problem, instances, plan
from tests.plugins.build import has_nvcc, library, on_the_cpu, unavailable

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

TYPES = ("float", "bnfold::half", "bnfold::bfloat16")  # as Type has them
LAYOUTS = ("plane", "planes", "columns")
EXCHANGES = ("none", "cluster", "grid")
FIELDS = ("width", "grid", "block", "cluster", "cooperative", "shared", "group", "ranks", "window", "units")
KERNELS = {"forward": 2, "apply": 3}  # and how many types each is told


def devices() -> list[Device]:
    sizes = ((1, 24), (6, 64), (40, 64), (108, 163), (132, 227), (192, 99))
    ways = ((1, False), (1, True), (8, True))
    # The plugin has no rings: its table is that of devices whose copies do not go on by themselves.
    found = [Device((7, 5), count, kib * 1024, *way) for count, kib in sizes for way in ways]
    # Clusters that fit less often than the multiprocessors make them, or never.
    return [*found, *(Device((7, 5), 132, 227 * 1024, 8, True, told) for told in ((66, 33, 14), (60, 16, 0)))]


def at_once(device: Device) -> Any:
    """As the plugin takes it."""
    return (ctypes.c_int * 3)(*device.at_once or (-1, -1, -1))


def problems() -> list[tuple[str, int, int, int, int, bool]]:
    """Kernel, type, shape and alignment: what nets have, limits, and any others."""
    rng = np.random.default_rng(0)
    shapes = [
        *((1, 1, 1), (1, 2**31 - 1, 1), (1, 2**31, 1), (3, 4, 2**30), (3, 4, 2**30 - 1), (3, 4, 2**31 - 4)),
        *(
            (0, 4, 4),
            (4, 0, 4),
            (4, 4, 0),
            (2**32, 8, 1),
            (128, 64, 112 * 112),
            (128, 512, 49),
            (256, 2048, 49),
        ),
        *((4096, 8, 1), (128 * 56 * 56, 256, 1), (5, 7, 3), (2, 20, 25), (64, 3, 224 * 224), (1, 70000, 9)),
    ]
    shapes += [tuple((2 ** rng.uniform(0, 12, 3)).astype(int).tolist()) for _ in range(60)]
    shapes += [(int(2 ** rng.uniform(0, 20)), int(rng.integers(1, 3000)), 1) for _ in range(30)]
    return [
        (kernel, kind, *shape, aligned)
        for kernel in KERNELS
        for kind in range(3)
        for shape in shapes
        for aligned in (True, False)
    ]


def test_both_tables_agree() -> None:
    ask = ctypes.CDLL(str(on_the_cpu())).plan_text
    ask.restype = ctypes.c_char_p
    rows: dict[str | None, int] = {}
    for device in devices():
        for kernel, kind, outer, channels, inner, aligned in problems():
            problem = Problem(kernel, (TYPES[kind],) * KERNELS[kernel], outer, channels, inner, aligned)
            wanted = plan(problem, device)
            numbers = (*map(ctypes.c_longlong, (outer, channels, inner)), aligned)
            limits = (device.multiprocessors, ctypes.c_longlong(device.shared_memory), device.clusters)
            ways = (device.cooperative, at_once(device))
            text = ask(list(KERNELS).index(kernel), kind, *numbers, *limits, *ways)
            rows[wanted and wanted.row] = rows.get(wanted and wanted.row, 0) + 1
            if wanted is None:
                assert text is None, problem
                continue
            assert text is not None, problem
            layout, exchange, *found, row = text.decode().split(" ", 12)
            assert dict(zip(FIELDS, map(int, found), strict=True)) == {
                name: int(getattr(wanted, name)) for name in FIELDS
            }, (problem, device)
            assert row == wanted.row
            arguments = [*problem.types, found[0], f"bnfold::Layout::{LAYOUTS[int(layout)]}"]
            if kernel == "forward":
                arguments.append(f"bnfold::Exchange::{EXCHANGES[int(exchange)]}")
            assert f"bnfold::{kernel}<{', '.join(arguments)}>" == wanted.kernel
    wanted_rows = {None, "one block", "cluster", "cooperative grid", "one block, windows", "stream"}
    assert set(rows) == wanted_rows
    assert min(rows.values()) > 200, rows


@pytest.mark.skipif(not has_nvcc(), reason="kernels are compiled by nvcc, which is not here")
def test_the_kernels_are_those_of_the_table() -> None:
    nm = shutil.which("nm")
    assert nm is not None
    listed = subprocess.run([nm, "-C", library(kernels=True)], capture_output=True, text=True, check=True)
    wanted = set()
    for kernel, count in KERNELS.items():
        for name in instances(kernel, (9, 0)):
            types = name[name.index("<") + 1 :].split(", ")[:count]
            if len(set(types)) == 1 and not name.endswith("ring>"):  # which the plugin has not
                wanted.add(name)
    assert len(wanted) == 3 * 5 * (3 + 1)
    found = set()
    for line in listed.stdout.splitlines():
        match = re.search(r"bnfold::(forward|apply)<(.+?)>\(", line)
        if match and "__device_stub" not in line:
            parts = match[2].split(", ")
            numbers = [int(re.sub(r"\D*(\d+)$", r"\1", part)) for part in parts[KERNELS[match[1]] + 1 :]]
            enums = [f"bnfold::Layout::{LAYOUTS[numbers[0]]}"]
            enums += [f"bnfold::Exchange::{EXCHANGES[number]}" for number in numbers[1:]]
            head = parts[: KERNELS[match[1]] + 1]
            found.add(f"bnfold::{match[1]}<{', '.join([*head, *enums])}>")
    assert found == wanted

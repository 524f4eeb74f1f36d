"""The library in the plugin registries of TensorRT-RTX and of TensorRT's lean runtime, which need no GPU.

A process has one registry, and a library stays in it: each case is a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.build import LEAN, ROOT, harness, has_nvcc, library, unavailable
from tests.plugins.harness import OPS

REASON = unavailable()
FLAVOURS = ("tensorrt_rtx", "tensorrt_lean_bindings")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

PROGRAM = """
import importlib, json, sys
import numpy as np
from tests.plugins.harness import Harness, RUNTIME

module, path, harness = sys.argv[1:]
trt = importlib.import_module(module)
registry = trt.get_plugin_registry()
before = {(each.name, each.plugin_namespace) for each in registry.all_creators}
handle = registry.load_library(path)
added = [each for each in registry.all_creators if (each.name, each.plugin_namespace) not in before]
found = {"creators": [(each.name, each.plugin_version, each.plugin_namespace) for each in added]}

def fields(epsilon):
    number = np.array([epsilon], np.float32)
    return trt.PluginFieldCollection([trt.PluginField("epsilon", number, trt.PluginFieldType.FLOAT32)])

for phase in ("BUILD", "RUNTIME"):
    made = []
    for each in added:
        given = fields(0.25) if "Stat" in each.name else trt.PluginFieldCollection([])
        plugin = each.create_plugin("node", given, getattr(trt.TensorRTPhase, phase))
        if plugin is not None:
            core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
            made.append((core.plugin_name, build.num_outputs, build.metadata_string))
        del plugin
    found[phase] = made
creator = registry.get_creator("BnfoldBatchStatNorm", "1", "bnfold")
found["refused"] = [
    creator.create_plugin("node", given, trt.TensorRTPhase.RUNTIME) is None
    for given in (fields(-1), trt.PluginFieldCollection([]))
]

# The bindings cannot serialize a plugin of C++: the harness asks the very creators of the registry.
driver = Harness(harness, path)
first = driver.create("BnfoldBatchStatNorm", [("epsilon", 0.25)], RUNTIME)
again = driver.create("BnfoldBatchStatNorm", first.fields(), RUNTIME)
found["restored"] = again.texts() == first.texts()
del first, again, creator, added, each, build, core
registry.deregister_library(handle)
found["left"] = [each.name for each in registry.all_creators if each.plugin_namespace == "bnfold"]
print(json.dumps(found))
"""


def asked(program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, LEAN))), **environment},
        check=False,
    )


def need(flavour: str) -> None:
    if importlib.util.find_spec(flavour) is None and not (LEAN / flavour).is_dir():
        pytest.skip(f"{flavour} is not installed: tools/test does that on x86-64 Linux")


@pytest.mark.parametrize("kernels", [True, False], ids=["with kernels", "without kernels"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_library_in_a_registry(flavour: str, kernels: bool) -> None:
    need(flavour)
    if kernels and not has_nvcc():
        pytest.skip("kernels are compiled by nvcc, which is not here")
    done = asked(PROGRAM, flavour, library(kernels), harness())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["creators"] == [[op, "1", "bnfold"] for op in OPS]
    told = [op + " epsilon=0x1p-2" * ("Stat" in op) for op in OPS]
    made = [[op, 1, text] for op, text in zip(OPS, told, strict=True)]
    assert found["RUNTIME"] == made
    assert found["BUILD"] == (made if kernels else [])
    assert found["refused"] == [True, True]
    assert found["restored"] is True
    assert found["left"] == []
    if not kernels:
        assert "BnfoldBatchNorm 'node': this plugin library was built without kernels" in done.stderr


def test_the_library_needs_only_the_system() -> None:
    for kernels in [True, False] if has_nvcc() else [False]:
        path = library(kernels)
        needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
        names = {line.split("[")[1].split(".so")[0] for line in needed.splitlines() if "(NEEDED)" in line}
        assert names <= {
            "libstdc++",
            "libgcc_s",
            "libc",
            "libm",
            "libdl",
            "librt",
            "libpthread",
            "ld-linux-x86-64",
        }
        exported = subprocess.run(
            ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
        )
        assert {line.split()[2] for line in exported.stdout.splitlines()} == {
            "getCreators",
            "setLoggerFinder",
        }

"""Every kernel that the launch table picks compiles for its architecture, without a GPU; and the cache.

All that differ in layout, exchange or type of the activations are compiled for each architecture. Those with
parameters of two bytes, or that read single values of two bytes, differ only in how these are loaded: each is
compiled for one. BNFOLD_INSTANCES=all compiles all for each.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.kernels.launch import KERNELS, SIZES, Device, Problem, instances, plan
from tests.kernels.fresh import fresh

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = {"sm_75": (7, 5), "sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
EVERY = os.environ.get("BNFOLD_INSTANCES") == "all"
MOST_REGISTERS = 128  # with 512 threads a block, all that a multiprocessor has
LOG = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n.*?Used (\d+) registers"
)
SOURCE = "apply.cuh"
KERNEL = "bnfold::apply<float, float, float, 1, bnfold::Layout::plane>"


# the gate


def gated(kernel: str, arch: str) -> list[str]:
    """The instances of a kernel that are compiled for an architecture."""
    found = []
    for name in instances(kernel, ARCHITECTURES[arch]):
        activations, *others, width = name.split("<")[1].split(", ")[: KERNELS[kernel].types + 1]
        able = [each for each, capability in ARCHITECTURES.items() if name in instances(kernel, capability)]
        usual = {*others} <= {"float"} and (width != "1" or activations == "float")
        if EVERY or usual or able[zlib.crc32(name.encode()) % len(able)] == arch:
            found.append(name)
    return found


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_instance_is_compiled_for_some_architecture(kernel: str) -> None:
    compiled = {name for arch in ARCHITECTURES for name in gated(kernel, arch)}
    assert compiled == {name for each in ARCHITECTURES.values() for name in instances(kernel, each)}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_registers_and_spills(
    kernel: str, arch: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    pytest.importorskip("cuda.core")
    monkeypatch.setenv("BNFOLD_CACHE", str(ROOT / ".cache" / "cubins"))
    compiled = fresh("compile").compiled
    used = {}
    for name in gated(kernel, arch):
        (found,) = LOG.findall(compiled(KERNELS[kernel].source, name, arch).log)
        stack, stores, loads, registers = map(int, found)
        used[name] = (registers, stores + loads, stack)
    folder = ROOT / ".cache" / "registers"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{r:4} {spilled:4} {stack:4}  {name}\n" for name, (r, spilled, stack) in used.items()]
    head = "registers, bytes spilled, bytes of stack\n"
    (folder / f"{arch}-{kernel}.txt").write_text(head + "".join(sorted(lines, reverse=True)))
    registers, spilled, stack = (max(each) for each in zip(*used.values(), strict=True))
    record_property(
        "measured",
        f"compiled for {arch:6} {kernel:14} {len(used):3} instances, at most {registers:3} registers, "
        f"{spilled} bytes spilled, {stack} bytes of stack",
    )
    assert registers <= MOST_REGISTERS
    assert spilled == 0
    assert stack == 0


# which instances there are


def devices(capability: tuple[int, int]) -> list[Device]:
    waiting = [(1, False), (1, True), (8, True)]  # clusters, cooperative
    rest = product((8, 132), (64 * 1024, 227 * 1024), waiting if capability >= (9, 0) else waiting[:2])
    return [Device(capability, count, shared, *way) for count, shared, way in rest]


def types(kernel: str) -> list[tuple[str, ...]]:
    """As bnfold.nn calls them: all but the activations in float or in their type."""
    others = 2 if kernel == "apply" else 1
    return [(first, *rest) for first in SIZES for rest in product(("float", first), repeat=others)]


@pytest.mark.parametrize("capability", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_instance_has_a_problem_that_picks_it(kernel: str, capability: tuple[int, int]) -> None:
    shapes = [(64, 3, 1024), (64, 8, 49), (512, 64, 1), (4096, 8, 1)]
    found = set()
    for kinds, shape, aligned, device in product(types(kernel), shapes, (False, True), devices(capability)):
        launch = plan(Problem(kernel, kinds, *shape, aligned), device)
        assert launch is not None
        found.add(launch.kernel)
    assert found == set(instances(kernel, capability))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_each_launch_is_of_a_known_instance(data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from(list(KERNELS)))
    capability = data.draw(st.sampled_from([(7, 5), (8, 6), (8, 9), (9, 0), (10, 3), (12, 0)]))
    device = data.draw(st.sampled_from(devices(capability)))
    counts = st.one_of(st.integers(0, 300), st.integers(0, 2**32))
    shape = [data.draw(counts) for _ in range(3)]
    problem = Problem(kernel, data.draw(st.sampled_from(types(kernel))), *shape, data.draw(st.booleans()))
    launch = plan(problem, device)
    assert launch is None or launch.kernel in instances(kernel, capability)


# the compiler and its cache


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module compile.py with an empty disk cache, and in `programs` what it compiles."""
    core = pytest.importorskip("cuda.core")
    monkeypatch.setenv("BNFOLD_CACHE", str(tmp_path / "cache"))
    module: Any = fresh("compile")
    module.programs = []
    program = core.Program

    def counted(*arguments: Any) -> Any:
        module.programs.append(arguments)
        return program(*arguments)

    monkeypatch.setattr(core, "Program", counted)
    return module


def again(module: Any) -> Any:
    """The module as another process would find it."""
    other: Any = fresh("compile")
    other.programs = module.programs
    other.FOLDER = module.FOLDER
    return other


def test_a_kernel_is_compiled_once(compiler: Any) -> None:
    first = compiler.compiled(SOURCE, KERNEL, "sm_80")
    assert first.cubin.startswith(b"\x7fELF")
    assert first.symbol.encode() in first.cubin
    assert LOG.search(first.log)
    assert compiler.compiled(SOURCE, KERNEL, "sm_80") == first
    assert vars(again(compiler).compiled(SOURCE, KERNEL, "sm_80")) == vars(first)
    assert len(compiler.programs) == 1


def test_another_source_or_architecture_is_compiled_anew(compiler: Any, tmp_path: Path) -> None:
    compiler.FOLDER = Path(shutil.copytree(compiler.FOLDER, tmp_path / "kernels"))
    compiler.compiled(SOURCE, KERNEL, "sm_80")
    compiler.compiled(SOURCE, KERNEL, "sm_90")
    assert len(compiler.programs) == 2
    included = compiler.FOLDER / "normalize.cuh"
    included.write_text(included.read_text() + "// changed\n")
    again(compiler).compiled(SOURCE, KERNEL, "sm_80")
    assert len(compiler.programs) == 3


@pytest.mark.parametrize("way", ["no folder", "full"])
def test_a_cache_that_cannot_be_written(
    compiler: Any, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "no folder":
        (tmp_path / "cache").write_text("a file")
        reason = "File exists"
    else:
        from cuda.core.utils import FileStreamProgramCache

        reason = "No space left on device"

        def full(self: object, key: object, value: object) -> None:
            raise OSError(28, reason, f"entry-{len(compiler.programs)}")

        monkeypatch.setattr(FileStreamProgramCache, "__setitem__", full)
    with pytest.warns(UserWarning, match="cannot keep its compiled kernels") as told:
        found = [compiler.compiled(SOURCE, KERNEL, "sm_80") for _ in range(2)]
    assert all(each.cubin for each in found)
    assert len(compiler.programs) == 2
    (text,) = (str(each.message) for each in told)
    assert f"{tmp_path / 'cache'} ({reason})" in text
    assert "BNFOLD_CACHE" in text


def test_a_cache_that_cannot_be_read(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.core.utils import FileStreamProgramCache

    def denied(self: object, key: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileStreamProgramCache, "__getitem__", denied)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert compiler.compiled(SOURCE, KERNEL, "sm_80").cubin


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module: Any = fresh("compile")
    monkeypatch.delenv("BNFOLD_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.cache_folder() == tmp_path / "bnfold" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert module.cache_folder() == Path.home() / ".cache" / "bnfold" / "kernels"
    monkeypatch.setenv("BNFOLD_CACHE", str(tmp_path / "own"))
    assert module.cache_folder() == tmp_path / "own"


def test_nobody_at_home(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("BNFOLD_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.warns(UserWarning, match="home directory"):
        assert compiler.compiled(SOURCE, KERNEL, "sm_80").cubin


def test_cuda_core_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    module: Any = fresh("compile")
    with pytest.raises(module.KernelError, match=r"pip install 'bnfold\[gpu\]'"):
        module.compiled(SOURCE, KERNEL, "sm_80")


def test_nvrtc_is_missing(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("cuda.core")
    pathfinder = pytest.importorskip("cuda.pathfinder")

    def program(*arguments: object) -> None:
        raise pathfinder.DynamicLibNotFoundError("Failure finding libnvrtc.so.13\nin many places")

    monkeypatch.setattr(core, "Program", program)
    with pytest.raises(compiler.KernelError, match=r"^NVRTC is not found: pip install 'bnfold\[gpu\]' .*$"):
        compiler.compiled(SOURCE, KERNEL, "sm_80")


def test_what_does_not_compile(compiler: Any) -> None:
    name = KERNEL.replace("plane", "rows")
    with pytest.raises(compiler.KernelError) as caught:
        compiler.compiled(SOURCE, name, "sm_80")
    text = str(caught.value)
    assert text.startswith(f"{name} of {SOURCE} does not compile for sm_80: ")
    assert 'has no member "rows"' in text
    assert "\0" not in text
    with pytest.raises(compiler.KernelError, match="invalid value for --gpu-architecture"):
        compiler.compiled(SOURCE, KERNEL, "sm_1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiler.compiled(SOURCE, KERNEL, "sm_80").cubin

"""Every kernel that the launch table picks compiles for its architecture, without a GPU; and the cache.

compiled.json holds what the assembler said of all of them, and of which sources and which compiler that is.
Where both are the same, a few are compiled again, and have to give what is recorded. Where the compiler is
another, those are compiled that differ in layout, exchange or type of the activations. BNFOLD_INSTANCES=all
compiles all, for each architecture, and writes the record anew: a change of the kernels needs that.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
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

from bnfold.kernels.compile import FOLDER
from bnfold.kernels.launch import KERNELS, SIZES, Device, Problem, instances, plan
from tests.kernels.fresh import fresh

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = {"sm_75": (7, 5), "sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
EVERY = os.environ.get("BNFOLD_INSTANCES") == "all"
RECORD = Path(__file__).with_name("compiled.json")
MOST_REGISTERS = 128  # with 512 threads a block, all that a multiprocessor has
AGAIN = 1  # instances of a kernel that are compiled for an architecture although they are recorded
LOG = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n.*?Used (\d+) registers"
)
if EVERY:  # one worker writes the record
    pytestmark = pytest.mark.xdist_group("compiled kernels")
SOURCE = "apply.cuh"
KERNEL = "bnfold::apply<float, float, float, 1, bnfold::Layout::plane>"


# the gate


def sources() -> dict[str, str]:
    """A hash of each of the kernels' files."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in sorted(FOLDER.glob("*.cuh"))
    }


def compiler_version() -> str:
    """That of NVRTC, as its package has it."""
    try:
        return importlib.metadata.version("nvidia-cuda-nvrtc")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def recorded() -> dict[str, Any]:
    """Registers, bytes spilled and bytes of stack, if the record is of this compiler and these sources."""
    record: dict[str, Any] = json.loads(RECORD.read_text())
    same = record["compiler"] == compiler_version() and record["sources"] == sources()
    found: dict[str, Any] = record["instances"] if same and not EVERY else {}
    return found


def gated(kernel: str, arch: str) -> list[str]:
    """The instances of a kernel that are compiled for an architecture."""
    names = instances(kernel, ARCHITECTURES[arch])
    known = recorded()
    if known:
        costs = known[arch][kernel]
        return sorted(names, key=lambda name: (costs.get(name, [MOST_REGISTERS])[0], name))[-AGAIN:]
    found = []
    for name in names:
        activations, *others, width = name.split("<")[1].split(", ")[: KERNELS[kernel].types + 1]
        able = [each for each, capability in ARCHITECTURES.items() if name in instances(kernel, capability)]
        usual = {*others} <= {"float"} and (width != "1" or activations == "float")
        if EVERY or usual or able[zlib.crc32(name.encode()) % len(able)] == arch:
            found.append(name)
    return found


def test_the_record_is_of_these_sources() -> None:
    how = "BNFOLD_INSTANCES=all .venv/bin/python -m pytest tests/kernels/test_compile.py"
    assert json.loads(RECORD.read_text())["sources"] == sources() or EVERY, f"the kernels have changed: {how}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_instance_is_recorded(kernel: str, arch: str) -> None:
    record = json.loads(RECORD.read_text())["instances"]
    assert record[arch][kernel].keys() == {*instances(kernel, ARCHITECTURES[arch])} or EVERY


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_instance_is_compiled_for_some_architecture(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "compiler_version", lambda: "another")
    compiled = {name for arch in ARCHITECTURES for name in gated(kernel, arch)}
    assert compiled == {name for each in ARCHITECTURES.values() for name in instances(kernel, each)}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_registers_and_spills(
    kernel: str, arch: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    pytest.importorskip("cuda.core", reason="the compiler comes with the extra `gpu`")
    monkeypatch.setenv("BNFOLD_CACHE", str(ROOT / ".cache" / "cubins"))
    compiled = fresh("compile").compiled
    used = {}
    for name in gated(kernel, arch):
        (found,) = LOG.findall(compiled(KERNELS[kernel].source, name, arch).log)
        stack, stores, loads, registers = map(int, found)
        used[name] = [registers, stores + loads, stack]
    again, known = len(used), recorded()
    if known:
        assert used.items() <= known[arch][kernel].items()
        used = known[arch][kernel]
    elif EVERY:
        write(arch, kernel, used)
    registers, spilled, stack = (max(each) for each in zip(*used.values(), strict=True))
    record_property(
        "measured",
        f"compiled for {arch:6} {kernel:14} {len(used):3} instances, {again:2} of them now, "
        f"at most {registers:3} registers, {spilled} bytes spilled, {stack} bytes of stack",
    )
    assert registers <= MOST_REGISTERS
    assert spilled == 0
    assert stack == 0


def write(arch: str, kernel: str, used: dict[str, list[int]]) -> None:
    """Record what one kernel needs; what was recorded of other sources or by another compiler is dropped."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    head = {"compiler": compiler_version(), "sources": sources()}
    kept = record["instances"] if {key: record.get(key) for key in head} == head else {}
    kept.setdefault(arch, {})[kernel] = used
    text = json.dumps({**head, "instances": kept}, indent=1, sort_keys=True)
    RECORD.write_text(re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2, \3]", text) + "\n")


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
    shapes = [(64, 3, 256), (64, 3, 1024), (4096, 2, 1024), (640, 8, 49)]
    shapes += [(4096, 8, 1), (5120, 64, 1), (40960, 8, 1)]
    shapes += [(65536, 2, 1024), (2**20, 64, 1)]  # units that no device holds
    shapes += [(2**22, 64, 1024), (2**30, 64, 1)]  # and more vectors than a ring counts
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
    core = pytest.importorskip("cuda.core", reason="the compiler comes with the extra `gpu`")
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


def test_the_cache_can_be_carried(compiler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal sources in another folder, and the cache in another one: nothing is compiled."""
    first = compiler.compiled(SOURCE, KERNEL, "sm_80")
    carried = shutil.copytree(tmp_path / "cache", tmp_path / "carried")
    monkeypatch.setenv("BNFOLD_CACHE", str(carried))
    elsewhere = again(compiler)
    elsewhere.FOLDER = Path(shutil.copytree(compiler.FOLDER, tmp_path / "installed"))
    assert vars(elsewhere.compiled(SOURCE, KERNEL, "sm_80")) == vars(first)
    assert len(compiler.programs) == 1
    for file in carried.rglob("*"):
        assert not file.is_file() or str(compiler.FOLDER).encode() not in file.read_bytes()


PROGRAM = f"""
from bnfold.kernels.compile import compiled
print(compiled({SOURCE!r}, {KERNEL!r}, "sm_80").cubin[:4])
"""


def test_nvrtc_on_the_path_of_python(tmp_path: Path) -> None:
    """As `pip install --target` leaves it: in no site-packages of the interpreter."""
    pytest.importorskip("cuda.core", reason="the compiler comes with the extra `gpu`")
    packages = Path(str(importlib.metadata.distribution("cuda-core").locate_file("")))
    for entry in packages.iterdir():
        if entry.name.startswith(("cuda", "numpy", "nvidia")):
            (tmp_path / entry.name).symlink_to(entry)
    interpreter = [getattr(sys, "_base_executable", sys.executable), "-S", "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "BNFOLD_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(interpreter, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "b'\\x7fELF'\n", done.stderr


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
    with pytest.raises(module.KernelError, match=r"pip install '.*\[gpu\]'"):
        module.compiled(SOURCE, KERNEL, "sm_80")


def test_nvrtc_is_missing(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("cuda.core", reason="the compiler comes with the extra `gpu`")
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="cuda-core brings it, of the extra `gpu`")

    def program(*arguments: object) -> None:
        raise pathfinder.DynamicLibNotFoundError("Failure finding libnvrtc.so.13\nin many places")

    monkeypatch.setattr(core, "Program", program)
    with pytest.raises(compiler.KernelError, match=r"^NVRTC is not found: pip install '.*\[gpu\]' .*$"):
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

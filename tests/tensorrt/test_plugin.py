"""load_plugin: where the library is looked for, what is registered, and every way in which that fails."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bnfold.tensorrt
from bnfold.errors import UsageError
from bnfold.passes.deploy import bnfold_ops as ops
from bnfold.tensorrt import flavours, plugin
from tests.plugins.build import harness, library, unavailable
from tests.plugins.test_registry import FLAVOURS, asked, need

REASON = unavailable()
builds = pytest.mark.skipif(REASON is not None, reason=REASON or "")


class Registry:
    """One that takes what it is given. refuses: gives nothing of it."""

    def __init__(self, *there: str, refuses: bool = False) -> None:
        self.there, self.refuses = set(there), refuses
        self.paths: list[str] = []

    def get_creator(self, name: str, version: str, namespace: str) -> object:
        assert (version, namespace) == ("1", "bnfold")
        return object() if name in self.there else None

    def load_library(self, path: str) -> None:
        self.paths.append(path)
        if not self.refuses:
            self.there |= set(plugin.OPS)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """That of a TensorRT which is made up; no library lies anywhere, and nothing is registered."""
    made = Registry()
    module: Any = ModuleType("tensorrt")
    module.__version__, module.IPluginV3 = "12.3", object
    module.get_plugin_registry = lambda: made
    monkeypatch.setattr(flavours, "find", lambda *, build: module)
    monkeypatch.setattr(plugin, "_loaded", {})
    monkeypatch.setattr(plugin, "_CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(plugin, "SYSTEM", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BNFOLD_PLUGIN", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return made


def module() -> Any:
    return flavours.find(build=False)


def wrong(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        plugin.load_plugin(*arguments, **options)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A plugin library without kernels."""
    if REASON is not None:
        pytest.skip(REASON)
    return Path(shutil.copy(library(kernels=False), tmp_path / "given.so"))


# in the registries that are there


PROGRAM = """
import json, sys
import bnfold.tensorrt
from bnfold.tensorrt import flavours
assert not {"tensorrt_rtx", "tensorrt_lean_bindings", "numpy", "torch", "onnx"} & set(sys.modules)
flavours.FLAVOURS = [each for each in flavours.FLAVOURS if each.module == sys.argv[1]]
first = bnfold.tensorrt.load_plugin(sys.argv[2])
assert bnfold.tensorrt.load_plugin() == bnfold.tensorrt.load_plugin(sys.argv[2]) == first
registry = flavours.find(build=False).get_plugin_registry()
there = [each.name for each in registry.all_creators if each.plugin_namespace == "bnfold"]
try:
    bnfold.tensorrt.load_plugin(__import__("tests").__file__)
except bnfold.BnfoldError as error:
    said = str(error)
print(json.dumps([str(first.path), first.creators, first.tensorrt, there, said]))
"""


@builds
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_plugin_is_registered_once(flavour: str) -> None:
    need(flavour)
    path = library(kernels=False)
    done = asked(PROGRAM, flavour, path)
    assert done.returncode == 0, done.stderr
    found, creators, name, there, said = json.loads(done.stdout)
    assert (found, creators) == (str(path), list(plugin.OPS))
    assert name.startswith(f"{flavour} ")
    assert there == list(plugin.OPS)
    assert ("cannot import them" in done.stderr) == (flavour == "tensorrt_rtx")
    assert said.startswith(f"the plugin is registered already, from {path}: ")


def test_the_ops_are_the_creators() -> None:
    from tests.plugins.harness import OPS

    assert plugin.OPS == OPS
    assert bnfold.tensorrt.load_plugin is plugin.load_plugin
    with pytest.raises(AttributeError, match="no attribute 'load_plugins'"):
        _ = bnfold.tensorrt.load_plugins


# where it is looked for


def test_the_order_of_places(
    registry: Registry, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*parts: str) -> Path:
        place = tmp_path.joinpath(*parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(file, place))

    def found(path: Path | None = None) -> Path | None:
        registry.there.clear()
        return plugin.load_plugin(path).path

    text = wrong()
    assert text == (
        f"the plugin library libbnfold_plugin.so is not found (looked in {plugin.kept().parent}); "
        "build it: load_plugin(build=True)"
    )
    system = put("system", "libbnfold_plugin.so")
    monkeypatch.setattr(plugin, "SYSTEM", (str(system.parent), str(tmp_path / "absent")))
    assert found() == system
    named = put("named", "libbnfold_plugin.so")
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path / 'absent'}:{named.parent}")
    assert found() == named
    compiled = put(str(plugin.kept().relative_to(tmp_path)))
    assert found() == compiled
    put("checkout", "tools", "build_plugin")
    built = put("checkout", "build", "libbnfold_plugin.so")
    assert found() == built
    chosen = put("any name")
    monkeypatch.setenv("BNFOLD_PLUGIN", str(chosen))
    assert found() == chosen
    assert found(file) == file
    assert registry.paths == [str(each) for each in (system, named, compiled, built, chosen, file)]
    monkeypatch.chdir(tmp_path)
    assert found(Path("given.so")) == file


def test_what_is_given_must_be_there(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert wrong(tmp_path / "x.so").startswith(
        f"there is no plugin library {tmp_path}/x.so (the path that was given);"
    )
    monkeypatch.setenv("BNFOLD_PLUGIN", "nowhere.so")
    assert wrong().startswith("there is no plugin library nowhere.so ($BNFOLD_PLUGIN);")


def test_it_is_built_only_if_asked(registry: Registry, file: Path, tmp_path: Path) -> None:
    tool = tmp_path / "checkout" / "tools" / "build_plugin"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\nexit 2\n")
    tool.chmod(0o755)
    assert wrong().endswith(f"; build it: {tool}, or load_plugin(build=True)")
    assert wrong(build=True) == f"the plugin library does not build: {tool} tells why"
    tool.write_text(
        f"#!/bin/sh\ncd {tool.parent.parent} && mkdir build && cp {file} build/{plugin.LIBRARY}\n"
    )
    built = plugin.load_plugin(build=True)
    assert built == plugin.Plugin(
        tmp_path / "checkout" / "build" / plugin.LIBRARY, plugin.OPS, "tensorrt 12.3"
    )
    registry.there.clear()
    tool.write_text("#!/bin/sh\nexit 2\n")
    assert plugin.load_plugin(build=True) == built  # it is there


def test_an_installed_bnfold_compiles_it(
    registry: Registry, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled() -> Path:
        plugin.kept().parent.mkdir(parents=True)
        return Path(shutil.copy(file, plugin.kept()))

    monkeypatch.setattr(plugin, "compile_plugin", compiled)
    assert wrong().endswith("; build it: load_plugin(build=True)")
    assert plugin.load_plugin(build=True).path == plugin.kept()


# what does not load


def test_what_is_no_library(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("text")
    assert wrong(tmp_path / "text.so").startswith("the plugin library does not load: ")
    assert str(tmp_path / "text.so") in wrong(tmp_path / "text.so")


@builds
def test_a_library_that_is_another(registry: Registry) -> None:
    assert wrong(harness()) == f"{harness()} is no plugin library: it has no getCreators"


@builds
def test_a_library_that_misses_a_symbol(registry: Registry, tmp_path: Path) -> None:
    source = tmp_path / "missing.cpp"
    source.write_text('extern "C" int absent();\nextern "C" int getCreators() { return absent(); }\n')
    path = tmp_path / "missing.so"
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", path], check=True)
    text = wrong(path)
    assert text.startswith("the plugin library does not load: ")
    assert text.endswith("undefined symbol: absent")


def test_a_registry_that_does_not_take_it(registry: Registry, file: Path) -> None:
    registry.refuses = True
    text = wrong(file)
    assert text.startswith(f"tensorrt 12.3 does not take {file}, and its log says why: BnfoldBatchNorm, ")

    def fail(path: str) -> None:
        raise RuntimeError("no way\nat all")

    registry.load_library = fail  # type: ignore[method-assign]
    assert wrong(file) == f"tensorrt 12.3 does not take {file}: no way"


def test_others_of_the_same_name(registry: Registry, file: Path) -> None:
    registry.there = {"BnfoldBatchNormAdd", "BnfoldBatchNorm"}
    assert (
        wrong(file)
        == "tensorrt 12.3 has other plugins of these names already: BnfoldBatchNorm, BnfoldBatchNormAdd"
    )
    registry.there = set(plugin.OPS)
    assert plugin.load_plugin(file) == plugin.Plugin(None, plugin.OPS, "tensorrt 12.3")
    assert registry.paths == []


def test_a_tensorrt_that_is_too_old_or_does_not_work(registry: Registry) -> None:
    module().get_plugin_registry = lambda: None
    assert wrong() == "tensorrt 12.3 has no plugin registry: its libraries do not load here"
    module().__version__ = "8.6.1"
    del module().IPluginV3
    assert wrong() == "tensorrt 8.6.1 is too old for the plugin, which needs TensorRT 10 or newer"


def test_the_plugin_has_the_ops_that_the_fold_writes() -> None:
    assert set(plugin.OPS) == {variant.name for variant in ops.variants()}
    attributes = ops.attributes(ops.Variant(statistics=False), 0)
    assert attributes == {"plugin_namespace": plugin.NAMESPACE, "plugin_version": plugin.VERSION}

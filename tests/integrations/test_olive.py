"""The pass for Olive, with the few classes of Olive that it touches made here. tools/stacks runs Olive."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from tests.integrations.test_onnxruntime import net

NAME = "bnfold.integrations.olive"


class Handler:
    def __init__(self, model_path: str) -> None:
        self.model_path = model_path


def module(name: str, **contents: Any) -> tuple[str, ModuleType]:
    made = ModuleType(name)
    vars(made).update(contents)
    return name, made


@pytest.fixture
def pass_(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, with an Olive of these few names."""
    default = tmp_path / "default.json"
    default.write_text(json.dumps({"passes": {"OnnxConversion": {"module_path": "its.own"}}, "extras": 1}))
    config = SimpleNamespace(get_default_config_path=lambda: default)
    for name, made in (
        module("olive.passes", Pass=type("Pass", (), {})),
        module("olive.passes.pass_config", PassConfigParam=SimpleNamespace),
        module("olive.passes.onnx.common", get_external_data_config=lambda: {"save_as_external_data": 0}),
        module("olive.model", ONNXModelHandler=Handler),
        module("olive.model.utils", resolve_onnx_path=lambda folder, name: str(Path(folder) / name)),
        module("olive.package_config", OlivePackageConfig=config),
    ):
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def test_the_pass_folds_what_the_workflow_has(pass_: Any, tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "model.onnx")
    params = pass_.BnFold._default_config(None)
    config = SimpleNamespace(**{name: getattr(one, "default_value", one) for name, one in params.items()})
    made = pass_.BnFold()._run_for_config(
        Handler(str(tmp_path / "model.onnx")), config, str(tmp_path / "out")
    )
    assert made.model_path == str(tmp_path / "out" / "model.onnx")
    assert not [
        node for node in onnx.load(made.model_path).graph.node if node.op_type == "BatchNormalization"
    ]
    config.skip = ["bn1"]
    made = pass_.BnFold()._run_for_config(
        Handler(str(tmp_path / "model.onnx")), config, str(tmp_path / "out")
    )
    ops = [node.op_type for node in onnx.load(made.model_path).graph.node]
    assert ops.count("BatchNormalization") == 1
    with pytest.raises(TypeError, match="not dict: put OnnxConversion in front of it"):
        pass_.BnFold()._run_for_config({}, config, str(tmp_path / "out"))


def test_the_package_config_has_all_of_olives_own(pass_: Any, tmp_path: Path) -> None:
    """It stands in place of Olive's."""
    written = json.loads(Path(pass_.package_config(tmp_path / "package.json")).read_text())
    assert written["extras"] == 1
    assert set(written["passes"]) == {"OnnxConversion", "BnFold"}
    path, _, name = written["passes"]["BnFold"]["module_path"].rpartition(".")
    assert getattr(sys.modules[path], name) is pass_.BnFold


def test_without_olive_one_line_says_which_version_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "olive.passes", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(ImportError, match=r"^bnfold needs Pass of olive-ai, tested with olive-ai [\d.]+"):
        importlib.import_module(NAME)

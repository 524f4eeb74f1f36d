"""`bnfold bench`: what runs, what is told, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from bnfold.bench import compare as comparing
from bnfold.bench.compare import compare
from bnfold.bench.providers import OnnxRacer
from bnfold.errors import BnfoldError, UsageError
from tests.cli.command import refused, run
from tests.onnx_graph.build import Build

QUICK = ("--runs", "5")


def net(
    batch: Any = "N", channels: int = 3, size: Any = 8, dtype: str = "float32", name: str = "x"
) -> onnx.ModelProto:
    g = Build(seed=1, dtype=dtype)
    x = g.input(name, (batch, channels, size, size))
    g.output(g.bn(g.conv(x, 6, k=3)))
    return g.model()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a.onnx and b.onnx, which take the same input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bnfold.bench.race.WARM_SECONDS", 0.0)
    for file, model in (("a.onnx", net()), ("b.onnx", net(batch=1))):
        onnx.save(model, file)
    return tmp_path


def test_two_models_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "a.onnx", "b.onnx", *QUICK, "--threads", "1", "--json", "times.json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = out.splitlines()
    assert [row.split()[0] for row in rows[2:4]] == ["a.onnx", "b.onnx"]
    assert "onnxruntime, cpu" in rows[2]
    assert rows[4].startswith("5 rounds, inputs x 1x3x8x8; ")

    report = json.loads((folder / "times.json").read_text())
    assert report["rounds"] == 5
    for model in report["models"]:
        assert 0 < model["min"] <= model["p50"] <= model["p90"] <= model["p99"]
        assert model["ratio_quartiles"][0] <= model["ratio"] <= model["ratio_quartiles"][1]
    assert report["models"][0]["ratio"] == 1.0
    assert f"onnxruntime {onnxruntime.__version__}" in report["machine"]

    assert run("bench", "--help") == 0
    told = capsys.readouterr().out
    for key in (*report, *report["models"][0]):
        assert f'"{key}": ' in told
    assert max(len(line) for line in told.splitlines()) <= 110


def test_the_seconds_are_what_it_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "a.onnx", "--seconds", "0.05") == 0
    rounds = int(capsys.readouterr().out.splitlines()[3].split()[0])
    assert rounds >= 5


def test_shapes_and_given_inputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "a.onnx", *QUICK, "--overwrite-input-shape", "x:4,3,8,8") == 0
    assert "inputs x 4x3x8x8;" in capsys.readouterr().out
    np.savez(folder / "in.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    assert run("bench", "a.onnx", *QUICK, "--input-data-path", "in.npz") == 0
    assert "inputs x 2x3x8x8;" in capsys.readouterr().out


def test_a_model_in_half_precision_beside_one_in_float32(folder: Path) -> None:
    onnx.save(net(dtype="float16"), "half.onnx")
    g = Build(dtype="bfloat16")
    cast = g.op("Cast", g.input("x", (1, 3, 8, 8)), name="cast", to=onnx.TensorProto.FLOAT)
    g.output(g.op("Relu", cast))
    onnx.save(g.model(), "brain.onnx")
    standings = compare([Path("a.onnx"), Path("half.onnx"), Path("brain.onnx")], rounds=5)
    assert [model.name for model in standings.models] == ["a.onnx", "half.onnx", "brain.onnx"]
    assert standings.shapes == {"x": (1, 3, 8, 8)}


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (
        ("a.onnx", "--provider", "cuda"),
        "no provider cuda (CUDAExecutionProvider) here. Note: valid choices are cpu",
    ),
    (("a.onnx", "--provider", "tensorrt-rtx"), "(NvTensorRTRTXExecutionProvider)"),
    (
        ("a.onnx", "--provider", "cuda", "--threads", "2"),
        "--threads has nothing to do with the provider cuda",
    ),
    (("a.onnx", "a.onnx"), "one model is named twice"),
    (("a.onnx", "wide.onnx"), "take different inputs"),
    (("a.onnx", "named.onnx"), "a.onnx takes x: float32 (N, 3, 8, 8); named.onnx takes image: float32"),
    (("open.onnx",), "such as --overwrite-input-shape x:1,3,224,224"),
    (("a.onnx", "--overwrite-input-shape", "z:1,3,8,8"), "a shape was given for 'z'"),
    (("a.onnx", "--input-data-path", "in.npz", "--overwrite-input-shape", "x:1,3,8,8"), "nothing to do with"),
    (("a.onnx", "--seconds", "0"), "is not a number of seconds"),
    (("a.onnx", "--seconds", "1", "--runs", "2"), "not allowed with"),
    (("a.onnx", "--runs", "0"), "is not a whole number from 1 on"),
    (("a.onnx", "--force"), "--force has nothing to do without --json"),
    (("a.onnx", "--json", "a.onnx", "--force"), "has two uses"),
    (("absent.onnx",), "absent.onnx: there is no such file"),
    (("text.onnx",), "text.onnx: not an ONNX model"),
    (("odd.onnx",), "odd.onnx: onnxruntime refuses it: "),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    onnx.save(net(channels=4), "wide.onnx")
    onnx.save(net(name="image"), "named.onnx")
    onnx.save(net(size=None), "open.onnx")
    odd = net()
    odd.graph.node[0].op_type = "Blur"
    onnx.save(odd, "odd.onnx")
    np.savez(folder / "in.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    (folder / "text.onnx").write_text("no protobuf at all")
    assert message in refused(capsys, folder, 2, "bench", *arguments)


# -- what is not on this machine, played


class Session:
    """onnxruntime's, on a machine with a GPU. providers: those that could be started."""

    providers: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider")
    made: tuple[Any, ...] = ()

    def __init__(self, path: str, options: Any, providers: list[str], enable_fallback: int) -> None:
        type(self).made = (path, options, providers, enable_fallback)
        self.bound: dict[str, Any] = {}
        self.runs = 0

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        parts = (("CUDAExecutionProvider", 5), ("CPUExecutionProvider", 2))
        return [SimpleNamespace(ep_name=name, get_nodes=lambda n=n: [None] * n) for name, n in parts]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y")]

    def io_binding(self) -> Any:
        return SimpleNamespace(
            bind_ortvalue_input=lambda name, value: self.bound.update({name: value}),
            bind_output=lambda name, memory: self.bound.update({name: memory}),
            synchronize_outputs=lambda: None,
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self.runs += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    fake = ModuleType("onnxruntime")
    fake.__dict__.update(
        __version__="1.99",
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=Session,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        OrtValue=SimpleNamespace(ortvalue_from_numpy=lambda array, memory, device: (array.shape, memory)),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(Session, "providers", Session.providers)
    return Session


def test_the_provider_that_was_asked_for(gpu: type[Session]) -> None:
    racer = OnnxRacer(Path("m.onnx"), "cuda", {"x": np.zeros((2, 3))}, None)
    racer.run()
    assert racer.provider == "onnxruntime, cuda"
    assert racer.notes == ["m.onnx: 2 of 7 nodes run by CPUExecutionProvider"]
    assert racer._session.runs == 2
    assert racer._session.bound == {"x": ((2, 3), "cuda"), "y": "cuda"}
    path, options, providers, fallback = gpu.made
    assert (path, providers, fallback) == ("m.onnx", ["CUDAExecutionProvider"], 0)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_silent_fallback_is_refused(gpu: type[Session]) -> None:
    gpu.providers = ("CPUExecutionProvider",)
    with pytest.raises(UsageError, match=r"cannot start CUDAExecutionProvider, and would run m\.onnx by CPU"):
        OnnxRacer(Path("m.onnx"), "cuda", {"x": np.zeros((2, 3))}, None)


def test_threads_reach_onnxruntime(folder: Path) -> None:
    for threads in (1, 2, None):
        racer = OnnxRacer(Path("b.onnx"), "cpu", {"x": np.zeros((1, 3, 8, 8), np.float32)}, threads)
        assert racer._session.get_session_options().intra_op_num_threads == (threads or 0)
        assert racer.notes == []


def test_without_onnxruntime_the_extra_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "[onnxruntime]'" in refused(capsys, folder, 2, "bench", "a.onnx")


# -- engines beside models


def test_engines_go_to_tensorrt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class File:
        def __init__(self, path: Path, flavour: str | None) -> None:
            opened.append((path, flavour))
            self.path, self.inputs = path, comparing.wanted(comparing.files.load("a.onnx"))

        def racer(self, feed: dict[str, Any]) -> Any:
            assert feed["x"].shape == (1, 3, 8, 8)
            return SimpleNamespace(
                name=str(self.path), provider="TensorRT 11", notes=["slow"], run=lambda: None
            )

    monkeypatch.setattr(comparing, "EngineFile", File)
    standings = compare([Path("a.onnx"), Path("b.engine"), Path("c.plan")], rounds=5)
    assert [model.provider for model in standings.models] == [
        "onnxruntime, cpu",
        "TensorRT 11",
        "TensorRT 11",
    ]
    assert standings.notes == ("slow", "slow")
    assert opened == [(Path("b.engine"), None), (Path("c.plan"), None)]
    compare([Path("b.engine")], provider="tensorrt-rtx", rounds=5)
    assert opened[-1] == (Path("b.engine"), "tensorrt-rtx")
    for provider, threads, message in (
        ("cuda", None, "b.engine is an engine, which the provider cuda cannot run"),
        (None, 2, "--threads has nothing to do with engines"),
    ):
        with pytest.raises(UsageError, match=message):
            compare([Path("b.engine")], provider=provider, threads=threads)


def test_a_model_that_fails_as_it_runs(folder: Path) -> None:
    with pytest.raises(BnfoldError, match=r"b\.onnx: onnxruntime cannot run it: "):
        OnnxRacer(Path("b.onnx"), "cpu", {"x": np.zeros((3, 3, 8, 8), np.float32)}, None)

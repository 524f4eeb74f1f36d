"""`bnfold.export`: from a torch module to a folded ONNX file, checked against the module in float64."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bnfold
from bnfold.cli.app import main
from tests.torch_graph.modules import IMAGE, Fn, bn, conv, randomize

ROOT = Path(__file__).resolve().parents[2]


def small() -> nn.Module:
    torch.manual_seed(3)
    return randomize(nn.Sequential(conv(6, 4, bias=False), bn(4), nn.ReLU(), conv(4, 3)))


def run(path: Path, x: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_the_file_computes_what_the_module_does(tmp_path: Path) -> None:
    module, x = small(), torch.randn(IMAGE)
    report = bnfold.export(module, x, tmp_path / "model.onnx")
    assert len(report.folded) == 1
    assert report.verification.ok
    assert "in float64" in report.verification.evaluator
    with torch.no_grad():
        exact = module.double()(x.double()).numpy()
    error = np.abs(run(tmp_path / "model.onnx", x) - exact).max() / np.abs(exact).max()
    assert error < 1e-5
    assert "BatchNormalization" not in {
        node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_module_in_training_mode_is_exported_in_eval_mode_and_left_as_it_was(tmp_path: Path) -> None:
    module, x = small().train(), torch.randn(IMAGE)
    module[2].eval()
    mean = module[1].running_mean.clone()
    assert bnfold.export(module, x, tmp_path / "model.onnx").verification.ok
    assert [part.training for part in module.modules()] == [True, True, True, False, True]
    assert torch.equal(module[1].running_mean, mean)


def test_batch_norms_in_training_mode_are_kept_as_such_and_explained(tmp_path: Path) -> None:
    """torch's exporter alone would freeze the first one silently."""
    module = randomize(
        nn.Sequential(conv(6, 4), bn(4), conv(4, 4), bn(4, track_running_stats=False), conv(4, 4), bn(4))
    )
    module[1].train()
    mean, x = module[1].running_mean.clone(), torch.randn(IMAGE)
    report = bnfold.export(module, x, tmp_path / "model.onnx")
    assert [(entry.name, entry.outcome) for entry in report.entries] == [
        ("1", "kept"),
        ("3", "kept"),
        ("5", "folded"),
    ]
    assert all(entry.reason.endswith("(batch statistics)") for entry in report.kept)
    assert "2 batch norms in training mode use the statistics of each batch" in report.notes[0]
    assert report.verification.ok
    assert module[1].training
    assert torch.equal(module[1].running_mean, mean)


def test_layers_have_the_names_of_their_modules(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(6, 4), bn(4))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return self.head(y.mean((2, 3))) + self.head(y.amax((2, 3)))

    report = bnfold.export(randomize(Net()), torch.randn(IMAGE), tmp_path / "model.onnx")
    assert [(entry.name, entry.into) for entry in report.folded] == [("body.1", ("body.0",))]
    names = [node.name for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert {"body.0", "head"} < set(names)
    assert len(set(names)) == len(names)
    report = bnfold.export(
        randomize(Net()), torch.randn(IMAGE), tmp_path / "model.onnx", skip=["body.1"], force=True
    )
    assert [entry.reason for entry in report.kept] == ["skipped on request"]


def test_dynamic_shapes_opset_and_external_data(tmp_path: Path) -> None:
    module, x = small(), torch.randn(IMAGE)
    report = bnfold.export(
        module,
        (x,),
        tmp_path / "model.onnx",
        dynamic_shapes=({0: torch.export.Dim("n")},),
        opset=20,
        external_data=True,
    )
    assert report.verification.ok
    assert run(tmp_path / "model.onnx", torch.randn(5, *IMAGE[1:])).shape[0] == 5
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]


@pytest.mark.parametrize("opset", [9, 15, 99])
def test_an_opset_that_torch_does_not_write_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(bnfold.UsageError, match=rf"in opset \d+, for it cannot in {opset}: leave opset out"):
        bnfold.export(small(), torch.randn(IMAGE), tmp_path / "model.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


OUTPUTS: dict[str, Any] = {
    "None beside": lambda y: (None, y),
    "a dictionary": lambda y: {"loss": None, "logits": y},
    "the same twice": lambda y: (y, y, torch.sigmoid(y)),
    "a number": lambda y: (y.shape[0], y),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_as_modules_give_them(name: str, tmp_path: Path) -> None:
    module = randomize(Fn(lambda m, x: OUTPUTS[name](m.b(m.c(x))), c=conv(6, 4), b=bn(4)))
    options: dict[str, Any] = {}
    if name == "a number":
        options["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
    report = bnfold.export(module, torch.randn(IMAGE), tmp_path / "model.onnx", **options)
    assert report.verification.status == "passed", report
    assert report.folded


def test_a_module_that_does_more_when_its_mode_changes(tmp_path: Path) -> None:
    class Merging(nn.Module):
        """As adapters do it: merged in eval mode, apart in training mode."""

        def __init__(self) -> None:
            super().__init__()
            self.c, self.b, self.merged = conv(6, 4), bn(4), False
            self.register_buffer("calls", torch.zeros(1))

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            y: Tensor = self.b(self.c(x))
            return y

    module = randomize(Merging()).train()
    bnfold.export(module, torch.randn(IMAGE), tmp_path / "model.onnx")
    assert module.training
    assert not module.merged
    assert float(module.calls) == 0


def test_a_file_that_is_there_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(bnfold.UsageError, match="exists already"):
        bnfold.export(small(), torch.randn(IMAGE), path)
    assert path.read_bytes() == b"mine"
    bnfold.export(small(), torch.randn(IMAGE), path, force=True)
    assert onnx.load(path).graph.node


def test_a_failed_check_writes_nothing_and_names_the_fold(tmp_path: Path, monkeypatch: Any) -> None:
    from bnfold.onnx_graph.ops import table as operators

    monkeypatch.setitem(operators.OPERATORS, "Sigmoid", operators.OPERATORS["Relu"])  # were a rule wrong
    module = randomize(nn.Sequential(conv(6, 4), nn.Sigmoid(), bn(4), conv(4, 4), bn(4)), negative=False)
    norm = module[2]
    with torch.no_grad():  # scales alone, no shift
        norm.bias.copy_(norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt())
    with pytest.raises(bnfold.VerifyError, match=r"the first fold that broke it is 2\n"):
        bnfold.export(module, torch.randn(IMAGE), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    import bnfold.api.export

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bnfold.api.export, "fold", interrupted)
    module = small().train()
    with pytest.raises(KeyboardInterrupt):
        bnfold.export(module, torch.randn(IMAGE), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    assert module.training


MEMORY = """
import sys, threading
import torch
from torch import nn
import bnfold

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))

def net(channels, layers):
    parts = [(nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels)) for _ in range(layers)]
    return nn.Sequential(*(part for pair in parts for part in pair)).eval()

most, stop = 0, threading.Event()
def watch():
    global most
    while not stop.wait(0.005):
        most = max(most, anonymous())

x = torch.randn(1, 1024, 20, 20)
bnfold.export(net(4, 1), x[:, :4], sys.argv[1] + "/warm.onnx")  # all that is imported
module = net(1024, 8)
for part in module[1::2]:
    nn.init.normal_(part.bias)
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
report = bnfold.export(module, x, sys.argv[1] + "/model.onnx")
stop.set()
weights = sum(value.nbytes for value in module.parameters())
print(len(report.folded), report.verification.status, weights, most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_export_holds_two_and_a_half_copies_at_most(tmp_path: Path) -> None:
    """The module's own weights are one of them."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folded, status, weights, more = done.stdout.split()[-4:]
    assert (folded, status) == ("8", "passed")
    assert int(weights) > 3e8
    assert int(more) <= 1.5 * int(weights)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_torch_cannot_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(bnfold.UsageError, match="torch cannot export Branching to ONNX: "):
        bnfold.export(Branching(), torch.randn(IMAGE), tmp_path / "model.onnx")
    flat = Fn(lambda m, x: nn.functional.scaled_dot_product_attention(x, x, x)).eval()
    with pytest.raises(bnfold.UsageError, match=r"translating node .*: only 4D query, key, and value"):
        bnfold.export(flat, torch.randn(2, 3, 4), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


FACTORY = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))

made = small()

def importing():
    from late import small
    return small()

def broken():
    raise ValueError("three layers at least")

def leaving():
    raise SystemExit(3)

def wanting(layers):
    return small()

def number():
    return 3
"""


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`bnfold export`, in a folder with the factory and its weights."""
    (tmp_path / "nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        importlib.invalidate_caches()
        try:
            status = main(["export", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        for name in ("nets", "late"):  # as another process finds them
            sys.modules.pop(name, None)
        return subprocess.CompletedProcess([], status, *capfd.readouterr())

    return run


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "export", "nets:small", "out.onnx", "--input-shape", "2,6,9,9"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote out.onnx" in done.stdout


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_the_command_line_exports_a_factory_with_its_weights(
    command: Command, name: str, tmp_path: Path
) -> None:
    module = small()
    if name.endswith("pt"):  # as training scripts save it, of a module in DistributedDataParallel
        state = {f"module.{key}": value for key, value in module.state_dict().items()}
        torch.save({"epoch": 3, "model": {"state_dict": state}}, tmp_path / name)
    else:
        save_file(module.state_dict(), tmp_path / name)
    done = command("nets:small", "out.onnx", "--weights", name, "--input-shape", "2,6,9,9")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 folded, 0 kept" in done.stdout
    assert "wrote out.onnx" in done.stdout
    x = torch.randn(IMAGE)
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "out.onnx", x), module(x).numpy(), atol=1e-5)


def test_a_module_itself_and_a_factory_that_imports_late(command: Command, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("from nets import small")
    for name in ("nets:made", "nets:importing"):
        done = command(name, f"{name[5:]}.onnx", "--input-shape", "2,6,9,9")
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / f"{name[5:]}.onnx").exists()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nets", "out.onnx"], "'nets' is not the name of a factory, such as package.module:factory"),
        (["nets:large", "out.onnx"], "nets has no 'large'. Note: it has small, importing"),
        (["nets:broken", "out.onnx"], "nets:broken: ValueError: three layers at least ("),
        (["nets:leaving", "out.onnx"], "nets:leaving: SystemExit: 3 ("),
        (["nets:wanting", "out.onnx"], "nets:wanting: TypeError: wanting() missing 1 required"),
        (["nots:small", "out.onnx"], "nots:small: no module named 'nots' to import"),
        (["nets:number", "out.onnx"], "nets:number made a int, and not a torch.nn.Module"),
        (["nets:small", "out.onnx", "--weights", "none.pt"], "none.pt: there is no such file of weights"),
        (
            ["nets:small", "out.onnx", "--weights", "evil.pt"],
            "evil.pt: not a file of weights that can be read",
        ),
        (["nets:small", "out.onnx", "--weights", "other.pt"], "other.pt: not the weights of this module: "),
        (["nets:small", "there.onnx"], "there.onnx exists already; add --force"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    command: Command, arguments: list[str], message: str, tmp_path: Path
) -> None:
    torch.save(Evil(), tmp_path / "evil.pt")
    torch.save({"x": torch.ones(1)}, tmp_path / "other.pt")
    (tmp_path / "there.onnx").write_bytes(b"mine")
    done = command(*arguments, "--input-shape", "2,6,9,9")
    assert done.returncode == 2
    assert done.stderr.startswith(f"bnfold: {message}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()
    assert not (tmp_path / "harmed").exists()
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"

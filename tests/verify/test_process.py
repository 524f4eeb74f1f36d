"""The check in a process of its own: the same verdict, and words where that process dies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import bnfold
from bnfold.errors import BnfoldError, UsageError, VerifyError
from bnfold.onnx_graph.file.loaded import load
from bnfold.options import Check
from bnfold.verify.child import Crashed
from bnfold.verify.models import verify as here
from bnfold.verify.process import Evaluated, evaluate, verify
from tests.verify.test_models import chain, linear, two_outputs

APART = Check(apart=True)
# onnxruntime, but for models that say how it should fail.
ODD = """
import os, re, signal, sys, time
sys.path.remove(os.path.dirname(__file__))
del sys.modules["onnxruntime"]
import onnxruntime as real
real_session = real.InferenceSession

def session(source, options, **more):
    content = source if isinstance(source, bytes) else open(source, "rb").read()
    folded = b"BatchNormalization" not in content
    optimized = options.graph_optimization_level != real.GraphOptimizationLevel.ORT_DISABLE_ALL
    for when, how in re.findall("<<(\\w+) (\\w+)>>", content.decode("latin-1")):
        if {"always": True, "folded": folded, "optimized": optimized, "both": folded and optimized}[when]:
            if how == "sleep":
                time.sleep(60)
            if how == "refuse":
                raise RuntimeError("I had rather not")
            os.kill(os.getpid(), getattr(signal, how))
    return real_session(source, options, **more)

real.InferenceSession = session
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a model on which onnxruntime fails in a child process."""
    assert onnxruntime.__version__  # this process has the real one
    (tmp_path / "onnxruntime.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)

    def made(what: str) -> onnx.ModelProto:
        proto = chain(1, shape=(1, 4, 8, 8))
        proto.doc_string = f"<<{what}>>"
        return proto

    return made


def test_the_verdict_is_that_of_this_process(tmp_path):
    good, bad = chain(3, folded=3), chain(3, folded=3, wrong=1)
    onnx.save(chain(3), tmp_path / "in.onnx")
    assert verify(load(tmp_path / "in.onnx"), load(good), APART) == here(chain(3), good)
    x = {"x": np.full((1, 4, 5, 5), 0.5, np.float32)}
    np.savez(tmp_path / "x.npz", **x)
    there = verify(load(chain(3)), load(bad), Check(inputs=tmp_path / "x.npz", apart=True))
    assert there == here(chain(3), bad, Check(inputs=x))
    odd = verify(load(linear(1.0)), load(linear(float("nan"))), APART).outputs[0]
    assert (odd.max_abs, odd.ok) == (math.inf, False)
    with pytest.raises(UsageError, match="their outputs are y, 2 and z, 2"):
        verify(load(two_outputs("y")), load(two_outputs("z")), APART)


def test_a_crash_on_the_original_is_an_error_of_one_line(odd):
    with pytest.raises(BnfoldError, match=r"crashes on the original model \(SIGSEGV\)") as caught:
        bnfold.fold_onnx(odd("always SIGSEGV"), apart=True)
    assert not isinstance(caught.value, VerifyError)
    assert "\n" not in str(caught.value)


def test_a_crash_on_the_folded_model_alone_is_the_folds_fault(odd):
    with pytest.raises(VerifyError, match=r"the second model crashes onnxruntime \(SIGABRT\)"):
        bnfold.fold_onnx(odd("folded SIGABRT"), apart=True)


def test_one_model_by_itself(odd):
    x = {"x": np.full((1, 4, 8, 8), 0.5, np.float32)}

    def of(what: str, original: onnx.ModelProto | None = None) -> Evaluated:
        return evaluate(load(odd(what)), x, APART, load(odd(what) if original is None else original))

    found = of("always nothing")
    own = evaluate(load(odd("")), x, Check(), load(odd("")))
    np.testing.assert_allclose(found.outputs["y"], own.outputs["y"], rtol=1e-5)
    assert found.notes == []
    with pytest.raises(BnfoldError, match=r"crashes on the original model \(SIGSEGV\)"):
        of("always SIGSEGV")
    with pytest.raises(Crashed, match="SIGSEGV"):
        of("always SIGSEGV", odd("always nothing"))
    [note] = of("optimized SIGSEGV").notes
    assert "crashes (SIGSEGV) on the second model, as on the original: a fault of onnxruntime" in note


def test_an_exported_file(odd, tmp_path):
    """Names of outputs are in the file that is refused."""
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3)).eval()
    names = {"output_names": ["<<both refuse>>"]}
    report = bnfold.export(net, torch.ones(1, 2, 3, 3), tmp_path / "x.onnx", apart=True, **names)
    assert report.verification.ok
    assert "refuses the second model, and not the original: I had" in report.verification.notes[0]


def test_half_precision(odd, tmp_path, monkeypatch):
    """It runs the model to measure it, whether it is verified or not."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with pytest.raises(BnfoldError, match=r"crashes \(SIGSEGV\) on the model while it is measured for fp16"):
        bnfold.fold_onnx(odd("always SIGSEGV"), apart=True, precision="fp16", verify=False)
    there, report = bnfold.fold_onnx(odd("optimized refuse"), apart=True, precision="fp16")
    here, same = bnfold.fold_onnx(odd("optimized refuse"), precision="fp16")
    assert there.SerializeToString() == here.SerializeToString()
    note = report.precision.notes.pop()
    assert note.startswith(
        "with its optimizer on, onnxruntime refuses the second model, and the original, a fault"
    )
    assert report.precision == same.precision
    assert list((tmp_path / "temporary").iterdir()) == []


def test_what_takes_too_long_or_is_killed_is_told(odd):
    with pytest.raises(BnfoldError, match=r"took longer than 3 s \(--check-timeout\)"):
        bnfold.fold_onnx(odd("always sleep"), timeout=3.0)
    with pytest.raises(BnfoldError, match=r"killed \(SIGKILL\), as it is when memory runs out"):
        bnfold.fold_onnx(odd("always SIGKILL"), apart=True)


def test_modules_in_the_working_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('from the working folder')")
    monkeypatch.chdir(tmp_path)
    assert verify(load(chain(1)), load(chain(1, folded=1)), APART).ok


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("both SIGSEGV", "crashes (SIGSEGV) on the second model, and not on the original"),
        ("both refuse", "refuses the second model, and not the original: I had rather not"),
        (
            "optimized SIGSEGV",
            "crashes (SIGSEGV) on the second model, as on the original: a fault of onnxruntime",
        ),
        (
            "optimized refuse",
            "refuses the second model, and the original, a fault of onnxruntime: I had rather not",
        ),
    ],
)
def test_what_the_optimizer_does_not_take_is_noted(odd, what, said):
    """As the file will be used: the comparison itself runs without the optimizer, and passes."""
    _, report = bnfold.fold_onnx(odd(what), apart=True)
    assert report.verification.status == "passed"
    assert report.verification.notes == [f"with its optimizer on, onnxruntime {said}"]

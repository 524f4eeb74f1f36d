"""The check in a process of its own: the same verdict, and words where that process dies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.errors import BnfoldError, UsageError, VerifyError
from bnfold.onnx_graph.file.loaded import load
from bnfold.options import Check
from bnfold.verify.models import verify as here
from bnfold.verify.process import verify
from tests.verify.test_models import chain, linear

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
    with pytest.raises(UsageError, match="their outputs are y and z"):
        verify(load(linear(1.0)), load(linear(1.0, out="z")), APART)


def test_a_crash_on_the_original_is_an_error_of_one_line(odd):
    with pytest.raises(BnfoldError, match=r"crashes on the original model \(SIGSEGV\)") as caught:
        bnfold.fold_onnx(odd("always SIGSEGV"), apart=True)
    assert not isinstance(caught.value, VerifyError)
    assert "\n" not in str(caught.value)


def test_a_crash_on_the_folded_model_alone_is_the_folds_fault(odd):
    with pytest.raises(VerifyError, match=r"the second model crashes onnxruntime \(SIGABRT\)"):
        bnfold.fold_onnx(odd("folded SIGABRT"), apart=True)


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
        ("both SIGSEGV", "crashes (SIGSEGV) on the second model alone"),
        ("both refuse", "refuses the second model alone: I had rather not"),
        ("optimized SIGSEGV", "crashes (SIGSEGV) on the original model and the second, which is its fault"),
        (
            "optimized refuse",
            "refuses the original model and the second, which is its fault: I had rather not",
        ),
    ],
)
def test_what_the_optimizer_does_not_take_is_noted(odd, what, said):
    """As the file will be used: the comparison itself runs without the optimizer, and passes."""
    _, report = bnfold.fold_onnx(odd(what), apart=True)
    assert report.verification.status == "passed"
    assert report.verification.notes == [f"with its optimizer on, onnxruntime {said}"]

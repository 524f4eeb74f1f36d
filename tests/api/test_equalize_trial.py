"""`bnfold equalize` with calibration data: what int8 says of the ranges decides; and what is told without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.api.guard import SETS
from bnfold.cli.app import main
from bnfold.errors import UsageError
from bnfold.report.guard import better
from tests.onnx_graph.build import Array, Build

CHANNELS = 8
LOSES, GAINS = 9, 13  # seeds of networks that corrected int8 makes 4 dB worse, and 5 dB better, if equalized


def network(seed: int) -> onnx.ModelProto:
    """1 x 1, Relu, depthwise, Relu, 1 x 1: rows of uneven sizes."""
    g = Build(seed=seed)
    x = g.input("x", ("N", 4, 6, 6))

    def uneven(shape: tuple[int, ...], bits: int) -> Any:
        values = g.rng.normal(size=shape)
        return g.const(values * np.exp2(g.rng.uniform(-bits, 0, (shape[0], 1, 1, 1))))

    wide = uneven((CHANNELS, 4, 1, 1), 1)
    y = g.op("Relu", g.conv(x, CHANNELS, 1, w=wide, name="expand"))
    each = uneven((CHANNELS, 1, 3, 3), 4)
    y = g.op("Relu", g.conv(y, CHANNELS, 3, pads=1, group=CHANNELS, w=each, name="depthwise"))
    g.output(g.conv(y, 3, 1, w=uneven((3, CHANNELS, 1, 1), 1), name="project"))
    return g.model()


def samples(count: int = 50) -> dict[str, Array]:
    return {"x": np.random.default_rng(0).standard_normal((count, 4, 6, 6)).astype(np.float32)}


def test_equalized_only_where_int8_is_better() -> None:
    """Fewer bits are lost in both networks; in one of them that is no gain."""
    for seed, taken in ((LOSES, "as it was"), (GAINS, "equalized")):
        model = network(seed)
        plain, before = bnfold.equalize_onnx(model)
        assert before.regions
        assert before.trial is None
        result, report = bnfold.equalize_onnx(model, calibration=samples())
        assert report.trial is not None
        assert report.trial.taken == taken
        lead = np.mean(report.trial.equalized_db) - np.mean(report.trial.before_db)
        assert lead > 2 if taken == "equalized" else lead < -2
        assert len(report.trial.before_db) == SETS
        assert (report.trial.samples, report.trial.compared) == (10, 10)
        if taken == "equalized":
            assert result.SerializeToString() == plain.SerializeToString()
            assert report.layers == before.layers
        else:
            folded, _ = bnfold.fold_onnx(model)
            assert result.SerializeToString() == folded.SerializeToString()
            assert not report.regions
            assert report.bits_after == report.bits_before == before.bits_before
            assert all(layer.bits_after == layer.bits_before for layer in report.layers)
        assert f"quantized and corrected by 4 sets of 10 samples, on 10 others: {taken}" in str(report)


def test_a_small_gain_is_told_to_be_one() -> None:
    _, small = bnfold.equalize_onnx(network(LOSES), verify=False)
    [note] = [note for note in small.notes if "by chance" in note]
    assert note.startswith(f"the bits saved are {(small.bits_before - small.bits_after) * 6.02:.1f} dB less")
    _, told = bnfold.equalize_onnx(network(LOSES), verify=False, calibration=samples())
    assert not [note for note in told.notes if "by chance" in note]


def test_a_large_gain_has_no_such_note() -> None:
    g = Build(seed=0)
    sizes = np.exp2([0.0, -8, 0, -8]).reshape(4, 1, 1, 1)
    x = g.input("x", ("N", 3, 4, 4))
    y = g.op("Relu", g.conv(x, 4, 1, w=g.const(g.rng.normal(size=(4, 3, 1, 1)) * sizes), name="one"))
    back = sizes[::-1].reshape(1, 4, 1, 1)
    g.output(g.conv(y, 4, 1, w=g.const(g.rng.normal(size=(4, 4, 1, 1)) * back), name="two"))
    _, report = bnfold.equalize_onnx(g.model(), verify=False)
    assert report.bits_before - report.bits_after > 1
    assert not [note for note in report.notes if "by chance" in note]


def test_alike_is_no_reason_to_change_a_model() -> None:
    assert better([30.0, 31.0], [30.5, 30.5]) == "as it was"
    assert better([30.0, 31.1], [30.5, 30.5]) == "equalized"


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to do with int4: onnxruntime quantizes to int8"):
        bnfold.equalize_onnx(network(LOSES), quantize_for="int4", calibration=samples())
    with pytest.raises(UsageError, match="enough for 3 runs, and the guard needs 5"):
        bnfold.equalize_onnx(network(LOSES), verify=False, calibration=samples(3))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(LOSES), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", **samples())
    model, out, data, told = (str(tmp_path / name) for name in ("in.onnx", "out.onnx", "x.npz", "r.json"))
    given = ["equalize", model, out, "--calibration-data-path", data]
    assert main([*given, "--json", told]) == 0
    assert ": as it was\n" in capsys.readouterr().out
    assert json.loads(Path(told).read_text())["trial"]["taken"] == "as it was"
    assert main([*given, "--force", "--for", "int4"]) == 2
    assert "--calibration-data-path has nothing to do with --for int4" in capsys.readouterr().err
    assert main([*given[:2], data, *given[3:], "--force"]) == 2
    assert "has two uses in this command" in capsys.readouterr().err

"""tools/int8: its networks, its rounding, and what it has stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from tests.onnx_graph.build import Build
from tools._bench.int8_table import four_bits, hurts, losses, merging, steps
from tools._bench.quantized import decibels, outputs, prepared, quantize, rounded
from tools._common import RESULTS

torch = pytest.importorskip("torch", reason="the networks are torch's")


@pytest.fixture(scope="module")
def networks() -> Any:
    return json.loads((RESULTS / "int8_trained.json").read_text())["networks"]


@pytest.mark.parametrize("size", [8, 28])
def test_the_networks_take_both_kinds_of_images(size: int) -> None:
    from tools._data.trained import NETWORKS

    for name, make in NETWORKS.items():
        with torch.no_grad():
            assert make().eval()(torch.zeros(2, 1, size, size)).shape == (2, 10), name


@pytest.mark.parametrize("per_channel", [False, True])
def test_rounded_weights_have_few_values(per_channel: bool) -> None:
    g = Build(seed=1)
    g.output(g.conv(g.input("x", (1, 3, 6, 6)), 4, 3, name="conv"))
    weights = [
        numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "conv_weight"))
        for model in (g.model(), rounded(g.model(), 4, per_channel))
    ]
    scales = np.abs(weights[0]).max((1, 2, 3) if per_channel else None, keepdims=True) / 7
    codes = weights[1] / scales
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-5)
    assert np.abs(codes).max() < 7.001
    assert np.abs(weights[1] - weights[0]).max() <= scales.max() / 2 + 1e-6


def test_decibels() -> None:
    assert decibels(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(20.0)


def mean(row: dict[str, Any], kind: str, step: str) -> float:
    return float(np.mean(row[kind][step]))


def test_the_tables_name_what_was_not_measured() -> None:
    variants = {
        "as exported": {"per_tensor": {"plain": [20.0]}, "per_channel": {"plain": [21.0]}},
        "apart": {
            "linear": 3,
            "per_tensor": {"plain": [30.0, 32.0], "corrected": [33.0, 33.0]},
            "per_channel": {"plain": [31.0], "corrected": [34.0]},
            "int4": {"plain": 1.0, "means": 2.0, "corrected": 3.0},
        },
        "full": {
            "linear": 1,
            "per_tensor": {"plain": [10.0], "corrected": [20.0]},
            "per_channel": {"plain": [11.0], "corrected": [21.0]},
        },
        "free": {"same_as": "apart"},
        "--for int8": {"same_as": "apart"},
    }
    other = json.loads(json.dumps(variants))
    other["apart"]["per_tensor"] = {"plain": [29.0], "corrected": [35.0]}
    result = {"networks": {"net": {"0": {"variants": variants}, "1": {"variants": other}}}}
    assert "| net | one | 20.0 (20.0 to 20.0) | 30.0 (29.0 to 31.0) | 34.0 (33.0 to 35.0) | - | - |" in steps(
        result
    )
    lines = merging(result).splitlines()
    assert "| net | one | full | 1 | 10.0 (10.0 to 10.0) | 20.0 (20.0 to 20.0) | -13.0, -15.0 |" in lines
    assert "| net | apart | 1.0 (1.0 to 1.0) | 2.0 (2.0 to 2.0) | 3.0 (3.0 to 3.0) |" in four_bits(result)


def test_losses_are_counted_case_by_case() -> None:
    found = {"plain": [30.0, 32.0, 30.0], "corrected": [33.0, 31.9, 29.5]}
    variants = {
        "apart": {"per_tensor": found},
        "free": {"same_as": "apart"},
        "as exported": {"per_tensor": {}},
    }
    told = losses({"networks": {"net": {"0": {"variants": variants}}}})
    assert "the correction changed +0.8 to +0.8 dB" in told
    assert "Of the 3 single cases 2 lost, 1 of them more than 0.3 dB; the worst changed by -0.50 dB." in told


def test_what_harms_is_seen_to(networks: Any) -> None:
    """The same correction from one pass, clipped ranges, and the statistics of few images."""
    found = json.loads((RESULTS / "int8_hurts.json").read_text())["networks"]
    assert set(found) == {name for name in networks if not name.startswith("MobileNetV2")}
    for name, entry in found.items():
        ways = {way: float(np.mean(values)) for way, values in entry["ways"].items()}
        assert ways["entropy"] == ways["plain"], name
        assert ways["corrected"] > ways["plain"] - 0.3, name
        for way in ("one pass", "percentile 99.9", "recalibrated"):
            assert ways[way] < ways["corrected"] - 1, (name, way)
    assert len(hurts({"networks": found}).splitlines()) == 12


def test_one_pass_counts_an_error_twice(tmp_path: Path) -> None:
    """Two layers in a row: the second is measured with the first as it was."""
    from tools._bench.int8_hurts import from_one_pass
    from tools._bench.int8_trained import corrected

    g = Build(seed=2)
    x = g.op("Relu", g.conv(g.input("x", ("N", 3, 6, 6)), 8, 1, name="one"))
    g.output(g.conv(x, 4, 1, name="two"))
    source, goal = tmp_path / "source.onnx", tmp_path / "goal.onnx"
    batches = [np.random.default_rng(0).standard_normal((16, 3, 6, 6)).astype(np.float32) + 1]
    exact = outputs(prepared(g.model(), source), batches)
    quantize(source, goal, batches, False, bits=8)
    shift = {
        way.__name__: float(
            np.abs((outputs(way(goal, source, batches, 1), batches) - exact).mean((0, 2, 3))).max()
        )
        for way in (corrected, from_one_pass)
    }
    assert shift["from_one_pass"] > 3 * shift["corrected"], shift


def test_what_is_stored_shows_what_is_claimed(networks: Any) -> None:
    small = {name: seeds for name, seeds in networks.items() if not name.startswith("MobileNetV2")}
    assert len(small) == 5
    for name, seeds in networks.items():
        assert len(seeds) == (3 if name in small else 1), name
        for entry in seeds.values():
            assert entry["sets"] == (4 if name in small else 1), name
            apart = entry["variants"]["apart"]
            for kind in ("per_tensor", "per_channel"):
                assert mean(apart, kind, "corrected") > mean(apart, kind, "plain") - 0.3, (name, kind)
            if "entropy" in apart["per_channel"]:
                assert apart["per_channel"]["entropy"] == apart["per_channel"]["plain"][0], name
    trained = networks["MobileNetV2, ImageNet"]["0"]["variants"]["apart"]
    assert mean(trained, "per_tensor", "corrected") > 14.5
    assert mean(trained, "per_channel", "corrected") > 17
    for name, seeds in small.items():
        gains = [entry["variants"]["apart"]["int4"] for entry in seeds.values()]
        assert min(gain["corrected"] - gain["plain"] for gain in gains) > 3.5, name


def test_what_is_merged_for_int8_costs_at_most_half_a_decibel(networks: Any) -> None:
    """With each of three training seeds."""
    seen = 0
    for name, seeds in networks.items():
        for kind, plan in (("per_tensor", "--for int8-per-tensor"), ("per_channel", "--for int8")):
            losses = []
            for entry in seeds.values():
                variants = entry["variants"]
                if "linear" in variants.get("full", {}):  # else there is nothing to merge
                    row = variants[variants[plan].get("same_as", plan)]
                    losses.append(mean(variants["apart"], kind, "corrected") - mean(row, kind, "corrected"))
            if losses:
                assert max(losses) < 0.5, (name, kind, losses)
                seen += 1
    assert seen == 4


def test_merging_for_int8_costs_random_weights_nothing_once_corrected() -> None:
    for variants in json.loads((RESULTS / "int8.json").read_text())["networks"].values():
        apart, merged = variants["apart"], variants["--for int8"]
        assert merged["linear"] <= 45
        assert merged["per_channel"]["db"] > 14.4
        assert variants["--for int8-per-tensor"]["per_tensor"]["db"] > 13
        assert merged["per_channel"]["corrected"] > apart["per_channel"]["corrected"] - 0.5

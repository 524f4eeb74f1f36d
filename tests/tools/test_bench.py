"""The committed results of the tools that measure are complete, and say where they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.api.test_fold_module import LESS, ROUNDING
from tests.onnx_graph.build import Build
from tests.torch_graph.modules import CASES
from tools._common import RESULTS, ROOT
from tools._zoo.convert_zoo import NAMES as CONVERTED
from tools._zoo.convert_zoo import summary as convert_summary
from tools._zoo.convert_zoo import verdict as convert_verdict
from tools._zoo.names import NAMES, SIGNED
from tools._zoo.onnx_zoo import least

CHAINS = {"chain50": 50, "chain500": 500, "chain5000": 5000}
NETWORKS = {"resnet50": 53, "densenet121": 121, "nasnetalarge": 264}
TOOLS = ("bnfold", "onnxruntime", "onnxsim", "onnxslim", "onnxscript", "onnxoptimizer")
PEERS = ("onnxruntime", "onnxsim", "onnxslim", "onnxoptimizer_all", "onnxscript")
TORCH_TOOLS = ("fold_program", "fold_module", "torch.fx fuse", "fuse_modules", "torch.jit.freeze")
TORCH_NETWORKS = {"resnet50": 53, "mobilenetv3_large_100": 46, "levit_128s": 52}
PACKAGES = {
    "bnfold",
    "python",
    "numpy",
    "onnx",
    "torch",
    "timm",
    "onnxruntime",
    "onnxsim",
    "onnxslim",
    "onnxscript",
}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# where all that keeps other tools from folding is what bnfold was made for
AHEAD = (
    *("levit_128s", "mixnet_s", "visformer_tiny", "swiftformer_xs", "inception_next_atto", "nasnetalarge"),
    *("pnasnet5large", "xception41p", "lambda_resnet26t", "efficientformerv2_s0", "shvit_s1"),
)


def check_origin(entry: dict[str, Any]) -> None:
    assert entry["machine"]["cpu"]
    assert entry["machine"]["cores"] > 0
    assert set(entry["versions"]) >= PACKAGES
    assert all(entry["versions"].values())
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry["date"])


def check_times(times: dict[str, Any]) -> None:
    assert 0 < times["min"] <= times["median"]
    assert times["runs"] >= 1


@pytest.mark.parametrize(("model", "batch_norms"), (CHAINS | NETWORKS).items())
def test_every_tool_was_measured_on_every_model(model: str, batch_norms: int) -> None:
    entry = read(RESULTS / "fold.json")[model]
    check_origin(entry)
    check_times(entry["imports"])
    assert entry["batch_norms"] == batch_norms
    assert tuple(entry["tools"]) == TOOLS
    for tool, found in entry["tools"].items():
        if found["failure"]:
            assert tool != "bnfold"  # a peer may fail or take too long
            continue
        check_times(found["in_process"])
        check_times(found["whole_process"])
        assert 0 < found["memory"]["before"] <= found["memory"]["most"]
        assert 0 <= found["left"]["batch_norms"] <= batch_norms
        assert found["left"]["per_channel"] >= 0


def test_chains_are_folded_whole() -> None:
    for model in CHAINS:
        assert read(RESULTS / "fold.json")[model]["tools"]["bnfold"]["left"] == {
            "batch_norms": 0,
            "per_channel": 0,
        }


def test_memory_stays_small_with_3_gb_of_external_data() -> None:
    entry = read(RESULTS / "fold.json")["huge"]
    check_origin(entry)
    found = entry["tools"]["bnfold"]
    assert not found["failure"]
    assert entry["bytes"] > 3e9
    assert found["left"] == {"batch_norms": 0, "per_channel": 0}
    assert found["memory"]["most"] < 1e9 + entry["largest_tensor"]


def test_the_zoo_is_large_and_named_once() -> None:
    assert len(NAMES) >= 60
    assert len(set(NAMES)) == len(NAMES)
    assert {path.stem for path in (RESULTS / "zoo").glob("*.json")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_peer_leaves_less_and_the_fold_is_exact(name: str) -> None:
    result = read(RESULTS / "zoo" / f"{name}.json")
    check_origin(result)
    for kind in ("raw", "default"):
        found = result[kind]
        ours = found["bnfold"]
        assert tuple(found["peers"]) == PEERS
        for peer in found["peers"].values():
            assert "failure" in peer or ours["left"] <= peer["left"]
        assert ours["left"] <= found["given"]
        errors = ours.get("error_of_float32")
        assert ours["error"] <= 1e-5 or errors["folded"] <= 2 * errors["unfolded"]
        assert sum(ours["kept_because"].values()) >= ours["batch_norms"]


@pytest.mark.parametrize("name", AHEAD)
def test_every_peer_leaves_more(name: str) -> None:
    result = read(RESULTS / "zoo" / f"{name}.json")
    for kind in ("raw", "default"):
        left = [peer["left"] for peer in result[kind]["peers"].values() if "failure" not in peer]
        assert result[kind]["bnfold"]["left"] < min(left)


@pytest.mark.parametrize("name", SIGNED)
def test_where_signs_matter_few_negative_ones_leave_no_more(name: str) -> None:
    result = read(RESULTS / "zoo" / f"{name}.json")
    assert result["few_negative"]["left"] <= result["raw"]["bnfold"]["left"]
    assert result["few_negative"]["error"] <= 1e-5


def test_whole_regions_fold() -> None:
    densenet, resnet = (read(RESULTS / "zoo" / f"{name}.json") for name in ("densenet121", "resnetv2_50"))
    for kind in ("raw", "default"):
        assert densenet[kind]["bnfold"]["left"] <= 59
        # one in each of the four residual regions; the one behind MaxPool has negative scales
        assert resnet[kind]["bnfold"]["left"] <= 13
    assert resnet["few_negative"]["left"] <= 12


def test_the_summary_adds_up() -> None:
    summary = read(RESULTS / "zoo.json")
    assert set(summary["networks"]) == set(NAMES)
    for kind in ("raw", "default"):
        rows = [row[kind]["left"] for row in summary["networks"].values()]
        for tool, total in summary["totals"][kind].items():
            assert total == sum(row["given"] if row[tool] is None else row[tool] for row in rows)
        for name, row in summary["networks"].items():
            assert (
                row[kind]["left"]["bnfold"] == read(RESULTS / "zoo" / f"{name}.json")[kind]["bnfold"]["left"]
            )


# torch


def torch_results(part: str) -> Any:
    return read(RESULTS / "fold_torch.json")[part]


def rest(found: dict[str, Any]) -> int:
    """All that is left but batch norms that are the identity map."""
    assert 0 <= found["identity"] <= found["batch_norms"]
    assert found["per_channel"] >= 0
    return int(found["batch_norms"] + found["per_channel"] - found["identity"])


def test_every_torch_tool_was_measured_on_every_case() -> None:
    cases = torch_results("cases")
    check_origin(cases)
    assert tuple(cases["networks"]) == tuple(CASES)
    for network in cases["networks"].values():
        assert tuple(network["tools"]) == TORCH_TOOLS
        assert network["batch_norms"] + network["per_channel"] > 0
        for found in network["tools"].values():
            if found["outcome"].startswith("fails: "):  # a peer may
                continue
            assert found["outcome"] == ("right" if found["error"] <= ROUNDING else "wrong")
            assert rest(found) <= network["batch_norms"] + network["per_channel"]


@pytest.mark.parametrize("name", CASES)
def test_bnfold_is_right_and_leaves_what_must_stay(name: str) -> None:
    _, _, stays = CASES[name]
    tools = torch_results("cases")["networks"][name]["tools"]
    assert tools["fold_program"]["outcome"] == tools["fold_module"]["outcome"] == "right"
    assert rest(tools["fold_program"]) == stays
    assert tools["fold_program"]["identity"] == 0
    assert rest(tools["fold_module"]) <= LESS.get(name, (stays, ""))[0]
    for found in tools.values():  # nothing that is right leaves less
        assert found["outcome"] != "right" or rest(found) >= stays


def test_the_totals_of_the_cases_add_up() -> None:
    cases = torch_results("cases")
    assert tuple(cases["totals"]) == TORCH_TOOLS
    for tool, row in cases["totals"].items():
        found = [network["tools"][tool] for network in cases["networks"].values()]
        right = [one for one in found if one["outcome"] == "right"]
        assert row["nothing left"] + row["identity map"] == sum(rest(one) == 0 for one in right)
        assert row["identity map"] == sum(rest(one) == 0 < one["identity"] for one in right)
        assert row["some left"] == sum(rest(one) > 0 for one in right)
        assert row["wrong"] == sum(one["outcome"] == "wrong" for one in found)
        assert row["fails"] == sum(one["outcome"].startswith("fails: ") for one in found)
        assert sum(row.values()) == len(CASES)


@pytest.mark.parametrize(("name", "batch_norms"), TORCH_NETWORKS.items())
def test_a_folded_module_is_not_slower(name: str, batch_norms: int) -> None:
    result = torch_results("speed")[name]
    check_origin(result)
    assert result["rounds"] >= 20
    variants = result["variants"]
    assert tuple(variants) == ("as it is", "again", "fold_module", "torch.fx fuse")
    for found in variants.values():
        if not found["failure"]:
            assert 0 < found["quartile_1"] <= found["median"] <= found["quartile_3"]
            assert found["error"] <= ROUNDING
    assert not any(variants[name]["failure"] for name in ("as it is", "again", "fold_module"))
    assert variants["as it is"]["left"] == variants["again"]["left"] == batch_norms
    assert variants["fold_module"]["left"] == variants["fold_module"]["identity"]
    assert variants["fold_module"]["median"] <= variants["as it is"]["median"]
    peer = variants["torch.fx fuse"]
    assert peer["failure"] or variants["fold_module"]["median"] <= 1.05 * peer["median"]


def torch_zoo(name: str) -> Any:
    return read(RESULTS / "zoo_torch" / f"{name}.json")


def test_the_torch_zoo_has_the_same_networks() -> None:
    assert {path.stem for path in (RESULTS / "zoo_torch").glob("*.json")} == set(NAMES)


@pytest.mark.parametrize("part", ["program", "module"])
@pytest.mark.parametrize("name", NAMES)
def test_torch_folds_are_exact_and_tell_all_that_is_left(name: str, part: str) -> None:
    result = torch_zoo(name)
    found = result[part]
    check_origin(found)
    assert found["error"] <= max(1e-5, 2 * result["error_of_float32"])
    assert found["check"] == ("passed" if len(found["kept"]) < result["batch_norms"] else "nothing to check")
    # counted in the graph of what was folded, and told by the ledger
    assert found["left"] == len(found["kept"]) + found["identity_maps"]
    assert sum(found["kept_because"].values()) == len(found["kept"])
    assert all(found["kept"].values())
    assert found["seconds"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_fold_program_leaves_no_more_than_fold_onnx(name: str) -> None:
    result = torch_zoo(name)
    onnx = read(RESULTS / "zoo" / f"{name}.json")["raw"]["bnfold"]["batch_norms"]
    assert result["program"]["left"] <= result["left_by_fold_onnx"] == onnx
    assert result["program"]["identity_maps"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_fold_module_keeps_no_more_than_its_ledger_tells(name: str) -> None:
    result = torch_zoo(name)
    kept, less = (result[part]["kept"] for part in ("module", "program"))
    assert len(kept.keys() - less.keys()) == sum(result["kept_by_module_alone"].values())
    # the other way round where a program folds the layer scale behind a batch norm, and a module, whose code
    # it is, the batch norm
    assert len(less.keys() - kept.keys()) == sum(result["kept_by_program_alone"].values())
    # a program's branches are merged, with the batch norms among them, and a module's are not
    assert len(kept) <= len(less) or result["program"]["merged"] > 0


def test_the_least_that_can_stay_of_a_file(tmp_path: Path) -> None:
    """By tools/zoo --bound: a convolution takes the first batch norm, and nothing the second."""
    g = Build(17)
    y = g.bn(g.conv(g.input("x", (1, 4, 6, 6)), 4, 1))
    g.output(g.op("Sigmoid", g.bn(g.op("Sigmoid", y))))
    onnx.save(g.model(), tmp_path / "two.onnx")
    assert least(tmp_path / "two.onnx") == 1


def test_the_summary_of_the_torch_zoo_adds_up() -> None:
    summary = read(RESULTS / "zoo_torch.json")
    assert set(summary["networks"]) == set(NAMES)
    for key, total in summary["totals"].items():
        assert total == sum(row[key] for row in summary["networks"].values())
    for name, row in summary["networks"].items():
        result = torch_zoo(name)
        assert row["left_by_fold_program"] == result["program"]["left"]
        assert row["kept_by_fold_module"] == len(result["module"]["kept"])
        assert row["identity_maps_of_fold_module"] == result["module"]["identity_maps"]
        assert row["faithful"]


def test_converted_networks_are_equal_or_refused() -> None:
    found = {path.stem: read(path) for path in (RESULTS / "zoo_convert").glob("*.json")}
    assert found.keys() == set(CONVERTED)
    assert {convert_verdict(result) for result in found.values()} == {"equal", "refused"}
    assert sum("errors" in result and result["merged"] > 0 for result in found.values()) >= 50
    assert sum(result.get("random", False) for result in found.values()) >= 30
    summary = convert_summary({name: found[name] for name in CONVERTED})
    told = " ".join((ROOT / "docs" / "training.md").read_text().split())
    said = "of {networks} networks .*, {equal} compute .* with {merged} of {batch_norms} .*; {refused} are"
    assert re.search(said.format(**summary, **summary["verdicts"]), told)
    assert read(RESULTS / "zoo_convert.json") == json.loads(json.dumps(summary))


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_merging_leaves_what_timms_own_switch_leaves(name: str, runtime: str) -> None:
    result = read(RESULTS / "merge.json")[name]
    check_origin(result)
    assert result[runtime]["rounds"] >= 20
    variants = result[runtime]["variants"]
    assert tuple(variants) == ("as it is", "again", "folded", "merged", "timm")
    for found in variants.values():
        assert 0 < found["quartile_1"] <= found["median"] <= found["quartile_3"]
        assert found["error"] <= ROUNDING
    merged, timm = variants["merged"], variants["timm"]
    assert merged["linear"] == timm["linear"] < variants["folded"]["linear"]
    assert merged["batch_norms"] == 0
    assert merged["nodes"] <= timm["nodes"] + 1  # which leaves one of RepViT's two dropouts out
    assert merged["median"] < variants["as it is"]["median"]
    assert merged["median"] <= 1.1 * timm["median"]

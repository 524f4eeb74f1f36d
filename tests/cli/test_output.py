"""What the command says, where it says it, and how wide that is."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli.command import model, operators, refused, run
from tests.onnx_graph.build import Build


def deep(count: int, name: str = "{}") -> onnx.ModelProto:
    """Convs with batch norms; every third one has Relus on both sides, and has to stay."""
    g = Build(seed=0)
    x = g.input("x", ("N", 4, 8, 8))
    for i in range(count):
        x = g.op("Conv", x, g.const(g.rng.normal(size=(4, 4, 1, 1)), f"w{i}"), name=name.format(f"conv{i}"))
        x = g.op("Relu", x, name=name.format(f"act{i}")) if i % 3 == 2 else x
        stored = [g.const(g.rng.uniform(0.5, 1.5, 4), f"{key}{i}") for key in "sbmv"]
        x = g.op("BatchNormalization", x, *stored, name=name.format(f"bn{i}"))
        x = g.op("Relu", x, name=name.format(f"relu{i}"))
    g.output(x)
    return g.model()


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a terminal of 72 columns from now on, in this test."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def numbers(text: str) -> dict[str, tuple[str, str]]:
    """The rows of the summary."""
    rows = re.findall(r"^ *(\w+)  +(\S+(?: [kM]?B| bytes)?)  +(\S+(?: [kM]?B| bytes)?)$", text, re.MULTILINE)
    return {name: (before, after) for name, before, after in rows}


def test_a_summary_comes_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "in.onnx", "out.onnx", "--json", "r.json") == 0
    out = capsys.readouterr().out
    head, ledger = out.split("\n\n", 1)
    assert head.splitlines()[:3] == ["opset 17", "inputs x:N,3,8,8:float32", "outputs y:N,6,6,6:float32"]
    assert "1 folded, 0 kept" in ledger
    sizes = [f"{(folder / name).stat().st_size} bytes" for name in ("in.onnx", "out.onnx")]
    work = f"{6 * 6 * 6 * 3 * 3 * 3:,}"  # one image
    assert numbers(head) == {
        "operators": ("2", "1"),
        "Conv": ("1", "1"),
        "BatchNormalization": ("1", "0"),
        "parameters": (f"{162 + 4 * 6}", f"{162 + 6}"),
        "multiplications": (work, work),
        "bytes": tuple(sizes),
    }
    summary = json.loads((folder / "r.json").read_text())["summary"]
    assert summary["before"]["operators"] == {"Conv": 1, "BatchNormalization": 1}
    assert summary["after"]["operators"] == {"Conv": 1}
    assert summary["after"]["multiplications"] == 5832
    assert summary["files"] == [{"path": "out.onnx", "bytes": (folder / "out.onnx").stat().st_size}]


def test_every_file_that_was_written_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(channels=400), "big.onnx")
    flags = ("--save-as-external-data", "--json", "r.json", "--certificate", "c.npz")
    assert run("fold", "big.onnx", "out.onnx", *flags) == 0
    told = re.findall(r"^wrote (\S+) \(", capsys.readouterr().out, re.MULTILINE)
    assert sorted(told) == sorted(
        {path.name for path in folder.iterdir()}
        - {*["in", "kept", "big"]}
        - {"in.onnx", "kept.onnx", "big.onnx"}
    )
    summary = json.loads((folder / "r.json").read_text())["summary"]
    files = [folder / name for name in ("out.onnx.data", "out.onnx")]
    assert summary["after"]["bytes"] == sum(file.stat().st_size for file in files)
    # what is read counts with its data as well
    assert run("fold", "out.onnx", "--no-verify", "--json", "again.json") == 0
    again = json.loads((folder / "again.json").read_text())["summary"]
    assert again["before"]["bytes"] == summary["after"]["bytes"]


def test_many_are_told_by_their_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(deep(30, "/backbone/{}"), "deep.onnx")
    assert run("fold", "deep.onnx", "--no-verify") == 0
    out = capsys.readouterr().out
    assert "kept 10: backward: Relu does not pass a shift; forward: Relu does not pass a shift\n" in out
    assert "  /backbone/bn2, by /backbone/act2, /backbone/relu2\n" in out
    assert "  and 6 more\nfolded into 20 nodes: /backbone/conv0, " in out
    assert "20 folded, 10 kept\n" in out
    assert run("fold", "deep.onnx", "--no-verify", "--show", "summary") == 0
    out = capsys.readouterr().out
    assert "/backbone/bn" not in out
    assert "20 folded, 10 kept\n" in out
    assert run("fold", "deep.onnx", "--no-verify", "--show", "all") == 0
    rows = re.findall(r"^/backbone/(bn\d+) .*  (kept|folded)  ", capsys.readouterr().out, re.MULTILINE)
    assert [kind for _, kind in rows] == ["kept"] * 10 + ["folded"] * 20
    assert len(dict(rows)) == 30


def test_names_are_whole_in_a_pipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "/backbone/" + "stage/" * 20 + "bn"
    onnx.save(model(bn_name=long), "in.onnx")
    assert run("fold", "in.onnx", "--no-verify", "--show", "all") == 0
    out = capsys.readouterr().out
    assert f"{long}  BatchNormalization  folded   conv\n" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("show", ["all", "kept"])
def test_no_line_is_wider_than_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, show: str
) -> None:
    on_a_terminal(monkeypatch)
    onnx.save(deep(6, "/backbone/stages.3/blocks.17/some/module/that/is/deep/down/{}"), "deep.onnx")
    assert run("fold", "deep.onnx", "out.onnx", "--show", show, "--check", "both") == 0
    out = capsys.readouterr().out
    plain = re.sub(r"\x1b\[\d+m", "", out)
    assert max(map(len, plain.splitlines())) <= 72
    assert "\x1b[33mkept 2\x1b[0m" in out or show == "all"
    assert "\x1b[32m4 folded\x1b[0m" in out


def test_the_environment_may_want_no_colours(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("fold", "in.onnx", "--no-verify") == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    ["fold in.onnx out.onnx", "verify in.onnx in.onnx", "prove in.onnx in.onnx", "equalize in.onnx out.onnx"],
)
def test_quiet_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert run(*command.split(), "--quiet") == 0
    assert capfd.readouterr() == ("", "")
    assert run(*command.split()[:2], "none.onnx", "--quiet", "--json", "none/r.json") == 2
    assert capfd.readouterr().err.startswith("bnfold: ")


def test_json_to_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "in.onnx", "out.onnx", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["folded"] == 1
    assert "error" not in json.loads(out)
    assert "1 folded, 0 kept" in err
    assert "wrote out.onnx" in err
    assert not (folder / "-").exists()
    assert run("verify", "in.onnx", "out.onnx", "--json=-", "--quiet") == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["status"], err) == ("passed", "")


BAD = {
    "a check that fails": (("--check-rtol", "0", "--check-atol", "0"), 1, "VerifyError"),
    "bad input": (("--input-data-path", "none.npz"), 2, "UsageError"),
    "bad usage": (("--no-such-flag",), 2, "UsageError"),
    "idle flags": (("--input-range", "x:0,1"), 2, "UsageError"),
}


@pytest.mark.parametrize("case", BAD)
def test_json_tells_errors_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("bnfold.verify.difference.OWN_ERROR", 0.0)
    flags, status, kind = BAD[case]
    assert run("fold", "in.onnx", "out.onnx", "--json", "-", *flags) == status
    out, err = capsys.readouterr()
    told: dict[str, Any] = json.loads(out)
    assert told["error"]["status"] == status
    assert told["error"]["kind"] == kind
    assert err == f"bnfold: {told['error']['message']}\n"
    if status == 1:  # with what the check found
        assert told["verification"]["status"] == "failed"
        assert told["folded"] == 1


@pytest.mark.parametrize(
    ("flag", "status"),
    [("--fail-if-kept", 3), ("--fail-if-kept=0", 3), ("--fail-if-kept=1", 0), ("--fail-if-kept=2", 0)],
)
def test_fail_if_kept(folder: Path, capsys: pytest.CaptureFixture[str], flag: str, status: int) -> None:
    assert run("fold", flag, "kept.onnx", "out.onnx", "--no-verify") == status
    assert operators("out.onnx") == ["Conv", "Relu", "BatchNormalization"]  # written all the same
    err = capsys.readouterr().err
    assert err == ("bnfold: 1 kept, and --fail-if-kept allows 0\n" if status else "")
    assert run("fold", flag, "in.onnx", "--no-verify") == 0


def test_what_the_library_does_is_logged(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import bnfold

    with caplog.at_level(logging.INFO, logger="bnfold"):
        bnfold.fold_onnx("in.onnx")
    assert [record.name for record in caplog.records] == ["bnfold"] * len(caplog.records)
    assert "folded: 1; kept so far: 0" in caplog.text
    assert "checked: passed" in caplog.text
    caplog.clear()
    assert run("fold", "in.onnx", "-v") == 0
    err = capsys.readouterr().err
    assert "bnfold: checked: passed\n" in err
    assert "bnfold: read, folded and checked in " in err
    assert run("fold", "in.onnx", "--no-verify") == 0  # and -v is forgotten
    assert capsys.readouterr().err == ""


def test_alone_it_prints_the_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: bnfold")
    assert "fold every batch norm that can vanish" in err


def test_weights_that_look_untrained_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = model()
    for tensor in net.graph.initializer:
        usual = {"scale": 1.0, "shift": 0.0, "mean": 0.0, "var": 1.0}.get(tensor.name)
        if usual is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.full(6, usual, np.float32), tensor.name))
    onnx.save(net, "new.onnx")
    assert run("fold", "new.onnx", "--no-verify") == 0
    assert (
        "note: all batch norms (1) have mean 0 and variance 1, as before training" in capsys.readouterr().out
    )
    assert run("fold", "in.onnx", "--no-verify") == 0
    assert "training" not in capsys.readouterr().out


def test_an_error_is_one_line_beside_the_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refused(capsys, folder, 2, "fold", "none.onnx", "out.onnx")

"""The house rules that a machine can check: what imports what, what loads when, what is pinned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bnfold

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "bnfold").rglob("*.py"))

# The floors of the house: a module of the floor on the left may import those on the right, and its own floor.
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "options": {"errors"},
    "progress": set(),
    "report": {"errors"},
    "kernels": set(),
    "fold": {"report", "errors"},
    "onnx_graph": {"fold", "errors"},
    "torch_graph": {"fold", "errors"},
    "passes": {"onnx_graph", "fold", "report", "errors"},
    "verify": {"options", "report", "onnx_graph", "torch_graph", "fold", "errors"},
    "tensorrt": {"kernels", "errors", "progress", "onnx_graph", "report"},
    "bench": {"tensorrt", "onnx_graph", "fold", "errors", "progress", "report"},
    "nn": {"kernels", "errors", "progress"},
    "api": {"options", "passes", "verify", "onnx_graph", "torch_graph", "fold", "report", "errors"},
    "compress": {"api", "verify", "nn", "torch_graph", "fold", "report", "errors"},
    "cli": {
        "options",
        "api",
        "bench",
        "tensorrt",
        "verify",
        "onnx_graph",
        "report",
        "errors",
        "progress",
        "fold",
    },
    "__main__": {"cli"},
    "__init__": {"api", "compress", "report", "errors", "nn"},
}
# Third parties that a floor may use at all, even inside a function; elsewhere there is no such limit.
NUMPY_ONLY = {"fold": {"numpy"}, "errors": set(), "progress": {"rich"}, "report": {"numpy"}}
HEAVY = {"numpy", "onnx", "onnxruntime", "torch", "onnx_ir", "rich", "google", "ml_dtypes", "tensorrt_rtx"}


def floor(module: Path) -> str:
    return module.relative_to(ROOT / "bnfold").parts[0].removesuffix(".py")


def imports(module: Path) -> set[str]:
    """All modules that are named in import statements, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            whole = node.module or ""
            names |= {f"{whole}.{alias.name}" if whole == "bnfold" else whole for alias in node.names}
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(module: Path) -> None:
    here = floor(module)
    allowed = FLOORS[here] | {here}
    ours = {name.split(".")[1] for name in imports(module) if name.startswith("bnfold.")} - {"__version__"}
    assert ours <= allowed, f"{here} reaches up to {sorted(ours - allowed)}"
    if here in NUMPY_ONLY:
        others = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"bnfold"}
        assert others <= NUMPY_ONLY[here], f"{here} uses {sorted(others - NUMPY_ONLY[here])}"


def test_a_module_has_one_idea() -> None:  # and so about 350 lines at most
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES
    }
    assert {name: length for name, length in lengths.items() if length > 380} == {}


def loaded_by(*arguments: str) -> set[str]:
    """The top-level packages that a fresh interpreter loads while it runs these arguments."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}


def test_running_models_needs_no_fold() -> None:
    """Not even by a detour: a proof of a fold must not rest on what folds."""
    code = "import sys, {0}.evaluators, {0}.reference, {0}.side_by_side; print(*sys.modules)"
    code = code.format("bnfold.onnx_graph.run")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith("bnfold.fold")] == []


def test_importing_bnfold_is_light() -> None:
    loaded = loaded_by("-c", "import bnfold; bnfold.__version__; bnfold.BnfoldError")
    assert "bnfold" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([command, "--help"] for command in ("fold", "verify", "export", "build", "bench", "equalize")),
    ],
)
def test_help_is_light(arguments: list[str]) -> None:
    loaded = loaded_by("-m", "bnfold", *arguments)
    assert "bnfold" in loaded
    assert loaded & HEAVY == set()


def test_public_names_load() -> None:
    for name in bnfold.__all__:
        assert getattr(bnfold, name) is not None
        assert name in dir(bnfold)
    assert issubclass(bnfold.VerifyError, bnfold.BnfoldError)
    with pytest.raises(AttributeError, match="no attribute 'fold_onxn'"):
        _ = bnfold.fold_onxn


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "bnfold.api.fold_module", raising=False)
    monkeypatch.delitem(vars(bnfold), "fold_module", raising=False)
    with pytest.raises(ImportError, match=r"fold_module needs torch.*pip install 'bnfold\[torch\]'"):
        _ = bnfold.fold_module


def requirements() -> set[str]:
    """Names in the lists of pyproject.toml, normalized."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lists = re.sub(r"#.*", "", lists)
    return {name.lower().replace("_", "-") for name in re.findall(r'"([A-Za-z0-9_-]+)[>=\["]', lists)}


def test_everything_the_tools_install_is_pinned() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w-]+)==[\w.]+(?:;|$)", text, re.MULTILINE)
    pinned = {name.lower().replace("_", "-") for name in pins}
    wanted = requirements()
    assert {"numpy", "onnx", "rich", "onnxruntime", "torch", "pytest", "scikit-image"} <= wanted
    # itself, and what the tools never install
    assert wanted - pinned == {"bnfold", "onnxruntime-gpu", "tensorrt"}


@pytest.mark.parametrize(
    ("file", "count", "licence"),
    [
        ("models", 2, "Apache-2.0"),
        ("models-torch", 4, "MIT"),
        ("tensorrt-headers", 1, "MIT"),
        ("cuda-headers", 2, "NVIDIA's own"),
        ("tensorrt-lean", 2, "NVIDIA's own"),
    ],
)
def test_what_the_tools_fetch_is_pinned_and_its_licence_told(file: str, count: int, licence: str) -> None:
    text = (ROOT / f"tools/_setup/{file}.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^(\S+)==(\S+)(?: --hash=sha256:[0-9a-f]{64})+$", text, re.MULTILINE)
    told = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    assert len(pins) == count
    for name, version in pins:
        assert f"{name} {version} | {licence}" in told

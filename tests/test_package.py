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

# Third parties that a room may use at all, even inside a function; elsewhere there is no such limit. What of
# bnfold imports what else of it is told by the contracts in pyproject.toml, which tools/test has checked.
ALLOWED = {"fold": {"numpy"}, "report": {"numpy"}, "progress": {"rich"}, "errors": set(), "options": set()}
HEAVY = {"numpy", "onnx", "onnxruntime", "torch", "onnx_ir", "rich", "google", "ml_dtypes", "tensorrt_rtx"}


def imports(module: Path) -> set[str]:
    """The packages that are named in import statements, at any depth, but for those of typing alone."""
    names = set()
    tree = ast.parse(module.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in typing:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node not in typing:
            assert node.level == 0, f"{module}: a relative import"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_use_few_third_parties(room: str) -> None:
    inside = [
        path for path in MODULES if path.relative_to(ROOT / "bnfold").parts[0].removesuffix(".py") == room
    ]
    assert inside
    for module in inside:
        others = imports(module) - sys.stdlib_module_names - {"bnfold"}
        assert others <= ALLOWED[room], f"{module} uses {sorted(others - ALLOWED[room])}"


def test_a_module_has_one_idea() -> None:
    """And so at most 450 lines; a file of less than 40 is rarely one."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES
    }
    assert {name: length for name, length in lengths.items() if length > 450} == {}
    short = [name for name, length in lengths.items() if length < 40 and not name.endswith("__init__.py")]
    assert len(short) <= 8, short


def test_a_folder_says_what_it_is() -> None:
    for path in (ROOT / "bnfold").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def loaded_by(*arguments: str) -> set[str]:
    """The top-level packages that a fresh interpreter loads while it runs these arguments."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}


def test_importing_bnfold_is_light() -> None:
    loaded = loaded_by("-c", "import bnfold; bnfold.__version__; bnfold.BnfoldError")
    assert "bnfold" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *(
            [c, "--help"]
            for c in ("fold", "verify", "prove", "export", "build", "bench", "equalize", "correct")
        ),
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
    with pytest.raises(ImportError, match=r"fold_module needs torch.*pip install '.*\[torch\]'"):
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
        ("nvdisasm", 1, "NVIDIA's own"),
    ],
)
def test_what_the_tools_fetch_is_pinned_and_its_licence_told(file: str, count: int, licence: str) -> None:
    text = (ROOT / f"tools/_setup/{file}.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^(\S+)==(\S+)(?: --hash=sha256:[0-9a-f]{64})+$", text, re.MULTILINE)
    told = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    assert len(pins) == count
    for name, version in pins:
        assert f"{name} {version} | {licence}" in told

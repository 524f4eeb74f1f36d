"""The plugin through TensorRT's interfaces: creators, types, formats, shapes, workspace, copies, bad inputs.

Each test drives three libraries: that of a CPU which runs kernels, and those of tools/build_plugin.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.build import harness, has_nvcc, library, on_the_cpu, unavailable
from tests.plugins.harness import BUILD, FIELD_FLOAT32, OPS, RUNTIME, TYPES, Harness, Plugin, Tensor

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
LIBRARIES = {
    "on the CPU": on_the_cpu,
    "with kernels": lambda: library(True),
    "without kernels": lambda: library(False),
}


def opened(path: Path) -> Harness:
    return Harness(harness(), path)


@pytest.fixture(params=LIBRARIES)
def driver(request: pytest.FixtureRequest) -> Harness:
    if request.param == "with kernels" and not has_nvcc():
        pytest.skip("kernels are compiled by nvcc, which is not here")
    return opened(LIBRARIES[request.param]())


def created(driver: Harness, op: str, epsilon: float = 1e-3) -> Plugin:
    """As an engine that is read creates it: also without kernels."""
    made = driver.create(op, [("epsilon", epsilon)] if "Stat" in op else [], RUNTIME)
    assert made is not None, driver.log()
    return made


# creators


def test_creators(driver: Harness) -> None:
    assert driver.names == list(OPS)
    for index, op in enumerate(OPS):
        assert (driver.text(index, 1), driver.text(index, 2)) == ("1", "bnfold")
        assert driver.fields(op) == ([("epsilon", FIELD_FLOAT32)] if "Stat" in op else [])


@pytest.mark.parametrize("op", OPS)
def test_what_is_serialized_creates_the_same_again(driver: Harness, op: str) -> None:
    plugin = created(driver, op, 0.1)
    fields = plugin.fields()
    assert [(each.name, each.type, each.length) for each in fields] == (
        [(b"epsilon", FIELD_FLOAT32, 1)] if "Stat" in op else []
    )
    again = driver.create(op, fields, RUNTIME)
    assert again is not None
    texts = plugin.texts()
    assert texts[:3] == [op, "1", "bnfold"]
    assert again.texts() == texts
    other = created(driver, op, 0.1 + 1e-8)  # the float next to it
    assert (other.texts() == texts) == ("Stat" not in op)
    assert driver.log() == ""


def test_copies_live_by_themselves(driver: Harness) -> None:
    plugin = created(driver, "BnfoldBatchStatNorm", 0.25)
    texts = plugin.texts()
    copies = [plugin.clone(), plugin.attach()]
    del plugin
    for copy in copies:
        assert copy.texts() == texts
        (field,) = copy.fields()
        again = driver.create("BnfoldBatchStatNorm", [field], RUNTIME)
        assert again is not None
        assert again.texts() == texts


def test_without_kernels_no_engine_is_begun() -> None:
    driver = opened(library(False))
    assert driver.create("BnfoldBatchNorm", [], BUILD, "bn1") is None
    assert driver.log() == (
        "1 BnfoldBatchNorm 'bn1': this plugin library was built without kernels, which need the CUDA "
        "compiler: install nvcc and run tools/build_plugin again\n"
    )
    plugin = created(driver, "BnfoldBatchNorm")
    tensors = [Tensor((2, 4)), Tensor((1, 4)), Tensor((1, 4)), Tensor((2, 4))]
    assert plugin.enqueue(tensors, [0, 0, 0, 0], 0) == 1
    assert "built without kernels" in driver.log()


# types, formats and shapes that are right


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_types_and_formats(driver: Harness, op: str, kind: str) -> None:
    plugin = created(driver, op)
    inputs = 4 if "Add" in op else 3
    assert plugin.outputs() == 1
    assert plugin.types(*[kind] * inputs) == (0, TYPES[kind])
    for rank, last in ((2, ()), (3, ()), (4, ("HWC", "HWC8")), (5, ("DHWC", "DHWC8")), (6, ()), (8, ())):
        shape, parameter = (2, 16, *[4] * (rank - 2)), (1, 16, *[1] * (rank - 2))
        good = {"LINEAR"} | {each for each in last if each.endswith("8") == (kind != "float32")}
        for kind_of_memory in ("LINEAR", "HWC", "DHWC", "HWC8", "DHWC8", "CHW2", "CHW32", "HWC16"):
            x = Tensor(shape, kind, kind_of_memory)
            tensors = [x, *[Tensor(parameter, kind)] * 2, *[x] * (inputs - 2)]
            assert plugin.supports(*tensors) == (kind_of_memory in good), (rank, kind_of_memory)
            if kind_of_memory in good - {"LINEAR"}:
                for place in range(1, inputs + 1):
                    other = list(tensors)
                    other[place] = Tensor(
                        other[place].shape, kind, "LINEAR" if other[place] == x else x.format
                    )
                    assert not plugin.supports(*other)


def test_formats_depend_on_what_is_known(driver: Harness) -> None:
    affine, statistics = created(driver, "BnfoldBatchNorm"), created(driver, "BnfoldBatchStatNorm")
    exact = created(driver, "BnfoldBatchStatNorm", 0.0)

    def tensors(channels: int, sets: int = 1) -> list[Tensor]:
        x = Tensor((2, channels, 3, 3), "float16", "HWC8")
        parameter = Tensor((sets, channels, 1, 1), "float16")
        return [x, parameter, parameter, x]

    assert affine.supports(*tensors(12))
    assert statistics.supports(*tensors(12))
    # Padding has no variance to divide by.
    assert not exact.supports(*tensors(12))
    assert exact.supports(*tensors(16))
    # How much padding there is must be known, and samples are not apart.
    assert not affine.supports(*tensors(-1))
    assert not affine.supports(*tensors(16, sets=2))
    assert not affine.supports(*tensors(16, sets=-1))
    linear = [Tensor(each.shape, each.type) for each in tensors(16, sets=2)]
    assert affine.supports(*linear)


def test_other_types_are_not_supported(driver: Harness) -> None:
    plugin = created(driver, "BnfoldBatchNorm")
    x, parameter = Tensor((2, 4, 3, 3), "float16"), Tensor((1, 4, 1, 1), "float32")
    assert not plugin.supports(x, parameter, parameter, x)
    x, parameter = Tensor((2, 4, 3, 3), "int8"), Tensor((1, 4, 1, 1), "int8")
    assert not plugin.supports(x, parameter, parameter, x)


@pytest.mark.parametrize(
    "shape", [(2, 4), (-1, 4, 7), (2, 4, -1, -1), (-1, -1, -1, -1, -1), (2, 4, 1, 1, 1, 1, 1, 3)]
)
def test_the_output_is_of_the_shape_of_x(driver: Harness, shape: tuple[int, ...]) -> None:
    parameter = (1, 4, *[1] * (len(shape) - 2))
    for op in OPS:
        plugin = created(driver, op)
        residual = [shape] if "Add" in op else []
        assert plugin.shapes(shape, parameter, parameter, *residual) == (0, shape)
        each = tuple(-1 if place == 0 else size for place, size in enumerate(parameter))
        assert plugin.shapes(shape, each, each, *residual) == (0, shape)
    assert driver.log() == ""


# workspace


def test_workspace(driver: Harness) -> None:
    x, parameter = Tensor((8, 100, 7, 7), "float16"), Tensor((1, 100, 1, 1), "float16")
    affine, statistics = created(driver, "BnfoldBatchNorm"), created(driver, "BnfoldBatchStatNorm")
    assert affine.workspace(x, parameter, parameter, x) == 0
    vectors, words, letters = (
        2 * 512,
        768,
        128 * 192 * 8,
    )  # channels * 4, 192 * 4, in steps of 256; 2 * 64 channels
    assert statistics.workspace(x, parameter, parameter, x) == vectors + words + letters
    # A copy of scale and of shift, 104 values each, where channels are padded.
    last = Tensor(x.shape, "float16", "HWC8")
    assert affine.workspace(last, parameter, parameter, last) == 2 * 256
    assert statistics.workspace(last, parameter, parameter, last) == vectors + words + letters + 2 * 256
    # Or of 800 each, where one of them is to be repeated, or may be.
    each = Tensor((8, 100, 1, 1), "float16")
    assert affine.workspace(x, each, parameter, x) == 2 * 1792
    assert affine.workspace(x, each, each, x) == 0
    some = Tensor((-1, 100, 1, 1), "float16", least=(1, 100, 1, 1), most=(8, 100, 1, 1))
    assert affine.workspace(x, some, some, x) == 2 * 1792


# bad inputs: what is said


Shapes = list[tuple[int, ...]]
X, ONE, EACH = (2, 4, 8, 8), (1, 4, 1, 1), (2, 4, 1, 1)
FIT = "or, for each sample, (2, 4, 1, 1) is needed"
MANY = "less than 2^31 channels (of all samples together, where each has its own scale or shift)"
BAD_SHAPES: dict[str, tuple[str, Shapes, str]] = {
    "a vector": ("BnfoldBatchNorm", [(4,), (4,), (4,)], "x (4) has rank 1; 2 to 8 are needed: (N, C, ...)"),
    "no dimensions": ("BnfoldBatchNorm", [(), (), ()], "x () has rank 0; 2 to 8 are needed: (N, C, ...)"),
    "a scale of rank 1": (
        "BnfoldBatchNorm",
        [X, (4,), ONE],
        f"scale (4) does not fit x (2, 4, 8, 8); (1, 4, 1, 1) {FIT}",
    ),
    "other channels": (
        "BnfoldBatchNormRelu",
        [X, ONE, (1, 5, 1, 1)],
        f"shift (1, 5, 1, 1) does not fit x (2, 4, 8, 8); (1, 4, 1, 1) {FIT}",
    ),
    "a scale for each place": (
        "BnfoldBatchNorm",
        [X, (1, 4, 8, 1), ONE],
        f"scale (1, 4, 8, 1) does not fit x (2, 4, 8, 8); (1, 4, 1, 1) {FIT}",
    ),
    "another batch": (
        "BnfoldBatchNorm",
        [X, (3, 4, 1, 1), ONE],
        f"scale (3, 4, 1, 1) does not fit x (2, 4, 8, 8); (1, 4, 1, 1) {FIT}",
    ),
    "a set for each sample of statistics": (
        "BnfoldBatchStatNorm",
        [X, EACH, EACH],
        "scale (2, 4, 1, 1) does not fit x (2, 4, 8, 8); (1, 4, 1, 1) is needed",
    ),
    "a residual to be repeated": (
        "BnfoldBatchStatNormAdd",
        [X, ONE, ONE, (2, 4, 1, 8)],
        "residual (2, 4, 1, 8) does not fit x (2, 4, 8, 8); the same shape is needed",
    ),
    "no residual": (
        "BnfoldBatchNormAdd",
        [X, ONE, ONE],
        "3 inputs are given; 4 are needed: x, scale, shift, residual",
    ),
    "a residual": ("BnfoldBatchNorm", [X, ONE, ONE, X], "4 inputs are given; 3 are needed: x, scale, shift"),
    "partly known": (
        "BnfoldBatchNorm",
        [(-1, 4, -1, 8), (1, 3, 1, 1), ONE],
        f"scale (1, 3, 1, 1) does not fit x (?, 4, ?, 8); (1, 4, 1, 1) {FIT.replace('(2', '(?')}",
    ),
    "a plane beyond 2^30": (
        "BnfoldBatchNorm",
        [(1, 4, 2**15, 2**15), ONE, ONE],
        "x (1, 4, 32768, 32768) is too large: planes of less than 2^30 values are needed, and " + MANY,
    ),
}


@pytest.mark.parametrize("what", BAD_SHAPES)
def test_bad_shapes(driver: Harness, what: str) -> None:
    """Said when the node is added, when a shape becomes known, and before a call."""
    op, shapes, wanted = BAD_SHAPES[what]
    plugin = created(driver, op)
    line = f"1 {op} 'node': {wanted}\n"
    assert plugin.shapes(*shapes)[0] != 0
    assert driver.log() == line
    if what == "partly known":
        return
    tensors = [*map(Tensor, shapes), Tensor(shapes[0])]
    assert plugin.configure(*tensors) != 0
    assert driver.log() == line
    assert plugin.change(*tensors) != 0
    assert driver.log() == line


def test_the_range_of_a_shape_is_checked(driver: Harness) -> None:
    plugin = created(driver, "BnfoldBatchNorm")
    x = Tensor((-1, 4, 8, 8), least=(1, 4, 8, 8), most=(8, 4, 8, 8))
    one = Tensor(ONE)
    each = Tensor((-1, 4, 1, 1), least=(1, 4, 1, 1), most=(8, 4, 1, 1))
    assert plugin.configure(x, each, one, x) == 0
    assert plugin.change(Tensor(X), Tensor(EACH), one, Tensor(X)) == 0
    assert driver.log() == ""
    other = Tensor((-1, 4, 1, 1), least=(1, 4, 1, 1), most=(7, 4, 1, 1))
    assert plugin.configure(x, other, one, x) != 0
    assert "scale (7, 4, 1, 1) does not fit x (8, 4, 8, 8)" in driver.log()


def test_bad_types(driver: Harness) -> None:
    plugin = created(driver, "BnfoldBatchNormAdd")
    for types, wanted in [
        (("int32", "int32", "int32", "int32"), "x is int32; float32, float16 or bfloat16 is needed"),
        (
            ("float16", "float32", "float16", "float16"),
            "scale is float32, but x is float16; all inputs need the same type",
        ),
        (
            ("float32", "float32", "float32", "bfloat16"),
            "residual is bfloat16, but x is float32; all inputs need the same type",
        ),
    ]:
        line = f"1 BnfoldBatchNormAdd 'node': {wanted}\n"
        assert plugin.types(*types)[0] != 0
        assert driver.log() == line
        shapes = (X, ONE, ONE, X)
        tensors = [Tensor(shape, kind) for shape, kind in zip(shapes, types, strict=True)]
        assert plugin.configure(*tensors, tensors[0]) != 0
        assert driver.log() == line
    assert plugin.types("float32", "float32", "float32")[0] != 0
    assert (
        driver.log()
        == "1 BnfoldBatchNormAdd 'node': 3 inputs are given; 4 are needed: x, scale, shift, residual\n"
    )


BAD_FIELDS: dict[str, tuple[str, list[tuple[str, float | int]], str]] = {
    "none": ("BnfoldBatchStatNorm", [], "epsilon is missing; the attribute epsilon, one float32, is needed"),
    "negative": (
        "BnfoldBatchStatNormAdd",
        [("epsilon", -0.5)],
        "epsilon is -0.5; a finite number that is not negative is needed",
    ),
    "infinite": (
        "BnfoldBatchStatNorm",
        [("epsilon", float("inf"))],
        "epsilon is inf; a finite number that is not negative is needed",
    ),
    "not a number": (
        "BnfoldBatchStatNorm",
        [("epsilon", float("nan"))],
        "epsilon is nan; a finite number that is not negative is needed",
    ),
    "an integer": ("BnfoldBatchStatNorm", [("epsilon", 1)], "epsilon needs to be one float32"),
    "another name": (
        "BnfoldBatchStatNorm",
        [("eps", 1e-5)],
        "there is no field eps; Note: valid choices are epsilon",
    ),
    "too much": (
        "BnfoldBatchNorm",
        [("epsilon", 1e-5)],
        "there is no field epsilon; Note: valid choices are none",
    ),
}


@pytest.mark.parametrize("what", BAD_FIELDS)
def test_bad_fields(driver: Harness, what: str) -> None:
    op, fields, wanted = BAD_FIELDS[what]
    assert driver.create(op, fields, RUNTIME, "bn7") is None
    assert driver.log() == f"1 {op} 'bn7': {wanted}\n"
    good = [("epsilon", 1e-5)] if "Stat" in op else []
    assert driver.create(op, [*good, ("plugin_version", 1)], RUNTIME) is not None  # for the parser

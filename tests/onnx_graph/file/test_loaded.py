"""Loading, editing and saving models: bytes kept, numbers right, bad files refused in one line."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.file.tensors import tensors
from tests.onnx_graph.samples import UNKNOWN, chain, everything, weights


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def initializer(loaded: Loaded, name: str) -> TensorProto:
    return next(t for t in tensors(loaded.proto) if t.name == name)


def message(error: pytest.ExceptionInfo[BnfoldError], *parts: object) -> None:
    """The error is one line that has all these parts."""
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    for part in parts:
        assert str(part) in text


# -- nothing is lost


@pytest.mark.parametrize("model", [everything(), chain()], ids=["everything", "chain"])
def test_unedited_models_come_out_byte_for_byte(model: onnx.ModelProto, tmp_path: Path) -> None:
    source = saved(model, tmp_path / "in.onnx")
    loaded = load(source)
    assert not loaded.edited
    assert not loaded.is_external
    save(loaded, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()
    assert b"".join(loaded.chunks()) == source.read_bytes()
    assert loaded.to_proto() == model
    assert loaded.copy().to_proto() == model


def test_an_unusual_order_of_fields_is_kept(tmp_path: Path) -> None:
    """Nodes after initializers, the version last, a field that nobody knows first."""
    model = chain()
    graph = onnx.GraphProto(initializer=model.graph.initializer).SerializeToString()
    graph += onnx.GraphProto(node=model.graph.node, output=model.graph.output).SerializeToString()
    size = bytes((len(graph) & 0x7F | 0x80, len(graph) >> 7 & 0x7F | 0x80, len(graph) >> 14))
    content = UNKNOWN + b"\x3a" + size + graph + b"\x08\x08"
    assert onnx.ModelProto.FromString(content).SerializeToString() != content
    (tmp_path / "in.onnx").write_bytes(content)
    loaded = load(tmp_path / "in.onnx")
    assert not loaded.edited
    save(loaded, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == content
    loaded.proto.ir_version = 9
    assert loaded.edited
    save(loaded, tmp_path / "edited.onnx")
    expected = onnx.ModelProto.FromString(content)
    expected.ir_version = 9
    assert (tmp_path / "edited.onnx").read_bytes() == expected.SerializeToString()


def test_edits_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    expected = everything()
    loaded = load(saved(expected, tmp_path / "in.onnx"))
    places: list[Any] = [
        lambda m: m.graph.initializer[0],
        lambda m: m.graph.initializer[1],
        lambda m: m.graph.node[1].attribute[0].t,
        lambda m: m.functions[0].node[0].attribute[0].t,
        lambda m: m.graph.node[4].attribute[1].g.node[0].attribute[1].g.initializer[0],
        lambda m: m.training_info[0].initialization.initializer[0],
        lambda m: m.graph.sparse_initializer[0].values,
    ]
    for i, place in enumerate(places):
        new = weights(100 + i, *((3, 200) if i % 2 else (2,)))
        loaded.set_array(place(loaded.proto), new)
        place(expected).dims[:] = new.shape
        place(expected).data_type = TensorProto.FLOAT
        place(expected).raw_data = new.tobytes()
        np.testing.assert_array_equal(loaded.array(place(loaded.proto)), new)
    del loaded.proto.graph.node[0]
    del expected.graph.node[0]
    assert loaded.edited
    save(loaded, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == expected.SerializeToString()
    assert loaded.to_proto() == expected
    assert (tmp_path / "in.onnx").read_bytes() == everything().SerializeToString()


def test_a_tensor_may_be_copied_with_its_token(tmp_path: Path) -> None:
    loaded = load(saved(chain(), tmp_path / "in.onnx"))
    twin = loaded.proto.graph.initializer.add()
    twin.CopyFrom(initializer(loaded, "w0"))
    twin.name = "twin"
    save(loaded, tmp_path / "out.onnx")
    result = onnx.load(tmp_path / "out.onnx").graph.initializer
    assert (result[-1].name, result[-1].raw_data) == ("twin", result[0].raw_data)


def test_edited_notices_direct_edits_and_their_undoing() -> None:
    loaded = load(everything())
    loaded.proto.graph.node[3].name = "another"
    assert loaded.edited
    loaded.proto.graph.node[3].ClearField("name")
    assert not loaded.edited


def test_copies_are_independent() -> None:
    first = load(chain())
    second = first.copy()
    second.set_array(initializer(second, "w0"), np.zeros((2, 2), np.float32))
    second.proto.graph.name = "second"
    assert not first.edited
    assert first.to_proto() == chain()
    third = second.copy()
    third.set_array(initializer(third, "w1"), np.ones(1000, np.float32))
    assert second.array(initializer(second, "w1")).shape == (16, 16, 3, 3)
    assert third.proto.graph.name == "second"
    np.testing.assert_array_equal(third.array(initializer(third, "w1")), np.ones(1000))


def test_a_proto_is_never_changed() -> None:
    model, before = everything(), everything()
    loaded = load(model)
    loaded.set_array(loaded.proto.graph.initializer[0], np.zeros(5))
    loaded.proto.graph.node[0].op_type = "Sub"
    assert model == before
    assert loaded.path is None


# -- numbers


def test_arrays_of_files_are_views_of_them(tmp_path: Path) -> None:
    loaded = load(saved(chain(), tmp_path / "in.onnx"))
    for tensor, original in zip(tensors(loaded.proto), tensors(chain()), strict=True):
        array = loaded.array(tensor)
        np.testing.assert_array_equal(array, numpy_helper.to_array(original))
        assert not array.flags.writeable
        assert not array.flags.owndata


KINDS = [
    *(
        "float32",
        "float64",
        "float16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    ),
    *("bool", "complex64", "complex128", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    *(ml_dtypes.float8_e4m3fnuz, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float4_e2m1fn),
]


@pytest.mark.parametrize("dtype", KINDS, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (700, 5)], ids=str)
def test_every_type_comes_back(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
    model = chain(1)
    model.graph.initializer.append(numpy_helper.from_array(array, "t"))
    loaded = load(model)
    read = loaded.array(initializer(loaded, "t"))
    assert (read.dtype, read.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(read, array)
    assert not read.flags.writeable
    loaded.set_array(initializer(loaded, "w0"), array)
    read = loaded.array(initializer(loaded, "w0"))
    assert (read.dtype, read.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(read, array)
    written = next(t for t in loaded.to_proto().graph.initializer if t.name == "w0")
    assert written == numpy_helper.from_array(array, "w0")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TensorProto.FLOAT, [1.5, -2.0, 3.0]),
        (TensorProto.DOUBLE, [1.5, -2.0, 3.0]),
        (TensorProto.FLOAT16, [1.5, -2.0, 3.0]),
        (TensorProto.BFLOAT16, [1.5, -2.0, 3.0]),
        (TensorProto.INT64, [1, -2, 3]),
        (TensorProto.UINT64, [1, 2, 3]),
        (TensorProto.INT8, [1, -2, 3]),
        (TensorProto.BOOL, [True, False, True]),
        (TensorProto.COMPLEX64, [1 + 2j, 0, 3]),
        (TensorProto.STRING, [b"a", b"bc", b""]),
    ],
)
def test_typed_fields_are_read_and_replaced(kind: int, values: list[Any]) -> None:
    tensor = helper.make_tensor("t", kind, [3], values)
    assert not tensor.raw_data
    model = chain(1)
    model.graph.initializer.append(tensor)
    loaded = load(model)
    target = initializer(loaded, "t")
    read = loaded.array(target)
    np.testing.assert_array_equal(read, numpy_helper.to_array(tensor))
    target.doc_string = "what it is"
    loaded.set_array(target, np.array([[7.0]], np.float32))
    expected = numpy_helper.from_array(np.array([[7.0]], np.float32), "t")
    expected.doc_string = "what it is"
    assert target == expected


def test_arrays_of_any_layout_are_set() -> None:
    loaded = load(chain(1))
    target = initializer(loaded, "w0")
    base = weights(1, 40, 50)
    for array in (base.T, base[::2, ::-3], base.astype(">f4"), base[3, 4], np.array(["a", "bc"], object)):
        loaded.set_array(target, np.asarray(array))
        read = loaded.array(target)
        assert read.shape == np.shape(array)
        np.testing.assert_array_equal(read, array)
    with pytest.raises(UsageError, match="no element type for datetime64"):
        loaded.set_array(target, np.zeros(3, "M8[s]"))


def broken(**fields: Any) -> onnx.ModelProto:
    model = chain(1)
    model.graph.initializer.append(TensorProto(name="bad", **fields))
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {"dims": [3], "data_type": 1, "raw_data": b"12345678"},
        {"dims": [-1], "data_type": 1, "raw_data": b"12345678"},
        {"dims": [-2, -1], "data_type": 1, "raw_data": b"12345678"},
        {"dims": [-2], "data_type": 1, "float_data": [1, 2]},
        {"dims": [3], "data_type": 1, "float_data": [1, 2]},
        {"dims": [1 << 62, 8], "data_type": 1, "raw_data": b"1234"},
        {"dims": [0, 1 << 62, 1 << 62], "data_type": 1, "raw_data": b""},
        {"dims": [1] * 70, "data_type": 1, "raw_data": b"1234"},
        {"dims": [2], "data_type": 22, "raw_data": b"12"},
        {"dims": [2], "data_type": 99, "raw_data": b"12"},
        {"dims": [2], "data_type": 0, "raw_data": b"12"},
        {"dims": [2]},
        {"dims": [1], "data_type": 8, "raw_data": b"1"},
        {"dims": [1], "data_type": 8, "string_data": [b"\xff"]},
        {"dims": [2], "data_type": 1, "segment": TensorProto.Segment(begin=0, end=1)},
    ],
    ids=str,
)
def test_sizes_that_disagree_are_named(fields: dict[str, Any], tmp_path: Path) -> None:
    path = saved(broken(**fields), tmp_path / "m.onnx")
    loaded = load(path)
    with pytest.raises(ModelError) as error:
        loaded.array(loaded.proto.graph.initializer[-1])
    message(error, path, "'bad'")
    save(loaded, tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == path.read_bytes()


# -- files that are no models


def bomb(levels: int) -> bytes:
    """A graph in an attribute of a node of a graph in an attribute ..."""
    content: bytes = b""
    for tag in (*(levels * (0x32, 0x2A, 0x0A)), 0x3A):
        size, head = len(content), bytearray((tag,))
        while size >= 0x80:
            head.append(size & 0x7F | 0x80)
            size >>= 7
        content = bytes((*head, size)) + content
    return content


def empty_graph() -> bytes:
    return bytes(onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g")).SerializeToString())


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (chain().SerializeToString()[:-5], "complete"),
        (chain().SerializeToString()[:20_000], "complete"),
        (np.random.default_rng(0).bytes(5000), "not an ONNX model"),
        (b"\x00" * 5000, "not an ONNX model"),
        (b"a model in words, which nobody can read\n" * 50, "not an ONNX model"),
        (b'{"irVersion": 8, "graph": {}}', "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "git lfs pull"),
        (bomb(40), "not an ONNX model"),
        (bomb(2000), "not an ONNX model"),
        (b"\x08\x08", "no graph"),
        (UNKNOWN, "no graph"),
        (empty_graph(), "empty"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{len(v)} bytes",
)
def test_what_is_no_model_is_refused(content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        load(path)
    message(error, path, part)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.symlink("itself", tmp_path / "itself")
    for name, part in (
        ("none.onnx", "no such file"),
        ("", "folder"),
        ("pipe", "not a file"),
        ("itself", "cannot be read"),
        ("x" * 300, "cannot be read"),
        ("nul\0", "cannot be read"),
    ):
        with pytest.raises(ModelError) as error:
            load(tmp_path / name)
        message(error, part, tmp_path)
    with pytest.raises(UsageError, match="not int"):
        load(3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no graph"):
        load(onnx.ModelProto())


_GOOD = everything().SerializeToString()
_DAMAGE = st.lists(st.tuples(st.integers(0, len(_GOOD) - 1), st.integers(0, 255)), max_size=6)


@settings(max_examples=120, deadline=None)
@given(damage=_DAMAGE, end=st.one_of(st.just(len(_GOOD)), st.integers(0, len(_GOOD))))
def test_damage_is_refused_or_harmless(damage: list[tuple[int, int]], end: int) -> None:
    content = bytearray(_GOOD)
    for at, byte in damage:
        content[at] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(content[:end])
        try:
            loaded = load(path)
        except ModelError:
            return
        for tensor in tensors(loaded.proto):
            with contextlib.suppress(ModelError):
                loaded.array(tensor)
        if not loaded.is_external:
            save(loaded, path.with_name("same.onnx"))
            assert path.with_name("same.onnx").read_bytes() == content[:end]
        loaded.proto.ir_version += 1
        for external in (False, True):
            try:
                save(loaded, path.with_name(f"{external}.onnx"), external=external)
            except ModelError:
                continue
            load(path.with_name(f"{external}.onnx"))

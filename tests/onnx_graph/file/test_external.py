"""Data files: only those that a model may name are read, and a model with its data is replaced as one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.external import KEPT
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.file.tensors import tensors
from tests.onnx_graph.samples import chain, everything, value, weights

N = 400


def outside(tensor: TensorProto, location: str, **place: object) -> TensorProto:
    """The tensor with its data in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=str(text))
    return tensor


def referring(path: Path, location: str, **place: object) -> Path:
    """A model whose only weight, w of N floats, is in a data file; y = x + w."""
    w = outside(numpy_helper.from_array(weights(0, N), "w"), location, **place)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [value("x", N)], [value("y", N)], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def whole(path: Path) -> onnx.ModelProto:
    return load(path).to_proto()


def by_onnx(path: Path) -> onnx.ModelProto:
    """What onnx loads, but for the mark that the data are where they would be without it."""
    model = onnx.load(path)
    for tensor in tensors(model):
        tensor.ClearField("data_location")
    return model


def refusal(path: Path) -> str:
    """The one line in which the model's weight is refused."""
    loaded = load(path)
    with pytest.raises(ModelError) as error:
        loaded.array(loaded.proto.graph.initializer[0])
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: tensor 'w': ")
    for external in (None, False, True):
        with pytest.raises(ModelError):
            save(loaded, path.with_name("out.onnx"), external=external)
    assert not [p for p in os.listdir(path.parent) if p.startswith(("out", ".bnfold"))]
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in a folder, each with a data file of 16 bytes and the weight."""
    inner = tmp_path / "models"
    (inner / "sub").mkdir(parents=True)
    for place in (tmp_path, inner, inner / "sub"):
        (place / "w.bin").write_bytes(bytes(16) + weights(0, N).tobytes())
    return inner


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin", "link", "sublink/w.bin"])
@pytest.mark.parametrize("length", [4 * N, None])
def test_data_files_are_read(folder: Path, location: str, length: int | None) -> None:
    (folder / "link").symlink_to("sub/w.bin")
    (folder / "sublink").symlink_to(folder / "sub")
    place = {} if length is None else {"length": length}
    loaded = load(referring(folder / "m.onnx", location, offset=16, **place))
    assert loaded.is_external
    array = loaded.array(loaded.proto.graph.initializer[0])
    np.testing.assert_array_equal(array, weights(0, N))
    assert not array.flags.writeable
    assert not array.flags.owndata


def test_a_model_is_found_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    referring(folder / "m.onnx", "w.bin", offset=16)
    monkeypatch.chdir(folder)
    loaded = load("m.onnx")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(loaded.array(loaded.proto.graph.initializer[0]), weights(0, N))


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/etc/passwd",
        "../w.bin",
        "sub/../w.bin",
        "sub/../../w.bin",
        "..\\w.bin",
        "C:\\w.bin",
        "C:w.bin",
        "\\w.bin",
    ],
)
def test_paths_that_could_leave_the_folder(folder: Path, location: str) -> None:
    text = refusal(referring(folder / "m.onnx", location, offset=16))
    assert repr(location) in text
    assert "is refused: it must be a path below the model's folder" in text


def test_an_absolute_path_is_refused_even_into_the_folder(folder: Path) -> None:
    assert "refused" in refusal(referring(folder / "m.onnx", str(folder / "w.bin"), offset=16))


def test_links_that_leave_the_folder(folder: Path) -> None:
    (folder / "link").symlink_to("../w.bin")
    (folder / "up").symlink_to("..")
    (folder / "round").symlink_to("round")
    (folder / "dead").symlink_to("nothing")
    os.link(folder.parent / "w.bin", folder / "hard")
    for location, part in (
        ("link", "leaves the model's folder"),
        ("up/w.bin", "leaves the model's folder"),
        ("round", "'round'"),
        ("dead", "is missing"),
        ("hard", "hard links"),
    ):
        assert part in refusal(referring(folder / "m.onnx", location, offset=16))


def test_what_is_no_data_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "empty").write_bytes(b"")
    for location, part in (
        ("none.bin", "'none.bin' is missing"),
        ("w.bin/none", "'w.bin/none'"),
        ("sub", "not a regular file"),
        ("pipe", "not a regular file"),
        ("empty", "has 0 bytes"),
        ("nul\0", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ):
        assert part in refusal(referring(folder / "m.onnx", location, offset=0))


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ({"offset": 17}, "has 1616 bytes, but the tensor's are said to be 1600 bytes from 17 on"),
        ({"offset": 5000}, "from 5000 on"),
        ({"offset": 16, "length": 1601}, "1601 bytes from 16 on"),
        ({"offset": 1 << 62, "length": 1600}, "from 4611686018427387904 on"),
        ({"offset": "9" * 30}, "not a number of bytes"),
        ({"offset": -1}, "the offset '-1' is not a number of bytes"),
        ({"offset": "1_6"}, "not a number of bytes"),
        ({"offset": "٣"}, "not a number of bytes"),
        ({"offset": 16, "length": "many"}, "the length 'many' is not a number of bytes"),
    ],
)
def test_places_beyond_the_file(folder: Path, place: dict[str, object], part: str) -> None:
    assert part in refusal(referring(folder / "m.onnx", "w.bin", **place))


def test_a_length_against_the_shape(folder: Path) -> None:
    loaded = load(referring(folder / "m.onnx", "w.bin", offset=0, length=16))
    with pytest.raises(
        ModelError,
        match=r"m\.onnx: tensor 'w': its shape \[400\] of float needs 1600 bytes, but there are 16",
    ):
        loaded.array(loaded.proto.graph.initializer[0])


def test_a_proto_without_a_folder_is_refused(folder: Path) -> None:
    model = onnx.load(referring(folder / "m.onnx", "w.bin", offset=16), load_external_data=False)
    with pytest.raises(ModelError, match=r"keeps tensor 'w' in another file.* pass its path"):
        load(model)


def test_a_thousand_data_files_are_not_open_at_once(tmp_path: Path) -> None:
    """One file for each tensor, as some exporters write them."""
    model = chain(1, 2)
    count = 3 * KEPT
    for i in range(count):
        (tmp_path / f"t{i}").write_bytes(
            weights(i, 1 << 18).tobytes() if i % 3 == 0 else weights(i, N).tobytes()
        )
        size = 1 << 18 if i % 3 == 0 else N
        model.graph.initializer.append(outside(TensorProto(name=f"t{i}", data_type=1, dims=[size]), f"t{i}"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    before = len(os.listdir("/proc/self/fd"))
    loaded = load(tmp_path / "m.onnx")
    save(loaded, tmp_path / "out.onnx")
    assert len(os.listdir("/proc/self/fd")) - before <= KEPT + 1
    again = load(tmp_path / "out.onnx")
    for i in range(count):
        found = again.array(again.proto.graph.initializer[5 + i])
        np.testing.assert_array_equal(found, weights(i, found.size))


# -- saving


def test_all_weights_move_to_one_file(tmp_path: Path) -> None:
    model = everything()
    loaded = load(model)
    save(loaded, tmp_path / "out.onnx", external=True)
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]
    result = load(tmp_path / "out.onnx")
    assert result.is_external
    moved = [t for t in tensors(result.proto) if t.data_location == TensorProto.EXTERNAL]
    places = [{e.key: e.value for e in t.external_data} for t in moved]
    assert {p["location"] for p in places} == {"out.onnx.data"}
    assert [int(p["offset"]) % 64 for p in places] == [0] * len(places)
    for old, new in zip(tensors(model), tensors(result.proto), strict=True):
        np.testing.assert_array_equal(result.array(new), numpy_helper.to_array(old))
        assert (new.name, len(new.raw_data) < 1024 or not new.name) == (old.name, True)
    # Sparse tensors and lists in attributes of strange operators stay where every runtime finds them.
    assert [t.data_location for t in result.proto.graph.node[5].attribute[0].tensors] == [0, 0]
    # Back inside, nothing has changed (but that float_data became raw_data).
    save(result, tmp_path / "back.onnx", external=False)
    back, expected = onnx.load(tmp_path / "back.onnx"), everything()
    expected.graph.initializer[2].CopyFrom(numpy_helper.from_array(weights(6, N), "typed"))
    assert back == expected
    assert result.to_proto() == expected


def test_runtimes_and_onnx_read_what_is_saved(tmp_path: Path) -> None:
    save(load(chain()), tmp_path / "out.onnx", external=True)
    assert by_onnx(tmp_path / "out.onnx") == chain()
    x = weights(50, 1, 16, 8, 8)
    (tmp_path / "in.onnx").write_bytes(chain().SerializeToString())
    results = []
    for name in ("in.onnx", "out.onnx"):
        session = ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(*results)


def test_large_tensors_begin_with_a_page_and_equal_ones_are_stored_once(tmp_path: Path) -> None:
    model = chain(1, 2)
    for name in "ab":
        model.graph.initializer.append(numpy_helper.from_array(weights(1, 1 << 16), name))
    loaded = load(model)
    twin = loaded.proto.graph.initializer.add()
    twin.CopyFrom(loaded.proto.graph.initializer[-2])
    twin.name = "twin"
    save(loaded, tmp_path / "out.onnx", external=True)
    result = load(tmp_path / "out.onnx")
    offsets = {t.name: t.external_data[1].value for t in tensors(result.proto) if t.external_data}
    assert offsets == {"a": "0", "b": str(1 << 18), "twin": str(1 << 18)}
    assert (tmp_path / "out.onnx.data").stat().st_size == 2 << 18
    save(result, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "out.onnx.data").read_bytes()


def test_external_models_stay_external(folder: Path) -> None:
    source = referring(folder / "m.onnx", "sub/w.bin", offset=16)
    before, expected = contents(folder), whole(source)
    loaded = load(source)
    save(loaded, folder / "out.onnx")
    assert whole(folder / "out.onnx") == expected
    result = contents(folder)
    assert result.pop("out.onnx.data") == weights(0, N).tobytes()
    del result["out.onnx"]
    assert result == before
    # In place, unedited, nothing moves; with external=False all is inside.
    save(loaded, source, force=True)
    assert source.read_bytes() == before["m.onnx"]
    save(loaded, source, force=True, external=False)
    assert onnx.load(source, load_external_data=False) == expected
    assert (folder / "sub/w.bin").exists()


def test_a_small_model_needs_no_data_file(tmp_path: Path) -> None:
    model = chain(1, 2)
    save(load(model), tmp_path / "out.onnx", external=True)
    assert os.listdir(tmp_path) == ["out.onnx"]
    assert onnx.load(tmp_path / "out.onnx") == model


def test_replaced_data_files_go_if_they_are_ours(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(load(chain()), path, external=True)
    for seed in range(3):
        loaded = load(path)
        loaded.set_array(loaded.proto.graph.initializer[0], weights(seed, 16, 16, 3, 3))
        expected = loaded.to_proto()
        save(loaded, path, force=True)
        names = sorted(os.listdir(tmp_path))
        assert len(names) == 2
        assert names[0] == "m.onnx" if "-" not in names[0] else names[1] == "m.onnx"
        assert whole(path) == expected == by_onnx(path)
    # Another model beside it uses the data file, by its name.
    backup = tmp_path / "m.onnx.bak"
    backup.write_bytes(path.read_bytes())
    expected = whole(backup)
    save(load(chain(1)), path, force=True)
    assert len(os.listdir(tmp_path)) == 3
    assert whole(backup) == expected
    assert whole(path) == chain(1)


def test_data_files_of_others_stay(folder: Path) -> None:
    source = referring(folder / "m.onnx", "w.bin", offset=16)
    (folder / "m.onnx.data").write_bytes(b"somebody's")
    loaded = load(source)
    loaded.proto.producer_name = "changed"
    save(loaded, source, force=True)
    save(load(source), folder / "other.onnx", external=True)
    result = contents(folder)
    assert result["m.onnx.data"] == b"somebody's"
    assert "w.bin" in result
    assert len(result) == 7  # two models, two data files of theirs, two of others, one in the folder below
    assert whole(source) == whole(folder / "other.onnx")


def test_a_result_over_two_gigabytes_must_be_external(tmp_path: Path) -> None:
    floats = (1 << 29) + 1000
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(4 * floats)  # a hole, which takes no space
    model = chain(1, 2)
    model.graph.initializer.append(outside(TensorProto(name="big", data_type=1, dims=[floats]), "big.bin"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "m.onnx")
    assert loaded.array(loaded.proto.graph.initializer[-1]).shape == (floats,)
    with pytest.raises(ModelError, match=r"over 2 GiB.*--save-as-external-data"):
        save(loaded, tmp_path / "out.onnx", external=False)
    assert sorted(os.listdir(tmp_path)) == ["big.bin", "m.onnx"]

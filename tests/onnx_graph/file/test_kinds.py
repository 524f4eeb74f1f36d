"""Files that are no ONNX models are told by what they are, with what serves."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.loaded import load
from tests.cli.command import model

WEIGHTS = {"conv.weight": torch.ones(2, 3)}


def checkpoint(old: bool = False) -> bytes:
    made = io.BytesIO()
    torch.save(WEIGHTS, made, _use_new_zipfile_serialization=not old)
    return made.getvalue()


def safetensors() -> bytes:
    head = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(4)


def archive(*names: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name in names:
            file.writestr(name, "content")
    return made.getvalue()


def tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.onnx"))
    return made.getvalue()


def array(*, zipped: bool) -> bytes:
    made = io.BytesIO()
    if zipped:
        np.savez(made, x=np.ones(3))
    else:
        np.save(made, np.ones(3))
    return made.getvalue()


EXPORT = "bnfold export MODULE:FACTORY out.onnx"
FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {  # what it is called, and what to do
    "a.pth": (checkpoint, "a torch checkpoint", f"{EXPORT} --weights a.pth"),
    "old.pt": (lambda: checkpoint(old=True), "a pickle, such as a torch", f"{EXPORT} --weights old.pt"),
    "b.pkl": (lambda: pickle.dumps(WEIGHTS), "a pickle", EXPORT),
    "c.safetensors": (safetensors, "a safetensors file", f"{EXPORT} --weights c.safetensors"),
    "script.pt": (lambda: archive("net/code/__torch__.py", "net/data.pkl"), "a TorchScript file", EXPORT),
    "d.pt2": (
        lambda: archive("d/archive_format"),
        "an exported torch program",
        "fold_program(torch.export.load(",
    ),
    "e.engine": (lambda: b"ftrt" + bytes(60), "a TensorRT engine", "bnfold build folded.onnx e.engine"),
    "f.engine": (lambda: b"vtrt" + bytes(60), "a TensorRT engine", "bnfold fold model.onnx"),
    "g.zip": (lambda: archive("a/big.onnx", "README"), "a zip archive", "such as a/big.onnx"),
    "h.zip": (lambda: archive("a.txt")[:-30], "damaged", "fetch it again"),
    "i.keras": (lambda: archive("config.json", "model.weights.h5"), "a Keras model", "tf2onnx"),
    "j.npz": (lambda: array(zipped=True), "an archive of numpy's arrays", "--input-data-path j.npz"),
    "k.npy": (lambda: array(zipped=False), "an array of numpy", "--input-data-path k.npy"),
    "l.tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(60), "a TensorFlow Lite model", "tf2onnx"),
    "m.ort": (lambda: b"\x1c\0\0\0ORTM" + bytes(60), "onnxruntime's own format", "fold the ONNX file"),
    "n.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file", "tf2onnx"),
    "o.gguf": (lambda: b"GGUF" + bytes(60), "a GGUF file", "fold the ONNX file"),
    "p.onnx.gz": (lambda: gzip.compress(b"model"), "compressed by gzip", "gunzip p.onnx.gz"),
    "q.tar": (tar, "a tar archive", "tar xf q.tar"),
    "r.onnx": (lambda: b"<!DOCTYPE html>\n<html>", "a web page", "download the model again"),
    "s.xml": (lambda: b"<?xml version='1.0'?>\n<net name='a'/>", "a model of OpenVINO", "fold the ONNX file"),
    "t.json": (lambda: b'{"a": [1, 2]}', "a JSON file", "name the .onnx file"),
    "u.onnx": (
        lambda: b"version https://git-lfs.github.com/spec/v1\n",
        "a pointer to a model in Git LFS",
        "git lfs pull",
    ),
    "v.txt": (lambda: b"This is not a model.\n", "not an ONNX model", "is it complete?"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_by_what_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, what, advice = FILES[name]
    Path(name).write_bytes(make())
    with pytest.raises(ModelError) as caught:
        load(name)
    told = str(caught.value)
    assert told.startswith(f"{name}: ")
    assert what in told
    assert advice in told
    assert "\n" not in told


def test_a_model_without_its_data_says_where_that_belongs(tmp_path: Path) -> None:
    onnx.save(model(channels=400), tmp_path / "big.onnx", save_as_external_data=True, location="big.data")
    (tmp_path / "big.data").unlink()
    loaded = load(tmp_path / "big.onnx")
    with pytest.raises(
        ModelError, match=r"'big.data' is missing: it belongs beside the model.*copy or download"
    ):
        loaded.array(loaded.proto.graph.initializer[0])

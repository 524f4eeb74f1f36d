"""Cutting weights out of a serialized model and putting them back: no byte changes, whatever the model is."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from bnfold.onnx_graph.file.tensors import tensors
from bnfold.onnx_graph.file.wire import (
    CUT_FROM,
    TOKEN_SIZE,
    Payloads,
    cut,
    splice,
)
from tests.onnx_graph.samples import UNKNOWN, chain, everything, value


def joined(skeleton: bytes, payloads: Payloads) -> bytes:
    return b"".join(splice(skeleton, payloads))


@pytest.mark.parametrize("model", [everything(), chain()], ids=["everything", "chain"])
@pytest.mark.parametrize("cut_from", [30, 100, CUT_FROM, 10_000])
def test_no_byte_changes(model: onnx.ModelProto, cut_from: int) -> None:
    content = model.SerializeToString()
    skeleton, payloads = cut(content, cut_from)
    assert joined(skeleton, payloads) == content
    large = [t.raw_data for t in tensors(model) if len(t.raw_data) >= cut_from]
    assert len(skeleton) <= len(content) - sum(map(len, large)) + TOKEN_SIZE * len(large)
    parsed = onnx.ModelProto.FromString(skeleton)
    tokens = [t.raw_data for t in tensors(parsed) if payloads.get(t.raw_data) is not None]
    assert [bytes(payloads.get(token) or b"") for token in tokens] == large
    # What protobuf makes of the skeleton is as good as the skeleton.
    assert joined(parsed.SerializeToString(), payloads) == model.SerializeToString()


def test_every_place_is_cut() -> None:
    skeleton, _ = cut(everything().SerializeToString())
    sizes = [len(t.raw_data) for t in tensors(onnx.ModelProto.FromString(skeleton))]
    assert sizes.count(TOKEN_SIZE) == 11
    assert max(sizes) == TOKEN_SIZE


def test_a_map_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(chain().SerializeToString())
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    skeleton, payloads = cut(content)
    first = payloads.get(onnx.ModelProto.FromString(skeleton).graph.initializer[0].raw_data)
    assert first is not None
    assert first.obj is content
    assert first.readonly
    assert first == chain().graph.initializer[0].raw_data


@pytest.mark.parametrize("size", [1, 63, 64, 100, 127, 128, 4000, 16383, 16384, 3_000_000])
def test_lengths_are_mended(size: int) -> None:
    """The lengths of a length, up to three messages around a payload, change as its size does."""
    model = chain(1, 2)
    before, after = numpy_helper.from_array(np.zeros(2000, np.float32)), bytes(range(256)) * (size // 256 + 1)
    model.graph.node.append(helper.make_node("Constant", [], ["z"], value=before))
    skeleton, payloads = cut(model.SerializeToString())
    parsed = onnx.ModelProto.FromString(skeleton)
    parsed.graph.node[-1].attribute[0].t.raw_data = payloads.add(after[:size])
    model.graph.node[-1].attribute[0].t.raw_data = after[:size]
    assert joined(parsed.SerializeToString(), payloads) == model.SerializeToString()


def test_copies_of_a_table_differ_only_in_what_was_added_later() -> None:
    _, payloads = cut(chain().SerializeToString())
    early = payloads.add(b"early")
    copy = payloads.copy()
    late, later = payloads.add(b"late"), copy.add(b"later")
    assert [copy.get(t) for t in (early, late, later)] == [b"early", None, b"later"]
    assert [payloads.get(t) for t in (early, late, later)] == [b"early", b"late", None]
    assert Payloads().get(early) is None


def test_a_token_elsewhere_is_an_error() -> None:
    skeleton, payloads = cut(chain().SerializeToString())
    model = onnx.ModelProto.FromString(skeleton)
    model.graph.node[0].attribute[0].s = model.graph.initializer[0].raw_data
    with pytest.raises(ValueError, match="weights of a tensor"):
        splice(model.SerializeToString(), payloads)
    model = onnx.ModelProto.FromString(skeleton)
    model.graph.initializer[0].raw_data += b"more"
    with pytest.raises(ValueError, match="weights of a tensor"):
        splice(model.SerializeToString(), payloads)


def test_long_forms_are_understood() -> None:
    """A length may be written with more bytes than it needs; protobuf reads that, so must we."""
    tensor = chain(1).graph.initializer[0].SerializeToString()
    graph = b"\x2a" + bytes((len(tensor) & 0x7F | 0x80, len(tensor) >> 7 & 0x7F | 0x80, 0x80, 0x00)) + tensor
    content = b"\x3a" + bytes((len(graph) & 0x7F | 0x80, len(graph) >> 7 | 0x80, 0x00)) + graph + UNKNOWN
    skeleton, payloads = cut(content)
    assert len(skeleton) < 150
    assert onnx.ModelProto.FromString(joined(skeleton, payloads)) == onnx.ModelProto.FromString(content)


@pytest.mark.parametrize(
    "extra",
    [
        b"\x83\x40\x84\x40",  # a group, empty, in a field that nobody knows
        b"\x0b\x01",  # a group that does not end
        b"\x3a\xff\xff\xff\x7f",  # longer than the file
        b"\x08",  # a number without its bytes
        b"\xff" * 11,  # a number that never ends
        b"\x0f",  # there is no such wire type
        b"\x3a\x81",
    ],
)
def test_what_only_a_parser_should_judge_is_left(extra: bytes) -> None:
    content = chain(1).SerializeToString() + extra
    skeleton, payloads = cut(content)
    assert skeleton == content
    assert joined(skeleton, payloads) == content


def test_depth_is_bounded() -> None:
    graph = helper.make_graph([], "g", [], [value("y", 1)])
    graph.initializer.append(numpy_helper.from_array(np.zeros(2000, np.float32), "w"))
    content = helper.make_model(graph).graph.SerializeToString()

    def inside(tag: int, message: bytes) -> bytes:
        size, head = len(message), bytearray((tag,))
        while size >= 0x80:
            head.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes((*head, size)) + message

    for _ in range(5000):
        content = inside(0x0A, inside(0x2A, inside(0x32, content)))
    content = inside(0x3A, content)
    assert cut(content)[0] == content


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 50))
def test_any_bytes_come_back(content: bytes, cut_from: int) -> None:
    skeleton, payloads = cut(content, cut_from + 1)
    try:
        expected = onnx.ModelProto.FromString(content)
    except Exception:
        return
    assert (
        onnx.ModelProto.FromString(joined(skeleton, payloads)).SerializeToString()
        == expected.SerializeToString()
    )


_CONTENT = everything().SerializeToString()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_CONTENT) - 1), st.integers(0, 255)), max_size=4))
def test_damage_changes_nothing(damage: list[tuple[int, int]]) -> None:
    """What protobuf reads from a damaged model, it reads from the spliced one as well."""
    content = bytearray(_CONTENT)
    for at, byte in damage:
        content[at] = byte
    try:
        expected = onnx.ModelProto.FromString(bytes(content))
    except Exception:
        return
    skeleton, payloads = cut(bytes(content))
    assert (
        onnx.ModelProto.FromString(joined(skeleton, payloads)).SerializeToString()
        == expected.SerializeToString()
    )

"""Roles of what moves data: shaping.py, indexing.py, conversion.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from bnfold.fold import moves
from bnfold.fold.graph import Refused
from bnfold.fold.roles import Concat, Map, Move, Pad, Split
from bnfold.onnx_graph.ops.table import role_of
from tests.onnx_graph.ops.fake_site import FakeSite, Runtime, X, f32, ints, read, refused, run, varying

MOVES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Identity", (X,), {}, (1,)),
    ("Transpose", (X,), {"perm": [0, 2, 3, 1]}, (1, 3)),
    ("Transpose", (X,), {}, (1,)),
    ("Flatten", (X,), {}, (1,)),
    ("Flatten", (X,), {"axis": -2}, (1,)),
    ("Flatten", (X,), {"axis": 4}, (1,)),
    ("Reshape", (X, ints(0, 2, 2, -1)), {}, (1,)),
    ("Reshape", (X, ints(-1, 48)), {}, (1,)),
    ("Reshape", (X, ints(2, 4, 1, 48)), {}, (1,)),
    ("Reshape", ((2, 3, 4), ints(6, 4)), {}, (2,)),
    ("Squeeze", ((2, 4, 1, 1), ints(-1, 2)), {}, (1,)),
    ("Squeeze", ((2, 4, 1, 1),), {}, (1,)),
    ("Squeeze", ((2, 4, 1, 1),), {"axes": [3], "opset": 11}, (1,)),
    ("Unsqueeze", ((2, 4), ints(-1, 0)), {}, (1,)),
    ("Slice", (X, ints(1), ints(3), ints(1)), {}, (1,)),
    ("Slice", (X, ints(-1), ints(-100), ints(1), ints(-2)), {}, (1,)),
    ("Slice", (X, ints(1, 2, 0), ints(-1, 2**62, 2**62), ints(-2, 1, 0)), {}, (1,)),
    ("Slice", (X, ints(1, 1), ints(2, 3)), {}, (1,)),
    ("Slice", (X,), {"starts": [1], "ends": [3], "axes": [1], "opset": 9}, (1,)),
    ("Gather", (X, ints(3, 0, -1)), {"axis": 1}, (1,)),
    ("Gather", (X, np.asarray(-2)), {"axis": 1}, (1,)),
    ("Gather", (X, np.asarray(1)), {"axis": -1}, (1,)),
    ("Gather", ((6, 4), ints(5, 1)), {}, (1,)),
    ("Gather", ((6, 4), ints(5, 1, 1, 0).reshape(2, 2)), {}, (1,)),
    ("Tile", (X, ints(1, 3, 2, 1)), {}, (1,)),
    ("Expand", ((4, 1, 1), ints(2, 4, 3, 3)), {}, (0,)),
    ("Expand", ((1, 4, 1, 1), ints(1, 1, 3)), {}, (1,)),
    ("DepthToSpace", (X,), {"blocksize": 2}, ()),
    ("DepthToSpace", ((2, 8, 3, 3),), {"blocksize": 2, "mode": "CRD"}, ()),
    ("SpaceToDepth", (X,), {"blocksize": 2}, (1,)),
    ("Pad", (X, ints(0, 0, 0, 0, 0, 0, 0, 0)), {}, (1,)),
    ("Dropout", (X,), {}, (1,)),
]


@pytest.mark.parametrize(("op", "inputs", "options", "axes"), MOVES)
def test_moves(op: str, inputs: tuple[Any, ...], options: dict[str, Any], axes: tuple[int, ...]) -> None:
    """The move takes an array of one number per channel where the operator takes the data, and back."""
    site = FakeSite(op, *inputs, **options)
    role = role_of(site)  # type: ignore[arg-type]
    assert isinstance(role, Move), role
    p = varying(inputs[0], *axes)
    whole = np.broadcast_to(p, inputs[0])
    wanted = run(site, whole)
    pushed = role.move.push(p)
    assert pushed.ndim == wanted.ndim
    np.testing.assert_array_equal(np.broadcast_to(pushed, wanted.shape), wanted)
    back = np.broadcast_to(role.move.pull(pushed), inputs[0])
    assert not np.isnan(back).all()
    np.testing.assert_array_equal(np.where(np.isnan(back), whole, back), whole)


def test_reshape_with_sizes_that_are_not_known() -> None:
    def moved(role: Any, p: Any) -> Any:
        assert isinstance(role, Move), role
        return role.move.push(p), role.move.pull(role.move.push(p))

    p = varying((1, 64, 1, 1), 1)
    for batch in ("N", None):
        for target in (ints(0, -1), ints(-1, 64 * 49)):
            pushed, back = moved(read("Reshape", (batch, 64, 7, 7), target), p)
            np.testing.assert_array_equal(pushed, np.repeat(p.ravel(), 49)[None])
            np.testing.assert_array_equal(back, p)
        pushed, _ = moved(read("Flatten", (batch, 64, 7, 7)), p)
        np.testing.assert_array_equal(pushed, np.repeat(p.ravel(), 49)[None])
    # tokens: the batch is folded into the rows, and the channels stay
    tokens = varying((1, 1, 64), 2)
    pushed, back = moved(read("Reshape", ("N", 196, 64), ints(-1, 64)), tokens)
    np.testing.assert_array_equal(pushed, tokens[0])
    np.testing.assert_array_equal(back, tokens)
    # a target of run time, of which shape inference knows one size
    shape = Runtime(2, dtype=TensorProto.INT64)
    pushed, _ = moved(read("Reshape", ("N", 64, 7, 7), shape, y=("M", 3136)), p)
    assert pushed.shape == (1, 3136)
    role = read("Reshape", ("N", 64, "H", "W"), ints(0, -1))
    with pytest.raises(Refused):
        role.move.push(p)
    assert role.move.push(np.ones((1, 1, 1, 1))).shape == (1, 1)
    assert "rank" in refused(read("Reshape", X, Runtime(None, dtype=TensorProto.INT64)))


def test_moves_with_parameters_of_run_time() -> None:
    one = Runtime(1, dtype=TensorProto.INT64)
    role = read("Slice", X, one, one, ints(1))
    assert role.move == moves.Take(1, None, 4)
    assert read("Slice", ("N", 4), ints(0), ints(2), ints(0)).move == moves.Take(0, None, None)
    assert read("Slice", ("N", 4), ints(0), ints(2**63 - 1), ints(0)).move == moves.Identity()
    assert "not constant" in refused(read("Slice", X, ints(0), ints(2), one))
    assert read("Gather", X, Runtime(dtype=TensorProto.INT64), axis=1).move == moves.Take(
        1, None, 4, scalar=True
    )
    # an embedding: the table keeps its last axis
    table = read("Gather", f32(10, 4), Runtime("N", 7, dtype=TensorProto.INT64))
    q = varying((1, 1, 4), 2)
    np.testing.assert_array_equal(table.move.pull(q), q[0])
    np.testing.assert_array_equal(table.move.push(q[0]), q)
    two = Runtime(2, 2, dtype=TensorProto.INT64)
    assert "rank 2" in refused(read("Gather", X, two, axis=1))
    assert "beyond" in refused(read("Gather", X, ints(7), axis=1))
    assert "int64" in refused(read("Gather", Runtime(9, dtype=TensorProto.INT64), ints(1)))
    repeats = Runtime(4, dtype=TensorProto.INT64)
    assert read("Tile", X, repeats, y=(2, 4, None, 6)).move == moves.Stretch((2,))
    assert read("Expand", (1, 4, 1, 1), repeats, y=("N", 4, "H", "W")).move == moves.Stretch((0, 2, 3))
    assert "not known" in refused(read("Squeeze", (2, None, 1)))


def test_crops_keep_a_uniform_change() -> None:
    p = varying(X, 1)
    crop = read("Slice", X, ints(1), ints(3), ints(2)).move
    assert isinstance(crop, moves.Crop)
    np.testing.assert_array_equal(crop.pull(p), p)  # the rest of the rows changes with them
    token = read("Gather", (2, 9, 4), np.asarray(0), axis=1).move
    assert token.pull(np.ones((1, 4))).shape == (1, 1, 4)
    channels = read("Slice", X, ints(1), ints(3), ints(1)).move
    np.testing.assert_array_equal(channels.pull(p[:, 1:3]).ravel(), [math.nan, *p.ravel()[1:3], math.nan])


def test_tiles_must_agree() -> None:
    tiles = read("Tile", X, ints(1, 2, 1, 1)).move
    with pytest.raises(Refused):
        tiles.pull(varying((1, 8, 1, 1), 1))


def test_dropout_and_casts() -> None:
    ratio = np.asarray(0.5, np.float32)
    assert isinstance(read("Dropout", X, ratio, np.asarray(False)), Move)
    assert isinstance(read("Dropout", X, opset=6, is_test=1), Move)
    assert "is_test" in refused(read("Dropout", X, opset=6))
    assert "training_mode" in refused(read("Dropout", X, ratio, np.asarray(True)))
    assert "training_mode" in refused(read("Dropout", X, ratio, Runtime(dtype=TensorProto.BOOL)))
    assert "mask" in refused(read("Dropout", X, outputs=2, used=(0, 1)))
    for to in (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BFLOAT16):
        assert isinstance(read("Cast", X, to=to), Move)
    assert "casts to" in refused(read("Cast", X, to=TensorProto.INT64))
    assert "int64" in refused(read("Cast", Runtime(3, dtype=TensorProto.INT64), to=TensorProto.FLOAT))
    assert isinstance(read("CastLike", X, Runtime(1, dtype=TensorProto.FLOAT16)), Move)
    assert "int64" in refused(read("CastLike", X, ints(1)))


def test_concat_and_split() -> None:
    assert read("Concat", X, (2, 5, 8, 6), axis=-3) == Concat(1, (4, 5))
    assert read("Concat", X, (2, None, 8, 6), f32(2, 1, 8, 6), axis=1) == Concat(1, (4, None, 1))
    assert "rank" in refused(read("Concat", X, Runtime("?"), axis=1, y=X))
    assert read("Split", X, ints(1, 3), axis=1, outputs=2) == Split(1, (1, 3))
    assert read("Split", X, axis=-1, split=[1, 5], outputs=2, opset=11) == Split(3, (1, 5))
    assert read("Split", X, axis=1, outputs=2, opset=11) == Split(1, (2, 2))
    assert read("Split", (5, 2), num_outputs=3, outputs=3) == Split(0, (2, 2, 1))
    sizes = Runtime(2, dtype=TensorProto.INT64)
    assert "not constant" in refused(read("Split", X, sizes, axis=1, outputs=2, y=(2, 1, 8, 6)))
    assert "not known" in refused(read("Split", (None, 4), num_outputs=2, outputs=2))


def test_pad() -> None:
    def facts(role: Any) -> tuple[Any, ...]:
        assert isinstance(role, Pad), role
        return role.axes, role.fill, role.key

    frame = ints(0, 0, 1, 0, 0, 0, 1, 2)
    assert facts(read("Pad", X, frame)) == ((2, 3), 0.0, 2)
    assert facts(read("Pad", X, frame, np.asarray(0.5, np.float32))) == ((2, 3), 0.5, 2)
    assert facts(read("Pad", X, ints(1, 1), None, ints(-1))) == ((3,), 0.0, 2)
    assert facts(read("Pad", X, pads=frame.tolist(), value=0.5, opset=10)) == ((2, 3), 0.5, "value")
    assert facts(read("Pad", X, ints(0, 0, 0, 0, 0, 0, -1, 0)))[:2] == ((2,), None)
    for mode in ("reflect", "edge", "wrap"):
        assert facts(read("Pad", X, frame, mode=mode))[:2] == ((2, 3), None)
    lowest = np.asarray(-np.inf, np.float32)
    assert read("Pad", X, frame, lowest) == Map("positive", flat=(2, 3))
    assert "not constant" in refused(read("Pad", X, Runtime(8, dtype=TensorProto.INT64)))
    assert "not constant" in refused(read("Pad", X, frame, ()))

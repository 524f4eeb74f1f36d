"""`[NAME:]SHAPE[:TYPE]`, and what a module is called with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnfold.cli import shapes
from bnfold.cli.example import example
from bnfold.cli.shapes import Given, Size, given, profile
from bnfold.errors import UsageError
from bnfold.onnx_graph.run.inputs import Input, generate
from bnfold.tensorrt.profiles import profiles


def fixed(*numbers: int) -> tuple[Size, ...]:
    return tuple(map(Size, numbers))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,3,224,224", Given("", fixed(1, 3, 224, 224))),
        ("image:1,3", Given("image", fixed(1, 3))),
        ("image:batch,3", Given("image", (Size(None, "batch"), Size(3)))),
        ("image:batch=4,3", Given("image", (Size(4, "batch"), Size(3)))),
        ("ids:batch,128:int64", Given("ids", (Size(None, "batch"), Size(128)), "int64")),
        ("mask:8:bool", Given("mask", fixed(8), "bool")),
        ("a:b:0:1,2:float16", Given("a:b:0", fixed(1, 2), "float16")),
        ("n:float32", Given("", (Size(None, "n"),), "float32")),
        ("scale::float32", Given("scale", (), "float32")),
        ("1x3x8x8", Given("", fixed(1, 3, 8, 8))),
        ("image:1x3", Given("image", fixed(1, 3))),
        *(
            (text, None)
            for text in ("", "x:", ":1", "x:0", "x:1,,2", "x:-1", "x:1.5", "x:n=", "x:1,2:float31")
        ),
    ],
)
def test_an_input(text: str, found: Given | None) -> None:
    if found is not None:
        assert given(text) == found
    else:
        with pytest.raises(ValueError):  # noqa: PT011 - argparse says it
            given(text)


def test_sizes_are_numbers_where_nothing_can_be_open() -> None:
    assert shapes.sizes("x:1,3:float32") == ("x", (1, 3))
    for text in ("x:batch,3", "x:batch=2,3"):
        with pytest.raises(ValueError):  # noqa: PT011 - argparse says it
            shapes.sizes(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x:1,3/4,3/8,3", ("x", ((1, 3), (4, 3), (8, 3)))),
        ("1,3/4,3/8,3", ("", ((1, 3), (4, 3), (8, 3)))),
        ("x:1,3", ("x", ((1, 3),))),
        ("x:1x3,4x3,8x3", ("x", ((1, 3), (4, 3), (8, 3)))),
        ("x:1x3", ("x", ((1, 3),))),
        ("x:1,3/4,3", None),
        (":1,3", None),
    ],
)
def test_a_profile(text: str, found: Any) -> None:
    if found is not None:
        assert profile(text) == found
    else:
        with pytest.raises(ValueError):  # noqa: PT011 - argparse says it
            profile(text)


def test_one_input_needs_no_name() -> None:
    one = Input("x", np.dtype(np.float32), ("N", 3))
    assert next(generate([one], shapes={"": (5, 3)}))["x"].shape == (5, 3)
    two = [one, Input("y", np.dtype(np.float32), (2,))]
    with pytest.raises(UsageError, match="name the input that the shape is for: the model's inputs are x, y"):
        next(generate(two, shapes={"": (5, 3)}))


class Pair(nn.Module):
    def forward(self, ids: Any, mask: Any = None, *, scale: Any = None) -> Any:
        return ids, mask, scale


class Many(nn.Module):
    def forward(self, *xs: Any) -> Any:
        return xs


def asked(module: nn.Module, *texts: str, names: tuple[str, ...] = ()) -> Any:
    torch.manual_seed(0)
    return example(module, [given(text) for text in texts], {"mask": (5.0, 6.0)}, names)


def test_by_the_names_of_the_parameters() -> None:
    made = asked(Pair(), "scale:2:float32", "ids:batch,7:int64")
    assert [tuple(x.shape) for x in made.args] == [(2, 7)]
    assert made.args[0].dtype == torch.int64
    assert set(made.args[0].unique().tolist()) <= {0, 1}
    assert {name: tuple(x.shape) for name, x in made.kwargs.items()} == {"scale": (2,)}
    made = asked(Pair(), "ids:4:bool", "scale:4")
    assert made.args[0].dtype == torch.bool
    assert (list(made.kwargs), made.dynamic_shapes, made.names) == (["scale"], None, [])


def test_in_order_under_other_names() -> None:
    made = asked(Pair(), "tokens:batch,length=9", "mask:batch,length")
    assert [tuple(x.shape) for x in made.args] == [(2, 9), (2, 9)]
    assert made.dynamic_shapes == {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    assert made.names == ["tokens", "mask"]
    assert float(made.args[1].min()) >= 5  # the range that was given
    assert asked(Pair(), "4", "4", names=("a",)).names == ["a", "mask"]
    assert asked(Many(), "n,2", "3:uint8").dynamic_shapes == {"xs": ({0: "n"}, {})}


def test_the_type_of_the_weights_is_the_usual_one() -> None:
    assert asked(nn.Linear(2, 2).double(), "1,2").args[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("ids:1", "ids:2"), "two inputs are for the parameter 'ids' of Pair.forward"),
        (("1", "1", "1", "1"), "Pair.forward takes ids, mask, scale, and 4 inputs are given"),
        (("n=3,1", "n=4,1"), "the size 'n' is 3 in one input and 4 in another"),
    ],
)
def test_what_does_not_fit(texts: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        asked(Pair(), *texts)


def test_profiles_of_an_engine() -> None:
    line, image = (Input("x", np.dtype(np.float32), dims) for dims in (("N",), ("N", 3, 8)))
    three = ((1,), (4,), (8,))
    assert profiles([line], {"": ((1, 4, 8),)}) == profiles([line], {"x": three}) == {"x": three}
    assert profiles([image], {"": ((1, 3, 8),)}) == {"x": ((1, 3, 8),) * 3}

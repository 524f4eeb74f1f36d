"""What the calls of one module may ask of what it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bnfold.fold.edits import SetValue
from bnfold.torch_graph.module.checks import exported
from bnfold.torch_graph.module.limits import Limits
from bnfold.torch_graph.module.what_is_left import calls_of
from bnfold.torch_graph.read import read
from tests.torch_graph.modules import Fn, conv


def called_twice() -> tuple[Limits, list[Any]]:
    """The limits of a network that calls one convolution twice, and the nodes of the calls."""
    module, x = Fn(lambda m, x: m.c(m.c(x).tanh()), c=conv(4, 4, 1)).eval(), torch.randn(2, 4, 5, 5)
    _, program = exported(module, (x,), {}, None)
    graph = read(program)
    limits = Limits(module, program, graph, calls_of(module, lambda: module(x)), "duplicate")
    return limits, [node for node in graph.nodes if node.op == "conv2d"]


def test_calls_that_need_different_weights_do_not_agree() -> None:
    limits, (first, second) = called_twice()
    old = first.role.weight
    assert not limits.agree([SetValue(first, 1, 2 * np.asarray(old.load()), old)])
    assert old.locked == second.role.weight.locked != ""


def test_a_value_that_is_there_already_is_no_change() -> None:
    limits, (first, _) = called_twice()
    old = first.role.weight
    assert limits.agree([SetValue(first, 1, np.asarray(old.load()).copy(), old)])
    assert not old.locked

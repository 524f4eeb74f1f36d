"""Proofs of exported programs: what is right is proved, what is wrong is refuted at its call."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import bnfold
from bnfold.errors import ModelError
from bnfold.proof.claims import Image
from bnfold.torch_proof.prove import prove
from tests.torch_graph.modules import Fn, bn, conv, randomize
from tests.torch_proof.folds import Folded, call, folded, put, value

IMAGE, ROWS = (2, 6, 9, 9), (3, 6)
ATEN = torch.ops.aten


def residual(m: Any, x: Tensor) -> Tensor:
    return m.act(x + m.b2(m.c2(torch.relu(m.b1(m.c1(x))))))


def halves(m: Any, x: Tensor) -> Tensor:
    a, b = m.b(m.c(x)).chunk(2, 1)
    return m.d(torch.cat([b * 0.5, torch.relu(a), x], 1))


def squeezed(m: Any, x: Tensor) -> Tensor:
    y = m.act(m.b(m.c(x)))
    return m.d(y * nn.functional.hardsigmoid(m.s(y.mean((2, 3), keepdim=True))))


def flat(m: Any, x: Tensor) -> Tensor:
    y = m.p(m.b(m.c(x)))
    return m.l(y.reshape(y.shape[0], y.shape[1] * 4))


def again(m: Any, x: Tensor) -> Tensor:
    """What one map has taken in, and rounded, goes on with it."""
    for _ in range(3):
        x = -m.b2(m.b1(x))
    return m.c(x)


RIGHT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "pre-activation": (lambda: nn.Sequential(bn(6), nn.ReLU(), conv(6, 4), bn(4), conv(4, 4)), IMAGE),
    "depthwise": (lambda: nn.Sequential(conv(6, 6, groups=6, padding="same"), bn(6), nn.ReLU6()), IMAGE),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, 2, 0, 1, 2), bn(4)), IMAGE),
    "rows": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)), ROWS),
    "tokens": (
        lambda: Fn(lambda m, x: m.b((x @ m.l.weight.t()).mT).mT, l=nn.Linear(6, 4), b=nn.BatchNorm1d(4)),
        (2, 5, 6),
    ),
    "halves": (lambda: Fn(halves, c=conv(6, 8, padding=1), b=bn(8), d=conv(14, 3)), IMAGE),
    "residual": (
        lambda: Fn(residual, c1=conv(6, 4), b1=bn(4), c2=conv(4, 6, padding=2), b2=bn(6), act=nn.PReLU(6)),
        IMAGE,
    ),
    "squeezed": (
        lambda: Fn(squeezed, c=conv(6, 4), b=bn(4), act=nn.Hardswish(), s=conv(4, 4, 1), d=conv(4, 2)),
        IMAGE,
    ),
    "pooled": (
        lambda: nn.Sequential(
            conv(6, 4), bn(4), nn.LeakyReLU(), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), bn(4), conv(4, 2, 1)
        ),
        IMAGE,
    ),
    "branches": (
        lambda: Fn(
            lambda m, x: torch.relu(m.b(m.c(x)) + m.e(m.d(x))),
            c=conv(6, 4, padding=1),
            b=bn(4),
            d=conv(6, 4, 1),
            e=bn(4),
        ),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_folds_are_proved(name: str) -> None:
    make, shape = RIGHT[name]
    torch.manual_seed(2)
    found = folded(randomize(make()), torch.randn(shape)).proof
    assert found.status == "proved", found
    assert found.ran


def test_what_is_rounded_more_than_once() -> None:
    """A channel that is gone makes room for more rounds of folding."""
    torch.manual_seed(2)
    module = randomize(Fn(again, b1=bn(6), b2=bn(6), c=conv(6, 4)))
    with torch.no_grad():
        module.get_parameter("b1.weight")[0] = 0.0
    found = folded(module, torch.randn(IMAGE))
    assert found.certificate.rounds > 1
    assert found.proof.status == "proved", found.proof


def test_a_branch_that_is_a_batch_norm_alone_is_a_part_of_the_sum() -> None:
    """It has vanished: what it reads and what it gives have one counterpart."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.b1(m.c1(x)))
        return torch.relu(m.b2(m.c2(y)) + m.b3(y))

    torch.manual_seed(2)
    module = Fn(run, c1=conv(6, 4), b1=bn(4), c2=conv(4, 4, padding=1), b2=bn(4), b3=bn(4))
    found = folded(randomize(module, negative=False), torch.randn(IMAGE)).proof
    assert found.status == "proved", found
    assert found.ways["sums"] == 1, found


@pytest.mark.parametrize("batch", [1, 3])
def test_a_size_that_is_free(batch: int) -> None:
    torch.manual_seed(3)
    module = Fn(flat, c=conv(6, 4), b=bn(4), p=nn.AdaptiveAvgPool2d(2), l=nn.Linear(16, 2))
    found = folded(randomize(module), torch.randn(batch, *IMAGE[1:]), dynamic_shapes=({0: Dim("images")},))
    assert found.proof.status == "proved", found.proof
    assert found.proof.sizes in ({}, {"input 0": (batch, *IMAGE[1:])})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    module = randomize(nn.Sequential(conv(6, 4), bn(4), nn.ReLU(), conv(4, 3))).to(dtype)
    found = folded(module, torch.randn(IMAGE).to(dtype)).proof
    assert found.status == "proved", found


def network() -> nn.Module:
    """With something for every fault: layers, a batch norm that stays, pieces, a difference, a number."""

    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.b1(m.c1(x)))
        y = m.act(m.b2(m.c2(y))) - y
        y = torch.cat([y, m.b3(torch.sigmoid(y))], 1)
        return torch.tanh(m.l(m.pool(y).flatten(1))) * 0.5

    layers: dict[str, nn.Module] = {"c1": conv(6, 4), "b1": bn(4), "c2": conv(4, 4, padding=1), "b2": bn(4)}
    layers |= {"b3": bn(4), "act": nn.LeakyReLU(0.02), "pool": nn.MaxPool2d(3, 2), "l": nn.Linear(8 * 9, 3)}
    torch.manual_seed(4)
    return randomize(Fn(run, **layers))


@pytest.fixture(scope="module")
def right() -> Folded:
    found = folded(network(), torch.randn(IMAGE))
    assert found.proof.status == "proved", found.proof
    return found


def off(target: str, how: Callable[[Any], Any]) -> Callable[[ExportedProgram], None]:
    """The first number of a parameter, changed."""

    def change(program: ExportedProgram) -> None:
        new = value(program, target).detach().clone()
        first = new.view(-1)[:1]
        first.copy_(torch.from_numpy(np.asarray(how(first.numpy().copy()), np.float32)))
        put(program, target, new)

    return change


def argument(name: str, place: int, new: Any) -> Callable[[ExportedProgram], None]:
    def change(program: ExportedProgram) -> None:
        node = call(program, name)
        stated = list(node.args)
        stated[place] = new(stated) if callable(new) else new
        node.args = tuple(stated)

    return change


def target(name: str, other: Any, *more: Any) -> Callable[[ExportedProgram], None]:
    def change(program: ExportedProgram) -> None:
        node = call(program, name)
        node.target, node.args = other, (*node.args, *more)

    return change


NORM = "_native_batch_norm_legit_no_training_2"
WRONG: dict[str, tuple[Callable[[ExportedProgram], None], str]] = {
    "four ulps of a weight": (off("c2.weight", lambda w: w + 4 * np.spacing(np.abs(w))), "c2"),
    "four ulps of a bias": (off("c1.bias", lambda w: w + 4 * np.spacing(np.abs(w))), "c1"),
    "four ulps of a matrix": (off("l.weight", lambda w: w + 4 * np.spacing(np.abs(w))), "l"),
    "a scale": (off("b3.weight", lambda w: w * (1 + 1e-4)), "b3"),
    "epsilon": (argument(NORM, 6, 2e-5), "b3"),
    "stride": (argument("conv2d_1", 3, [2, 2]), "c2"),
    "padding": (argument("conv2d_1", 4, [2, 0]), "c2"),
    "dilation": (lambda program: call(program, "conv2d").update_kwarg("dilation", [2, 1]), "c1"),
    "bias": (argument("conv2d", 2, None), "c1"),
    "slope": (
        lambda program: call(program, "leaky_relu").update_kwarg("negative_slope", 0.0101),
        "leaky_relu",
    ),
    "operands": (argument("sub", 0, lambda stated: stated[1]), "sub"),
    "number": (argument("mul", 1, 0.50001), "mul"),
    "a far bound": (target("relu", ATEN.clamp.default, 0, 1e4), "relu"),
    "another function": (target("sigmoid", ATEN.tanh.default), "sigmoid"),
    "window": (argument("max_pool2d", 2, [1, 2]), "max_pool2d"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_folds_are_refuted_at_their_calls(name: str, right: Folded) -> None:
    change, where = WRONG[name]
    found = right.changed(change)
    assert found.status == "refuted", found
    assert found.refusal is not None
    assert found.refusal.node == where, found


def test_the_order_of_what_is_joined(right: Folded) -> None:
    def change(program: ExportedProgram) -> None:
        node = call(program, "cat")
        first, *_, last = node.all_input_nodes
        node.args = ([last, first], *node.args[1:])

    assert right.changed(change).status == "refuted"


def test_without_a_certificate_nothing_wrong_is_proved(right: Folded) -> None:
    assert right.changed(lambda program: None, certificate=False).status == "proved"
    for name in ("a scale", "padding", "operands"):
        assert right.changed(WRONG[name][0], certificate=False).status != "proved", name


def test_a_wrong_certificate_proves_nothing(right: Folded) -> None:
    images = dict(right.certificate.images)
    images["", "relu"] = Image("relu", 2.0)
    right.certificate.images, kept = images, right.certificate.images
    try:
        assert right.changed(lambda program: None).status != "proved"
    finally:
        right.certificate.images = kept


def program_of(run: Callable[[Any, Tensor], Any], *x: Tensor, **layers: nn.Module) -> ExportedProgram:
    made = torch.export.export(Fn(run, **layers).eval(), x or (torch.ones(2, 4),))
    return made.run_decompositions({})


def test_operators_that_are_in_no_table() -> None:
    """Each is equal to itself on equal values, and nothing more is known of it."""

    def rounded(k: float) -> ExportedProgram:
        return program_of(lambda m, x: torch.round(x * k))

    assert prove(rounded(2.0), rounded(2.0)).status == "proved"
    assert prove(rounded(2.0), rounded(2.001)).status == "undecided"


def test_random_numbers_are_equal_to_nothing() -> None:
    drawn = program_of(lambda m, x: x + torch.rand_like(x))
    found = prove(drawn, drawn)
    assert found.status == "undecided"
    assert "cannot be computed by itself" in str(found)


def test_what_memory_holds_is_random() -> None:
    drawn = program_of(lambda m, x: x + torch.empty_like(x))
    assert prove(drawn, drawn).status == "undecided"


def test_drop_out_that_is_off_is_nothing() -> None:
    plain = program_of(lambda m, x: x * 2)
    dropped = program_of(lambda m, x: nn.functional.dropout(x, 0.5, False) * 2)
    assert prove(plain, dropped).status == prove(dropped, plain).status == "proved"


@pytest.mark.parametrize("trains", [False, True])
def test_recurrent_layers_draw_in_training_alone(trains: bool) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.r(x)[0]
        return y

    layer = nn.GRU(4, 3, 2, dropout=0.5)
    made = Fn(run, r=layer).train(trains)
    program = torch.export.export(made, (torch.ones(2, 5, 4),)).run_decompositions({})
    assert prove(program, program).status == ("undecided" if trains else "proved")


def test_a_bound_that_nothing_reaches_is_undecided() -> None:
    """Behind a function that keeps it away."""
    far = program_of(lambda m, x: torch.clamp(torch.sigmoid(x), max=2.0))
    none = program_of(lambda m, x: torch.sigmoid(x) * 1.0)
    found = prove(none, far)
    assert found.status == "undecided"
    assert "nothing is above 2" in str(found)


def attending(**options: Any) -> ExportedProgram:
    def run(m: Any, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.scaled_dot_product_attention(m.q(x), x, m.v(x) * 2, **options)
        return y

    torch.manual_seed(0)
    return program_of(run, torch.ones(2, 5, 4), q=nn.Linear(4, 4), v=nn.Linear(4, 4))


def test_attention_is_three_calls() -> None:
    right = attending()
    assert prove(right, attending()).status == "proved"
    assert prove(right, attending(scale=0.5)).status == "proved"  # which is the square root of 1/4
    assert prove(right, attending(scale=0.5001)).status == "refuted"
    assert prove(right, attending(is_causal=True)).status == "refuted"
    assert prove(right, attending(attn_mask=torch.ones(5, 5, dtype=torch.bool).tril())).status == "refuted"
    assert prove(attending(dropout_p=0.1), attending(dropout_p=0.1)).status == "undecided"


def test_values_of_attention_are_scaled() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = nn.functional.scaled_dot_product_attention(m.q(x), x, m.b(m.v(x).mT).mT)
        return m.n(y.mT).mT

    layers: dict[str, nn.Module] = {"q": nn.Linear(4, 4), "v": nn.Linear(4, 6)}
    layers |= {"b": nn.BatchNorm1d(6), "n": nn.BatchNorm1d(6)}
    torch.manual_seed(2)
    found = folded(randomize(Fn(run, **layers)), torch.randn(2, 5, 4))
    assert found.proof.status == "proved", found.proof
    assert found.changed(off("v.weight", lambda w: w * (1 + 1e-4))).status == "refuted"


@pytest.mark.parametrize("seed", range(1, 4))
def test_what_is_met_behind_a_flat_function_does_not_count(seed: int) -> None:
    """Numbers beyond the bound are so large that Tanh gives 1 or -1 for them, with the bound and without."""
    sum_ = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        sum_.weight.copy_(torch.tensor([[3.0, 1.0, 1.0, -5.0]]))
    far = program_of(lambda m, x: torch.tanh(m.l(torch.clamp(x * 2, max=1e4))), l=sum_)
    none = program_of(lambda m, x: torch.tanh(m.l(x * 2)), l=sum_)
    assert prove(none, far, seed=seed).status != "proved"


def test_integers_of_data_are_no_points_of_a_function() -> None:
    def table(k: float) -> ExportedProgram:
        def run(m: Any, x: Tensor) -> Tensor:
            return nn.functional.embedding(x, m.table.weight * k)

        torch.manual_seed(0)
        return program_of(run, torch.zeros(2, dtype=torch.long), table=nn.Embedding(9, 4))

    assert prove(table(1.0), table(1.0)).status == "proved"
    assert prove(table(1.0), table(2.0)).status == "undecided"


def test_whole_numbers_are_not_rounded_to_floats() -> None:
    """Arithmetic on sizes: a float would be no index."""

    def run(m: Any, x: Tensor) -> Tensor:
        return x[:, torch.arange(x.shape[0]) % 2 + 1] * 2.0

    made = torch.export.export(Fn(run).eval(), (torch.ones(3, 4),), dynamic_shapes=({0: Dim("n")},))
    made = made.run_decompositions({})
    assert prove(made, made).status == "proved"


def test_inputs_and_outputs_are_compared() -> None:
    one = program_of(lambda m, x: x * 2)
    for other, said in (
        (program_of(lambda m, x: (x * 2, x)), "number of inputs or outputs"),
        (program_of(lambda m, x: x * 2, torch.ones(2, 5)), "input 0 is torch.float32 of (2, 4)"),
        (program_of(lambda m, x: (x * 2).double()), "output 0 is torch.float32 of (2, 4)"),
        (program_of(lambda m, x: (x * 2,)), "what it gives is"),
    ):
        found = prove(one, other)
        assert found.status == "refuted"
        assert said in str(found)


def counting(start: int) -> ExportedProgram:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.tensor(float(start)))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    return torch.export.export(Counts(), (torch.ones(2),)).run_decompositions({})


def test_a_buffer_that_is_written_to_is_an_input() -> None:
    assert prove(counting(0), counting(0)).status == "proved"
    found = prove(counting(0), counting(1))
    assert found.status == "refuted"
    assert "buffer calls holds" in str(found)


def test_what_writes_into_its_inputs_is_not_looked_at() -> None:
    raw = torch.export.export(Fn(lambda m, x: (x + 1).mul_(2)).eval(), (torch.ones(2),))
    with pytest.raises(ModelError, match="mul_ writes into what it reads: the program is not functional"):
        prove(raw, raw)


def test_programs_within_are_not_looked_at() -> None:
    def run(m: Any, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    made = program_of(run)
    with pytest.raises(ModelError, match="cond, which is no operator"):
        prove(made, made)


def test_statistics_that_change_are_not_looked_at() -> None:
    """Torch's schema does not tell it."""
    made = program_of(lambda m, x: m.b(x), b=nn.BatchNorm1d(4))
    node = next(node for node in made.graph.nodes if "batch_norm" in str(node.target))
    node.target, stated = ATEN.batch_norm.default, node.args
    node.args = (*stated[:5], True, 0.1, 1e-5, False)
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(node)
            made.graph.erase_node(user)
    node.meta["val"] = node.meta["val"][0]
    with pytest.raises(ModelError, match="writes into what it reads"):
        prove(made, made)


@torch.library.custom_op("bnfold_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operator_of_somebody_else_is_compared_by_runs() -> None:
    torch.manual_seed(5)
    module = randomize(Fn(lambda m, x: torch.ops.bnfold_tests.twice(m.b(m.c(x))), c=conv(6, 4), b=bn(4)))
    assert folded(module, torch.randn(IMAGE)).proof.status == "proved"  # it reads the same
    module = randomize(Fn(lambda m, x: m.b(torch.ops.bnfold_tests.twice(m.c(x))), c=conv(6, 4), b=bn(4)))
    _, report = bnfold.fold_program(torch.export.export(module, (torch.randn(IMAGE),)))
    assert report.verification is None or report.verification.ok

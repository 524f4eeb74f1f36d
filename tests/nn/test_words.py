"""Where blocks of a cooperative launch exchange sums, and wait: whose memory, and that nobody zeroes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bnfold.kernels.compile import KernelError
from bnfold.kernels.launch import Launch
from bnfold.nn import functional, kernel_calls, operators, words
from bnfold.nn.arguments import Arguments, Running
from bnfold.nn.words import Mailbox, Slabs, mailbox_of
from tests.kernels.host import unavailable
from tests.kernels.machine import DEVICES, HostMachine

REASON = unavailable()
CPU = torch.device("cpu")


class Recorded(HostMachine):
    """given: what each launch was called with."""

    def __init__(self) -> None:
        super().__init__(DEVICES["cooperative grid"])
        self.given: list[tuple[Launch, Sequence[Any], Sequence[Any], int]] = []

    def launch(self, *given: Any) -> None:
        self.given.append(given)
        super().launch(*given)

    def words(self) -> list[int]:
        """Where those of each launch are."""
        return [tensors[-1].data_ptr() for _, tensors, _, _ in self.given]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """A process that has launched nothing yet."""
    if REASON is not None:
        pytest.skip(REASON)
    found = Recorded()
    monkeypatch.setattr(kernel_calls, "machine_of", lambda x: found)
    monkeypatch.setattr(words, "_SLABS", {})
    yield found
    assert {launch.row for launch, *_ in found.given} == {"cooperative grid"}


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether the stream is being captured."""
    return lambda on: monkeypatch.setattr(words, "capturing", lambda x: on)


def drawn(seed: int, channels: int = 2) -> Tensor:
    return torch.randn(40, channels, 24, 24, generator=torch.Generator().manual_seed(seed))


def normalized(x: Tensor) -> Tensor:
    return functional.batch_norm(Arguments(x), Running(), True)


def test_launches_of_a_stream_share_their_words(machine: Recorded) -> None:
    """Those of torch.compile's operators too, which keep no memory of torch's allocator that is new."""
    x = drawn(0).requires_grad_()
    wanted = normalized(x)
    slabs = words._SLABS[CPU]
    y = operators.batch_norm(Arguments(x), Running(), True)
    torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, wanted)
    assert len(machine.given) == 3
    assert len(set(machine.words())) == slabs.made == len(slabs.streams) == 1


def test_each_captured_launch_has_its_own(machine: Recorded, capture: Callable[[bool], None]) -> None:
    normalized(drawn(0))
    capture(True)
    for _ in range(3):
        normalized(drawn(0))
    capture(False)
    normalized(drawn(0))
    eager, *captured, again = machine.words()
    assert eager == again
    assert len({eager, *captured}) == 4
    counts = [launch.grid for launch, *_ in machine.given]
    places = sorted(zip(machine.words()[:4], counts, strict=False))
    assert all(begin + 4 * count <= end for (begin, count), (end, _) in pairwise(places))


def test_graphs_are_replayed_without_zeroing(machine: Recorded, capture: Callable[[bool], None]) -> None:
    """Two graphs in turn, beside eager work of other sizes: words are as the last launch left them."""
    normalized(drawn(9, channels=5))
    capture(True)
    wanted = [normalized(drawn(seed, channels)) for seed, channels in ((0, 2), (1, 3))]
    capture(False)
    graphs = machine.given[1:]
    results = [tensors[2] for _, tensors, _, _ in graphs]
    kept = [each.clone() for each in wanted]
    for turn in range(5):
        for graph, result, number in zip(graphs, results, kept, strict=True):
            result.fill_(torch.nan)
            HostMachine.launch(machine, *graph)
            assert torch.equal(result, number)
            normalized(drawn(turn, channels=1 + turn))


def test_a_capture_that_comes_first_zeroes_its_own(
    machine: Recorded, capture: Callable[[bool], None]
) -> None:
    """Its words are zeroed in the graph: no slab is made while a stream is being captured."""
    capture(True)
    wanted = normalized(drawn(0))
    assert words._SLABS[CPU].made == 0
    capture(False)
    assert torch.equal(normalized(drawn(0)), wanted)
    assert words._SLABS[CPU].made == 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Slabs:
    """Slabs of a few words; `made` are all that there may be."""
    for name, value in (("SLAB", 256), ("MOST", 3), ("OF_STREAM", 32), ("_SLABS", {})):
        monkeypatch.setattr(words, name, value)
    words._SLABS[CPU] = Slabs(CPU)
    return words._SLABS[CPU]


def test_a_slab_is_made_before_the_last_is_used_up(small: Slabs) -> None:
    places = set()
    for made in (1, 2, 3):
        assert small.of_stream(0, 5) is not None
        assert small.made == made
        while (found := small.captured(33)) is not None:
            places.add(found.data_ptr())
        assert small.captured(33) is None  # and no slab is made now
        assert small.made == made
    assert len(places) == 3 + 4 + 4
    assert small.of_stream(0, 5) is not None  # a stream keeps what it has
    assert small.made == 3


@pytest.mark.usefixtures("small")
def test_more_launches_than_slabs_hold_zero_their_own(capture: Callable[[bool], None]) -> None:
    x = torch.zeros(1)
    mailbox_of(x, 8, 5, 0)
    capture(True)
    found = [mailbox_of(x, 8, 40, 0)[1] for _ in range(20)]
    assert len({each.data_ptr() for each in found}) == 20
    assert all(isinstance(each, Tensor) and each.numel() == 40 and not each.any() for each in found)


def places(mailbox: Mailbox) -> set[int]:
    assert mailbox.sums is not None
    return {mailbox.words.data_ptr(), mailbox.sums.data_ptr()}


def test_streams_have_different_words_and_sums(small: Slabs) -> None:
    first, second = small.of_stream(1, 5, 8), small.of_stream(2, 5, 8)
    assert first is not None
    assert second is not None
    assert places(first) & places(second) == set()
    assert small.of_stream(1, 32, words.SUMS) is first
    longer = small.of_stream(1, 33, 8)
    assert longer is not None
    assert longer.words.data_ptr() not in places(first) | places(second)
    assert longer.sums is first.sums
    assert small.of_stream(1, 5, 8) is longer


def test_the_sums_of_a_stream_grow(small: Slabs, capture: Callable[[bool], None]) -> None:
    """Doubling, so that a few sizes serve all layers; a graph's are its own."""
    x = torch.zeros(1)
    (first, own), (again, same), (larger, still) = (
        mailbox_of(x, size, 5, 0) for size in (100, words.SUMS, words.SUMS + 1)
    )
    assert again is first
    assert own is same is still
    assert isinstance(larger, Tensor)
    assert larger.nbytes == 2 * words.SUMS
    assert mailbox_of(x, 2 * words.SUMS, 5, 0)[0] is larger
    capture(True)
    captured, _ = mailbox_of(x, 100, 5, 0)
    assert isinstance(captured, Tensor)
    assert captured.nbytes == 100
    assert small.streams[0].sums is larger


def test_no_memory_for_a_slab(small: Slabs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def zeroed(device: torch.device, count: int) -> int:
        asked.append(device)
        raise KernelError("out of memory")

    monkeypatch.setattr(words, "_zeroed", zeroed)
    for _ in range(3):
        sums, found = mailbox_of(torch.zeros(1), 24, 40, 0)
        assert isinstance(found, Tensor)
        assert not found.any()
        assert isinstance(sums, Tensor)
        assert sums.nbytes == 24
    assert asked == [CPU]
    assert not small.streams


@pytest.mark.usefixtures("small")
def test_no_memory_for_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's allocator has some, and is asked from then on."""
    first = mailbox_of(torch.zeros(1), 8, 5, 0)
    asked = []

    def zeroed(device: torch.device, count: int) -> int:
        asked.append(count)
        raise KernelError("out of memory")

    monkeypatch.setattr(words, "_zeroed", zeroed)
    for _ in range(3):
        sums, own = mailbox_of(torch.zeros(1), words.SUMS + 4, 5, 0)
        assert own is first[1]
        assert isinstance(sums, Tensor)
        assert sums.nbytes == words.SUMS + 4
    assert asked == [2 * words.SUMS // 4]
    assert mailbox_of(torch.zeros(1), 8, 5, 0) == first

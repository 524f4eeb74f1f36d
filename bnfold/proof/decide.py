"""The order of decisions: for every tensor of the original that has a counterpart, whether it is that.

By induction along the original's order: if every claim holds between the claims before it, the graph outputs
are the same function of the graph inputs. A claim is about all values that the claimed tensors before it can
have, so it may also be decided further back, with facts about them; never with less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bnfold.certificate import Certificate
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.proof import evaluate, witness
from bnfold.proof.claims import (
    BODIES,
    EVALUATED,
    IDENTICAL,
    Agrees,
    Held,
    Image,
    TooLarge,
    TooLong,
    Undecided,
    Wrong,
)
from bnfold.proof.graph import Model
from bnfold.proof.known import KnownOfFile
from bnfold.proof.operator import Array
from bnfold.proof.result import Proof, Refusal
from bnfold.proof.scope import Known, Node, Scope, same_bits
from bnfold.proof.side import Side
from bnfold.proof.sizes import smaller
from bnfold.proof.stored import Part, Rounds, decided

__all__ = ["Prover", "prove"]

BACK = 3  # regions, to look for facts about an input
LARGEST = 60  # nodes of a region: behind a fault nothing agrees any more, and regions grow to the outputs
# What the attributes of a damaged file make of a rule.
ODD = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)
MOST_WORK = 2e10  # multiplications of one proof: half a minute, mostly
ROUNDS = 4  # of rounding, that a certificate may speak of
STEPS = 8  # of rounding, that another tool may have made on its way to a stored number
ODD_ULPS = 64  # that a number of another tool may be off, so that evaluation tells whether it is rounding
EARLY = 10  # claims that do not hold, before a run is asked whether the models differ


def prove(
    original: Loaded,
    folded: Loaded,
    certificate: Certificate | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Proof:
    """Prove that `folded` computes what `original` does, but for the rounding of its stored numbers.

    Args:
        original: the model to trust.
        folded: the model to judge.
        certificate: what became of the original's tensors; all of its claims must hold. A tensor that it does
            not name is claimed to be what the folded model has under its name. None: all are, and a claim
            that does not hold is dropped, unless it is about an output.
        shapes: of inputs that the model leaves open.
        seed: of the numbers that regions are evaluated on.

    Raises:
        ModelError: a model is damaged.
        UsageError: an input in `shapes` is unknown, or has another rank or sizes.
    """
    a, b = Model(original, () if certificate is None else certificate.frozen), Model(folded)
    known = KnownOfFile(a, shapes, seed, None if certificate is None else certificate.premises)
    proof = Prover(a.main, b.main, known, certificate, np.random.default_rng(seed)).run()
    if certificate is not None:
        proof.premises = [f"{name} keeps to its range" for name in certificate.premises]
        proof.premises += [f"{name} keeps its stored value" for name in certificate.frozen]
    return witness.heard(proof, known, folded, certificate)


class Prover:
    """A scope of each model. parent: of the scopes around them, whose tensors are read here."""

    def __init__(
        self,
        a: Scope,
        b: Scope,
        known: Known,
        certificate: Certificate | None,
        rng: np.random.Generator,
        parent: Prover | None = None,
    ) -> None:
        self.a, self.b, self.known, self.certificate, self.rng = a, b, known, certificate, rng
        self.parent = parent
        self.claims: dict[str, Image | None] | None = None
        self.far = True  # facts about what is read, or why it is constant, may stand far before it
        self.rounds, self.premises = 1, dict[str, tuple[Array, Array]]()
        if certificate is not None:
            images = certificate.images
            self.claims = {name: image for (scope, name), image in images.items() if scope == a.path}
            self.rounds = min(max(certificate.rounds, 1), ROUNDS)
            self.far = any(image is not None and image.cut is not None for image in images.values())
            self.premises = {} if a.path else certificate.premises
        self.bodies: dict[int, None] = {}  # nodes whose bodies are proved
        self.lost: dict[str, Refusal] = {}  # claims that do not hold, by tensor
        self.guessed: dict[str, Image] = {}  # claims that were made up and hold
        self.costly = set[str]()  # tensors that take too long to compute from the claims before them
        self.proof = Proof()

    def run(self) -> Proof:
        proof = self.proof
        proof.refusal = self._signature()
        needed = {*self.a.outputs, *(read for node in self.a.nodes for read in node.reads())}
        for node in self.a.nodes:
            for slot, name in enumerate(node.outputs):
                if name not in needed or self.a.constant(name) is not None or proof.refusal is not None:
                    continue
                if (y := self.image(name)) is not None:
                    self._claim(node, slot, name, y)
                elif self.claims is None:
                    self._guess(node, slot, name)
        proof.dropped = list(self.lost.values())
        if proof.refusal is None and proof.agreed:
            proof.refusal = proof.agreed[0]
        if proof.refusal is not None and proof.refusal.tensor:
            proof.begins = self._begins(proof.refusal)
        return proof

    def _begins(self, refusal: Refusal) -> Refusal:
        """The first claim that failed of those that a refused one depends on."""
        seen, stack = set[str](), [refusal.tensor]
        while stack:
            name = stack.pop()
            holds = name in self.a.made and self.image(name) is not None and name != refusal.tensor
            if name in seen or holds:
                continue
            seen.add(name)
            stack += self.a.made[name][0].reads() if name in self.a.made else ()
        return next((lost for name, lost in self.lost.items() if name in seen), refusal)

    def _signature(self) -> Refusal | None:
        """Inputs and outputs: the same ones in both, all claimed."""
        if differs := self.a.against(self.b):
            return Refusal(witness.MODEL, "", differs, True)
        for name in filter(None, (*self.a.inputs, *self.a.outputs)):  # a body may leave an output out
            ours_, theirs_ = self.a.constant(name), self.b.constant(name)
            if ours_ is not None or theirs_ is not None:
                if ours_ is None or theirs_ is None or not same_bits(ours_, theirs_):
                    return Refusal(witness.MODEL, name, "is a constant, and not the same in both", False)
                continue
            y = self.image(name)
            if y is None or y.name != name or not y.plain:
                return Refusal(
                    witness.MODEL, name, "an input or output is claimed to be something else", True
                )
        return None

    def image(self, name: str) -> Image | None:
        """The claim about a tensor of the graph. One that is not there any more is no claim."""
        if name in self.lost:
            return None
        if name in self.guessed:
            return self.guessed[name]
        if self.parent is not None and not self.a.owns(name):
            return self.parent.image(name)
        if self.claims is not None and name in self.claims:
            image = self.claims[name]
            home = None if image is None else self.b.home(image.name)
            there = home is not None and image is not None and image.name not in home.stored
            return image if there else None
        return Image(name) if name in self.b.made or name in self.a.inputs else None

    def _value(self, name: str) -> Array:
        home = self.a.home(name)
        return self.known.value(name, "" if home is None else home.path)

    def _leaf(self, name: str) -> Image:
        image = self.image(name)
        assert image is not None
        return image

    def _claim(self, node: Node, slot: int, name: str, y: Image) -> None:
        try:
            try:
                held = self._decide(node, slot, name, y)
            except ODD as error:
                raise Undecided(f"odd attributes or shapes ({type(error).__name__}: {error})") from None
            self.proof.ways[held.way] += 1
            self.proof.ulps = max(self.proof.ulps, held.ulps)
        except (Wrong, Undecided) as error:
            entry, of_inputs = getattr(error, "entry", None), getattr(error, "of_inputs", False)
            refusal = Refusal(node.name, name, str(error), isinstance(error, Wrong), entry, of_inputs)
            if isinstance(error, Agrees):  # what follows is judged as if it were so
                self.proof.agreed.append(refusal)
                return
            unspoken = self.claims is None or node.gives_list or not self.a.is_named(name)
            droppable = unspoken and name not in self.a.outputs
            if droppable and not isinstance(error, TooLarge):
                self.lost[name] = refusal
                if len(self.lost) == EARLY and any(one.wrong for one in self.lost.values()):
                    self._try(node, name)
            else:
                self.proof.refusal = refusal

    def _try(self, node: Node, name: str) -> None:
        """Behind a fault nothing agrees any more: a run may save many evaluations."""
        entry = self.known.counterexample(self.b)
        if entry is not None:
            self.proof.refusal = Refusal(node.name, name, witness.SHOWN, True, entry)

    def _guess(self, node: Node, slot: int, name: str) -> None:
        """A tensor that is gone may be what the folded model has under another name: that of what its node
        read, where a batch norm vanished in the layer before it, say, or what is read there in its place, if
        its numbers say so. A claim that was guessed is proved as any other.
        """
        lost = [read for read in node.inputs if read in self.lost and read in self.b.made]
        for read in dict.fromkeys((*lost, *self._instead(name))):
            try:
                if read in lost:
                    held: Held | None = self._decide(node, slot, name, Image(read))
                else:
                    nodes, theirs, leaves = self._regions(name, Image(read), 0)
                    held = self._by_numbers(node, nodes, theirs, leaves, name, Image(read))
            except (Wrong, Undecided, *ODD):
                continue
            if held is not None:
                self.guessed[name] = Image(read)
                self.proof.ways[held.way] += 1
                self.proof.ulps = max(self.proof.ulps, held.ulps)
                return

    def _instead(self, name: str) -> Iterator[str]:
        """What the same operator reads in the folded model, to make a tensor of the same name."""
        for reader, at in self.a.readers.get(name, ()):
            other, slot = self.b.made.get(reader.outputs[0], (reader, 0))
            if other is not reader and slot == 0 and other.key == reader.key and at < len(other.inputs):
                yield other.inputs[at]

    def _decide(self, node: Node, slot: int, name: str, y: Image) -> Held:
        other = self.b.made.get(y.name)
        if y.plain and other is not None and other[1] == slot and self._identical(node, other[0]):
            return Held(IDENTICAL)
        if node.gives_list:
            raise Undecided("a list of tensors")
        if node.control:
            return self._bodies(node, slot, y, other)
        first: Wrong | Undecided | None = None
        sure = False  # that it is wrong, whatever stands before
        guessed = self.claims is None and name in self.a.outputs  # a claim that cannot be given up
        for back in range(BACK):
            try:
                return self._decided_at(node, name, y, back)
            except Undecided as error:
                if isinstance(error, Agrees) and not isinstance(first, Wrong):
                    raise
                if isinstance(first, Wrong) and not sure and not isinstance(error, TooLarge):
                    # what is read may obey facts that were not seen
                    raise Undecided(f"{first}, as far as can be seen ({error})") from None
                first = first or error
                if isinstance(error, TooLong):  # so would more take
                    self.costly |= {name} if not back else set()
                    break
            except Wrong as error:
                if error.final and not guessed:
                    raise
                if first is None or (error.final and not sure):
                    first, sure = error, error.final
        assert first is not None
        if isinstance(first, Wrong) and not sure and self.far:
            raise Undecided(f"{first}, as far as can be seen from {BACK} parts before it") from None
        raise first

    def _identical(self, node: Node, other: Node) -> bool:
        """One operator, of the same constants and of tensors that are equal: nothing has to be computed."""
        if node.control or other.control:
            return self._same_bodies(node, other)
        if node.random or node.key != other.key:
            return False
        if [bool(o) for o in node.outputs] != [bool(o) for o in other.outputs]:
            return False
        return self._reads_the_same(node, other)

    def _reads_the_same(self, node: Node, other: Node) -> bool:
        if len(node.inputs) != len(other.inputs):
            return False
        return all(self._equal(x, z) for x, z in zip(node.inputs, other.inputs, strict=True))

    def _bodies(self, node: Node, slot: int, y: Image, maker: tuple[Node, int] | None) -> Held:
        """Control flow of one kind on equal tensors, whose bodies are proved in turn. What a loop carries is
        equal before each turn, if it is behind it.
        """
        if node.index in self.bodies and y.plain:
            return Held(BODIES)
        other, at = maker if maker is not None else (node, -1)
        alike = at == slot and y.plain and node.key == other.key and list(node.bodies) == list(other.bodies)
        if not alike or node.many_bodies or node.op == "SequenceMap" or not self._reads_the_same(node, other):
            raise Undecided("control flow that is not the same in both models")
        for attribute, body in node.bodies.items():
            inner = Prover(body, other.bodies[attribute], self.known, self.certificate, self.rng, self)
            found = inner.run()
            self.proof.ways += found.ways
            self.proof.ulps = max(self.proof.ulps, found.ulps)
            if found.refusal is not None:
                reason = f"in its {attribute}: {found.refusal}"
                if found.refusal.wrong:
                    raise Wrong(reason, found.refusal.entry, final=True)
                raise Undecided(reason)
        self.bodies[node.index] = None
        return Held(BODIES)

    def _same_bodies(self, node: Node, other: Node) -> bool:
        return node.same_bodies(other) and all(self._equal(name, name) for name in node.reads())

    def _equal(self, x: str, z: str) -> bool:
        if not x or not z:
            return x == z
        ours, theirs = self.a.constant(x), self.b.constant(z)
        if ours is not None or theirs is not None:
            return ours is not None and theirs is not None and same_bits(ours, theirs)
        image = self.image(x)
        return image is not None and image.name == z and image.plain

    def _decided_at(self, node: Node, name: str, y: Image, back: int) -> Held:
        nodes, theirs, leaves = self._regions(name, y, back)
        if back == 0:
            try:
                held = self._by_numbers(node, nodes, theirs, leaves, name, y)
            except Wrong as wrong:
                if self.a.certain(nodes) and (self.claims is not None or wrong.ulps > ODD_ULPS):
                    raise
                held = None
            if held is not None:
                return held
        try:
            self._evaluate(nodes, theirs, leaves, name, y)
        except Wrong as wrong:
            if not wrong.final or self.a.certain(nodes):  # what is far off is no rounding
                wrong.of_inputs = self.parent is None and not any(leaf in self.a.made for leaf in leaves)
                wrong.final = wrong.final or wrong.of_inputs
                raise
            raise Undecided(f"{wrong}, and computed constants are rounded on the way") from None
        return Held(EVALUATED)

    def _regions(self, name: str, y: Image, back: int) -> tuple[list[Node], list[Node], list[str]]:
        """Those of both models that make a tensor, and what the original's reads."""
        nodes, leaves = self._region(name, back)
        stop = {self._leaf(leaf).name for leaf in leaves}
        return nodes, self.b.region(y.name, stop.__contains__, LARGEST)[0], leaves

    def _evaluate(
        self, nodes: list[Node], theirs: list[Node], leaves: list[str], name: str, y: Image
    ) -> None:
        """Raises Wrong, Undecided."""
        images, full = [y, *(self._leaf(leaf) for leaf in leaves)], self._value
        rounds, unsure = self._rounds(y, *leaves)[1], self.claims is None
        if any(output in self.costly for one in nodes for output in one.outputs):
            raise TooLong("a part of it would take too long to compute")
        for values in (smaller([(self.a, nodes), (self.b, theirs)], leaves, images, full), full):
            if values is None:
                continue
            if self.known.work > MOST_WORK:
                raise TooLarge("the proof would take too long")
            sides = Side(self.a, nodes, name), Side(self.b, theirs, y.name)
            try:
                evaluate.compare(
                    *sides, leaves, self._leaf, y, values, self.rng, rounds, self.premises, unsure
                )
                return
            except (Wrong, Undecided) as error:
                if values is full or isinstance(error, (Agrees, TooLong)):
                    raise
            finally:
                self.known.work += sum(side.spent for side in sides)

    def _rounds(self, y: Image, *leaves: str) -> tuple[int, int]:
        """How often what is multiplied between these, and what is added, may have been rounded."""
        images = [y, *map(self._leaf, leaves)]
        scaled, moved = 0, 0
        for image in images:
            scaled |= image.scaled
            moved |= image.scaled | image.moved
        found = (min(max(bits.bit_count(), 1), self.rounds) for bits in (scaled, moved))
        return next(found), next(found)

    def _by_numbers(
        self, node: Node, nodes: list[Node], theirs: list[Node], leaves: list[str], name: str, y: Image
    ) -> Held | None:
        """What reads one tensor, decided by the numbers that are stored for it; None if it is not that."""
        if len(leaves) != 1:
            return None
        leaf, x = leaves[0], self._leaf(leaves[0])
        scaled, moved = self._rounds(y, leaf)
        rounds = Rounds(scaled, moved, self.rounds, moved)
        if self.claims is None:
            rounds = Rounds(STEPS, STEPS, STEPS, 1)
        a, b = Part(self.a, nodes, leaf, name), Part(self.b, theirs, x.name, y.name)
        return decided(a, b, x, y, lambda: self._value(leaf).shape, rounds, node.name)

    def _region(self, name: str, back: int) -> tuple[list[Node], list[str]]:
        """The original's nodes from a tensor back to the nearest claims, or to those `back` claims before."""
        opened = {name}

        def is_leaf(tensor: str) -> bool:
            return tensor not in opened and self.image(tensor) is not None

        found = self.a.region(name, is_leaf, LARGEST)
        while twins := self._twins(found[1]):
            opened |= twins
            found = self.a.region(name, is_leaf, LARGEST)
        for _ in range(back):
            opened |= {t for t in found[1] if t in self.a.made}
            found = self.a.region(name, is_leaf, LARGEST)
        made = {output for one in found[0] for output in one.outputs}
        return found[0], [leaf for leaf in found[1] if leaf not in made]

    def _source(self, leaf: str) -> str:
        """What a leaf is made of in the folded model: the same under another name is the same."""
        name = self._leaf(leaf).name
        while name in self.b.made and self.b.made[name][0].op == "Identity":
            name = self.b.made[name][0].inputs[0]
        return name

    def _twins(self, leaves: list[str]) -> set[str]:
        """Of those with one counterpart, all but the first: what is between them has vanished."""
        first: dict[str, str] = {}
        nodes = {leaf: self.a.made[leaf][0] for leaf in leaves if leaf in self.a.made}
        leaves = sorted(leaves, key=lambda leaf: nodes[leaf].index if leaf in nodes else -1)
        twins = [leaf for leaf in leaves if first.setdefault(self._source(leaf), leaf) != leaf]
        return {leaf for leaf in twins if leaf in nodes and not (nodes[leaf].control or nodes[leaf].random)}

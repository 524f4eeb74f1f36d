"""The rewritings of a whole model for its runtime, in their order.

1. For TensorRT, constants that are computed are stored, and sequences become splits.
2. For TensorRT, batch norms that are left become one node with what follows them, and so do those by the
   batch's own statistics, whose training mode TensorRT does not parse.
3. Where no node of ours can do that, and for plain ONNX if asked, batch norms in training mode become
   standard operators.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.new_nodes import take_over
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.read import analysed
from bnfold.onnx_graph.site import Model, Scope, Site
from bnfold.passes.deploy import bnfold_ops as ops
from bnfold.passes.deploy.batch_statistics import statistics_in_standard_ops
from bnfold.passes.deploy.chains import Chain, from_norm, from_scale
from bnfold.passes.deploy.norms import read_norm, trains, why_left
from bnfold.passes.deploy.splits import split_plainly
from bnfold.passes.deploy.store_constants import store_computed
from bnfold.passes.deploy.terms import fits, materialize
from bnfold.report.fold import Rewrite

__all__ = ["rewrite"]

_STANDARD = "standard operators"


def rewrite(
    loaded: Loaded, target: str, lower_statistics: bool, skip: Collection[str] = ()
) -> tuple[list[Rewrite], list[str]]:
    """Rewrite a model in place.

    Args:
        loaded: the model, folded before.
        target: "onnx" or "tensorrt".
        lower_statistics: with "onnx": batch norms by the batch's own statistics become standard operators.
        skip: names of batch norms to leave alone.

    Returns:
        What batch norms were replaced by, and notes for people on all else.

    Raises:
        ModelError: the model has operators of the domain bnfold that are not those of this bnfold.
    """
    fuse = target == "tensorrt"
    if not fuse and not lower_statistics:
        return [], []
    notes: list[str] = []
    with without_gc():
        if fuse:
            notes += _prepare(loaded)
        rewriter = _Rewriter(analysed(loaded), fuse, skip)
        rewriter.write()
    if not fuse and not rewriter.done and not rewriter.notes():
        notes.append("no batch norm is in training mode")
    return rewriter.done, notes + rewriter.notes()


def _prepare(loaded: Loaded) -> list[str]:
    """The first step, by itself: more shapes are known afterwards."""
    surgery = Surgery(analysed(loaded), prune=True)
    scopes = list(_graphs(surgery.model))
    splits = sum(split_plainly(surgery, scope) for scope in scopes)
    stored = sum(store_computed(surgery, scope) for scope in scopes)
    surgery.finish()
    notes = [f"computed constants were stored: {stored}"] if stored else []
    return notes + ([f"SplitToSequence replaced by Split: {splits}"] if splits else [])


def _graphs(model: Model) -> Iterator[Scope]:
    """The graph and all bodies in it. Inside model-local functions ranks are not known for sure."""
    return (scope for scope in model.scopes if not scope.in_function)


class _Rewriter:
    def __init__(self, model: Model, fuse: bool, skip: Collection[str]) -> None:
        self.surgery = Surgery(model, prune=True)
        self.fusing = fuse
        self.skip = skip
        self.done: list[Rewrite] = []
        self.used: dict[ops.Variant, int] = {}  # with the opset
        self.left: dict[str, list[str]] = {}  # in training mode still: the names, by the reason
        self.replaced: set[Site] = set()  # nodes that nobody reads any more

    def write(self) -> None:
        for scope in self.surgery.model.scopes:
            for site in list(scope.sites):
                if scope.in_function:
                    self.leave(site, "inside a model-local function")
                elif site not in self.replaced and site.name not in self.skip:
                    self.norm(site)
        self.surgery.finish()
        self.declare(self.surgery.model.loaded.proto)

    def norm(self, site: Site) -> None:
        norm = read_norm(site)
        chain = None
        if self.fusing and (norm is None or (norm.momentum is None and norm.is_steady)):
            chain = from_norm(norm) if norm is not None else from_scale(site)
        if chain is not None and chain.pays and self.fuse(chain):
            return
        if trains(site):
            if norm is not None and statistics_in_standard_ops(self.surgery, norm):
                self.done.append(Rewrite(site.name, _STANDARD, (site.name,)))
            else:
                self.leave(site, why_left(site))

    def leave(self, site: Site, reason: str) -> None:
        """Remember a node that no runtime without training will run."""
        if trains(site):
            self.left.setdefault(reason, []).append(site.name)

    def fuse(self, chain: Chain) -> bool:
        """Replace a chain by one node of ours, if our operators can do that."""
        variant, dtype, rank = chain.variant, chain.x.dtype, len(chain.x.shape or ())
        opset = chain.last.opset
        if dtype not in ops.TYPES or rank not in ops.RANKS or opset < ops.lowest_opset(variant, dtype):
            return False
        if not (fits(chain.scale, dtype) and fits(chain.shift, dtype)):
            return False
        first, last = chain.sites[0], chain.last
        stem = first.node.name or first.name
        scale, shift = (
            materialize(self.surgery, term, chain.channels, dtype, f"{stem}_{what}", last)
            for term, what in ((chain.scale, "scale"), (chain.shift, "shift"))
        )
        inputs = [chain.x, scale, shift, *([chain.residual] if chain.residual is not None else [])]
        attributes = ops.attributes(variant, chain.epsilon or 0.0)
        take_over(self.surgery, last, 0, (ops.DOMAIN, variant.name), inputs, first.node.name, **attributes)
        self.surgery.kill(last)
        self.replaced.update(chain.sites)
        self.used[variant] = opset
        self.done.append(
            Rewrite(first.name, f"{ops.DOMAIN}.{variant.name}", tuple(site.name for site in chain.sites))
        )
        return True

    def declare(self, proto: onnx.ModelProto) -> None:
        """The functions of the operators that were used."""
        if not self.used:
            return
        present = {entry.name: entry for entry in proto.functions if entry.domain == ops.DOMAIN}
        for variant, opset in self.used.items():
            function = ops.function(variant, opset)
            if present.setdefault(variant.name, function) != function:
                raise ModelError(
                    f"the model has another function {ops.DOMAIN}.{variant.name} than this bnfold writes: "
                    "start from the model without it, or leave out target tensorrt"
                )
            if present[variant.name] is function:
                proto.functions.append(function)
        versions = {entry.domain: entry.version for entry in proto.opset_import}
        if versions.get(ops.DOMAIN, ops.VERSION) != ops.VERSION:
            raise ModelError(
                f"the model uses version {versions[ops.DOMAIN]} of the domain {ops.DOMAIN}, and this bnfold "
                f"writes version {ops.VERSION}: start from the model without it, or leave out target tensorrt"
            )
        if ops.DOMAIN not in versions:
            proto.opset_import.add(domain=ops.DOMAIN, version=ops.VERSION)
        if proto.ir_version < ops.LOWEST_IR:
            _raise_ir(proto)

    def notes(self) -> list[str]:
        return [f"still in training mode, {why}: {', '.join(names)}" for why, names in self.left.items()]


def _raise_ir(proto: onnx.ModelProto) -> None:
    """To the version that knows functions. Before 4, initializers were inputs that nobody could override."""
    if proto.ir_version < 4:
        stored = {tensor.name for tensor in proto.graph.initializer}
        inputs = [entry for entry in proto.graph.input if entry.name not in stored]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
    proto.ir_version = ops.LOWEST_IR

"""A model as TensorRT's parser gets it, and what the parser says of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.model import scopes
from bnfold.report.table import shortened
from bnfold.tensorrt.layers import ModelNode
from bnfold.tensorrt.log import Log

__all__ = ["ParseError", "Prepared", "parsed", "prepare"]

DOMAIN = "bnfold"
# What an operator and the parser's message on it mean for a user: how to help it. The first that fits counts.
FOLD = "`bnfold fold --target tensorrt`"
CURES = (
    (r"training_mode == 1|1 outputs for BatchNormalization", f"{FOLD} turns it into an operator of bnfold's"),
    (r"build-time constant|must be an initializer", f"{FOLD} computes what is constant beforehand"),
    (r"^(SplitToSequence|SequenceAt):", f"{FOLD} writes it as a Split where all parts are known"),
    (r"Plugin not found", "TensorRT has no such operator, and the model no function of that name"),
    (r"dat[ae] type to TensorRT", "TensorRT has no such element type"),
)


class ParseError(ModelError):
    """TensorRT's parser refuses a model. details: each of its complaints, a line each."""

    def __init__(self, message: str, details: list[str]) -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class Prepared:
    """A model whose nodes have names of their own.

    nodes: all, those of bodies and functions included. names: what a node is called in the ledger, by what it
    is called in `loaded`.
    """

    loaded: Loaded
    nodes: tuple[ModelNode, ...]
    names: dict[str, str]

    @property
    def ours(self) -> tuple[ModelNode, ...]:
        """The nodes of bnfold's own operators."""
        return tuple(node for node in self.nodes if node.op.startswith(f"{DOMAIN}."))


def prepare(loaded: Loaded, *, plugins: bool) -> Prepared:
    """A copy of a model for TensorRT's parser.

    Nodes without a name, with another's name, or with one that would break TensorRT's list of layers, get one
    of their own: else nothing would tell where they went.

    Args:
        loaded: the model; it stays as it is.
        plugins: whether bnfold's operators may become plugins, if there are any; else they must not ask for
            one: TensorRT-RTX ends the whole process when it meets a plugin.

    Raises:
        ModelError: the model is damaged: a name that nothing defines, a circle. (TensorRT's parser does not
        survive some of these.)
    """
    copy = loaded.copy()
    try:
        model, _ = scopes.build(copy, "duplicate")
    except ModelError as error:
        raise ModelError(f"{loaded.where}{error}") from None
    nodes: list[ModelNode] = []
    names: dict[str, str] = {}
    for scope in model.scopes:
        for site in scope.sites:
            name = _plain(site.name, names)
            names[name] = site.name
            nodes.append(ModelNode(site.name, site.op))
            if site.node.name != name:
                site.node.name = name
            if site.node.domain == DOMAIN and not plugins:
                kept = [a for a in site.node.attribute if not a.name.startswith("plugin_")]
                if len(kept) < len(site.node.attribute):
                    del site.node.attribute[:]
                    site.node.attribute.extend(kept)
    return Prepared(copy, tuple(nodes), names)


def _plain(name: str, taken: dict[str, str]) -> str:
    """`name` without what separates names in TensorRT's list of layers."""
    stem = plain = "".join(c if c.isprintable() and c not in "[]|," else "_" for c in name)
    number = 1
    while plain in taken:
        number += 1
        plain = f"{stem}_{number}"
    return plain


@contextmanager
def parsed(trt: ModuleType, prepared: Prepared, network: Any, logger: Any, log: Log) -> Iterator[None]:
    """Fill a network from a model. The network is whole until the block ends: it may refer to files.

    Raises:
        ParseError: the parser refuses the model.
        ModelError: a data file of the model is not allowed or not there.
    """
    loaded = prepared.loaded
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        message = loaded.message()  # never read by TensorRT itself: it would follow a path to any file
        if message is not None:
            fine = parser.parse(message)
        else:
            path = Path(folder) / "model.onnx"
            save(loaded, path, external=True)
            fine = parser.parse_from_file(str(path))
        if not fine:
            raise _failure(prepared, parser, log)
        yield


def _failure(prepared: Prepared, parser: Any, log: Log) -> ParseError:
    found: dict[tuple[str, str], str] = {}
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        name = prepared.names.get(error.node_name(), error.node_name())
        found.setdefault((name, error.desc()), _line(name, error.node_operator(), error.desc()))
    details = list(found.values()) or [_short(text) for text in log.errors] or ["it does not say why"]
    more = f" (and {len(details) - 1} more; -v lists them)" if len(details) > 1 else ""
    return ParseError(f"{prepared.loaded.where}TensorRT cannot parse it: {details[0]}{more}", details)


def _line(name: str, op: str, reason: str) -> str:
    where = f"node {name!r} ({op}): " if name or op else ""
    cure = next((cure for pattern, cure in CURES if re.search(pattern, f"{op}: {reason}")), "")
    return where + _short(reason) + (f"; {cure}" if cure else "")


def _short(reason: str) -> str:
    """Without what only TensorRT's own makers can use."""
    text = " ".join(reason.split()).removeprefix("Assertion failed: ")
    if text == "false":  # all that is said of an operator that has no importer
        return "TensorRT has no such operator"
    # the words of an assertion, without its condition
    return shortened(re.sub(r"^[^\"]* && \"(.*)\"$", r"\1", text).removesuffix("."), 300)

"""torchao's quantization-aware training (PT2E), with each batch norm where a fold will find it.

torchao folds a batch norm that directly follows a convolution. After a linear layer, or a concatenation of
convolutions, it rounds what the batch norm reads: a tensor that is there in training only, if the batch norm
is to vanish, and that keeps it from vanishing. `prepare_qat` takes that rounding out before training; then
`bnfold.fold_onnx` folds the batch norm of the exported model into the scales, and no integer changes.

torchao also gives batch norms an epsilon of 1e-5 and a momentum of 0.1, whatever they were: where it prepares
a model, where it switches between training and inference, and where it converts. `prepare_qat`,
`set_training` and `convert` call torchao and put back what was there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from bnfold.errors import UsageError, explained
from bnfold.integrations.stack import imported

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

__all__ = ["TrainedNorm", "convert", "prepare_qat", "set_training"]

PT2E = "torchao.quantization.pt2e"
NORM = "aten.batch_norm.default"  # input, weight, bias, mean, variance, training, momentum, epsilon, cudnn
INPUT, VARIANCE, MOMENTUM, EPSILON = 0, 4, 6, 7
CONCATENATION = "aten.cat.default"
LAYERS = ("aten.linear.", "aten.conv1d.", "aten.conv2d.", "aten.conv3d.", "aten.conv_transpose")
SETTINGS = "bnfold.batch_norms"  # in a module's meta: momentum and epsilon by the variance's name
FUSED_EPSILON = 1e-5  # torchao's, in all that it matches and replaces
ALSO_READ = "others read what it normalizes"
NOT_BEHIND = "follows no layer; fold it before prepare_qat, with its statistics fixed, if it shall vanish"


class TrainedNorm(NamedTuple):
    """A batch norm in a prepared model.

    name: of its running variance, without the last part. outcome: "torchao" folds it in the conversion;
    "bnfold" will, after the export; or "stays". layers: what it follows, by node. bypassed: roundings between
    that were taken out. epsilon, momentum: its own. restored: torchao had changed one of these two. reason:
    why it stays.
    """

    name: str
    outcome: str
    layers: tuple[str, ...]
    bypassed: int
    epsilon: float
    momentum: float
    restored: bool
    reason: str = ""


def prepare_qat(model: GraphModule, quantizer: Any) -> tuple[GraphModule, list[TrainedNorm]]:
    """torchao's `prepare_qat_pt2e`, after which each batch norm is trained where it will be folded.

    Args:
        model: `torch.export.export(network.train(), example).module()`; torchao changes it.
        quantizer: one of torchao's quantizers for PT2E.

    Returns:
        The prepared model, to be trained, and what became of each batch norm. Instead of torchao's
        `move_exported_model_to_train`, `move_exported_model_to_eval` and `convert_pt2e`, use `set_training`
        and `convert`.

    Raises:
        ImportError: no torchao, or one without what is called; it says which version was tested.
        UsageError: torchao cannot prepare the model; or the prepared model has a batch norm that the model
            has not, whose epsilon nobody knows.
    """
    settings: dict[Any, Any] = {
        _target(norm, VARIANCE): norm.args[MOMENTUM : EPSILON + 1] for norm in _norms(model)
    }
    if None in settings:
        raise UsageError("a batch norm of the model has no stored variance; prepare_qat takes none such")
    prepare_qat_pt2e = imported("torchao", f"{PT2E}.quantize_pt2e", "prepare_qat_pt2e")
    with explained("torchao cannot prepare the model"):
        prepared: GraphModule = prepare_qat_pt2e(model, quantizer)
    prepared.meta[SETTINGS] = settings
    return prepared, placed(prepared, settings)


def placed(prepared: GraphModule, settings: Mapping[Any, Any]) -> list[TrainedNorm]:
    """Take the roundings in front of batch norms out of a prepared model, and put their settings back.

    settings: momentum and epsilon of each batch norm, by the name of its running variance.
    """
    found = []
    for norm in list(_norms(prepared)):
        name = _target(norm, VARIANCE)
        if name not in settings:
            raise UsageError(f"torchao's prepared model has a batch norm of {name!r}, and the model has none")
        momentum, epsilon = settings[name]
        restored = tuple(norm.args[MOMENTUM : EPSILON + 1]) != (momentum, epsilon)
        fused = bool(_roots(prepared, name))
        layers, roundings, reason = ([], [], "") if fused else _between(prepared, norm)
        for rounding in roundings:
            source: Any = rounding.args[0]
            rounding.replace_all_uses_with(source)
            prepared.graph.erase_node(rounding)
        outcome = "torchao" if fused else "stays" if reason else "bnfold"
        names = tuple(layer.name for layer in layers)
        stem = str(name).rpartition(".")[0]
        found.append(TrainedNorm(stem, outcome, names, len(roundings), epsilon, momentum, restored, reason))
    prepared.graph.eliminate_dead_code()
    _put_back(prepared, settings)
    return found


def set_training(prepared: GraphModule, training: bool = True) -> None:
    """Switch batch norms and dropout of a prepared model to training, or to inference, in place.

    Raises:
        ImportError: as `prepare_qat`. UsageError: the model does not come from `prepare_qat`.
    """
    settings = _settings(prepared)
    imported("torchao", PT2E, f"move_exported_model_to_{'train' if training else 'eval'}")(prepared)
    _put_back(prepared, settings)


def convert(prepared: GraphModule) -> GraphModule:
    """torchao's `convert_pt2e` of a trained model, with each batch norm's own epsilon, for inference.

    torchao folds with an epsilon of 1e-5. What is missing is added to the running variance before, which
    gives the same numbers. The prepared model is used up.

    Raises:
        ImportError: as `prepare_qat`. UsageError: torchao cannot convert the model, or it does not come from
            `prepare_qat`.
    """
    settings = _settings(prepared)
    convert_pt2e = imported("torchao", f"{PT2E}.quantize_pt2e", "convert_pt2e")
    move_exported_model_to_eval = imported("torchao", PT2E, "move_exported_model_to_eval")
    done = set[Any]()
    for norm in _norms(prepared):
        name = _target(norm, VARIANCE)
        if name in done or not _roots(prepared, name):  # it may be called several times
            continue
        done.add(name)
        owner, _, last = name.rpartition(".")
        owner = prepared.get_submodule(owner)
        variance = getattr(owner, last)  # the network itself may have it too: it is not written into
        setattr(owner, last, variance.detach() + (settings[name][1] - FUSED_EPSILON))
    with explained("torchao cannot convert the model"):
        converted: GraphModule = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
    _put_back(converted, settings)
    return converted


# -- the graph


def _norms(model: GraphModule) -> Iterator[Node]:
    return (node for node in model.graph.nodes if node.op == "call_function" and str(node.target) == NORM)


def _target(norm: Node, slot: int) -> Any:
    """The name of what a batch norm has stored; None if it is computed, or not there."""
    node: Any = norm.args[slot]
    return node.target if node is not None and node.op == "get_attr" else None


def _roots(model: GraphModule, variance: str) -> list[Node]:
    """Where torchao's form of a batch norm adds its epsilon: root(variance + epsilon)."""
    stored = [node for node in model.graph.nodes if node.op == "get_attr" and node.target == variance]
    sums = [user for node in stored for user in node.users if str(user.target) == "aten.add.Tensor"]
    return [node for node in sums if any(str(user.target) == "aten.sqrt.default" for user in node.users)]


def _settings(prepared: GraphModule) -> Mapping[Any, Any]:
    settings: Mapping[Any, Any] | None = prepared.meta.get(SETTINGS)
    if settings is None:
        raise UsageError("the model does not come from bnfold's prepare_qat, which notes its batch norms")
    return settings


def _put_back(model: GraphModule, settings: Mapping[Any, Any]) -> None:
    """Give each batch norm its own momentum and epsilon."""
    for norm in _norms(model):
        name = _target(norm, VARIANCE)
        momentum, epsilon = settings[name]
        norm.args = (*norm.args[:MOMENTUM], momentum, epsilon, *norm.args[EPSILON + 1 :])
        for node in _roots(model, name):
            node.update_arg(1, epsilon)
    model.recompile()


def _between(model: GraphModule, norm: Node) -> tuple[list[Node], list[Node], str]:
    """The layers that a batch norm follows, the roundings between, and why it cannot be folded, if so."""
    layers: list[Node] = []
    roundings: list[Node] = []
    pending: list[Any] = [norm.args[INPUT]]
    while pending:
        node = pending.pop()
        if len(node.users) != 1:
            return [], [], ALSO_READ
        if _rounds(model, node):
            roundings.append(node)
            pending.append(node.args[0])
        elif str(node.target) == CONCATENATION:
            pending += node.args[0]
        elif str(node.target).startswith(LAYERS):
            layers.append(node)
        else:
            return [], [], NOT_BEHIND
    return layers, roundings, ""


def _rounds(model: GraphModule, node: Node) -> bool:
    """Whether it is a module that quantizes and dequantizes at once, torchao's or torch's own."""
    if node.op != "call_module":
        return False
    module = model.get_submodule(str(node.target))
    return hasattr(module, "enable_fake_quant") and hasattr(module, "calculate_qparams")

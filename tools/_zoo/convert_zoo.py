"""What `bnfold.nn.convert(fuse_activations=True)` makes of whole networks. Started by tools/zoo_convert.

Each network is made with dropout and drop path where it has them, in training mode but for every third batch
norm and every third dropout, which are in eval mode, as if they were frozen. Converted, it is run beside a
copy that was not: in training mode, in eval mode and in training mode again, each time from the same seed;
and reverted. Inputs are small (96 x 96, or the network's own size where that is fixed).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.table import Table

from tools._common import origin, table
from tools._data.models import SEED, import_timm
from tools._zoo.sweep import Results, Sweep

# Those of tools/zoo that have torch's own batch norms; the others have timm's, which convert leaves alone.
TIMM = """
    levit_128s visformer_tiny swiftformer_xs inception_next_atto nasnetalarge pnasnet5large lambda_resnet26t
    efficientformerv2_s0 shvit_s1 convmixer_768_32 fastvit_t8 repvit_m0_9 resnet18 resnet26d resnet50
    resnetaa50 resnetblur18 resnext50_32x4d wide_resnet50_2 seresnet50 skresnet18 resnest14d res2net50_26w_4s
    ecaresnet26t legacy_xception xception41 rexnet_100 ghostnet_100 ghostnetv2_100 repghostnet_050
    hrnet_w18_small dla34 selecsls42b hgnetv2_b0 starnet_s1
"""
TORCHVISION = """
    vgg11_bn vgg16_bn resnet18 resnet34 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 densenet169
    googlenet inception_v3 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet1_0
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 efficientnet_b0 efficientnet_b1 efficientnet_v2_s regnet_y_400mf
    regnet_y_800mf regnet_x_400mf regnet_x_800mf maxvit_t fcn_resnet50 deeplabv3_mobilenet_v3_large
    lraspp_mobilenet_v3_large r3d_18 mc3_18 r2plus1d_18
"""
PREFIX = "torchvision."
NAMES = (*TIMM.split(), *(PREFIX + name for name in TORCHVISION.split()))
Options = tuple[dict[str, Any], ...]  # of a model of timm's, or of torchvision's: the first that it takes
RATES: Options = ({"drop_rate": 0.2, "drop_path_rate": 0.1}, {"drop_rate": 0.2}, {})
OPTIONS: Options = ({"weights_backbone": None}, {"init_weights": False}, {"drop_rate": 0.2}, {})


def main() -> None:
    arguments = SWEEP.parsed(SWEEP.parser(__doc__))
    if arguments.one:
        SWEEP.store(arguments.one, one(arguments.one))
        return
    SWEEP.run(arguments, lambda name: arguments.again or not SWEEP.known(name), [])


def one(name: str) -> dict[str, Any]:
    """Measures one network."""
    import torch
    from torch import nn

    import bnfold.nn
    from bnfold.errors import UsageError

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network, x = made(name)
    network.train()
    for kind in (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd):
        for part in [part for part in network.modules() if isinstance(part, kind)][1::3]:
            part.eval()
    plain = copy.deepcopy(network)
    versions = origin("torch", "torchvision", "timm")
    try:
        converted = bnfold.nn.convert(network, fuse_activations=True)
    except UsageError as error:
        return {**versions, "refused": str(error).splitlines()[0], "untouched": alike(network, plain)}
    kinds = (bnfold.nn.BatchNorm1d, bnfold.nn.BatchNorm2d, bnfold.nn.BatchNorm3d)
    norms = [part for part in converted.modules() if type(part) in kinds]
    result: dict[str, Any] = {
        **versions,
        "batch_norms": len(norms),
        "merged": sum(part.activation is not None for part in norms),
        "untouched": alike(converted, plain),
    }
    outputs = partial(seeded, x=x)
    result["random"] = difference(outputs(copy.deepcopy(plain), 1), outputs(copy.deepcopy(plain), 2)) > 0
    errors = {}
    for seed, (mode, training) in enumerate((("train", True), ("eval", False), ("train again", True))):
        if seed:
            converted.train(training)
            plain.train(training)
        errors[mode] = difference(outputs(converted, seed), outputs(plain, seed))
    errors["buffers"] = difference(list(converted.buffers()), list(plain.buffers()))
    reverted = bnfold.nn.revert(converted)
    errors["reverted"] = difference(outputs(reverted, 3), outputs(plain, 3))
    result["own_class_again"] = type(reverted) is type(plain) and not any(
        type(part).__module__.startswith("bnfold.") for part in reverted.modules()
    )
    return {**result, "errors": errors}


def made(name: str) -> tuple[Any, Any]:
    """A network of that name, and an input of two images or films."""
    import torch

    timm = import_timm()
    if not name.startswith(PREFIX):
        network = first(partial(timm.create_model, name), RATES)
        fixed = network.default_cfg.get("fixed_input_size")
        return network, torch.randn(2, 3, *(network.default_cfg["input_size"][1:] if fixed else (96, 96)))
    import torchvision

    get = partial(torchvision.models.get_model, name.removeprefix(PREFIX), weights=None)
    network = first(get, OPTIONS)
    if "_18" in name:
        return network, torch.randn(2, 3, 8, 64, 64)
    return network, torch.randn(2, 3, *((224, 224) if "maxvit" in name else (96, 96)))


def first(make: Callable[..., Any], options: tuple[dict[str, Any], ...]) -> Any:
    """A network with the first of these options that it takes."""
    for each in options[:-1]:
        try:
            return make(**each)
        except TypeError:
            continue
    return make(**options[-1])


def seeded(network: Any, seed: int, x: Any) -> list[Any]:
    """What a network gives from a seed on."""
    import torch
    from torch.utils import _pytree as pytree

    torch.manual_seed(seed)
    with torch.no_grad():
        return list(pytree.tree_leaves(network(x)))


def difference(ours: list[Any], plain: list[Any]) -> float:
    """max |a - b| / max |b|, the largest over all; infinite if they are not as many, or of other shapes."""
    if [each.shape for each in ours] != [each.shape for each in plain]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(ours, plain, strict=True) if b.numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def alike(network: Any, plain: Any) -> dict[str, bool]:
    """Whether modes, and the order of parameters and buffers, are those of the copy."""
    looks: dict[str, Callable[[Any], Any]] = {
        "modes": lambda each: [(name, part.training) for name, part in each.named_modules()],
        "parameters": lambda each: [name for name, _ in each.named_parameters()],
        "state": lambda each: list(each.state_dict()),
    }
    return {key: look(network) == look(plain) for key, look in looks.items()}


def verdict(found: dict[str, Any]) -> str:
    """One word if all is right (equal, refused), or what is wrong."""
    if not all(found["untouched"].values()):
        return f"CHANGED {', '.join(key for key, same in found['untouched'].items() if not same)}"
    if "refused" in found:
        return "refused"
    wrong = [key for key, error in found["errors"].items() if not error <= 1e-6]
    return f"WRONG {', '.join(wrong)}" if wrong else "equal" if found["own_class_again"] else "NOT REVERTED"


def story(found: dict[str, Any]) -> str:
    """One network in a few words."""
    said = verdict(found)
    if "refused" in found:
        return f"{said}: {found['refused']}"
    return f"{said}, {found['merged']} of {found['batch_norms']} merged"


def summary(results: Results) -> dict[str, Any]:
    """How many are equal, refused and wrong, and every network's numbers."""
    verdicts = Counter(verdict(found) for found in results.values())
    done = [found for found in results.values() if "errors" in found]
    return {
        "networks": len(results),
        "verdicts": dict(verdicts),
        "with_randomness_in_training": sum(found["random"] for found in done),
        "batch_norms": sum(found["batch_norms"] for found in done),
        "merged": sum(found["merged"] for found in done),
        "largest_error": max((max(found["errors"].values()) for found in done), default=0.0),
        "reasons": {name: found["refused"] for name, found in results.items() if "refused" in found},
    }


def view(results: Results) -> Table:
    """Every network: how many batch norms, how many merged, and whether it is right."""
    headings = ("network", "batch norms", "merged", "random", "largest error", "")
    made = table("convert(fuse_activations=True), run, and reverted", headings, left=["network", ""])
    for name, found in results.items():
        if "refused" in found:
            made.add_row(name, "", "", "", "", f"{verdict(found)}: {found['refused']}")
            continue
        error = max(found["errors"].values())
        numbers = (str(found["batch_norms"]), str(found["merged"]), "yes" if found["random"] else "no")
        made.add_row(name, *numbers, f"{error:.1e}", verdict(found))
    return made


SWEEP = Sweep("zoo_convert", "tools._zoo.convert_zoo", story, view, summary, NAMES)

if __name__ == "__main__":
    main()

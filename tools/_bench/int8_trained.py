"""What each step before and after quantizing does to trained networks. Started by tools/int8 trained.

Five small networks, each trained with several seeds on Fashion-MNIST or scikit-learn's digits
(tools/_data/trained.py), and MobileNetV2 with its ImageNet weights on crops of scikit-image's photographs.
onnxruntime quantizes them as tools/int8 does, by ranges of several sets of images, and `bnfold.correct` takes
the same images. `plain` and `corrected` are the signal over the noise in dB, one for each set, on images that
neither has seen. bench/results/int8_trained.json keeps the result, a network with a seed at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch

import bnfold
from tools._bench.quantized import KINDS, LINEAR, Array, decibels, outputs, prepared, quantize, rounded
from tools._common import RESULTS, ROOT, origin, read, write
from tools._data.images import FASHION, NAMES, Images, load
from tools._data.images import outputs as answers
from tools._data.photographs import imagenet, photograph, scaled
from tools._data.trained import NETWORKS, trained

PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "scikit-image", "scikit-learn")
RESULT = RESULTS / "int8_trained.json"
CACHE = ROOT / ".cache" / "trained"
SEEDS, TRAIN = 3, 8192
EPOCHS = {"fashion-mnist": 3, "digits": 30}
SETS, CALIBRATION, COMPARISON, BATCH = 4, 256, 1000, 64
EVERY = 2  # one image of so many corrects
MOBILENET = "MobileNetV2, ImageNet"
PHOTOGRAPHS = """
    astronaut chelsea coffee rocket camera cat hubble_deep_field immunohistochemistry retina grass gravel
    brick coins moon page clock text
"""
CROPS, OTHERS, SIZE = 6, 20, 160  # of a photograph, to calibrate and to compare on; and their sides
TARGETS = {"per_tensor": "int8-per-tensor", "per_channel": "int8"}


class Case(NamedTuple):
    """A network as an ONNX file, sets of batches to calibrate and correct with, and others to compare on.

    every: one image of so many corrects. facts: for the result. entropy: whether ranges are found so as well.
    """

    model: onnx.ModelProto
    sets: list[list[Array]]
    others: list[Array]
    every: int
    facts: dict[str, Any]
    entropy: bool


def exported(net: torch.nn.Module, example: torch.Tensor, path: Path) -> onnx.ModelProto:
    """As torch writes it, its optimizer left out; any number of images."""
    sizes = ({0: torch.export.Dim("n")},)
    how: Any = {"dynamo": True, "optimize": False, "verbose": False, "external_data": False}
    torch.onnx.export(net, (example,), path, input_names=["x"], dynamic_shapes=sizes, **how)
    return onnx.load(path)


def small(name: str, images: Images, seed: int, folder: Path) -> Case:
    """One of NETWORKS."""
    net = trained(
        name, images, seed, EPOCHS[images.name], CACHE / f"{name}-{seed}-{images.name}.pt".replace(" ", "_")
    )
    path = folder / "raw.onnx"
    model = exported(net, images.train[:2], path)
    drawn = np.random.default_rng(seed).permutation(len(images.train))[: SETS * CALIBRATION]
    sets = [[part.numpy() for part in images.train[one].split(BATCH)] for one in np.split(drawn, SETS)]
    others = [part.numpy() for part in images.test.split(BATCH)]
    with torch.no_grad():
        return Case(
            model, sets, others, EVERY, {"accuracy": images.accuracy(answers(net, images.test))}, not seed
        )


def mobilenet(folder: Path) -> Case:
    """Crops of every second photograph to calibrate and to correct, of the others to compare on."""
    from tests.torch_graph.trained import NETWORKS as PRETRAINED

    def crops(chosen: Sequence[str], count: int, seed: int) -> list[Array]:
        found, rng = [], np.random.default_rng(seed)
        for name in chosen:
            image = photograph(name)
            for _ in range(count):
                side = int(min(image.shape[:2]) * rng.uniform(0.5, 1))
                y, x = (int(rng.integers(size - side + 1)) for size in image.shape[:2])
                found.append(imagenet(scaled(image[y : y + side, x : x + side], (SIZE, SIZE))))
        return [np.concatenate(found[at : at + CROPS]) for at in range(0, len(found), CROPS)]

    names = PHOTOGRAPHS.split()
    calibration, others = crops(names[::2], CROPS, 0), crops(names[1::2], OTHERS, 1)
    network = PRETRAINED["mobilenetv2, ImageNet"][0]()
    model = exported(network, torch.from_numpy(others[0][:2]), folder / "raw.onnx")
    return Case(model, [calibration], others, 2, {}, False)


def variants(case: Case, folder: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The network, treated in each way before it is quantized, and prepared."""
    raw = case.model
    apart, report = bnfold.fold_onnx(raw, quantize_for="int4")
    yield "as exported", raw
    yield "apart", prepared(apart, folder / "apart.onnx")
    if report.apart:
        kept = [entry.name for entry in report.kept]
        yield "free", prepared(bnfold.fold_onnx(raw, skip=kept)[0], folder / "free.onnx")
        yield "full", prepared(bnfold.fold_onnx(raw)[0], folder / "full.onnx")
        for target in TARGETS.values():
            found = bnfold.fold_onnx(raw, quantize_for=target)[0]
            yield f"--for {target}", prepared(found, folder / "for.onnx")
    if not any(node.op_type == "Clip" for node in apart.graph.node):
        return
    for way, split in (("equalized", False), ("equalized, Clips split", True)):
        yield way, bnfold.equalize_onnx(onnx.load(folder / "apart.onnx"), fold=False, split_relu6=split)[0]


def corrected(
    goal: Path, source: Path, batches: Sequence[Array], every: int, **options: Any
) -> onnx.ModelProto:
    """By some images of the calibration."""
    model = onnx.load(source)
    samples = {model.graph.input[0].name: np.concatenate(batches)[::every]}
    return bnfold.correct(onnx.load(goal), model, samples, verify=False, **options)[0]


def measured(case: Case, folder: Path, sets: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """All variants by name, quantized in both ways by each of so many sets."""
    exact = outputs(case.model, case.others)
    same: dict[bytes, str] = {}
    for name, model in variants(case, folder):
        first = same.setdefault(model.graph.SerializeToString(deterministic=True), name)
        if first != name:
            yield name, {"same_as": first}
            continue
        ops = Counter(node.op_type for node in model.graph.node)
        row: dict[str, Any] = {"linear": sum(ops[op] for op in LINEAR)}
        row["batch_norms"] = ops["BatchNormalization"]
        source, goal = folder / "source.onnx", folder / "goal.onnx"
        onnx.save(model, source)
        for kind, per_channel in KINDS.items():
            if name.startswith("--for ") and name != f"--for {TARGETS[kind]}":
                continue
            row[kind] = {"plain": []}
            corrects = name not in ("as exported", "equalized")
            if corrects:
                weights = outputs(rounded(model, 8, per_channel), case.others)
                row[kind] |= {"corrected": [], "weights_alone": decibels(exact, weights)}
            for batches in case.sets[: 1 if name == "as exported" else sets]:
                quantize(source, goal, batches, per_channel)
                row[kind]["plain"].append(decibels(exact, outputs(goal, case.others)))
                if corrects:
                    better = outputs(corrected(goal, source, batches, case.every), case.others)
                    row[kind]["corrected"].append(decibels(exact, better))
        if name in ("apart", "full") and len(case.sets) > 1:
            row["int4"] = four_bits(case, source, goal, exact)
        if name == "apart" and case.entropy:
            with contextlib.redirect_stdout(io.StringIO()):
                quantize(source, goal, case.sets[0], True, method="Entropy")
            row["per_channel"]["entropy"] = decibels(exact, outputs(goal, case.others))
        print(f"  {name}: {told(row)}", flush=True)
        yield name, row


def four_bits(case: Case, source: Path, goal: Path, exact: Array) -> dict[str, float]:
    """Weights of 4 bits, a scale for each channel: as they are, and corrected without and with deviations."""
    quantize(source, goal, case.sets[0], True, bits=4)
    found = {"plain": decibels(exact, outputs(goal, case.others))}
    for key, deviation in (("means", False), ("corrected", True)):
        better = corrected(goal, source, case.sets[0], case.every, deviation=deviation)
        found[key] = decibels(exact, outputs(better, case.others))
    return found


def told(row: dict[str, Any]) -> str:
    words = [f"{row['linear']} linear"]
    for kind in filter(row.__contains__, KINDS):
        steps = (row[kind].get(key) for key in ("plain", "corrected"))
        words.append(kind + " " + " -> ".join(f"{np.mean(step):.1f}" for step in steps if step))
    if "int4" in row:
        words.append("int4 " + " -> ".join(f"{value:.1f}" for value in row["int4"].values()))
    return ", ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="int8 trained", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", metavar="NAME", nargs="+", choices=[*NETWORKS, MOBILENET])
    parser.add_argument("--images", choices=NAMES, default="fashion-mnist")
    parser.add_argument("--data", metavar="FOLDER", type=Path, default=FASHION, help="of Fashion-MNIST")
    parser.add_argument("--seeds", metavar="N", nargs="+", type=int, default=range(SEEDS))
    parser.add_argument(
        "--sets", metavar="N", type=int, default=SETS, help="sets of images to calibrate with"
    )
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULT, help="where the result goes")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # of the quantizer's, one for each model
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.networks or [*NETWORKS, MOBILENET]:
            done = str(seed) in read(args.out).get("networks", {}).get(name, {})
            if (name == MOBILENET and seed) or (done and not args.again):
                continue
            with tempfile.TemporaryDirectory() as folder:
                print(f"{name}, seed {seed}", flush=True)
                if name == MOBILENET:
                    case, sets = mobilenet(Path(folder)), 1
                else:
                    images = load(args.images, seed, args.data).first(TRAIN, COMPARISON)
                    case, sets = small(name, images, seed, Path(folder)), args.sets
                entry = origin(*PACKAGES) | case.facts | {"sets": sets, "variants": {}}
                for variant, row in measured(case, Path(folder), sets):
                    entry["variants"][variant] = row
                    result = read(args.out)
                    result.setdefault("networks", {}).setdefault(name, {})[str(seed)] = entry
                    write(args.out, result)


if __name__ == "__main__":
    main()

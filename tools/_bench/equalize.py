"""What int8 costs trained networks on real photographs, with weight ranges as they are and balanced.

Started by tools/bench_equalize. Each network is folded, and prepared (`quant_pre_process`) and quantized by
onnxruntime: `quantize_static`, QDQ, int8 weights, uint8 activations, ranges by MinMax; with one scale for
each weight, and with one for each output channel; as it is, equalized, and equalized with Clips split. It is
calibrated on crops of some photographs and compared with float32 on crops of others, twice, with other
photographs for each.
bench/results/equalize.json keeps the result.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import bnfold
from tools._bench.precision import PACKAGES, exported
from tools._common import RESULTS, origin, session, write
from tools._data.photographs import PHOTOGRAPHS, Array, imagenet, photograph, scaled

RESULT = RESULTS / "equalize.json"
EVERY = 3  # each third photograph is for calibration, the others are for the comparison
PARTS = (1, 2)  # with which photograph the thirds begin; on part 0 the weights of the objective were chosen
CALIBRATION, COMPARISON = 4, 12  # crops of a photograph
ROUNDS = 40  # runs of each model, in turn, for the times


@dataclass(frozen=True)
class Case:
    """A network, the crops it is calibrated on and judged by, and its answers."""

    name: str
    network: str
    pictures: Callable[[int], tuple[list[Array], list[Array]]]


def squares(part: int) -> tuple[list[Array], list[Array]]:
    """Random squares, some mirrored."""
    rng, names = np.random.default_rng(part), PHOTOGRAPHS.split()

    def crop(name: str) -> Array:
        image = photograph(name)
        side = int(min(image.shape[:2]) * rng.uniform(0.4, 1))
        y, x = (int(rng.integers(size - side + 1)) for size in image.shape[:2])
        square = image[y : y + side, x : x + side]
        return imagenet(scaled(square[:, ::-1] if rng.random() < 0.5 else square, (224, 224)))

    calibration = [crop(name) for name in names[part::EVERY] for _ in range(CALIBRATION)]
    others = [name for number, name in enumerate(names) if number % EVERY != part]
    return calibration, [crop(name) for name in others for _ in range(COMPARISON)]


def lines(part: int) -> tuple[list[Array], list[Array]]:
    """Strips of a text and of a page, or the other way round; grey, from -1 to 1."""

    def strips(name: str, height: int, step: int) -> list[Array]:
        image = photograph(name)[..., :1].repeat(3, 2)
        starts = range(0, image.shape[0] - height, step)
        return [scaled(image[y : y + height], (32, 320))[:, :1] * 2 - 1 for y in starts]

    both = strips("text", 30, 6), strips("page", 20, 3)
    return both if part == 1 else both[::-1]


CASES = (
    Case("MobileNetV2, ImageNet", "mobilenetv2, ImageNet", squares),
    Case("line reader", "line reader", lines),
)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration pictures, one at a time."""

    def __init__(self, name: str, pictures: list[Array]) -> None:
        self.feeds = iter([{name: picture} for picture in pictures])

    def get_next(self) -> Any:
        return next(self.feeds, None)


def outputs(path: Path, pictures: list[Array]) -> Array:
    """Of all pictures: (pictures, ..., classes)."""
    found = session(path)
    name = found.get_inputs()[0].name
    return np.concatenate([np.asarray(found.run(None, {name: x})[0], np.float64) for x in pictures])


def measured(exact: Array, found: Array) -> dict[str, Any]:
    """The share of equal answers, and |difference| / |outputs|, both in the 2-norm over all pictures."""
    return {
        "same": float((exact.argmax(-1) == found.argmax(-1)).mean()),
        "error": float(np.linalg.norm(found - exact) / np.linalg.norm(exact)),
    }


def variants(name: str, folder: Path) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """The folded network, as it is and balanced.

    It is prepared as onnxruntime advises: the quantizer lets a Clip go only if its bounds are stored, and a
    raw export of torch's computes them.
    """
    path = folder / "folded.onnx"
    onnx.save(bnfold.fold_onnx(exported(name).to_proto())[0], path)
    quant_pre_process(path, path, skip_symbolic_shape=True)
    folded = onnx.load(path)
    yield "as it is", folded, {}
    for way, split in (("equalized", False), ("equalized, Clips split", True)):
        model, report = bnfold.equalize_onnx(folded, fold=False, split_relu6=split)
        numbers = {
            "regions": len(report.regions),
            "channels": sum(len(region.channels) for region in report.regions),
            "split": len(report.split),
            "bits": [report.bits_before, report.bits_after],
        }
        yield way, model, numbers


def milliseconds(paths: dict[str, Path], picture: Array) -> dict[str, float]:
    """Medians of one picture on one thread; the models run in turn."""
    sessions = {name: session(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, found in sessions.items():
            feed = {found.get_inputs()[0].name: picture}
            begin = time.perf_counter()
            found.run(None, feed)
            times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(taken) * 1e3) for name, taken in times.items()}


def run(case: Case, folder: Path) -> dict[str, Any]:
    """All variants, quantized in both ways."""
    parts = [case.pictures(part) for part in PARTS]
    ways: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    exact = None
    for number, (way, model, numbers) in enumerate(variants(case.network, folder)):
        paths[f"{way}, float32"] = source = folder / f"{number}.onnx"
        onnx.save(model, source)
        whole = np.concatenate([outputs(source, pictures) for _, pictures in parts])
        exact = whole if exact is None else exact
        ways[way] = {**numbers, "float32": measured(exact, whole)}
        for kind in ("per_tensor", "per_channel"):
            paths[f"{way}, {kind}"] = goal = folder / f"{number}_{kind}.onnx"
            found = []
            for calibration, pictures in parts:
                quantize_static(
                    source,
                    goal,
                    Reader(model.graph.input[0].name, calibration),
                    quant_format=QuantFormat.QDQ,
                    per_channel=kind == "per_channel",
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
                found.append(outputs(goal, pictures))
            ways[way][kind] = measured(exact, np.concatenate(found))
    for key, taken in milliseconds(paths, parts[0][1][0]).items():
        way, kind = key.rsplit(", ", 1)
        ways[way][kind]["milliseconds"] = taken
    calibration_count, count = (sum(len(part[i]) for part in parts) for i in (0, 1))
    return {"calibration": calibration_count, "pictures": count, "ways": ways}


def told(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Lines of the table."""
    for way, found in result["ways"].items():
        for kind in ("float32", "per_tensor", "per_channel"):
            row = found[kind]
            yield (
                f"{name:24} {way:24} {kind:12}{row['same']:>8.3f}{row['error']:>9.3g}"
                f"{row['milliseconds']:>8.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="bench_equalize", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULT, help="where the result goes")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # of the quantizer's, one for each model
    print(f"{'network':24} {'weight ranges':24} {'type':12}{'same':>8}{'error':>9}{'ms':>8}")
    networks = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            networks[case.name] = run(case, Path(folder))
        print("\n".join(told(case.name, networks[case.name])), flush=True)
    write(args.out, {**origin(*PACKAGES), "networks": networks})


if __name__ == "__main__":
    main()

"""A small network is trained on real images, loses half of its channels and its batch norms, and is deployed.

Started by tools/slim_demo. Inverted residuals, trained with a penalty on the batch norms' scales; slimmed,
recalibrated, fine-tuned and folded by bnfold.compress.slim; exported to ONNX with the check, run in
onnxruntime. Then the same network with the channels chosen otherwise. What is printed is measured in this
very run; the same seed, machine and versions give the same numbers, but for the seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

import bnfold
from bnfold.compress import SlimReport
from tools._common import ROOT, ending, origin, write
from tools._data.images import CLASSES, Images, digits, outputs
from tools._demos import slim_run
from tools._demos.slim_run import Plan, Way
from tools._demos.train_demo import in_onnxruntime

PACKAGES = ("numpy", "torch", "torch-pruning", "onnxruntime", "scikit-learn")
EPOCHS = 25, 5  # to train, to fine-tune
SHOWN = ("trained", "pruned", "recalibrated", *(f"tuned, {rate:g}" for rate in slim_run.FINE_RATES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="slim_demo")
    add = parser.add_argument
    add("--seed", type=int, default=0, help="the first: of the split, the weights and the order (default: 0)")
    add("--seeds", type=int, default=1, help="how many seeds (default: 1)")
    add("--quick", action="store_true", help="few epochs of at most 512 images")
    add("--out", type=Path, default=ROOT / ".cache" / "slim_demo" / "net.onnx", metavar="FILE",
        help="the first seed's ONNX file, written anew (default: .cache/slim_demo/net.onnx)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="store the results of all seeds there")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds: at least 1")
    warnings.filterwarnings("ignore")  # that parts of torch are deprecated is no news here
    torch.set_num_threads(1)  # the network is small: more would wait for each other, and round differently
    epochs = (4, 1) if arguments.quick else EPOCHS
    begin = time.perf_counter()
    with ending("slim_demo"):
        for path in (arguments.out, arguments.json):  # before the work, which takes a while
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
        runs: list[Any] = []
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            images = digits(seed)
            images = images.first(512, 512) if arguments.quick else images
            runs.append(run(images, Plan(seed, *epochs), None if runs else arguments.out))
        seconds = time.perf_counter() - begin
        if len(runs) > 1:
            print_all(runs)
        if arguments.json is not None:
            about = {**origin(*PACKAGES), "protocol": protocol(images, epochs)}
            write(arguments.json, {**about, "runs": runs})
    print(f"\n{seconds:.0f} seconds in all.")


def run(images: Images, plan: Plan, path: Path | None) -> dict[str, Any]:
    """One seed. path: where the ONNX file goes; None: no file and no first table."""
    net = slim_run.trained(images, CLASSES, plan, slim_run.STRENGTH)
    slimmed, report = slim_run.slimmed(net, images, plan)
    steps = [step._asdict() for step in report.steps]
    if path is not None:
        print(f"a network on {images.name} without half of its channels, and without batch norms")
        count = f"{len(images.train)} images to train with, {len(images.test)} others to test with"
        print(f"{count}, seed {plan.seed}\n")
        steps.append(exported(slimmed, images, path))
        print_steps(steps, report)
    plain = slim_run.trained(images, CLASSES, plan, 0.0)
    found = {name: of_way(way) for name, way in slim_run.compared(net, plain, images, plan).items()}
    found["as small, trained anew"] = {"steps": {"trained": slim_run.anew(net, images, plan)}}
    print(f"\n{f'seed {plan.seed}: channels by':26}" + "".join(f"{name:>14}" for name in SHOWN))
    for name, way in found.items():
        print(f"{name:26}" + "".join(f"{percent(way['steps'].get(step)):>14}" for step in SHOWN))
    assert report.folded is not None
    return {
        "seed": plan.seed,
        "steps": steps,
        "totals": {what: report.total(what) for what in ("channels", "parameters", "multiplications")},
        "verification": report.verification.status if report.verification else None,
        "left": len(report.folded.kept),
        "ways": found,
    }


def exported(slimmed: torch.nn.Module, images: Images, path: Path) -> dict[str, Any]:
    """The folded network as a file, measured in onnxruntime, as one more step."""
    batch = torch.export.Dim("batch")
    examples = images.test[: slim_run.EXAMPLES]
    bnfold.export(slimmed, examples, path, dynamic_shapes=({0: batch},), force=True)
    answers = in_onnxruntime(path, images.test)
    model = onnx.load(path)
    return {
        "name": "exported, in onnxruntime",
        "parameters": sum(parameter.numel() for parameter in slimmed.parameters()),
        "batch_norms": sum(node.op_type == "BatchNormalization" for node in model.graph.node),
        "value": images.accuracy(answers),
        "other_answers": int((answers.argmax(1) != outputs(slimmed, images.test).argmax(1)).sum()),
    }


def of_way(way: Way) -> dict[str, Any]:
    """What is told of one way: accuracies by step, after fine-tuning by rate."""
    report = way.report
    steps = {step.name: step.value for step in report.steps if step.name in SHOWN}
    return {
        "steps": {**steps, **{f"tuned, {rate:g}": value for rate, value in way.tuned.items()}},
        "totals": {what: report.total(what) for what in ("channels", "parameters", "multiplications")},
        "removed": {group.name: group.channels[0] - group.channels[1] for group in report.groups},
    }


def print_steps(steps: list[dict[str, Any]], report: SlimReport) -> None:
    print(f"{'step':26}{'test accuracy':>14}{'parameters':>12}{'batch norms':>13}")
    for step in steps:
        cells = f"{percent(step['value']):>14}{step['parameters']:12d}{step['batch_norms']:13d}"
        print(f"{step['name']:26}{cells}")
    print()
    for what in ("channels", "parameters", "multiplications"):
        before, after = report.total(what)
        print(f"{what} before the fold: {before} -> {after} ({before / after:.1f} times less)")


def print_all(runs: list[dict[str, Any]]) -> None:
    print(f"\n{f'{len(runs)} seeds: median (range)':26}" + "".join(f"{name:>22}" for name in SHOWN))
    for name in runs[0]["ways"]:
        cells = (spread([run["ways"][name]["steps"].get(step) for run in runs]) for step in SHOWN)
        print(f"{name:26}" + "".join(f"{cell:>22}" for cell in cells))


def spread(values: list[float | None]) -> str:
    """Median, least and largest, in percent."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.median(known):.1f} ({min(known):.1f} to {max(known):.1f})"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def protocol(images: Images, epochs: tuple[int, int]) -> dict[str, Any]:
    """What all runs have in common."""
    return {
        "images": {"name": images.name, "train": len(images.train), "test": len(images.test)},
        "ratio": slim_run.RATIO,
        "strength": slim_run.STRENGTH,
        "fine_rates": slim_run.FINE_RATES,
        "epochs": epochs[0],
        "fine_epochs": epochs[1],
    }


if __name__ == "__main__":
    main()

"""Writes the tables of the pages anew from bench/results/: `python -m docs.tables`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from bnfold.onnx_graph.ops import (
    activations,
    conversion,
    elementwise,
    indexing,
    linear,
    norms,
    shaping,
    sources,
    windowed,
)
from tools._bench import equalize_table, int8_table, precision_table
from tools._claims import table as claims_table
from tools._common import RESULTS, ROOT, markdown, read
from tools._cost import tables as cost_tables
from tools._demos import order_table, slim_table
from tools._gpu import goals, host_table
from tools._stacks import recipes_table, stacks_table
from tools._zoo import prove_table

FAMILIES = (linear, elementwise, activations, windowed, norms, shaping, indexing, conversion, sources)
PEERS = ("onnxruntime", "onnxsim", "onnxslim", "onnxoptimizer_all", "onnxscript")
TOOLS = ("bnfold", "onnxruntime", "onnxsim", "onnxslim", "onnxscript", "onnxoptimizer")
TORCH_NAMES = {
    "fold_program": "bnfold `fold_program`",
    "fold_module": "bnfold `fold_module`",
    "torch.fx fuse": "`fuse` of torch.fx",
    "fuse_modules": "`fuse_modules` of torch.ao",
    "torch.jit.freeze": "`torch.jit.freeze`",
}
TORCH_VARIANTS = ("as it is", "again", "fold_module", "torch.fx fuse")
SHOWN = 12  # networks
STATES = {"given": "as it is", "folded": "folded for TensorRT"}


def left() -> str:
    """What is left of the batch norms in torch's default export."""
    summary = read(RESULTS / "zoo.json")
    rows: list[tuple[str, int, int, int, int]] = []
    for name, network in summary["networks"].items():
        count = network["default"]["left"]
        # a tool that failed on a file left it as it was
        best = min(count["given"] if count[peer] is None else count[peer] for peer in PEERS)
        rows.append((name, network["batch_norms"], count["given"], best, count["bnfold"]))
    fewer = sorted((row for row in rows if row[4] < row[3]), key=lambda row: row[4] - row[3])
    more = sum(row[4] > row[3] for row in rows)
    sums = [sum(int(row[column]) for row in rows) for column in range(1, 5)]
    text = (
        f"**What is left** of the batch norms of {len(rows)} networks of timm, as torch exports them by "
        "default (`tools/zoo`): batch norms, and per-channel nodes that came from them. The best other tool "
        "is, for each network, the best of onnxruntime's optimizer, onnxsim, onnxslim, onnxoptimizer and "
        f"onnxscript. bnfold leaves fewer than all of them in {len(fewer)} networks, and more in "
        f"{more or 'none'}."
    )
    if sums[1] == sums[2]:
        text += " The others match pairs, which torch's exporter has folded already."
    if len(fewer) > SHOWN:
        text += f" These are the {SHOWN} with the largest difference."
    headings = ("network", "batch norms", "after the export", "best other tool", "bnfold")
    return page_of(text, markdown(headings, [*fewer[:SHOWN], (f"all {len(rows)}", *sums)]))


def torch_zoo() -> str:
    """What the two functions for torch leave of the same networks."""
    summary = read(RESULTS / "zoo_torch.json")
    sums, rows = summary["totals"], summary["networks"].values()
    above = sum(row["left_by_fold_program"] > row["left_by_fold_onnx"] for row in rows)
    alone, calls = sums["kept_by_fold_module_alone"], sums["identity_maps_of_fold_module"]
    return wrapped(
        "**The same networks in torch** (`tools/zoo_torch`): `fold_program` leaves "
        f"{sums['left_by_fold_program']} of the {sums['batch_norms']} batch norms, `fold_onnx` "
        f"{sums['left_by_fold_onnx']} in the raw exports, and `fold_program` leaves more "
        f"in {above or 'no'} network. "
        f"`fold_module` keeps {alone or 'none'} that `fold_program` folds"
        f"{', for it merges no branches' if alone else ''}; of those that it folds, "
        f"{calls or 'none'} stay as calls of the identity map."
    )


def speed() -> str:
    """Seconds of load, fold and save."""
    results = read(RESULTS / "fold.json")
    compared = {name: result for name, result in results.items() if "onnxruntime" in result["tools"]}
    first = next(iter(compared.values()))["machine"]
    rows = []
    for name, result in compared.items():
        rows.append((name, result["batch_norms"], *(seconds(result["tools"][tool]) for tool in TOOLS)))
    after = f"Measured on {first['cores']} cores of an {first['cpu']}."
    if "huge" in results:
        huge = results["huge"]["tools"]["bnfold"]
        after += (
            f" With {results['huge']['bytes'] / 1e9:.1f} GB of external data bnfold takes "
            f"{huge['in_process']['min']:.0f} s and at most {huge['memory']['most'] / 1e9:.2f} GB of memory "
            "that no file backs."
        )
    text = (
        "**How long it takes** to load, fold and save: seconds in-process / as a whole process with its "
        "imports, the fastest of several runs (`tools/bench_fold`). In brackets: batch norms left, where "
        "there are any."
    )
    return page_of(text, markdown(("model", "batch norms", *TOOLS), rows), after)


def seconds(found: dict[str, Any]) -> str:
    """In-process / whole process, two digits each; what the tool left, or how it failed."""
    if found["failure"]:
        return "over 60" if found["failure"] == "timeout" else "fails"
    both = [found[way]["min"] for way in ("in_process", "whole_process")]
    text = " / ".join(f"{s:.{max(0, 1 - math.floor(math.log10(s)))}f}" for s in both)
    rest = found["left"]["batch_norms"] + found["left"]["per_channel"]
    return f"{text} ({rest})" if rest else text


def torch() -> str:
    """How often each tool for torch leaves nothing, something, or a network that is not the same."""
    cases = read(RESULTS / "fold_torch.json")["cases"]
    headings = list(next(iter(cases["totals"].values())))
    networks = cases["networks"].values()
    never = sum(not any(empty(found) for found in network["tools"].values()) for network in networks)
    text = (
        f"**In torch**: how each tool ends on the {len(networks)} small networks of bnfold's own tests "
        "(`tools/bench_fold_torch`). Nothing is left of the batch norms, or only calls that are the identity "
        "map, or more than that; the result is wrong (off by more than 1e-5 of its largest value); or the "
        f"tool fails with an error. In {never} of the networks every tool leaves something."
    )
    rows = [(TORCH_NAMES[tool], *row.values()) for tool, row in cases["totals"].items()]
    return page_of(text, markdown(("tool", *headings), rows))


def empty(found: dict[str, Any]) -> bool:
    """The tool left nothing at all."""
    return found["outcome"] == "right" and found["batch_norms"] + found["per_channel"] == 0


def torch_speed() -> str:
    """Milliseconds of one image in eager mode."""
    results = read(RESULTS / "fold_torch.json")["speed"]
    rows = []
    for name, result in results.items():
        found = result["variants"]
        rows.append((name, *(milliseconds(found[variant]) for variant in TORCH_VARIANTS)))
    first = next(iter(results.values()))["machine"]
    text = (
        "**How long one image takes** in eager mode: milliseconds, median, on one thread of an "
        f"{first['cpu']}. In brackets: calls of batch norm, where there are any, those of the identity map "
        "included. *Again* is a copy of the network as it is: what the two differ by is noise."
    )
    headings = ("network", "as it is", "again", "bnfold `fold_module`", "`fuse` of torch.fx")
    return page_of(text, markdown(headings, rows))


def milliseconds(found: dict[str, Any]) -> str:
    """The median, and how many batch norms are called."""
    if found["failure"]:
        return "fails"
    return f"{found['median']:.1f}" + (f" ({found['left']})" if found["left"] else "")


def merging() -> str:
    """Milliseconds of one image before and after branch merging, beside the networks' own switch."""
    rows = []
    for name, result in read(RESULTS / "merge.json").items():
        for runtime in ("onnxruntime", "torch"):
            found = result[runtime]["variants"]
            first = found["as it is"]
            cells = [f"{first['linear']} -> {found['merged']['linear']}", f"{first['median']:.1f}"]
            for variant in ("merged", "timm"):
                median = found[variant]["median"]
                cells.append(f"{median:.1f} ({first['median'] / median:.2f}x)")
            rows.append((name, runtime, *cells))
    headings = ("network", "runtime", "linear nodes", "as it is, ms", "merged", "timm's own switch")
    return "\n".join(markdown(headings, rows, "ll"))


def int8() -> str:
    """What merging costs and gains a network with random weights that is quantized."""
    rows = []
    for name, variants in read(RESULTS / "int8.json")["networks"].items():
        for variant, row in variants.items():
            decibels = [f"{row[kind]['db']:.1f}" for kind in ("per_tensor", "per_channel")]
            better = [row[kind].get("corrected") for kind in ("per_tensor", "per_channel")]
            cells = ["-" if value is None else f"{value:.1f}" for value in better]
            pairs = [cell for pair in zip(decibels, cells, strict=True) for cell in pair]
            ms = [f"{row['milliseconds'][kind]:.1f}" for kind in ("float32", "int8")]
            rows.append((name, variant, row["linear"], row["batch_norms"], *pairs, *ms))
    headings = ("network", "folded", "linear nodes", "batch norms", "one scale, dB", "corrected")
    return "\n".join(
        markdown((*headings, "each channel's, dB", "corrected", "float32, ms", "int8, ms"), rows, "ll")
    )


def zoo_tensorrt() -> str:
    """What TensorRT-RTX makes of the same exports, as they are and folded."""
    totals = read(RESULTS / "zoo_tensorrt.json")["totals"]
    rows = []
    for key, found in totals.items():
        kind, state = key.split(", ")
        cells = [found["batch_norms"], found["stand_alone"], found["layers"]] if found["built"] else ["-"] * 3
        built = f"{found['built']} of {found['networks']}"
        rows.append((kind, STATES[state], built, *cells))
    headings = ("export", "", "parsed and built", "batch norms in them", "layers of their own")
    return "\n".join(markdown((*headings, "layers of the engines"), rows, "ll"))


def claims() -> str:
    """With and without batch norm: what comes out of many runs."""
    results = read(RESULTS / "claims.json")
    summary, protocol = results["summary"], results["protocol"]
    images, rates, scales = (protocol[key] for key in ("images", "learning_rates", "scales"))
    seeds = protocol["seeds"]
    rows = claims_table.rows(summary, protocol)
    text = (
        f"**{len(results['runs'])} runs** on {images['train']} training images, tested on {images['test']} "
        f"others: for each column {len(rates)} learning rates from {rates[0]:g} to {rates[-1]:g}, "
        f"{len(scales)} scales of the initial weights from {scales[0]:g} to {scales[-1]:g} times the usual "
        f"one, and {seeds} seeds: {len(rates) * len(scales) * seeds} runs of {protocol['steps']} steps each. "
        "Accuracies and gaps are in percent; where there is more than one value: median (least to largest)."
    )
    told = [pair_sentence(layers, found["paired"]) for layers, found in summary.items()]
    columns = claims_table.columns(summary)
    cells = ((name, *row) for name, row in rows.items())
    return page_of(text, markdown(("", *columns), cells), " ".join(told))


def pair_sentence(layers: str, pair: dict[str, Any]) -> str:
    """On the gap of runs that differ in batch norm alone."""
    equal = pair["pairs"] - pair["smaller_with"] - pair["larger_with"]
    return (
        f"With {layers} layers both networks fit their images in {pair['pairs']} pairs of runs that differ "
        f"in batch norm alone; the gap is smaller with it in {pair['smaller_with']}, larger in "
        f"{pair['larger_with']}, equal in {equal}."
    )


def gpu_results() -> list[dict[str, Any]]:
    """What tools/gpu_check found, one device each."""
    return [read(path) for path in sorted(RESULTS.glob("gpu_*.json"))]


def gpu_goals() -> str:
    """Which of the goals hold, on each device."""
    results = gpu_results()
    columns = [goals.goals(result) for result in results] or [goals.goals({})]
    names = [result["device"]["name"] for result in results] or ["any GPU"]
    said = {True: "holds", False: "**does not hold**", None: "not measured yet"}
    rows = []
    for column in zip(*columns, strict=True):
        cells = (said[goal.holds] + (f": {goal.detail}" if goal.detail else "") for goal in column)
        rows.append((column[0].text, *cells))
    return "\n".join(markdown(("goal", *names), rows, "l" * (1 + len(names))))


def gpu_layers() -> str:
    """The layers of ResNet-50 at batch 128 in bfloat16, channels last, on each device."""
    return "\n\n".join(map(gpu_table, gpu_results())) or "Not measured yet."


def gpu_table(result: dict[str, Any]) -> str:
    """One device: microseconds, part of the copy bandwidth, and how many times as long torch takes."""
    versions, tests = result["versions"], result.get("tests")
    speed = f"{result['copy']['gb_per_s']:.0f} GB/s" if "copy" in result else "not measured"
    text = (
        f"**{result['device']['name']}**, driver {result['driver']}, torch {versions['torch']}, CUDA "
        f"{versions['cuda']}, {result['date']}. A large copy: {speed}. "
    )
    counts = tests and ", ".join(f"{tests[end]} {end}" for end in ("passed", "failed", "skipped"))
    text += f"Tests on the device: {counts} ({tests['outcome']})." if tests else "Its tests were not run."
    rows = []
    for case, count in goals.as_used(goals.BATCH, "bfloat16", "channels_last"):
        cells = (gpu_cell(result, case, which) for which in goals.PASSES)
        rows.append((case.layer.name, count, case.fusion.replace("_", " + "), *cells))
    lines = markdown(("layer", "count", "behind it", "forward", "backward", "eval"), rows, "lrl")
    sums = []
    for each in goals.sums(result):
        numbers = (f"{number:.2f}" for number in (each.ours, each.torch, each.torch / each.ours))
        sums.append((f"all 53 layers, {each.title}, {each.which}", *numbers))
    if sums:
        lines += ["", *markdown(("milliseconds", "bnfold", "torch", "times"), sums)]
    return page_of(text, lines)


def gpu_cell(result: dict[str, Any], case: goals.Case, which: str) -> str:
    """One pass of one layer."""
    time, part = goals.us(result, case, which, "bnfold"), goals.fraction(result, case, which)
    times = goals.ratio(result, case, which)
    if None in (time, part, times):
        return "not measured yet"
    return f"{time:.1f} us, {part:.0%}, {times:.2f} times"


def deployed(name: str, made: ModuleType) -> str:
    """Of the results NAME.json, by a module that makes of them a text, and the lines of a table."""
    result = read(RESULTS / f"{name}.json")
    return page_of(made.text(result), made.lines(result))


def order() -> str:
    """One network after each step of compression."""
    result = read(RESULTS / "order.json")
    return page_of(order_table.text(result), order_table.lines(result), order_table.after(result))


def trained(made: Callable[[dict[str, Any]], str]) -> str:
    """A table of what tools/int8 trained has measured."""
    return made(read(RESULTS / "int8_trained.json"))


def operators() -> str:
    """Which of ONNX's operators have a role, and which are known without one; by families."""
    rows = []
    for family in FAMILIES:
        made = getattr(family, family.__name__.rpartition(".")[2].upper())
        roles = sorted(name for name, record in made.items() if record.role is not None)
        closed = sorted(name for name, record in made.items() if record.role is None)
        what = (family.__doc__ or "").splitlines()[0].rstrip(".")
        rows.append((what, ", ".join(roles) or "-", ", ".join(closed) or "-"))
    headings = ("family", "a change passes or is absorbed", "closed")
    return "\n".join(markdown(headings, rows, "lll"))


def modelled(made: Callable[[dict[str, Any]], str]) -> str:
    """A table of what tools/kernel_cost has computed."""
    return made(read(RESULTS / "kernel_cost.json"))


def page_of(text: str, lines: list[str], after: str = "") -> str:
    """A text, a table, and what follows it."""
    return "\n".join([wrapped(text), "", *lines, *(["", wrapped(after)] if after else [])])


def wrapped(text: str, width: int = 118) -> str:
    """In lines of that width."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"left": left},
    "docs/peers.md": {
        "torch_zoo": torch_zoo,
        "speed": speed,
        "torch": torch,
        "torch_speed": torch_speed,
    },
    "docs/tensorrt.md": {"zoo_tensorrt": zoo_tensorrt},
    "docs/training.md": {"claims": claims},
    "docs/precision.md": {"precision": partial(deployed, "precision", precision_table)},
    "docs/compression.md": {
        "order": order,
        "merging": merging,
        "equalize": partial(deployed, "equalize", equalize_table),
        "slimming": partial(deployed, "slim", slim_table),
    },
    "docs/int8.md": {
        "int8_steps": partial(trained, int8_table.steps),
        "int8_merging": partial(trained, int8_table.merging),
        "int8": int8,
        "int8_hurts": lambda: int8_table.hurts(read(RESULTS / "int8_hurts.json")),
        "int8_losses": lambda: wrapped(trained(int8_table.losses)),
        "int8_four_bits": partial(trained, int8_table.four_bits),
    },
    "docs/operators.md": {"operators": operators},
    "docs/integrations.md": {
        "stacks": partial(deployed, "stacks", stacks_table),
        "recipes": partial(deployed, "recipes", recipes_table),
    },
    "docs/proof.md": {"prove": partial(deployed, "prove", prove_table)},
    "docs/performance.md": {
        "gpu_goals": gpu_goals,
        "gpu_layers": gpu_layers,
        "kernel_counts": partial(modelled, cost_tables.counts),
        "kernel_layers": partial(modelled, cost_tables.layers),
        "kernel_goals": partial(modelled, cost_tables.goals),
        "host_time": partial(deployed, "host_time", host_table),
    },
}


def renewed(page: str) -> str:
    """A page with its tables made anew."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end -->\n"
        assert text.count(start) == 1, f"{page} has no place for the table {name}"
        before, after = text.split(start)
        text = f"{before}{start}\n{make()}\n\n{end}{re.split(end, after, maxsplit=1)[1]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(renewed(page), encoding="utf-8")

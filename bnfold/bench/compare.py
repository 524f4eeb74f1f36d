"""From files to standings: the same inputs for all, each model on what it is meant for."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.bench.providers import OnnxRacer, runtime
from bnfold.bench.race import Racer, Standing, Standings, race
from bnfold.errors import UsageError
from bnfold.onnx_graph.file import loaded as files
from bnfold.onnx_graph.run.inputs import Given, Input, by_name, compatible, feed_from, generate, wanted
from bnfold.progress import Advance
from bnfold.tensorrt.run import EngineFile

__all__ = ["ENGINES", "compare"]

Array = np.ndarray[Any, Any]
ENGINES = (".engine", ".plan")  # what engines' files end in


def compare(
    paths: Sequence[Path],
    *,
    provider: str | None = None,
    inputs: Given | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    seconds: float = 10.0,
    rounds: int | None = None,
    seed: int = 0,
    progress: Advance | None = None,
) -> Standings:
    """Time models side by side.

    Args:
        paths: ONNX files; what ends in .engine or .plan is an engine.
        provider: one of `providers.PROVIDERS`: onnxruntime's for ONNX files (None: cpu), TensorRT's flavour
            for engines (None: the one that is installed).
        inputs: arrays; None: random ones. An open batch is 1, if `shapes` does not say otherwise.
        shapes: of inputs, by name.
        threads: of onnxruntime on the CPU; None: its own choice.
        seconds: to measure, all models together.
        rounds: how many to run instead.
        seed: of the random inputs and orders.
        progress: called with percents of the work.

    Raises:
        UsageError: the inputs of the models differ, or do not fit; a provider is not there.
        ModelError: a file is no model, or what should run it refuses it.
        BnfoldError: a model does not run.
    """
    if threads is not None and provider not in (None, "cpu"):
        raise UsageError(f"--threads has nothing to do with the provider {provider}: it is for the CPU")
    engines = [path for path in paths if path.suffix in ENGINES]
    models = [path for path in paths if path not in engines]
    if engines and provider not in (None, "tensorrt", "tensorrt-rtx"):
        raise UsageError(f"{engines[0]} is an engine, which the provider {provider} cannot run; leave it out")
    if threads is not None and not models:
        raise UsageError("--threads has nothing to do with engines")
    if models:
        runtime(provider or "cpu")
    opened = {path: EngineFile(path, provider) for path in engines}
    asked = {path: opened[path].inputs if path in opened else wanted(files.load(path)) for path in paths}
    _refuse_different(asked)
    first, *_ = paths
    feed = _feed(asked[first], inputs, shapes, seed)

    racers: list[Racer] = []
    for path in paths:
        own = feed_from(asked[path], feed)  # in this model's own types
        if path in opened:
            racers.append(opened[path].racer(own))
        else:
            racers.append(OnnxRacer(path, provider or "cpu", own, threads))
    times = race(racers, seconds=seconds, rounds=rounds, seed=seed, progress=progress)
    standings = [Standing(r.name, r.provider, t, times[0]) for r, t in zip(racers, times, strict=True)]
    notes = [note for racer in racers for note in racer.notes]
    return Standings(
        tuple(standings), {n: a.shape for n, a in feed.items()}, _machine(bool(models)), tuple(notes)
    )


def _refuse_different(asked: Mapping[Path, Sequence[Input]]) -> None:
    """Names and shapes must agree, and types but for the precision of floats."""
    (first, theirs), *rest = asked.items()
    for path, ours in rest:
        a, b = ({i.name: i for i in some} for some in (theirs, ours))
        if a.keys() != b.keys() or not all(_same(a[name], b[name]) for name in a):
            told = (", ".join(f"{i.name}: {i}" for i in some) or "none" for some in (theirs, ours))
            raise UsageError(
                "the models take different inputs, so their times say nothing about each other: "
                f"{first} takes {next(told)}; {path} takes {next(told)}"
            )


def _same(a: Input, b: Input) -> bool:
    if _is_float(a) and _is_float(b):
        b = Input(b.name, a.dtype, b.dims)
    return compatible(a, b)


def _is_float(i: Input) -> bool:
    return i.dtype.kind == "f" or i.dtype.name == "bfloat16"


def _feed(
    inputs: Sequence[Input], given: Given | None, shapes: Mapping[str, Sequence[int]] | None, seed: int
) -> dict[str, Array]:
    if given is not None:
        if shapes:
            raise UsageError("--overwrite-input-shape has nothing to do with --input-data-path")
        return feed_from(inputs, given)
    full = by_name(inputs, shapes)
    for i in inputs:
        if i.name in full or i.dims is None:
            continue
        sizes = [1 if axis == 0 and not isinstance(dim, int) else dim for axis, dim in enumerate(i.dims)]
        if not all(isinstance(size, int) for size in sizes):
            example = ",".join(str(size) if isinstance(size, int) else "224" for size in sizes)
            raise UsageError(
                f"sizes are open in the input {i.name}: {i}; say which to time, such as "
                f"--overwrite-input-shape {i.name}:{example}"
            )
        full[i.name] = [int(size) for size in sizes if isinstance(size, int)]
    return next(generate(inputs, seed, full))


def _machine(by_onnxruntime: bool) -> str:
    parts = [platform.machine(), f"{os.cpu_count()} CPUs"]
    if by_onnxruntime:
        import onnxruntime

        parts.append(f"onnxruntime {onnxruntime.__version__}")
    return ", ".join(parts)

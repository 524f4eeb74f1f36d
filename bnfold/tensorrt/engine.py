"""Engines: a model parsed and built by TensorRT, and where its batch norms went.

TensorRT's own interface, and not polygraphy's: that gives the parser's complaints to its own log, not to its
caller, and keeps the logger to itself, which without a GPU is the only place where layers are told.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from bnfold.errors import BnfoldError, ModelError, UsageError, first_line
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run.inputs import wanted
from bnfold.progress import Advance
from bnfold.report.table import shortened
from bnfold.tensorrt import flavours, model
from bnfold.tensorrt.layers import Placement, layers_in, placement
from bnfold.tensorrt.log import Log, recording
from bnfold.tensorrt.monitor import BuildMonitor
from bnfold.tensorrt.plugin import load_plugin
from bnfold.tensorrt.profiles import Profile, as_text, profiles

__all__ = ["FLAVOURS", "RTX", "Engine", "build", "reason", "toolkit"]

RTX = "tensorrt_rtx"
FLAVOURS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}  # those that build, and their names


@dataclass(frozen=True)
class Engine:
    """What was built.

    Attributes:
        plan: the content of the engine's file, a buffer.
        builder: by what, with its version.
        compute_capabilities: for which GPUs, such as "8.0"; empty: the builder's own choice.
        profiles: the shapes of each input with open sizes.
        placement: where each node went; None if TensorRT did not say.
        timing_cache: what may speed up the next build; None if none was asked for.
        seconds: how long it took.
        notes: remarks for the user.
        warnings: TensorRT's own.
    """

    plan: Any
    builder: str
    compute_capabilities: tuple[str, ...]
    profiles: dict[str, Profile]
    placement: Placement | None
    timing_cache: Any
    seconds: float
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; docs/engines.md says what each key means."""
        placed = Placement((), (), ()) if self.placement is None else self.placement
        return {
            "builder": self.builder,
            "compute_capabilities": list(self.compute_capabilities),
            "shapes": {name: as_text(profile) for name, profile in self.profiles.items()},
            "bytes": memoryview(self.plan).nbytes,
            "seconds": round(self.seconds, 3),
            **placed.to_dict(),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def toolkit(flavour: str | None) -> ModuleType:
    """The package that builds. flavour: "tensorrt" or "tensorrt-rtx"; None: the first that is installed.

    Raises:
        UsageError: it is not installed, or does not load.
    """
    if flavour is None:
        return flavours.find(build=True)
    chosen = next(each for each in flavours.FLAVOURS if each.module == flavour.replace("-", "_"))
    try:
        return importlib.import_module(chosen.module)
    except Exception as error:  # of any kind: it loads shared libraries
        raise UsageError(
            f"{FLAVOURS[flavour]} cannot be used ({first_line(error)}): {chosen.installs}"
        ) from None


def build(
    loaded: Loaded,
    *,
    flavour: str | None = None,
    shapes: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
    compute_capabilities: Sequence[str] = (),
    timing_cache: bytes | None = None,
    progress: Advance | None = None,
) -> Engine:
    """Build an engine from an ONNX model, in the types that the model states.

    Args:
        loaded: the model; it stays as it is.
        flavour: "tensorrt" or "tensorrt-rtx"; None: the first that is installed, in this order.
        shapes: the smallest, usual and largest shape of each input with open sizes, by name, or one for all.
        compute_capabilities: of the GPUs to build for, such as "8.0" (TensorRT-RTX only).
        timing_cache: what an earlier build left, or b"" to begin with (TensorRT only); None: without one.
        progress: called with percents of the work.

    Raises:
        UsageError: TensorRT is missing; shapes are missing or do not fit; an option is not for this flavour.
        ModelError: the model is damaged, or TensorRT cannot parse it or build an engine from it.
        BnfoldError: TensorRT does not start: there is no GPU, say.
        KeyboardInterrupt: the user interrupted; TensorRT has stopped.
    """
    begin = time.monotonic()
    trt = toolkit(flavour)
    rtx = trt.__name__ == RTX
    builder_name = f"{FLAVOURS[trt.__name__.replace('_', '-')]} {trt.__version__}"
    targets = _targets(trt, builder_name, rtx, compute_capabilities)
    if rtx and timing_cache is not None:
        raise UsageError(
            "--timing-cache has nothing to do with TensorRT-RTX, which times nothing while it builds; "
            "leave it out"
        )
    wanted_shapes = profiles(wanted(loaded), shapes or {}, loaded.where)
    prepared = model.prepare(loaded, plugins=not rtx)
    notes = _plugin_notes(prepared, rtx)

    with recording(trt) as (logger, log), BuildMonitor(trt, progress) as monitor:
        builder = _started(trt, builder_name, logger, log)
        network = builder.create_network(_network_flags(trt))
        with model.parsed(trt, prepared, network, logger, log):
            config = builder.create_builder_config()
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # it lists layers with their nodes
            config.progress_monitor = monitor.interface
            if targets:
                config.num_compute_capabilities = len(targets)
                for i, target in enumerate(targets):
                    config.set_compute_capability(target, i)
            cache = None if timing_cache is None else _cache(config, timing_cache, log)
            _add_profile(builder, network, config, wanted_shapes, log)
            plan = builder.build_serialized_network(network, config)
        monitor.check()
        if plan is None:
            raise ModelError(f"{loaded.where}{builder_name} cannot build an engine: {reason(log.errors)}")
        if cache is not None:
            cache = memoryview(config.get_timing_cache().serialize())
        layers = next(
            (found for _, text in reversed(log) if (found := layers_in(text, prepared.names))), None
        )
    if layers is None:
        notes.append("TensorRT did not list the engine's layers: where each batch norm went is not known")
    return Engine(
        plan=plan,
        builder=builder_name,
        compute_capabilities=tuple(compute_capabilities),
        profiles=wanted_shapes,
        placement=None if layers is None else placement(prepared.nodes, layers),
        timing_cache=cache,
        seconds=time.monotonic() - begin,
        notes=notes,
        warnings=log.warnings,
    )


def _targets(trt: ModuleType, builder: str, rtx: bool, wanted: Sequence[str]) -> list[Any]:
    """TensorRT's own values for compute capabilities: of "12.0" that of SM120."""
    if not wanted:
        return []
    if not rtx:
        raise UsageError(
            "--compute-capability has nothing to do with TensorRT, which builds for the GPU of this machine; "
            "leave it out, or build with --flavour tensorrt-rtx"
        )
    members = dict(trt.ComputeCapability.__members__)
    matches = {name: re.fullmatch(r"SM(\d+)(\d)", name) for name in members}
    known = {".".join(match.groups()): members[name] for name, match in matches.items() if match}
    for each in wanted:
        if each not in known:
            choices = ", ".join(sorted(known, key=lambda text: tuple(map(int, text.split(".")))))
            raise UsageError(
                f"{builder} does not build for compute capability {each!r}. Note: valid choices are {choices}"
            )
    if len(set(wanted)) < len(wanted):
        raise UsageError("--compute-capability names one twice")
    return [known[each] for each in wanted]


def _plugin_notes(prepared: model.Prepared, rtx: bool) -> list[str]:
    """Loads bnfold's plugin where it can be used."""
    if not prepared.ours:
        return []
    bodies = "bnfold's operators are built from standard ones, as their functions in the model say"
    if rtx:
        return [f"{bodies}: TensorRT-RTX takes no plugins"]
    try:
        load_plugin()
    except BnfoldError as error:
        return [f"{bodies}: the plugin was not loaded ({first_line(error)})"]
    return ["bnfold's operators are plugins: what runs the engine has to load bnfold's plugin library first"]


def _started(trt: ModuleType, builder: str, logger: Any, log: Log) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError:  # what its bindings make of a null pointer
        raise BnfoldError(
            f"{builder} cannot start: {reason(log.errors)}. It builds only on a machine with an NVIDIA GPU; "
            "TensorRT-RTX needs none (pip install tensorrt-rtx; bnfold build --flavour tensorrt-rtx)"
        ) from None


def _network_flags(trt: ModuleType) -> int:
    """Types are the model's, never TensorRT's choice. From TensorRT 11 on there is nothing else."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if typed is None else 1 << int(typed)


def _add_profile(builder: Any, network: Any, config: Any, shapes: Mapping[str, Profile], log: Log) -> None:
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if tensor.is_shape_tensor:
            raise ModelError(
                f"the input {tensor.name!r} decides about shapes, and an engine would need the range of its "
                "values, which --shapes cannot give; export the model with a constant in its place"
            )
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, sizes in shapes.items():
        profile.set_shape(name, *sizes)
    if config.add_optimization_profile(profile) < 0:
        raise UsageError(f"--shapes: TensorRT refuses these shapes: {reason(log.errors)}")


def _cache(config: Any, content: bytes, log: Log) -> Any:
    cache = config.create_timing_cache(content)
    if not cache or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise UsageError(
            f"--timing-cache: TensorRT does not take it, since it is damaged, or of another GPU or version "
            f"({reason(log.errors)}); name another file"
        )
    return cache


def reason(errors: Sequence[str]) -> str:
    """The first error, without where in TensorRT's source it arose."""
    for text in errors:
        short = re.sub(r"^(\w+::\w+: )?Error Code \d+: ", "", " ".join(text.split()))
        short = re.sub(r"\.?\s*\bIn \S+ at \S+:\d+\s*", "", short).replace("(())", "").strip()
        return shortened(short, 300)
    return "it does not say why"

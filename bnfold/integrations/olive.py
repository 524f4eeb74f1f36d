"""A pass for Olive: `bnfold.fold_onnx` on the ONNX model that a workflow has at that point.

    from bnfold.integrations.olive import package_config
    from olive.workflows import run

    run("workflow.json", package_config=package_config("olive-package.json"))

and in the workflow, behind the conversion and before the quantization: `"fold": {"type": "BnFold"}`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.api.fold_onnx import fold_file
from bnfold.integrations.stack import imported
from bnfold.onnx_graph.file.save import save
from bnfold.options import Check, Fold

if TYPE_CHECKING:
    Pass = Any
else:
    Pass = imported("olive-ai", "olive.passes", "Pass")

__all__ = ["BnFold", "package_config"]

LOG = logging.getLogger("bnfold")
ENTRY = {
    "module_path": f"{__name__}.BnFold",
    "supported_providers": ["*"],
    "supported_accelerators": ["*"],
    "supported_precisions": ["*"],
}
OPTIONS: dict[str, tuple[type, Any, str]] = {
    "skip": (list, [], "Names of batch norms to leave alone."),
    "quantize_for": (
        str,
        None,
        "What will follow (int8, int8-per-tensor, int4): it decides what is merged.",
    ),
    "merge_branches": (bool, True, "Merge parallel branches."),
    "verify": (bool, True, "Check that the folded model computes the same."),
}


class BnFold(Pass):  # type: ignore[misc]
    """Folds every batch norm that can vanish; the options are those of `fold_onnx`."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        param = imported("olive-ai", "olive.passes.pass_config", "PassConfigParam")
        external = imported("olive-ai", "olive.passes.onnx.common", "get_external_data_config")
        own = {
            name: param(type_=kind, default_value=default, description=said)
            for name, (kind, default, said) in OPTIONS.items()
        }
        return {**own, **external()}

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        handler = imported("olive-ai", "olive.model", "ONNXModelHandler")
        resolved = imported("olive-ai", "olive.model.utils", "resolve_onnx_path")
        if not isinstance(model, handler):
            kind = type(model).__name__
            raise TypeError(f"BnFold takes an ONNX model, not {kind}: put OnnxConversion in front of it")
        path = Path(resolved(output_model_path, "model.onnx"))
        options = Fold(
            skip=config.skip, quantize_for=config.quantize_for, merge_branches=config.merge_branches
        )
        folded, report = fold_file(model.model_path, options, Check(config.verify))
        LOG.info("BnFold: %d folded, %d kept", len(report.folded), len(report.kept))
        path.parent.mkdir(parents=True, exist_ok=True)
        save(folded, path, force=True, external=config.save_as_external_data or None)
        return handler(model_path=str(path))


def package_config(path: str | Path) -> str:
    """Write Olive's own package config with this pass in it, for `olive.workflows.run(..., package_config=)`.

    A package config stands in place of Olive's own, so that all of that has to be in it.

    Args:
        path: the JSON file to write.

    Returns:
        The path.
    """
    config = imported("olive-ai", "olive.package_config", "OlivePackageConfig")
    whole = json.loads(Path(config.get_default_config_path()).read_text(encoding="utf-8"))
    whole["passes"]["BnFold"] = ENTRY
    Path(path).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return str(path)

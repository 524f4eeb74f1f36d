"""One recipe of examples/recipes, run as its file stands there: what the fold took of each network.

A line of JSON. Started by tools/stacks --recipes.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import sys
import tempfile
import warnings
from typing import Any

import torch

from tools._common import ROOT
from tools._data.models import import_timm
from tools._stacks.measure import processor

RECIPES = ROOT / "examples" / "recipes"


def main() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import_timm()  # with it, torchvision is as the libraries' own imports need it
    path = RECIPES / f"{sys.argv[1]}.py"
    sys.path.insert(0, str(RECIPES))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        begin = processor()
        reports = runpy.run_path(str(path))["reports"]
        seconds = processor() - begin
        os.chdir(ROOT)
    found = {name: gained(report) for name, report in reports.items()}
    print(json.dumps({"seconds": seconds, "networks": found}), flush=True)


def gained(report: Any) -> dict[str, Any]:
    """What the network had as its library's users export it, what is left, and what the check says."""
    found: dict[str, Any] = {}
    for part, which in (("before", report.entries), ("after", report.kept)):
        norms = sum("batchnorm" in entry.op.lower().replace("_", "") for entry in which)
        found[part] = {"batch_norms": norms, "per_channel": len(which) - norms}
    check = report.verification
    return found | {
        "merged": len(report.merged),
        "check": "nothing to check" if check is None else check.status,
    }


if __name__ == "__main__":
    main()

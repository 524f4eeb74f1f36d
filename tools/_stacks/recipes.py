"""The recipes of examples/recipes/ with the real libraries. Started by tools/stacks --recipes.

Each exports a network as its library's users write it, and has one line of bnfold more. What the file or the
program had before that line, what is left, and what was merged is kept in bench/results/recipes.json.
"""

from __future__ import annotations

import argparse
import sys

from tools._common import RESULTS, console, machine, read, table, today, write
from tools._stacks.recipes_table import HEADINGS, rows
from tools._stacks.stacks import Stack, installed, measured

RESULT = RESULTS / "recipes.json"
# The library, and the version that was tested, by the recipe's file.
RECIPES = {
    "for_timm": ("timm", "1.0.31"),
    "for_transformers": ("transformers", "5.24.0"),
    "for_segmentation_models": ("segmentation_models_pytorch", "0.6.0"),
    "for_monai": ("monai", "1.6.1"),
    "for_torchaudio": ("torchaudio", "2.11.1"),
    "for_keras": ("keras", "3.15.1"),
    "for_pyg": ("torch-geometric", "2.8.1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="stacks --recipes", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", choices=[*RECIPES, []], help="those alone; by default all")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one recipe")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.recipes or RECIPES:
        package, tested = RECIPES[name]
        stack = Stack("recipes", "recipe", package)
        version = installed(stack)
        found, problem = measured(stack, [name], arguments.timeout) if version else ({}, "not installed")
        if problem:
            print(f"{name}: {problem}; tested with {package} {tested}", file=sys.stderr)
            failed = True
            continue
        result = read(RESULT)
        result[name] = {
            "package": package,
            "version": version,
            "date": today(),
            "machine": machine(),
            **found,
        }
        write(RESULT, result)
    view = table("What the recipes gain", HEADINGS, HEADINGS[:2])
    for cells in rows(read(RESULT)):
        view.add_row(*cells)
    console(140).print(view)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

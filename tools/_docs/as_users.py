"""Users, each in a clean environment: they install bnfold, make the examples, and type their pages along.

Started by tools/as_users. Nothing of this checkout is used but its commits: what is not committed is not
played. A page is typed from its top to its end in a folder with the files of examples/make.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools._docs.blocks import Block, commands_of, missing, printed_by
from tools._docs.users import ROOT, USERS, User

SOURCES = ("clone", "wheel")
LINKED = ("torch", "torchgen", "functorch")
WORDS = 2_000  # characters of an output that are shown where something is missing


def play(block: Block, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """What does not happen as the page says; `folder`: where it is typed."""
    if block.language == "python":
        (folder / "program.py").write_text(block.text, encoding="utf-8")
        steps = [("python program.py", printed_by(block.text))]
    else:
        steps = list(commands_of(block))
    status = 0
    for command, wanted in steps:
        line = f"(exit {status}); {command}"  # so that `echo $?` shows what a reader would see
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        status = done.returncode
        lost = missing(wanted, done.stdout)
        if lost or "Traceback" in done.stdout or (block.language == "python" and status):
            what = f"does not print\n  {lost}\nbut" if lost else f"ends with {status}:"
            yield f"{block}: `{command}` {what}\n{done.stdout[-WORDS:].strip() or '  nothing'}"


class Place:
    """A clean environment in a folder, with bnfold in it as one of SOURCES gives it."""

    def __init__(self, folder: Path, clone: Path, source: str, user: User, torch: Path | None) -> None:
        self.folder, self.clone = folder, clone
        venv = folder / "env"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self.environment |= {
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(venv),
            "PIP_CONSTRAINT": str(clone / "constraints.txt"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_QUIET": "2",
        }
        self.run(sys.executable, "-m", "venv", str(venv), at=folder)
        needs_torch = {"torch", "compress", "gpu"} & set(user.extras)
        if needs_torch and torch is not None:
            self.link(torch, venv)
        elif needs_torch:  # by itself and with its version, so that a CPU build at hand is preferred
            pins = (clone / "constraints.txt").read_text().splitlines()
            self.pip(next(pin for pin in pins if pin.startswith("torch==")))
        extras = ",".join(user.extras)
        if source == "clone":
            self.pip(f".[{extras}]")
        else:
            self.pip("setuptools")
            self.run("pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), ".", at=clone)
            [wheel] = folder.glob("bnfold-*.whl")
            self.pip(f"{wheel}[{extras}]")
        self.examples = folder / "examples"
        shutil.copytree(clone / "examples", self.examples)
        self.run("python", "make.py", at=self.examples)

    def pip(self, what: str) -> None:
        """Install it, in the clone as the README says it."""
        self.run("pip", "install", "--no-compile", what, at=self.clone)

    def run(self, *command: str, at: Path) -> None:
        """Run a command that must succeed.

        Raises:
            RuntimeError: it does not; with its last words.
        """
        done = subprocess.run(
            command, cwd=at, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout)[-WORDS:].strip()}")

    def link(self, torch: Path, venv: Path) -> None:
        """Put the torch of another environment in place: it is large, and what it needs is installed."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        found = subprocess.run([torch, "-c", code], capture_output=True, text=True, check=True)
        home, [target] = Path(found.stdout.strip()), venv.glob("lib/python*/site-packages")
        for path in (*(home / name for name in LINKED), *home.glob("torch-*.dist-info")):
            if path.exists():
                (target / path.name).symlink_to(path)

    def pages(self, user: User) -> Iterator[tuple[str, list[Block], list[str]]]:
        """Type each page along: its name, its blocks, and what does not happen."""
        for page, blocks in user.read(self.clone):
            if not blocks:
                continue
            folder = self.folder / "typed" / page.replace("/", "-")
            shutil.copytree(self.examples, folder)
            wrong = [told for block in blocks for told in play(block, folder, self.environment)]
            yield page, blocks, wrong


def main() -> int:
    """The exit status: 0 where all happens as the pages say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="as_users")
    parser.add_argument("users", metavar="USER", nargs="*", help=f"of {', '.join(USERS)} (default: all)")
    parser.add_argument(
        "--source", choices=SOURCES, action="append", help="what they install (default: both)"
    )
    parser.add_argument(
        "--torch", metavar="PYTHON", type=Path, help="link the torch of this Python, and install none"
    )
    args = parser.parse_args()
    if unknown := set(args.users) - set(USERS):
        parser.error(f"no such user: {', '.join(sorted(unknown))}")
    torch = None if args.torch is None else args.torch.absolute()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="bnfold-users-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for source in args.source or SOURCES:
            for name in args.users or USERS:
                place = Path(folder) / f"{source}-{name}"
                place.mkdir()
                failures += one(place, clone, source, name, torch)
                shutil.rmtree(place)
    print("all as the pages say" if not failures else f"{failures} not as the pages say")
    return int(failures > 0)


def one(folder: Path, clone: Path, source: str, name: str, torch: Path | None) -> int:
    """How much does not happen to one user as the pages say."""
    begin, failures = time.monotonic(), 0
    try:
        place = Place(folder, clone, source, USERS[name], torch)
    except RuntimeError as error:
        print(f"{name}, {source}: {error}", flush=True)
        return 1
    print(f"{name}, {source}: installed in {time.monotonic() - begin:.0f} s", flush=True)
    for page, blocks, wrong in place.pages(USERS[name]):
        print(f"  {page}: {len(blocks)} to type, {len(wrong)} wrong", flush=True)
        for told in wrong:
            print("    " + told.replace("\n", "\n    "), flush=True)
        failures += len(wrong)
    return failures


if __name__ == "__main__":
    sys.exit(main())

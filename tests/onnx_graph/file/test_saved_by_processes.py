"""Saving in processes of its own: what memory holds, and what a kill or a full disk leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.file.save import save
from tests.onnx_graph.file.test_external import contents, whole
from tests.onnx_graph.samples import chain

ROOT = Path(__file__).parents[3]


MEMORY = """
import os, sys
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.file.save import save
import numpy as np
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) << 10
done, most = os.write, [0]
def write(*arguments):
    most[0] = max(most[0], anonymous())
    return done(*arguments)
before, os.write = anonymous(), write
loaded = load(sys.argv[1])
largest = loaded.proto.graph.initializer[-1]
total = float(loaded.array(largest).sum())
loaded.set_array(largest, np.ones(1 << 22, np.float32))
save(loaded, sys.argv[2], external=sys.argv[3] == "True")
print(max(most[0], anonymous()) - before)
"""


@pytest.mark.parametrize(("before", "after"), [(False, False), (False, True), (True, True), (True, False)])
def test_memory_holds_no_weights(before: bool, after: bool, tmp_path: Path) -> None:
    """Anonymous memory, through load, edit and save of 96 MB, of which 16 MB are replaced."""
    model = chain(1, 2)
    data = bytes(1 << 24)
    for i in range(6):
        model.graph.initializer.append(TensorProto(name=f"t{i}", data_type=1, dims=[1 << 22], raw_data=data))
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    if before:
        save(load(tmp_path / "in.onnx"), tmp_path / "moved.onnx", external=True)
    source = tmp_path / ("moved.onnx" if before else "in.onnx")
    command = [sys.executable, "-c", MEMORY, str(source), str(tmp_path / "out.onnx"), str(after)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 40 << 20
    model.graph.initializer[-1].raw_data = np.ones(1 << 22, np.float32).tobytes()
    assert whole(tmp_path / "out.onnx") == model


# Each step of saving in a child of its own, which is killed there. Prints the steps, one a line.
STEPS = """
import os, resource, signal, sys
from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.file.save import save
import numpy as np
source, target, external, limit = sys.argv[1:]
def child(end):
    count = 0
    for name in ("open", "write", "fsync", "replace", "unlink"):
        def step(*arguments, name=name, done=getattr(os, name)):
            nonlocal count
            count += 1
            if count == end:
                if name == "write":
                    done(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return done(*arguments)
        setattr(os, name, step)
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (end * int(limit), resource.RLIM_INFINITY))
        count = -1000
    loaded = load(source)
    loaded.set_array(loaded.proto.graph.initializer[0], np.full((16, 16, 3, 3), end, np.float32))
    try:
        save(loaded, target, force=True, external=external == "True")
    except BnfoldError as error:
        print(error, flush=True)
        os._exit(2)
    os._exit(0)
for end in range(1, 100):
    pid = os.fork()
    if pid == 0:
        child(end)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print("exit", end, code, flush=True)
    sys.stdin.readline()
    if code == 0:
        break
"""


def each_end(source: Path, target: Path, external: bool, limit: int) -> Any:
    """Run STEPS; for each child give its number, how it ended, and what it said."""
    command = [sys.executable, "-c", STEPS, str(source), str(target), str(external), str(limit)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            if not line.startswith("exit "):
                said += line
                continue
            _, end, code = line.split()
            yield int(end), int(code), said
            said = ""
            print(file=process.stdin, flush=True)
    assert process.returncode == 0


@pytest.mark.parametrize("external", [False, True])
def test_killed_at_any_step_the_old_model_or_the_new_is_whole(external: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(load(chain()), path, external=external)
    pristine = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    seen, codes = [], []
    for end, code, _ in each_end(path, path, external, 0):
        model = whole(path)
        new = chain()
        new.graph.initializer[0].raw_data = np.full((16, 16, 3, 3), end, np.float32).tobytes()
        assert model in (chain(), new)
        seen.append(model == new)
        codes.append(code)
        for name in os.listdir(tmp_path):
            visible = not name.startswith(".bnfold-")
            assert not (visible and name not in pristine) or external
            (tmp_path / name).unlink()
        for name, content in pristine.items():
            (tmp_path / name).write_bytes(content)
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) >= (9 if external else 5)
    assert seen[0] is False
    assert seen[-1] is True
    assert seen == sorted(seen)


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_leaves_all_as_it_was(external: bool, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    path = tmp_path / "m.onnx"
    save(load(chain()), path, external=external)
    before = contents(tmp_path)
    size = max(map(len, before.values()))
    ends, limit = [], size // 3 - 1
    for end, code, said in each_end(path, path, external, limit):
        ends.append(code)
        if code:
            assert said.startswith(str(path))
            assert said.endswith(": cannot be written: File too large\n")
            assert said.count("\n") == 1
            assert contents(tmp_path) == before
        else:
            assert end * limit >= size
    assert ends == [2, 2, 2, 0]

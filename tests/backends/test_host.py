"""What LLVM says of this machine is asked once: the answer is kept for the processor and the version of LLVM alone."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tilewright.backends import host
from tilewright.backends.cache import ObjectCache
from tilewright.backends.llvm import worker

CPU = "processor : {n}\nmodel name : {name}\ncpu MHz : {n}000.1\nflags : fpu avx2\n\n"


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    file = tmp_path / "cpuinfo"
    file.write_text(CPU.format(n=0, name="A") + CPU.format(n=1, name="A"))
    return file


def test_asked_once_for_a_processor(tmp_path: Path, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], host._ask

    def ask() -> host.Host:
        asked.append(1)
        return real()
    monkeypatch.setattr(host, "_ask", ask)
    cache = ObjectCache(tmp_path / "objects")
    first = host.describe_host(cache, cpuinfo)
    cpuinfo.write_text(CPU.format(n=7, name="A"))  # the clock and the number of processors do not matter
    assert host.describe_host(cache, cpuinfo) == first == real() and len(asked) == 1
    cpuinfo.write_text(CPU.format(n=0, name="B"))
    assert host.describe_host(cache, cpuinfo) == first and len(asked) == 2
    for file in (tmp_path / "objects").iterdir():
        file.write_bytes(b"damaged")
    assert host.describe_host(cache, cpuinfo) == first and len(asked) == 3


def test_without_a_description_it_is_asked(tmp_path: Path, cpuinfo: Path) -> None:
    cache = ObjectCache(tmp_path / "objects")
    assert host.describe_host(cache, tmp_path / "none") == host._ask()
    cpuinfo.write_text("nothing : here\n")
    assert host.describe_host(cache, cpuinfo) == host._ask()
    assert not (tmp_path / "objects").exists()
    assert host.describe_host(ObjectCache(None), cpuinfo) == host._ask()


def test_a_process_that_compiles_little_needs_no_llvm(tmp_path: Path) -> None:
    """Nothing is known of the machine and no code is in the cache: workers ask and compile."""
    x, y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, [16]) for k in "xy")
    model = helper.make_model(helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y]),
                              opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "add.onnx")
    code = (f"import sys; import numpy as np, tilewright as tw; e = tw.compile({str(tmp_path / 'add.onnx')!r}, threads=2)\n"
            "assert (e(np.ones(16, np.float32)) == 2).all(); print('llvmlite.binding' in sys.modules)")
    environment = {**os.environ, "TILEWRIGHT_CACHE": str(tmp_path / "cache")}
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout.strip()
            for _ in range(2)]
    assert said == ["False", "False"]


@pytest.mark.parametrize("command", [[], ["no such program"], [sys.executable, "-c", "raise SystemExit(3)"],
                                     [sys.executable, "-c", "print(3)"], [sys.executable, "-c", "import time; time.sleep(600)"]],
                         ids=["none", "absent", "fails", "nonsense", "waits"])
def test_without_a_worker_the_process_asks_itself(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = host._ask()
    if any("sleep" in word for word in command):
        monkeypatch.setattr(host, "PATIENCE", 0.1)
    monkeypatch.setattr(worker, "llvm_is_loaded", lambda: False)
    monkeypatch.setattr(worker, "command", lambda *options: command)
    assert host._ask() == expected and expected.triple

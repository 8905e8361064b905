"""What LLVM says of this machine is asked once: the answer is kept for the processor and the version of LLVM alone."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tilewright.backends import host
from tilewright.backends.cache import ObjectCache

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


def test_known_host_needs_no_llvm() -> None:
    code = "import sys; from tilewright.backends.target import Target; Target.host(); print('llvmlite.binding' in sys.modules)"
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)]
    assert said[1] == ("False" if ObjectCache.default().folder else "True")

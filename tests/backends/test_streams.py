"""The loop of products that stream weights does as many multiply-adds as it says, and asks for as many lines."""
from __future__ import annotations

import re

import numpy as np
import pytest

from tilewright.backends.llvm.jit import compile_ir
from tilewright.backends.peak import accumulators
from tilewright.backends.streams import LINE, WAYS, stream, stream_ir
from tilewright.backends.target import Target

TARGETS = ("x86-64", "x86-64-v3", "x86-64-v4", "aarch64")


def page(size: int) -> np.ndarray:
    a = np.ones((size + 4096) // 4, np.float32)
    start = -a.ctypes.data % 4096 // 4
    return a[start:start + size // 4]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rate", [0.3, 1.0, 7.4, 16.0, 60.0])
def test_multiply_adds_of_ones_count_themselves(rate: float, way: str) -> None:
    s = stream(Target.host(), rate, way)
    assert s.adds == pytest.approx(rate * s.lines, abs=0.5) and s.adds >= 1 and s.lines >= 1
    rounds = 3 + s.panel_bytes // (s.lines * LINE)  # the panel is begun again
    panel, cold = page(2 * s.panel_bytes), page((rounds * s.lines + 1) * LINE)
    assert s.run(panel.ctypes.data, cold.ctypes.data, rounds) == rounds * s.adds


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("way", WAYS)
def test_code_for_every_kind_of_processor(name: str, way: str) -> None:
    target = Target.parse(name)
    chains = accumulators(target)
    text = stream_ir(target, chains, 2 * chains, 3, 1 << 18, way)
    loads = re.findall(r"= load volatile <(\d+) x float>, ptr %p\d+", text)
    assert text.count("call void @llvm.prefetch") == (3 if way == "prefetch" else 0)
    assert len(loads) * int(loads[0]) * 4 == 3 * LINE
    multiply_adds = re.findall(r"%b\d+ = call" if target.has_fma else r"%b\d+ = fadd", text)
    assert len(multiply_adds) == 2 * chains
    assert compile_ir(text, target)

"""Long epilogues run as loops over the rows of a tile: shorter code, the same bits."""
from __future__ import annotations

import numpy as np
import pytest

from tests.compiler.programs import matmul_gelu, random_inputs, run_native
from tilewright.backends.llvm import emit_reduce
from tilewright.backends.llvm.emit import emit_kernel
from tilewright.backends.target import Target, runs_here
from tilewright.compiler.schedule.contraction import schedule_contraction


@pytest.mark.parametrize("shape", [(23, 37, 90), (128, 16, 96), (9, 5, 16), (64, 3, 7)])
@pytest.mark.parametrize("name", ["native", "x86-64-v3", "x86-64"])
def test_same_bits(monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, int, int]) -> None:
    target, p = Target.parse(name), matmul_gelu(*shape)
    if not runs_here(target):
        target = Target.host()
    s = schedule_contraction(p, target, frozenset({"w"}))
    assert s is not None
    inputs = random_inputs(p)
    looped, short = run_native(s, target, inputs), len(emit_kernel(s, target, "k"))
    monkeypatch.setattr(emit_reduce, "LONG_EPILOGUE", 10**9)
    straight, long = run_native(s, target, inputs), len(emit_kernel(s, target, "k"))
    assert short <= long and (short < long / 2 or shape[0] < 64 or shape[2] < 96), "tiles of many points have shorter code"
    for k, v in looped.items():
        np.testing.assert_array_equal(v, straight[k])

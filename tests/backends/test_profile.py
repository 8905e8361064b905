"""`exe.profile`: every call of the plan is there with its operations and bytes, and running it changes nothing."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.backends.peak import f32_peak, memory_bandwidth
from tilewright.backends.plan import KernelCall
from tilewright.backends.target import Target
from tilewright.ir import ops as _ops  # noqa: F401  (registers every op)
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.types import F32, TensorType


def mlp() -> tw.Executable:
    b = GraphBuilder("mlp")
    x = b.input("x", TensorType(F32, (8, 64)))
    w, v = (b.constant(np.ones(s, np.float32) / 64, name=name) for s, name in (((64, 32), "w"), ((32, 10), "v")))
    h = b.op("tanh", b.op("matmul", x, w))
    return tw.compile(b.graph([b.op("softmax", b.op("matmul", h, v), axis=1)]), cache=False)


def test_profile() -> None:
    exe, x = mlp(), np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    before = exe(x)
    p = exe.profile([x], seconds=0.01)
    plan = exe.instances()[0].plan
    assert [c.label for c in p.calls] == [c.label for c in plan.calls] and p.runs >= 5 and p.peak > 0 and p.memory > 0
    assert all(0 < c.seconds < 1 and c.low <= c.seconds <= c.high and c.bytes > 0 for c in p.calls)
    assert sum(c.flops for c in p.calls) >= 2 * 8 * (64 * 32 + 32 * 10)
    assert sum(c.bytes for c in p.calls) >= 4 * (8 * 64 + 64 * 32 + 32 * 10 + 8 * 10)
    assert p.seconds == pytest.approx(sum(c.seconds for c in p.calls))
    assert "of peak" in str(p) and str(p) in exe.explain()
    assert np.array_equal(np.asarray(exe(x)), np.asarray(before)) and exe.instances()[0].profiled is p
    assert len(exe.profile({"x": x}, seconds=0.0).calls) == len(plan.calls)


def test_pages_with_and_without_a_profile(tmp_path: Path) -> None:
    exe = mlp()
    exe.explain().to_html(tmp_path / "a.html")
    exe.profile([np.ones((8, 64), np.float32)], seconds=0.0)
    exe.explain().to_html(tmp_path / "b.html")
    a, b = ((tmp_path / n).read_text() for n in ("a.html", "b.html"))
    assert "Roofline" not in a and "Roofline" in b and a.count('<circle class="s0"') == len(exe.instances()[0].plan.calls)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(tw.InputError):
        mlp().profile([np.ones((8, 63), np.float32)])
    with pytest.raises(tw.InputError):
        mlp().profile({"y": np.ones((8, 64), np.float32)})


def test_calls_name_their_sources() -> None:
    plan = mlp().instances()[0].plan
    assert all(r < k for k, c in enumerate(plan.calls) for r in c.reads)
    assert {r for c in plan.calls for r in c.reads} == set(range(len(plan.calls) - 1))  # a chain: all but the last are read
    assert all(isinstance(c, KernelCall) for c in plan.calls)


def test_ceilings() -> None:
    assert f32_peak(Target.host()).gflops(0.0) > 0.1
    assert memory_bandwidth(1 << 20, 0.0) > 1e7

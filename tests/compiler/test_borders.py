"""Borders of zeros are written once: nothing may touch them between calls, and exported code fills them in every call."""
from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest

import tilewright
from tilewright.backends.executable import Executable
from tilewright.backends.instance import Instance
from tilewright.backends.llvm.jit import load_image
from tilewright.backends.memory import aligned
from tilewright.compiler import borders
from tilewright.compiler.borders import kept_borders
from tilewright.compiler.inspect import lowered
from tilewright.compiler.memory import plan_arena
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.types import F32, TensorType

SHAPE = (2, 5, 17, 19)


def chain() -> Graph:
    """Convolutions of odd channels and sizes, depthwise ones, a concat inside a padding, and paddings written out. Two paddings
    have equal borders, one lies in another, one fills with ones, and one with -0.0."""
    b, rng = GraphBuilder("chain"), np.random.default_rng(3)

    def conv(x: Value, channels: int, k: int, stride: int = 1, groups: int = 1) -> Value:
        w = (rng.standard_normal((channels, x.type.shape[1] // groups, k, k)) * 0.3).astype("f4")
        y = b.op("conv", x, b.weight("w", w), None, strides=(stride,) * 2, pads=(k // 2,) * 4, dilations=(1, 1), groups=groups)
        return b.op("relu", y)

    def pad(x: Value, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Value:
        return b.op("pad", x, before=before, after=after, value=value)
    x = conv(b.input("x", TensorType(F32, SHAPE)), 13, 3)
    x = conv(conv(conv(x, 24, 3), 24, 3, groups=24), 24, 5)
    x = conv(b.op("concat", conv(x, 16, 1), conv(x, 8, 3), axis=1), 24, 3, stride=2)
    x = pad(pad(b.op("tanh", x), (0, 0, 1, 0), (0, 0, 0, 2), 0.0), (0, 1, 0, 2), (0, 0, 3, 0), 0.0)
    y = b.op("softmax", x, axis=3)
    y = b.op("softmax", pad(y, (0, 0, 1, 1), (0, 0, 1, 1), 1.0), axis=3)
    return b.graph([b.op("softmax", pad(b.op("tanh", y), (0, 0, 0, 1), (0, 0, 2, 0), -0.0), axis=2)])


def images(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    return [(rng.standard_normal(SHAPE) * 10 ** k).astype("f4") for k in range(n)]


def zeros_of(i: Instance) -> np.ndarray:
    """Which bytes of the arena the plan's fills write."""
    memory = aligned(i.plan.arena_bytes)
    memory[:] = 0xFF
    code = load_image(i.image, [c.symbol for c in i.plan.fills])
    for c in i.plan.fills:
        kinds = [*[ctypes.c_void_p] * (len(c.args) + 1), ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
        ctypes.CFUNCTYPE(None, *kinds)(code.address(c.symbol))(*(memory.ctypes.data + s.offset for s in c.args), None, 0, c.trips, None)
    return memory == 0


def clean(exe: Executable) -> bool:
    """Whether the borders in all arenas that calls have used are zeros still."""
    (i,) = exe.instances()
    where = zeros_of(i)
    frames = [f for f in (i._frame, *i._frames) if f is not None]
    assert where.any() and frames
    return not any(f.arena[where].any() for f in frames)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_calls_leave_borders_alone(threads: int) -> None:
    exe = tilewright.compile(chain(), threads=threads)
    plan = exe.instances()[0].plan
    assert plan.fills and sum(c.label == "pad border" for c in plan.calls) == 2, "those of 1.0 and -0.0 are not zeros"
    xs = images(4)
    fresh = [np.asarray(tilewright.compile(chain(), threads=1)(x)) for x in xs]
    for k in (0, 1, 2, 3, 2, 1, 0):
        assert np.asarray(exe(xs[k])).tobytes() == fresh[k].tobytes()
    assert clean(exe)
    wrong: list[int] = []

    def calls(first: int) -> None:
        for n in range(20):
            k = (first + n) % len(xs)
            if np.asarray(exe(xs[k])).tobytes() != fresh[k].tobytes():
                wrong.append(k)
    callers = [threading.Thread(target=calls, args=(k,)) for k in range(4)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert not wrong and clean(exe)


def test_same_bits_as_with_fills_in_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tilewright.compile(chain(), threads=1)
    monkeypatch.setattr("tilewright.compiler.build.kept_borders", lambda *_: {})
    filled = tilewright.compile(chain(), threads=1, cache=False)
    assert not filled.instances()[0].plan.fills and kept.instances()[0].plan.fills
    for x in images(3):
        assert np.asarray(kept(x)).tobytes() == np.asarray(filled(x)).tobytes()


@pytest.mark.parametrize("saved", [False, True])
def test_exported_code_fills_any_memory(tmp_path: Path, saved: bool) -> None:
    exe = tilewright.compile(chain(), threads=2)
    if saved:
        exe.save(tmp_path / "m.twx")
        exe = tilewright.load(tmp_path / "m.twx")
    exe.export(tmp_path / "m.so")
    code = ctypes.CDLL(str(tmp_path / "m.so"))
    code.m_workspace_bytes.restype = ctypes.c_size_t
    space = np.empty(code.m_workspace_bytes(), np.uint8)
    for x in images(3):
        want = np.asarray(exe(x))
        got = np.empty_like(want)
        space[:] = 0xFF  # NaN in f32
        assert code.m_run(*(ctypes.c_void_p(a.ctypes.data) for a in (x, got, space))) == 0
        assert got.tobytes() == want.tobytes()
    assert clean(exe)


def test_the_arena_grows_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    low = lowered(chain())
    kernels, storages = low.kernels, low.views.storages
    base = plan_arena(kernels, storages).bytes
    counts = []
    for limit in (0, 1 << 12, 1 << 15, 1 << 20):
        monkeypatch.setattr(borders, "GROWTH", limit)
        kept = kept_borders(kernels, storages)
        left = [k for k in kernels if not borders.only_borders(k, kept)]
        assert plan_arena(left, storages, kept=kept).bytes <= base + limit
        counts.append(len(kept))
    assert counts == sorted(counts) and counts[-1] >= 4

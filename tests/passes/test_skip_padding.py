"""skip_padding: taps that only meet padding are left out, whatever the window, and results stay the same."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.helpers import check
from tilewright.compiler.compile import compile
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.skip_padding import parts, skip_padding
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import run_graph
from tilewright.ir.types import F32, TensorType

Ints = tuple[int, ...]


def clean(g: Graph) -> Graph:
    return dce(skip_padding(g))


def conv(x: Ints, w: Ints, strides: Ints, pads: Ints, dilations: Ints, groups: int = 1) -> Graph:
    rng = np.random.default_rng(0)
    b = GraphBuilder("g")
    weights = (b.weight("w", rng.standard_normal(w).astype("f4")), b.weight("b", rng.standard_normal(w[0]).astype("f4")))
    y = b.op("conv", b.input("x", TensorType(F32, x)), *weights, strides=strides, pads=pads, dilations=dilations, groups=groups)
    return b.graph((y,))


def same(g: Graph) -> Graph:
    """`g` after the pass, which must give what it gave."""
    new = clean(g)
    x = np.random.default_rng(1).standard_normal(g.inputs[0].type.shape).astype("f4")
    want, got = (run_graph(h, {"x": x})[h.outputs[0].name] for h in (g, new))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return new


def test_one_tap_of_nine() -> None:
    check(clean, """
        graph @g(%x: f32[1,2,3,3]) -> f32[1,4,3,3] {
          const @w: f32[4,2,3,3] weight
          %y = conv(%x, @w) {strides=(1, 1), pads=(6, 6, 6, 6), dilations=(6, 6)} : f32[1,4,3,3]
          return %y
        }""", """
        graph @g(%x: f32[1,2,3,3]) -> f32[1,4,3,3] {
          const @w: f32[4,2,3,3] weight
          %0 = slice(@w) {starts=(0, 0, 1, 1), steps=(1, 1, 1, 1), sizes=(4, 2, 1, 1)} : f32[4,2,1,1]
          %y = conv(%x, %0) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(6, 6)} : f32[1,4,3,3]
          return %y
        }""")


@pytest.mark.parametrize(("size", "dilation", "count"), [(14, 12, 9), (30, 15, 4), (33, 18, 9), (14, 14, 1), (60, 2, 1), (5, 4, 1)])
def test_pyramids(size: int, dilation: int, count: int) -> None:
    """Parts where dilations are wide, one convolution where all taps but one are gone, or where parts would save little."""
    new = same(conv((1, 32, size, size), (32, 32, 3, 3), (1, 1), (dilation,) * 4, (dilation,) * 2))
    assert sum(n.op == "conv" for n in new.nodes) == count
    assert dilation < 12 or not any(any(n.attrs.pads) for n in new.nodes if n.op == "conv")  # type: ignore[attr-defined]


def test_what_stays() -> None:
    """Ordinary padding, and outputs that meet nothing but padding."""
    ordinary = conv((1, 4, 7, 7), (4, 4, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    empty = conv((1, 4, 3, 3), (4, 4, 1, 1), (1, 1), (2, 2, 2, 2), (1, 1))
    for g in (ordinary, empty):
        assert str(clean(g)) == str(g)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, n) for n in (20, 4, 3, 9, 12, 12)]), st.integers(1, 2), st.sampled_from([1, 30]))
def test_any_window(dim: tuple[int, ...], groups: int, images: int) -> None:
    size, kernel, stride, dilation, before, after = dim
    before, after = before - 1, after - 1
    if size + before + after < (kernel - 1) * dilation + 1 or size + 1 < (kernel - 1) + 1:
        return
    x, w = (images, 2 * groups, size + 1, size), (4 * groups, 2, kernel, kernel)
    same(conv(x, w, (stride, 1), (before, before, after, after), (dilation, dilation), groups))


@settings(deadline=None, max_examples=60)
@given(*[st.integers(1, n) for n in (20, 5, 40, 4, 12)], st.integers(0, 40))
def test_parts_meet_the_image(size: int, kernel: int, outputs: int, stride: int, dilation: int, pad: int) -> None:
    found = parts(size, kernel, outputs, stride, dilation, pad)
    assert [h for p in found for h in range(p.first, p.last)] == list(range(outputs))
    for p in found:
        for h in range(p.first, p.last):
            met = [t for t in range(kernel) if 0 <= h * stride - pad + t * dilation < size]
            assert met == list(range(p.tap, p.end))


@pytest.mark.parametrize("dilation", [12, 24])
def test_native(dilation: int) -> None:
    g = conv((1, 35, 14, 15), (40, 35, 3, 3), (1, 1), (dilation,) * 4, (dilation,) * 2)
    x = np.random.default_rng(1).standard_normal((1, 35, 14, 15)).astype("f4")
    want = run_graph(g, {"x": x})[g.outputs[0].name]
    for strict in (False, True):
        y = compile(g, cache=False, strict=strict)(x)
        assert isinstance(y, np.ndarray)
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)

"""convolve_frames: convolutions over three dimensions give the same as ones over two of frames side by side."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.compiler.compile import compile
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.frames import convolve_frames
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import run_graph
from tilewright.ir.types import F32, TensorType

Ints = tuple[int, ...]
ONES = (1, 1, 1)


def conv(x: Ints, w: Ints, strides: Ints = ONES, pads: Ints = (0,) * 6, dilations: Ints = ONES, groups: int = 1,
         bias: bool = True) -> Graph:
    rng = np.random.default_rng(0)
    b = GraphBuilder("g")
    weights = [b.weight("w", rng.standard_normal(w).astype("f4"))]
    if bias:
        weights.append(b.weight("b", rng.standard_normal(w[0]).astype("f4")))
    y = b.op("conv", b.input("x", TensorType(F32, x)), *weights, strides=strides, pads=pads, dilations=dilations, groups=groups)
    return b.graph((y,))


def same(g: Graph) -> Graph:
    """`g` after the pass, which must give what it gave."""
    new = dce(convolve_frames(g))
    x = np.random.default_rng(1).standard_normal(g.inputs[0].type.shape).astype("f4")
    want, got = (run_graph(h, {"x": x})[h.outputs[0].name] for h in (g, new))
    assert want.shape == got.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return new


def rank_of_conv(g: Graph) -> int:
    return next(n.outputs[0].type.rank for n in g.nodes if n.op == "conv")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("pads", [(0,) * 6, (1,) * 6, (2, 0, 1, 0, 1, 2)])
def test_becomes_two_dimensional(batch: int, pads: Ints) -> None:
    assert rank_of_conv(same(conv((batch, 3, 5, 6, 7), (4, 3, 3, 3, 2), pads=pads))) == 4


def test_one_frame_deep() -> None:
    new = same(conv((1, 3, 4, 6, 7), (4, 3, 1, 3, 3), pads=(0, 1, 1, 0, 1, 1), bias=False))
    assert rank_of_conv(new) == 4 and not any(n.op == "concat" for n in new.nodes)


def test_grouped_and_empty_stay() -> None:
    assert rank_of_conv(same(conv((1, 4, 5, 6, 7), (4, 2, 3, 3, 3), groups=2))) == 5
    assert rank_of_conv(same(conv((0, 3, 5, 6, 7), (4, 3, 3, 3, 3)))) == 5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_window(data: st.DataObject) -> None:
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(3))
    dilations, strides = (tuple(data.draw(st.integers(1, 2)) for _ in range(3)) for _ in range(2))
    pads = tuple(data.draw(st.integers(0, 2)) for _ in range(6))
    space = tuple((k - 1) * d + 1 + data.draw(st.integers(0, 4)) for k, d in zip(kernel, dilations, strict=True))
    batch, channels, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    same(conv((batch, channels, *space), (out, channels, *kernel), strides, pads, dilations))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_compiled(batch: int, threads: int) -> None:
    g = conv((batch, 17, 6, 14, 14), (32, 17, 3, 3, 3), (2, 1, 1), (1,) * 6)
    x = np.random.default_rng(1).standard_normal(g.inputs[0].type.shape).astype("f4")
    want = run_graph(g, {"x": x})[g.outputs[0].name]
    got = np.asarray(compile(g, threads=threads)(x))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max()))

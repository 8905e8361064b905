"""What is left of a row beyond its full vectors: short vectors, or a masked one, and the same results."""
from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tests.ir.op_graphs import random_schedules
from tests.precision import bounds
from tilewright.backends.llvm.emit import emit_kernel
from tilewright.backends.target import Target
from tilewright.compiler.inspect import lowered
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.types import F16, F32, F64, I8, DType, TensorType

WIDTHS = (1, 2, 4, 5, 8, 12, 15, 16, 20, 23, 24, 28, 44, 49, 60, 88)


def normed(rows: int, width: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """A layer norm between two products: it writes over its input."""
    b, rng = GraphBuilder("normed"), np.random.default_rng(width)
    shapes = {"x": (rows, width), "v": (width, width), "w": (width, width), "scale": (width,), "bias": (width,)}
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    x, v, w, scale, bias = (b.input(k, TensorType(F32, s)) for k, s in shapes.items())
    y = b.op("layer_norm", b.op("matmul", x, v), scale, bias, axes=(1,))
    return b.graph([b.op("matmul", y, w)]), arrays


def mapped(rows: int, width: int, dtype: DType) -> tuple[Graph, dict[str, np.ndarray]]:
    """A map along rows that do not lie next to each other."""
    b, rng = GraphBuilder("mapped"), np.random.default_rng(width)
    x, s = b.input("x", TensorType(dtype, (rows, width + 3))), b.input("s", TensorType(dtype, (width,)))
    y = b.op("add", b.op("slice", x, starts=(0, 1), steps=(1, 1), sizes=(rows, width)), s)
    return b.graph([y]), {v.name: (rng.standard_normal(v.type.shape) * 9).astype(dtype.numpy) for v in (x, s)}


@pytest.mark.parametrize("width", WIDTHS)
def test_norm_over_its_input(width: int) -> None:
    g, arrays = normed(19, width)
    want = bounds(g, arrays)[g.outputs[0].name]
    one, three = (np.asarray(tw.compile(g, threads=t).run(arrays)[g.outputs[0].name]) for t in (1, 3))
    want.check(one)
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("seed", range(4))
def test_norm_under_random_schedules(seed: int) -> None:
    g, arrays = normed(7, (20, 24, 28, 44)[seed])
    with random_schedules(seed):
        bounds(g, arrays)[g.outputs[0].name].check(np.asarray(tw.compile(g, threads=2).run(arrays)[g.outputs[0].name]))


@pytest.mark.parametrize("dtype", [F32, F64, F16, I8], ids=str)
@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_maps_write_nothing_else(dtype: DType, target: str) -> None:
    for width in WIDTHS:
        g, arrays = mapped(5, width, dtype)
        bounds(g, arrays)[g.outputs[0].name].check(np.asarray(tw.compile(g, target=target).run(arrays)[g.outputs[0].name]))


@pytest.mark.parametrize(("width", "masked"), [(24, False), (20, False), (28, False), (48, False), (23, True), (30, True)])
def test_stores_of_short_vectors_are_whole(width: int, masked: bool) -> None:
    target = Target.parse("x86-64-v4")
    low = lowered(normed(19, width)[0], target)
    (s,) = [s for k, s in zip(low.kernels, low.scheduled, strict=True) if k.label == "layer_norm" and s is not None]
    assert ("masked.store" in emit_kernel(s, target, "k")) is masked

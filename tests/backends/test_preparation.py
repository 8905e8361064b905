"""Preparing weights straight into their memory gives what the interpreter gives, ragged packed layouts included."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.backends.preparation import Preparation, _largest_first, lay_out
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.types import F32, TensorType


def pack(b: GraphBuilder, v: Value, after: tuple[int, ...], split: tuple[int, ...], perm: tuple[int, ...]) -> Value:
    v = b.op("pad", v, before=(0,) * len(after), after=after)
    return b.op("transpose", b.op("reshape", v, shape=split), perm=perm)


def agrees(graph: Graph) -> None:
    weights = {v.name: np.random.default_rng(0).standard_normal(v.type.shape).astype("f4") for v in graph.inputs}
    want = run_graph(graph, weights)
    prepared, got = Preparation(graph, weights).evaluate()
    for v, a in zip(graph.outputs, got, strict=True):
        np.testing.assert_array_equal(a, want[v.name])
        assert a.ctypes.data % 64 == 0 and a.flags.c_contiguous
        assert not any(np.shares_memory(a, w) for w in weights.values())
    assert prepared.arrays.keys() == weights.keys()


@pytest.mark.parametrize(("shape", "after", "split", "perm"), [
    ((50, 70), (14, 10), (4, 16, 5, 16), (0, 2, 1, 3)),
    ((3, 5), (29, 0), (2, 16, 5), (0, 2, 1)),               # not one whole block
    ((100, 7, 3, 3), (28, 9, 0, 0), (4, 2, 16, 1, 16, 3, 3), (0, 3, 5, 6, 4, 1, 2)),
    ((64, 8), (0, 0), (4, 16, 8), (0, 2, 1)),               # nothing to pad
])
def test_packed(shape: tuple[int, ...], after: tuple[int, ...], split: tuple[int, ...], perm: tuple[int, ...]) -> None:
    b = GraphBuilder("prepare")
    w = b.input("w", TensorType(F32, shape))
    agrees(b.graph([pack(b, w, after, split, perm)]))


def test_values_in_between_that_others_read() -> None:
    b = GraphBuilder("prepare")
    w, c = b.input("w", TensorType(F32, (10, 6))), b.input("c", TensorType(F32, (6, 10)))
    t = b.op("add", b.op("transpose", w, perm=(1, 0)), c)
    padded = b.op("pad", t, before=(0, 0), after=(2, 6))
    packed = b.op("transpose", b.op("reshape", padded, shape=(2, 4, 16)), perm=(1, 0, 2))
    agrees(b.graph([packed, padded, w, pack(b, t, (0, 2), (6, 3, 4), (1, 0, 2))]))


@pytest.mark.parametrize("packed", [False, True])
def test_subnormal_numbers_go_where_they_are_copied(packed: bool) -> None:
    b = GraphBuilder("prepare")
    w = b.input("w", TensorType(F32, (50, 700)))
    v = pack(b, w, (14, 20), (4, 16, 45, 16), (0, 2, 1, 3)) if packed else b.op("transpose", w, perm=(1, 0))
    graph = b.graph([b.op("flush_subnormal", v)])
    tiny = float(np.finfo(np.float32).smallest_normal)
    a = np.random.default_rng(0).choice(np.array([tiny, -tiny, tiny / 2, -tiny / 3, 1e-45, 0, 1, np.nan, -np.inf], "f4"), (50, 700))
    kept = a.copy()
    _, (got,) = Preparation(graph, {"w": a}).evaluate()
    np.testing.assert_array_equal(got, run_graph(graph, {"w": a})[graph.outputs[0].name])
    np.testing.assert_array_equal(a, kept)
    assert set(np.abs(got[np.isfinite(got)])) == {np.float32(0), np.float32(tiny), np.float32(1)}


def test_padding_in_front_is_no_packing() -> None:
    b = GraphBuilder("prepare")
    v = b.op("pad", b.input("w", TensorType(F32, (5, 3))), before=(1, 0), after=(2, 1))
    agrees(b.graph([b.op("transpose", b.op("reshape", v, shape=(2, 4, 4)), perm=(1, 2, 0))]))


@given(st.lists(st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 124)), min_size=1, max_size=3))
def test_lay_out(dims: list[tuple[list[int], int]]) -> None:
    """Elements land where padding and reshaping put them, whatever the extents."""
    digits = tuple(tuple(d) for d, _ in dims)
    padded = tuple(int(np.prod(d)) for d in digits)
    shape = tuple(max(1, p - less % p) for p, (_, less) in zip(padded, dims, strict=True))
    x = np.arange(1, np.prod(shape) + 1).reshape(shape)
    out = np.zeros([n for d in digits for n in d], x.dtype)
    lay_out(x, digits, out)
    np.testing.assert_array_equal(out.reshape(padded), np.pad(x, [(0, p - n) for p, n in zip(padded, shape, strict=True)]))


def test_large_results_come_first() -> None:
    """After what they need, each node once; nodes that no result needs are left out."""
    b = GraphBuilder("prepare")
    small, large = b.input("s", TensorType(F32, (4,))), b.input("l", TensorType(F32, (8, 4)))
    scaled = b.op("mul", small, small)
    first = b.op("add", scaled, small)
    second = b.op("add", b.op("mul", large, scaled), large)
    order = _largest_first(b.graph([first, second, second]))
    assert [n.outputs[0].type.shape for n in order] == [(4,), (8, 4), (8, 4), (4,)]
    agrees(b.graph([first, second]))

"""Attention becomes one kernel, whatever stands between its products, and computes what the graph says."""
from __future__ import annotations

import math

import numpy as np
import pytest

import tilewright as tw
from tests.ir.op_graphs import random_schedules
from tests.precision import bounds
from tilewright.backends.llvm.emit import workspace_bytes
from tilewright.compiler.fuse import fuse
from tilewright.compiler.inspect import lowered
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.ops.elementwise import scalar_like
from tilewright.ir.types import BOOL, F16, F32, F64, DType, TensorType

Arrays = dict[str, np.ndarray]


class Maker:
    """softmax(q k' / sqrt(size) …) v over inputs laid out [batch, sequence, heads * size], as models have them."""

    def __init__(self, batch: int = 1, heads: int = 2, queries: int = 21, keys: int = 13, size: int = 32, width: int = 0,
                 dtype: DType = F32):
        self.b, self.rng, self.arrays = GraphBuilder("attention"), np.random.default_rng(heads * queries), {}
        self.batch, self.heads, self.queries, self.keys, self.width, self.dtype = batch, heads, queries, keys, width or size, dtype
        self.q = self.split("queries", queries, size, (0, 2, 1, 3))
        self.k = self.split("keys", keys, size, (0, 2, 3, 1))
        self.v = self.split("values", keys, self.width, (0, 2, 1, 3))
        scores = self.b.op("matmul", self.q, self.k)
        self.scores = self.b.op("mul", scores, scalar_like(self.b, scores, 1 / math.sqrt(size)))

    def input(self, name: str, *shape: int, dtype: DType | None = None) -> Value:
        dtype = dtype or self.dtype
        drawn = self.rng.random(shape) < 0.7 if dtype is BOOL else self.rng.standard_normal(shape)
        self.arrays[name] = drawn.astype(dtype.numpy)
        return self.b.input(name, TensorType(dtype, shape))

    def split(self, name: str, length: int, size: int, perm: tuple[int, ...]) -> Value:
        x = self.input(name, self.batch, length, self.heads * size)
        return self.b.op("transpose", self.b.op("reshape", x, shape=(self.batch, length, self.heads, size)), perm=perm)

    def graph(self, scores: Value, masked: int = 0) -> Graph:
        y = self.b.op("matmul", self.b.op("softmax", scores, axis=3, masked=masked), self.v)
        y = self.b.op("transpose", y, perm=(0, 2, 1, 3))
        return self.b.graph([self.b.op("reshape", y, shape=(self.batch, self.queries, self.heads * self.width))])


def check(g: Graph, arrays: Arrays, kernels: int = 1) -> None:
    assert len(lowered(g).kernels) == kernels
    bounds(g, arrays)[g.outputs[0].name].check(run(g, arrays))


def run(g: Graph, arrays: Arrays, threads: int = 2) -> np.ndarray:
    return np.asarray(tw.compile(g, threads=threads).run(arrays)[g.outputs[0].name])


def kinds(g: Graph) -> list[str]:
    return [f"{p.kind}: {p.label}" for p in fuse(g).groups if p.kind != "layout"]


# -- recognition -----------------------------------------------------------------------------------------------------------
def test_one_group() -> None:
    m = Maker()
    g = m.graph(m.b.op("add", m.scores, m.input("mask", 1, 1, 1, m.keys)))
    assert kinds(g) == ["attention: matmul+mul+add+softmax+matmul"]
    (group,) = [p for p in fuse(g).groups if p.kind != "layout"]
    assert group.why[-1] == "softmax (%v.9) joins matmul: its rows are multiplied where they are made"
    (kernel,) = lowered(g).kernels
    assert kernel.program is not None and [len(c.axes) for c in kernel.program.computes] == [3, 2, 3, 2, 3]
    assert lowered(g).scheduled[0].stages[1].tensorize is not None  # type: ignore[union-attr]


def test_scores_or_weights_that_others_read_stay() -> None:
    m = Maker()
    g = m.graph(m.scores)
    with_scores = g.replace(outputs=(*g.outputs, m.scores))
    assert "attention" not in str(kinds(with_scores))
    weights = next(n.outputs[0] for n in g.nodes if n.op == "softmax")
    assert "attention" not in str(kinds(g.replace(outputs=(*g.outputs, weights))))


@pytest.mark.parametrize("sizes", [{"queries": 1}, {"queries": 7}, {"dtype": F16}, {"size": 300}])
def test_left_apart(sizes: dict[str, int]) -> None:
    m = Maker(**sizes)  # type: ignore[arg-type]
    assert "attention" not in str(kinds(m.graph(m.scores)))


def test_softmax_along_another_axis_is_no_attention() -> None:
    m = Maker(queries=13)
    y = m.b.op("matmul", m.b.op("softmax", m.scores, axis=2), m.v)
    assert "attention" not in str(kinds(m.b.graph([y])))


# -- results -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("heads", range(1, 14))
def test_heads(heads: int) -> None:
    m = Maker(heads=heads, queries=16 + heads, keys=29 - heads, size=(32, 64, 80)[heads % 3])
    check(m.graph(m.b.op("add", m.scores, m.input("mask", 1, 1, 1, m.keys))), m.arrays)


@pytest.mark.parametrize(("queries", "keys"), [(8, 2), (16, 16), (17, 5), (61, 67), (64, 64), (65, 128), (131, 3), (197, 197)])
@pytest.mark.parametrize("size", [32, 64, 80, 3])
def test_lengths(queries: int, keys: int, size: int) -> None:
    m = Maker(2, 2, queries, keys, size)
    check(m.graph(m.scores), m.arrays)


@pytest.mark.parametrize("mask", [(1, 1, 1, 23), (2, 1, 1, 23), (1, 1, 37, 23), (1, 3, 37, 23), (2, 3, 37, 23), (37, 1), (1,)])
def test_masks(mask: tuple[int, ...]) -> None:
    m = Maker(2, 3, 37, 23)
    check(m.graph(m.b.op("add", m.scores, m.input("mask", *mask))), m.arrays)
    m = Maker(2, 3, 37, 23)
    check(m.graph(m.b.op("where", m.input("mask", *mask, dtype=BOOL), m.scores, scalar_like(m.b, m.scores, -1e4))), m.arrays)


def test_causal() -> None:
    for low, high in ((-1 << 40, 0), (-3, 0), (-9, 5)):
        m = Maker(1, 3, 70, 70)
        check(m.graph(m.b.op("band", m.scores, low=low, high=high)), m.arrays)


def test_soft_cap() -> None:
    m = Maker(1, 3, 21, 35)
    capped = m.b.op("tanh", m.b.op("div", m.scores, scalar_like(m.b, m.scores, 5.0)))
    check(m.graph(m.b.op("mul", capped, scalar_like(m.b, m.scores, 5.0))), m.arrays)


def test_doubles() -> None:
    m = Maker(1, 3, 21, 35, dtype=F64)
    check(m.graph(m.scores), m.arrays)


def test_values_wider_than_keys() -> None:
    m = Maker(1, 2, 40, 31, 16, 144)
    check(m.graph(m.scores), m.arrays)


@pytest.mark.parametrize("masked", [0, 1])
def test_rows_of_which_nothing_is_left(masked: int) -> None:
    """NaN without `masked`, 0 with it; and NaN and infinities in the data go where the graph says."""
    m = Maker(1, 2, 21, 13)
    g = m.graph(m.b.op("add", m.scores, m.input("mask", 1, 1, 21, 13)), masked)
    mask = m.arrays["mask"]
    mask[...] = np.where(np.arange(13) % 3 == 0, -np.inf, 0)
    mask[0, 0, 4] = mask[0, 0, 20] = -np.inf
    m.arrays["queries"][0, 7, 3] = np.nan
    m.arrays["values"][0, 0, 5] = -np.inf  # key 0 is masked for all queries
    with np.errstate(all="ignore"):
        check(g, m.arrays)
    y = run(g, m.arrays)
    assert np.isnan(y[0, 7, :32]).all()
    assert np.isnan(y[0, 20, 6:]).all() if not masked else (y[0, 20, 6:] == 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_random_schedules(seed: int) -> None:
    m = Maker(1, 3, 19, 11, 16)
    g = m.graph(m.b.op("add", m.scores, m.input("mask", 1, 1, 1, m.keys)))
    with random_schedules(seed):
        check(g, m.arrays)


def test_threads_do_not_change_bits() -> None:
    m = Maker(1, 3, 150, 150, 64)
    g = m.graph(m.scores)
    one, two, three = (run(g, m.arrays, t) for t in (1, 2, 3))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("apart", [False, True])
def test_subnormal_weights_of_masked_keys_are_zeros(apart: bool) -> None:
    """exp(-100) is subnormal, which processors multiply a hundred times slower; the weights show in values that are far apart."""
    m = Maker(1, 1, 16, 16, 16)
    mask = m.input("mask", 1, 1, 1, 16)
    m.arrays["mask"][:] = np.where(np.arange(16) < 8, 0, -100)
    m.arrays["values"][0, 8:] = 1e38
    for name in ("queries", "keys"):
        m.arrays[name][:] = 0
    g = m.graph(m.b.op("add", m.scores, mask))
    if apart:
        weights = next(n.outputs[0] for n in g.nodes if n.op == "softmax")
        g = g.replace(outputs=(*g.outputs, weights))
        exe = tw.compile(g)
        assert set(np.unique(np.asarray(exe.run(m.arrays)[weights.name]))) == {np.float32(0), np.float32(0.125)}
    want = m.arrays["values"][0, :8].mean(0)
    np.testing.assert_allclose(run(g, m.arrays)[0], np.broadcast_to(want, (16, 16)), rtol=1e-6, atol=1e-6)


def test_powers_take_the_place_of_scores_and_masks_are_transposed() -> None:
    """The workspace holds the scores of a block once: they take the place of the mask, which is laid out alike."""
    sizes = []
    for with_mask in (False, True):
        m = Maker(1, 3, 150, 130)
        g = m.graph(m.b.op("add", m.scores, m.input("mask", 1, 1, 150, 130)) if with_mask else m.scores)
        (s,) = lowered(g, "x86-64-v4").scheduled
        assert s is not None
        sizes.append(workspace_bytes(s))
        check(g, m.arrays)
    scores, queries = 64 * 130 * 4, 64 * 32 * 4
    assert sizes[1] == sizes[0] and sizes[0] in (scores, scores + queries)


def test_positions_are_compared_outside_the_microkernel() -> None:
    m = Maker(1, 3, 70, 70)
    (s,) = lowered(m.graph(m.b.op("band", m.b.op("add", m.scores, m.input("bias", 1, 3, 70, 70)), low=-9, high=0))).scheduled
    assert s is not None
    names = [st.compute.buffer.name for st in s.stages]
    assert [n for n, st in zip(names, s.stages, strict=True) if st.tensorize is not None] == ["t0_products", "y0"]
    assert "x2_columns0" in names

"""Fusion, views, lowering and the memory plan together never change what a graph computes."""
from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewright.ir.ops  # noqa: F401
from tests.compiler.plan_interpreter import compile_plan, run_plan
from tilewright.compiler.passes.dce import dce
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.ops.window import WindowAttrs
from tilewright.ir.types import F64, TensorType

T = TypeVar("T")


class Choices:
    """Random decisions: Hypothesis's, which shrink, or evenly spread ones from a seed, which reach further."""

    def __init__(self, draw: st.DrawFn | None = None, seed: int = 0):
        self.draw, self.random = draw, random.Random(seed)

    def integer(self, lo: int, hi: int) -> int:
        return self.draw(st.integers(lo, hi)) if self.draw else self.random.randint(lo, hi)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.integer(0, len(items) - 1)]

    def flag(self) -> bool:
        return self.integer(0, 1) == 1

    def order(self, items: Sequence[T]) -> list[T]:
        return self.draw(st.permutations(items)) if self.draw else self.random.sample(items, len(items))


class Maker:
    """Draws a random graph: every step applies an op that fits some of the values there are."""

    def __init__(self, draw: Choices):
        self.draw, self.b = draw, GraphBuilder("random")
        self.rng = np.random.default_rng(draw.integer(0, 2**16))
        self.pool: list[Value] = []

    def shape(self, rank: int) -> tuple[int, ...]:
        return tuple(self.draw.choice([1, 2, 3, 4, 6]) for _ in range(rank))

    def pick(self, fits: Callable[[Value], bool] = lambda v: True) -> Value | None:
        found = [v for v in self.pool if fits(v)]
        return found[self.draw.integer(0, len(found) - 1)] if found else None

    def weight(self, shape: tuple[int, ...]) -> Value:
        if self.draw.integer(0, 4) == 0:
            return self.b.constant(np.float64(self.draw.choice([0.5, 2.0, -1.0])))
        return self.b.weight("w", self.rng.standard_normal(shape))

    def add(self, v: Value | tuple[Value, ...] | None) -> None:
        for x in v if isinstance(v, tuple) else (v,):
            if x is not None and x.type.dtype is F64 and x.type.size <= 4096:
                self.pool.append(x)

    # -- ops ---------------------------------------------------------------------------------------------------------
    def unary(self) -> None:
        x = self.pick()
        assert x is not None
        self.add(self.b.op(self.draw.choice(["relu", "tanh", "neg", "sigmoid", "erf", "abs"]), x))

    def binary(self) -> None:
        x = self.pick()
        assert x is not None
        y = self.pick(lambda v: v.type.shape == x.type.shape) if self.draw.flag() else None
        if y is None:
            y = self.weight(tuple(n if self.draw.flag() else 1 for n in x.type.shape))
        self.add(self.b.op(self.draw.choice(["add", "mul", "sub", "max"]), x, y))

    def broadcast(self) -> None:
        x = self.pick()
        assert x is not None
        y = self.pick(lambda v: v.type.rank <= x.type.rank and all(
            n in (1, m) for n, m in zip(reversed(v.type.shape), reversed(x.type.shape), strict=False)))
        if y is not None:
            self.add(self.b.op("add", x, y))

    def reshape(self) -> None:
        x = self.pick()
        assert x is not None
        dims = list(x.type.shape)
        if self.draw.flag() and len(dims) > 1:
            k = self.draw.integer(0, len(dims) - 2)
            dims[k:k + 2] = [dims[k] * dims[k + 1]]
        else:
            k = self.draw.integer(0, max(len(dims) - 1, 0))
            f = 2 if dims and dims[k] % 2 == 0 else 1
            dims[k:k + 1] = [f, dims[k] // f] if dims else [1]
        if len(dims) <= 5:
            self.add(self.b.op("reshape", x, shape=tuple(dims)))

    def transpose(self) -> None:
        x = self.pick(lambda v: v.type.rank > 1)
        if x is not None:
            self.add(self.b.op("transpose", x, perm=tuple(self.draw.order(range(x.type.rank)))))

    def slice(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            steps = [self.draw.choice([1, 1, 1, 2, -1]) for _ in x.type.shape]
            starts = [self.draw.integer(0, n - 1) for n in x.type.shape]
            sizes = [len(range(a, n, s) if s > 0 else range(a, -1, s)) for a, s, n in zip(starts, steps, x.type.shape, strict=True)]
            self.add(self.b.op("slice", x, starts=starts, steps=steps, sizes=[self.draw.integer(1, m) for m in sizes]))

    def split_concat(self) -> None:
        """Parts of one value, changed and put together again."""
        x = self.pick(lambda v: v.type.rank > 0 and max(v.type.shape) > 1)
        if x is not None:
            axis = x.type.shape.index(max(x.type.shape))
            cut = self.draw.integer(1, x.type.shape[axis] - 1)
            parts = []
            for a, e in ((0, cut), (cut, x.type.shape[axis])):
                starts = tuple(a if k == axis else 0 for k in range(x.type.rank))
                sizes = tuple(e - a if k == axis else n for k, n in enumerate(x.type.shape))
                parts.append(self.b.op("slice", x, starts=starts, steps=(1,) * x.type.rank, sizes=sizes))
            parts[0] = self.b.op("tanh", parts[0])
            self.pool += parts
            self.add(self.b.op("concat", *parts, axis=axis))

    def concat(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            axis = self.draw.integer(0, x.type.rank - 1)
            def cut(v: Value) -> tuple[int, ...]:
                return v.type.shape[:axis] + v.type.shape[axis + 1:]
            y = self.pick(lambda v: v.type.rank == x.type.rank and cut(v) == cut(x))
            assert y is not None
            self.add(self.b.op("concat", x, y, axis=axis))

    def expand(self) -> None:
        x = self.pick()
        assert x is not None
        shape = tuple(self.draw.choice([1, 3]) if n == 1 else n for n in x.type.shape)
        self.add(self.b.op("expand", x, shape=(*((2,) if self.draw.flag() and len(shape) < 4 else ()), *shape)))

    def pad(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            before, after = ([self.draw.integer(0, 2) for _ in x.type.shape] for _ in "ab")
            mode = self.draw.choice(["constant", "constant", "edge"])
            self.add(self.b.op("pad", x, before=before, after=after, mode=mode, value=1.5))

    def matmul(self) -> None:
        x = self.pick(lambda v: v.type.rank >= 2)
        if x is not None:
            k = x.type.shape[-1]
            y = self.pick(lambda v: v.type.rank == 2 and v.type.shape[0] == k or v.type.rank == x.type.rank
                          and v.type.shape[:-2] == x.type.shape[:-2] and v.type.shape[-2] == k)
            if y is None or self.draw.flag():
                y = self.b.weight("w", self.rng.standard_normal((k, self.draw.integer(1, 5))))
            self.add(self.b.op("matmul", x, y))

    def conv(self) -> None:
        x = self.pick(lambda v: v.type.rank == 4)
        if x is not None:
            c, (k, p) = x.type.shape[1], self.draw.choice([(1, 0), (3, 1), (2, 1)])
            groups = c if self.draw.integer(0, 3) == 0 else 1
            out = groups * self.draw.integer(1, 3)
            w = self.b.weight("w", self.rng.standard_normal((out, c // groups, k, k)))
            self.add(self.b.op("conv", x, w, None, strides=(1, 1), pads=(p,) * 4, dilations=(1, 1), groups=groups))

    def pool2d(self) -> None:
        x = self.pick(lambda v: v.type.rank == 4 and min(v.type.shape[2:]) >= 2)
        if x is not None:
            sizes = tuple(n // 2 for n in x.type.shape[2:])
            self.add(self.b.emit("max_pool", (x,), WindowAttrs((2, 2), (2, 2), (0,) * 4, (1, 1), sizes)))

    def rows(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            last = x.type.rank - 1
            if self.draw.flag():
                self.add(self.b.op("softmax", x, axis=self.draw.choice([last, last, 0])))
            else:
                n = x.type.shape[-1]
                scale = self.b.weight("w", self.rng.standard_normal(n)) if self.draw.flag() else None
                self.add(self.b.op("layer_norm", x, *([scale] if scale else []), axes=(last,)))

    def reduce(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            axes = [k for k in range(x.type.rank) if self.draw.flag()] or [x.type.rank - 1]
            kind = self.draw.choice(["sum", "mean", "max"])
            self.add(self.b.op("reduce", x, kind=kind, axes=tuple(axes), keepdims=self.draw.integer(0, 1)))

    def centre(self) -> None:
        """x - mean(x), divided by the deviation: a layer norm in pieces."""
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            axes = (x.type.rank - 1,)
            d = self.b.op("sub", x, self.b.op("reduce", x, kind="mean", axes=axes, keepdims=1))
            v = self.b.op("reduce", self.b.op("mul", d, d), kind="mean", axes=axes, keepdims=1)
            self.add(self.b.op("div", d, self.b.op("sqrt", self.b.op("add", v, self.b.constant(np.float64(1e-5))))))

    def gather(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            axis = self.draw.integer(0, x.type.rank - 1)
            at = self.b.weight("ids", self.rng.integers(0, x.type.shape[axis], (3,)))
            self.add(self.b.op("gather", x, at, axis=axis))

    def build(self, steps: int) -> tuple[Graph, dict[str, np.ndarray]]:
        for k in range(self.draw.integer(1, 3)):
            self.pool.append(self.b.input(f"x{k}", TensorType(F64, self.shape(self.draw.integer(0, 4)))))
        ops = [self.unary, self.unary, self.binary, self.binary, self.broadcast, self.reshape, self.transpose, self.slice,
               self.concat, self.split_concat, self.expand, self.pad, self.matmul, self.conv, self.pool2d,
               self.rows, self.reduce, self.centre, self.gather]
        for _ in range(steps):
            ops[self.draw.integer(0, len(ops) - 1)]()
        n = self.draw.integer(1, 4)
        outputs = [self.pool[-1 - self.draw.integer(0, min(len(self.pool) - 1, 9))] for _ in range(n)]
        g = dce(self.b.graph(outputs))
        return g, {v.name: self.rng.standard_normal(v.type.shape) for v in g.inputs}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, dict[str, np.ndarray]]:
    return Maker(Choices(draw)).build(draw(st.integers(1, 14)))


def check(g: Graph, inputs: dict[str, np.ndarray]) -> None:
    want = run_graph(g, inputs)
    for v, got in zip(g.outputs, run_plan(g, inputs), strict=True):
        scale = max(float(np.max(np.abs(want[v.name]), initial=0, where=np.isfinite(want[v.name]))), 1.0)
        np.testing.assert_allclose(got, want[v.name], rtol=1e-9, atol=1e-10 * scale)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))  # type: ignore[arg-type]
@given(graphs())
def test_plan_equals_graph(case: tuple[Graph, dict[str, np.ndarray]]) -> None:
    check(*case)


@pytest.mark.parametrize("block", range(8))
def test_plan_equals_larger_graphs(block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        check(*Maker(Choices(seed=seed)).build(4 + seed % 30))


def normals(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.random.default_rng(k).standard_normal(s) for k, s in enumerate(shapes)]


def attention(heads: int = 2, length: int = 5, width: int = 8) -> tuple[Graph, dict[str, np.ndarray]]:
    b = GraphBuilder("attention")
    x = b.input("x", TensorType(F64, (1, length, width)))
    d = width // heads

    def head(perm: tuple[int, ...], seed: int) -> Value:
        y = b.op("matmul", x, b.weight("w", np.random.default_rng(seed).standard_normal((width, width))))
        y = b.op("add", y, b.weight("b", np.random.default_rng(seed).standard_normal(width)))
        return b.op("transpose", b.op("reshape", y, shape=(1, length, heads, d)), perm=perm)
    scores = b.op("matmul", head((0, 2, 1, 3), 1), head((0, 2, 3, 1), 2))
    p = b.op("softmax", b.op("div", scores, b.constant(np.float64(math.sqrt(d)))), axis=3)
    y = b.op("reshape", b.op("transpose", b.op("matmul", p, head((0, 2, 1, 3), 3)), perm=(0, 2, 1, 3)), shape=(1, length, width))
    y = b.op("matmul", y, b.weight("w", np.random.default_rng(4).standard_normal((width, width))))
    g = b.graph([b.op("layer_norm", b.op("add", y, x), axes=(2,))])
    return g, {"x": normals((1, length, width))[0]}


def test_attention_moves_nothing_but_the_keys() -> None:
    g, inputs = attention()
    check(g, inputs)
    labels = [k.label for k in compile_plan(g)[0]]
    assert sorted(labels) == ["layer_norm", "matmul", *["matmul+add"] * 4, "matmul+div", "softmax", "transpose"]


def test_concat_of_branches_and_padding_write_in_place() -> None:
    b = GraphBuilder("inception")
    x = b.input("x", TensorType(F64, (1, 4, 6, 6)))
    parts = []
    for k in (1, 3):
        w = b.weight("w", normals((4, 4, k, k))[0])
        parts.append(b.op("relu", b.op("conv", x, w, None, strides=(1, 1), pads=(k // 2,) * 4, dilations=(1, 1), groups=1)))
    y = b.op("concat", *parts, axis=1)
    g = b.graph([b.op("pad", y, before=(0, 0, 1, 1), after=(0, 0, 1, 1)), y])
    check(g, {"x": normals((1, 4, 6, 6))[0]})
    h = b.graph([b.op("pad", y, before=(0, 0, 1, 1), after=(0, 0, 1, 1))])
    check(h, {"x": normals((1, 4, 6, 6))[0]})
    assert [k.label for k in compile_plan(h)[0]] == ["conv+relu", "conv+relu", "pad border"]


def test_outputs_that_are_inputs_constants_or_repeated() -> None:
    b = GraphBuilder("same")
    x = b.input("x", TensorType(F64, (3, 4)))
    w, one, y = b.weight("w", normals((2, 2))[0]), b.constant(np.float64(1)), b.op("relu", x)
    check(b.graph([x, w, one, y, y, b.op("reshape", x, shape=(12,)), b.op("reshape", y, shape=(4, 3))]), {"x": normals((3, 4))[0]})


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0, 5), (1, 1, 1)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...]) -> None:
    b = GraphBuilder("odd")
    x = b.input("x", TensorType(F64, shape))
    y = b.op("add", b.op("relu", x), x)
    s = b.op("reduce", y, kind="sum", axes=tuple(range(len(shape))), keepdims=0) if shape else y
    flat = b.op("reshape", y, shape=(math.prod(shape),))
    check(b.graph([y, s, b.op("concat", flat, flat, axis=0), b.op("pad", flat, before=(1,), after=(2,), value=3.0)]),
          {"x": np.ones(shape)})


def test_irregular_ops_get_contiguous_memory() -> None:
    b = GraphBuilder("irregular")
    x = b.input("x", TensorType(F64, (4, 6)))
    t = b.op("transpose", b.op("relu", x), perm=(1, 0))
    values, order = b.emit("topk", (t,), axis=1, k=2)
    outputs = [b.op("transpose", values, perm=(1, 0)), b.op("concat", values, b.op("tanh", t), axis=1), order]
    check(b.graph(outputs), {"x": normals((4, 6))[0]})

"""Random small graphs of everything a model may hold: ragged and prime sizes, size 1 and 0, every element type."""
from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from tilewright.errors import ShapeError
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.ops.pool import AvgPoolAttrs
from tilewright.ir.ops.window import WindowAttrs
from tilewright.ir.types import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, DType, TensorType

T = TypeVar("T")
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33)
MAX_ELEMENTS = 6000
FLOATS = (F32, F32, F32, F32, F64, F16, BF16)
INTS = (I8, U8, I32, I64)


class Fuzzer:
    """Draws one graph from a random generator; `random.Random` or Hypothesis's own, which shrinks."""

    def __init__(self, rng: random.Random) -> None:
        self.r, self.b, self.pool = rng, GraphBuilder("fuzz"), []
        self.np = np.random.default_rng(rng.randrange(1 << 30))
        self.empty = rng.random() < 0.05

    pool: list[Value]

    # -- choices -----------------------------------------------------------------------------------------------------
    def one(self, items: Sequence[T]) -> T:
        return items[self.r.randrange(len(items))]

    def chance(self, p: float) -> bool:
        return self.r.random() < p

    def shape(self, rank: int) -> tuple[int, ...]:
        while True:
            s = tuple(0 if self.empty and self.chance(0.2) else self.one(SIZES) for _ in range(rank))
            if math.prod(s) <= MAX_ELEMENTS // 2:
                return s

    def pick(self, fits: Callable[[Value], bool] = lambda v: True) -> Value | None:
        found = [v for v in self.pool if fits(v)]
        if not found:
            return None
        return found[-1 - int(min(self.r.expovariate(0.5), len(found) - 1))]  # often the newest: chains

    def floats(self, rank: int = 0) -> Value | None:
        return self.pick(lambda v: v.type.dtype.is_float and v.type.rank >= rank)

    def array(self, shape: Sequence[int], d: DType) -> np.ndarray:
        if d is BOOL:
            return self.np.random(tuple(shape)) < 0.5
        if d.is_int:
            return self.np.integers(0 if d.kind == "u" else -9, 10, tuple(shape)).astype(d.numpy)
        return self.np.standard_normal(tuple(shape)).astype(d.numpy)

    def constant(self, shape: Sequence[int], d: DType) -> Value:
        a = self.array(shape, d)
        return self.b.weight("w", a) if d.is_float and self.chance(0.7) else self.b.constant(a)

    def add(self, *vs: Value) -> None:
        self.pool += [v for v in vs if v.type.size <= MAX_ELEMENTS and v.type.rank <= 5]

    def __call__(self, op: str, *ins: Value | None, **attrs: object) -> Value:
        return self.b.op(op, *ins, **attrs)

    # -- maps --------------------------------------------------------------------------------------------------------
    def unary(self) -> None:
        x = self.floats()
        if x is not None:
            op = self.one(["relu", "tanh", "neg", "sigmoid", "erf", "abs", "gelu", "hard_swish", "softplus", "leaky_relu", "sin",
                           "reciprocal"])
            self.add(self(op, x))

    def guarded(self) -> None:
        """Functions of limited domain, on values inside it."""
        x = self.floats()
        if x is not None:
            one = self.b.constant(np.asarray(1.0, x.type.dtype.numpy))
            op = self.one(["sqrt", "log", "exp", "log1p"])
            self.add(self(op, self("tanh", x) if op == "exp" else self("add", self("abs", x), one)))

    def binary(self) -> None:
        x = self.pick(lambda v: v.type.dtype is not BOOL)
        if x is None:
            return
        y = self.pick(lambda v: v.type == x.type) if self.chance(0.4) else None
        if y is None:
            shape = tuple(n if self.chance(0.6) else 1 for n in x.type.shape)
            y = self.constant(shape[self.r.randrange(len(shape) + 1):] if shape else (), x.type.dtype)
        op = self.one(["add", "sub", "mul", "max", "min"] + (["div"] if x.type.dtype.is_float else []))
        self.add(self(op, x, y) if self.chance(0.7) else self(op, y, x))

    def broadcast(self) -> None:
        x = self.floats()
        if x is not None:
            def fits(v: Value) -> bool:
                pairs = list(zip(reversed(v.type.shape), reversed(x.type.shape), strict=False))
                return v.type.dtype == x.type.dtype and all(a == b or 1 in (a, b) for a, b in pairs)
            y = self.pick(fits)
            assert y is not None
            self.add(self("add", x, y))

    def compare(self) -> None:
        x = self.floats()
        if x is not None:
            c = self(self.one(["lt", "ge", "eq", "ne"]), x, self.constant(x.type.shape[-1:], x.type.dtype))
            self.add(c, self("where", c, x, self.constant((1,) * x.type.rank, x.type.dtype)))

    def cast(self) -> None:
        x = self.pick()
        if x is not None:
            d = self.one((*FLOATS, *INTS, BOOL) if not x.type.dtype.is_float else (F32, F64, F16, BF16))
            self.add(self("cast", x, dtype=d))

    def rounded(self) -> None:
        """To integers by way of a rounding that no error can change: values k + 0.25."""
        x = self.pick(lambda v: v.type.dtype.is_int)
        if x is not None:
            y = self("add", self("cast", x, dtype=F32), self.b.constant(np.float32(0.25)))
            self.add(self("cast", self(self.one(["floor", "ceil", "round"]), y), dtype=self.one((I32, I64))))

    # -- movements ---------------------------------------------------------------------------------------------------
    def reshape(self) -> None:
        x = self.pick()
        if x is None or not x.type.size:
            return
        dims = list(x.type.shape)
        if len(dims) > 1 and self.chance(0.5):
            k = self.r.randrange(len(dims) - 1)
            dims[k:k + 2] = [dims[k] * dims[k + 1]]
        else:
            k = self.r.randrange(len(dims)) if dims else 0
            n = dims[k] if dims else 1
            f = self.one([d for d in range(1, n + 1) if n % d == 0])
            dims[k:k + 1] = [f, n // f]
        if len(dims) <= 5:
            self.add(self("reshape", x, shape=tuple(dims)))

    def transpose(self) -> None:
        x = self.pick(lambda v: v.type.rank > 1)
        if x is not None:
            self.add(self("transpose", x, perm=tuple(self.r.sample(range(x.type.rank), x.type.rank))))

    def slice(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0 and v.type.size > 0)
        if x is not None:
            steps = [self.one([1, 1, 1, 2, 3, -1]) for _ in x.type.shape]
            starts = [self.r.randrange(n) for n in x.type.shape]
            most = [len(range(a, n, s) if s > 0 else range(a, -1, s)) for a, s, n in zip(starts, steps, x.type.shape, strict=True)]
            low = 0 if self.chance(0.03) else 1
            self.add(self("slice", x, starts=starts, steps=steps, sizes=[self.r.randint(low, m) for m in most]))

    def concat(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            axis = self.r.randrange(x.type.rank)

            def others(v: Value) -> tuple[object, ...]:
                return (v.type.dtype, v.type.rank, v.type.shape[:axis], v.type.shape[axis + 1:])
            found = [v for v in self.pool if v.type.rank and others(v) == others(x)]
            self.add(self("concat", *(self.one(found) for _ in range(self.r.randint(1, 3))), x, axis=axis))

    def split(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0 and max(v.type.shape) > 1)
        if x is not None:
            axis = x.type.shape.index(max(x.type.shape))
            cut, parts = self.r.randint(1, x.type.shape[axis] - 1), []
            for a, e in ((0, cut), (cut, x.type.shape[axis])):
                starts, sizes = [0] * x.type.rank, list(x.type.shape)
                starts[axis], sizes[axis] = a, e - a
                parts.append(self("slice", x, starts=tuple(starts), steps=(1,) * x.type.rank, sizes=tuple(sizes)))
            self.add(*parts)

    def expand(self) -> None:
        x = self.pick()
        if x is not None:
            shape = tuple(self.one([1, 3, 7]) if n == 1 else n for n in x.type.shape)
            self.add(self("expand", x, shape=(*((2,) if self.chance(0.3) else ()), *shape)))

    def pad(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0)
        if x is not None:
            before, after = ([self.r.choice([0, 0, 1, 2]) for _ in x.type.shape] for _ in "ab")
            mode = self.one(["constant", "constant", "edge", "reflect"])
            if mode == "reflect" and any(n <= max(a, b) for n, a, b in zip(x.type.shape, before, after, strict=True)):
                mode = "constant"
            if mode == "edge" and 0 in x.type.shape:
                mode = "constant"
            d = x.type.dtype
            value = bool(self.chance(0.5)) if d is BOOL else 3 if d.is_int else self.one([0.0, 1.5, -math.inf])
            self.add(self("pad", x, before=before, after=after, mode=mode, value=value))

    def gather(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0 and v.type.size > 0)
        if x is not None:
            axis = self.r.randrange(x.type.rank)
            n = x.type.shape[axis]
            at = self.np.integers(-n, n, self.shape(self.r.randint(0, 2)) if self.chance(0.5) else (3,))
            self.add(self("gather", x, self.b.constant(at.astype(self.one(["i4", "i8"]))), axis=axis))

    # -- reductions and contractions ---------------------------------------------------------------------------------
    def reduce(self) -> None:
        x = self.pick(lambda v: v.type.rank > 0 and v.type.dtype is not BOOL)
        if x is not None:
            axes = tuple(k for k in range(x.type.rank) if self.chance(0.4)) or (x.type.rank - 1,)
            kind = self.one(["sum", "max", "min"] + (["mean", "mean"] if x.type.dtype.is_float else []))
            if kind != "sum" and 0 in x.type.shape:
                return
            self.add(self("reduce", x, kind=kind, axes=axes, keepdims=self.r.randint(0, 1)))

    def rows(self) -> None:
        x = self.floats(1)
        if x is not None and x.type.size:
            op = self.one(["softmax", "log_softmax", "layer_norm", "layer_norm"])
            if op == "layer_norm":
                scale = self.constant(x.type.shape[-1:], x.type.dtype) if self.chance(0.5) else None
                self.add(self(op, x, *([scale] if scale is not None else []), axes=(x.type.rank - 1,)))
            else:
                self.add(self(op, x, axis=self.r.randrange(x.type.rank)))

    def centre(self) -> None:
        """A layer norm in pieces."""
        x = self.floats(1)
        if x is not None and x.type.size:
            axes = (x.type.rank - 1,)
            d = self("sub", x, self("reduce", x, kind="mean", axes=axes, keepdims=1))
            v = self("reduce", self("mul", d, d), kind="mean", axes=axes, keepdims=1)
            self.add(self("div", d, self("sqrt", self("add", v, self.b.constant(np.asarray(1e-2, x.type.dtype.numpy))))))

    def matmul(self) -> None:
        x = self.floats(2)
        if x is not None:
            *batch, _, k = x.type.shape
            y = self.pick(lambda v: v.type.dtype == x.type.dtype and v.type.rank == x.type.rank and list(v.type.shape[:-2]) == batch
                          and v.type.shape[-2] == k)
            if y is None or self.chance(0.7):
                y = self.constant((*(batch if self.chance(0.2) else ()), k, self.one(SIZES)), x.type.dtype)
            z = self("matmul", x, y)
            self.add(self("add", z, self.constant(z.type.shape[-1:], x.type.dtype)) if self.chance(0.5) else z)

    def conv(self) -> None:
        x = self.pick(lambda v: v.type.dtype.is_float and v.type.rank in (3, 4) and v.type.size > 0)
        if x is None:
            return
        n, c = x.type.rank - 2, x.type.shape[1]
        groups = self.one([1, 1, c, self.one([g for g in range(1, c + 1) if c % g == 0])])
        o = groups * self.one([1, 2, 3, 16] if groups < 5 else [1, 2])
        k, s, d = (tuple(self.one(x) for _ in range(n)) for x in ([1, 1, 2, 3, 5], [1, 1, 2, 3], [1, 1, 1, 2]))
        pads = tuple(self.r.randint(0, 2) for _ in range(2 * n))
        if any(i + pads[a] + pads[a + n] < (k[a] - 1) * d[a] + 1 for a, i in enumerate(x.type.shape[2:])):
            return
        w = self.b.weight("w", self.array((o, c // groups, *k), x.type.dtype))
        bias = self.b.weight("b", self.array((o,), x.type.dtype)) if self.chance(0.5) else None
        y = self("conv", x, w, bias, strides=s, pads=pads, dilations=d, groups=groups)
        self.add(self("relu", y) if self.chance(0.4) else y)

    def network(self) -> None:
        """Convolutions in a row with a residual, so that layouts are chosen."""
        x = self.pick(lambda v: v.type.dtype is F32 and v.type.rank == 4 and v.type.size > 0)
        if x is not None:
            o = self.one([16, 16, 32, 24, 7])
            first = None
            for k in (self.one([1, 3]), 3, 1):
                w = self.b.weight("w", self.array((o, x.type.shape[1], k, k), F32) * np.float32(0.2))
                x = self("relu", self("conv", x, w, self.b.weight("b", self.array((o,), F32)), strides=(1, 1), pads=(k // 2,) * 4,
                                      dilations=(1, 1), groups=1))
                first = x if first is None else first
            assert first is not None
            self.add(self("add", x, first))

    def pool2d(self) -> None:
        x = self.pick(lambda v: v.type.dtype.is_float and v.type.rank == 4 and min(v.type.shape[2:]) >= 2)
        if x is not None:
            k, s = self.one([(2, 2), (2, 1), (3, 2)]), self.r.randint(1, 2)
            if all(n >= m for n, m in zip(x.type.shape[2:], k, strict=True)):
                sizes = tuple((n - m) // s + 1 for n, m in zip(x.type.shape[2:], k, strict=True))
                window = (k, (s, s), (0,) * 4, (1, 1), sizes)
                pools = [("max_pool", WindowAttrs(*window)), ("avg_pool", AvgPoolAttrs(*window))]
                self.add(self.b.emit(*self.one([(op, (x,), a) for op, a in pools]))[0]
                         if self.chance(0.6) else self("reduce", x, kind="mean", axes=(2, 3), keepdims=1))

    STEPS = (unary, unary, guarded, binary, binary, binary, broadcast, compare, cast, rounded, reshape, reshape, transpose, transpose,
             slice, concat, split, expand, pad, gather, reduce, reduce, rows, centre, matmul, matmul, conv, conv, network, pool2d)

    def build(self, steps: int) -> tuple[Graph, dict[str, np.ndarray]]:
        """The graph and inputs for it; now and then with NaN, infinities and huge values among them."""
        for k in range(self.r.randint(1, 3)):
            d = self.one(INTS) if self.chance(0.15) else self.one(FLOATS)
            self.pool.append(self.b.input(f"x{k}", TensorType(d, self.shape(self.one([1, 2, 2, 3, 4, 4])))))
        for _ in range(steps):
            try:
                self.one(self.STEPS)(self)
            except ShapeError:
                continue
        used = {v.name for n in self.b.nodes for v in n.operands}
        ends = [v for v in self.pool if v.name not in used] or self.pool[-1:]
        outputs = list({v.name: v for v in [*ends[-3:], self.one(self.pool)]}.values())
        g = self.b.graph(outputs)
        inputs = {v.name: self.array(v.type.shape, v.type.dtype) for v in g.inputs}
        if self.chance(0.1):
            for a in inputs.values():
                if a.size and a.dtype.kind not in "iub":
                    a.reshape(-1)[self.np.integers(0, a.size, 2)] = self.one([np.nan, np.inf, -np.inf, 0.0])
        return g, inputs


def random_case(seed: int) -> tuple[Graph, dict[str, np.ndarray]]:
    rng = random.Random(seed)
    return Fuzzer(rng).build(rng.randint(1, 12))

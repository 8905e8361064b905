"""Pooling over sliding windows: maximum (with indices), average and p-norm."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, accumulate_dtype, call, cast, eq, select, wrap
from ..graph import Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute, reduce
from ..types import I64, DType, TensorType, dtype_of
from .shape import full, reshape
from .slices import pad
from .window import WindowAttrs, attr_ints, taps, window_of

NOWHERE = 2**62  # an index larger than any element's
POOLS = frozenset({"max_pool", "avg_pool", "lp_pool"})  # ops that make one value of each window


def lowest(dtype: DType) -> int | float:
    """The identity of max."""
    return -math.inf if dtype.is_float else int(np.iinfo(dtype.numpy).min)


def tap_views(a: WindowAttrs, x: np.ndarray, fill: int | float) -> Iterable[np.ndarray]:
    """For each tap of the window, in row-major order, what every output reads from x [N, C, spatial…] padded with `fill`."""
    need = [(m - 1) * s + (k - 1) * d + 1 - n - p if m else 0 for m, s, k, d, n, p in zip(
        a.sizes, a.strides, a.kernel, a.dilations, x.shape[2:], a.begins, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *((p, max(q, 0)) for p, q in zip(a.begins, need, strict=True))], constant_values=fill)
    for t in itertools.product(*map(range, a.kernel)):
        yield padded[(slice(None), slice(None), *(slice(i * d, i * d + (m - 1) * s + 1, s) if m else slice(0, 0) for i, d, m, s in zip(
            t, a.dilations, a.sizes, a.strides, strict=True)))]


class Pool(Op):
    """Base: types and samples. x [N, C, spatial…]."""

    Attrs = WindowAttrs
    make: Callable[..., WindowAttrs] = WindowAttrs

    def infer(self, attrs: WindowAttrs, x: TensorType) -> tuple[TensorType, ...]:
        r = x.rank - 2
        if r < 1 or not len(attrs.kernel) == len(attrs.strides) == len(attrs.dilations) == len(attrs.sizes) == len(attrs.pads) // 2 == r:
            raise self.fail(f"{attrs} does not fit {x}")
        if min((*attrs.pads, *attrs.sizes)) < 0 or min((*attrs.kernel, *attrs.strides, *attrs.dilations)) < 1:
            raise self.fail(f"negative or zero entries in {attrs}")
        return (TensorType(x.dtype, (*x.shape[:2], *attrs.sizes)),)

    def body(self, attrs: WindowAttrs, x: Buffer, fill: int | float, kind: str, term: Callable[[Expr], Expr]) -> Callable[..., Expr]:
        """The reduction of term(element) over the window, where `fill` stands for elements outside."""
        def one(n: Expr, c: Expr, *o: Expr) -> Expr:
            def element(*t: Expr) -> Expr:
                at, inside = taps(attrs, x.shape[2:], o, t)
                return term(x[(n, c, *at)] if inside is None else x.at((n, c, *at), inside, fill))
            return reduce(kind, attrs.kernel, element)
        return one

    def windows(self) -> Iterable[tuple[np.ndarray, WindowAttrs]]:
        rng = np.random.default_rng(2)
        for x, args in (((1, 3, 7, 7), ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (4, 4))),
                        ((2, 1, 5, 6), ((2, 3), (1, 2), (0, 0, 0, 0), (2, 1), (3, 2))),
                        ((1, 17, 11), ((2,), (2,), (0, 0), (1,), (6,))),
                        ((1, 2, 3, 4, 5), ((2, 2, 2), (1, 1, 1), (0, 1, 0, 1, 0, 0), (1, 1, 1), (3, 4, 4))),
                        ((0, 1, 4, 4), ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1), (2, 2)))):
            yield rng.standard_normal(x).astype("f4"), self.make(*args)

    def samples(self) -> Iterable[Sample]:
        for x, a in self.windows():
            yield Sample((x,), a)
        x, a = next(iter(self.windows()))
        x[0, 1, 3, 3] = np.nan
        yield Sample((x,), a)
        yield Sample((x.astype("f8"),), a)


@register
class MaxPool(Pool):
    """The largest element of each window; NaN wins."""

    name = "max_pool"

    def reference(self, attrs: WindowAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        low = lowest(dtype_of(x.dtype))
        out = np.full((*x.shape[:2], *attrs.sizes), low, x.dtype)
        for v in tap_views(attrs, x, low):
            out = np.maximum(out, v)
        return (out,)

    def compute(self, attrs: WindowAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        return (compute("out0", x.dtype, outs[0].shape, self.body(attrs, x, lowest(x.dtype), "max", lambda v: v)),)

    def samples(self) -> Iterable[Sample]:
        yield from super().samples()
        x, a = next(iter(self.windows()))
        yield Sample(((x * 50).astype("i1"),), a)
        yield Sample((np.abs(x * 50).astype("u1"),), a)


@dataclass(frozen=True, slots=True)
class MaxIndexAttrs(WindowAttrs):
    column_major: bool = False


@register
class MaxPoolIndex(Pool):
    """Inputs x and its max_pool m: the flat position (i64) in x of each window's first element that equals m.
    `column_major` counts the spatial dimensions with the first one fastest."""

    name = "max_pool_index"
    Attrs = MaxIndexAttrs
    make = MaxIndexAttrs

    def infer(self, attrs: MaxIndexAttrs, x: TensorType, m: TensorType) -> tuple[TensorType, ...]:
        (t,) = super().infer(attrs, x)
        if m != t:
            raise self.fail(f"{m} is not the max_pool of {x}, which has type {t}")
        return (TensorType(I64, t.shape),)

    def reference(self, attrs: MaxIndexAttrs, x: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, ...]:
        flat = np.arange(x.size, dtype=np.float64).reshape(x.shape)  # exact below 2**53
        out = np.full(m.shape, float(NOWHERE))
        for v, at in zip(tap_views(attrs, x.astype(np.float64), np.nan), tap_views(attrs, flat, float(NOWHERE)), strict=True):
            hit = (v == m) | (np.isnan(v) & np.isnan(m.astype(np.float64)))
            out = np.minimum(out, np.where(hit, at, float(NOWHERE)))
        out = out.astype(np.int64)
        if attrs.column_major:
            n = math.prod(x.shape[2:])
            where = np.unravel_index(out % n, x.shape[2:])
            out = out // n * n + np.ravel_multi_index(where, x.shape[2:], order="F")
        return (out,)

    def compute(self, attrs: MaxIndexAttrs, outs: tuple[TensorType, ...], x: Buffer, m: Buffer) -> tuple[Compute, ...]:
        def flat(index: list[Expr]) -> Expr:
            return sum((e * s for e, s in zip(index, x.strides, strict=True)), wrap(0, I64))

        def body(n: Expr, c: Expr, *o: Expr) -> Expr:
            def element(*t: Expr) -> Expr:
                at, inside = taps(attrs, x.shape[2:], o, t)
                index = (n, c, *at)
                v, big = (x[index] if inside is None else x.at(index, inside, 0)), m[(n, c, *o)]
                hit = eq(v, big)
                if x.dtype.is_float:
                    hit = hit | (call("isnan", v) & call("isnan", big))
                if inside is not None:
                    hit = hit & inside
                return select(hit, flat(list(index)), wrap(NOWHERE, I64))
            return reduce("min", attrs.kernel, element)
        shape = outs[0].shape
        if not attrs.column_major:
            return (compute("out0", I64, shape, body),)
        first = compute("first", I64, shape, body)
        return (first, compute("out0", I64, shape, lambda *i: _column_major(first.buffer[i], x.shape[2:])))

    def samples(self) -> Iterable[Sample]:
        for k, (x, a) in enumerate(self.windows()):
            x = np.round(x * 2)  # ties
            if k == 0:
                x[0, 1, 3, 3] = np.nan
            window = WindowAttrs(a.kernel, a.strides, a.pads, a.dilations, a.sizes)
            (m,) = MaxPool().reference(window, x)
            for order in (False, True):
                yield Sample((x, m), MaxIndexAttrs(a.kernel, a.strides, a.pads, a.dilations, a.sizes, order))


def _column_major(flat: Expr, spatial: tuple[int, ...]) -> Expr:
    """A row-major flat index whose last dimensions are `spatial`, with those counted column-major."""
    n = max(math.prod(spatial), 1)
    rest, out, weight, below = flat % n, flat // n * n, 1, n
    for k, m in enumerate(spatial):
        below //= max(m, 1)
        digit = rest // below % m if k else rest // below
        out, weight = out + digit * weight, weight * m
    return out


@dataclass(frozen=True, slots=True)
class AvgPoolAttrs(WindowAttrs):
    count_pads: bool = False


@register
class AvgPool(Pool):
    """The mean of each window; `count_pads` divides by the taps inside the padded extents instead of those inside x."""

    name = "avg_pool"
    Attrs = AvgPoolAttrs
    make = AvgPoolAttrs

    def reference(self, attrs: AvgPoolAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        total = sum(tap_views(attrs, x.astype(np.float64), 0.0))
        with np.errstate(all="ignore"):
            return ((total / math_outer(self._counts(attrs, x.shape[2:]))).astype(x.dtype),)

    @staticmethod
    def _counts(attrs: AvgPoolAttrs, spatial: tuple[int, ...]) -> list[np.ndarray]:
        """How many taps count, by output position, a dimension each."""
        out = []
        for k, n in enumerate(spatial):
            at = np.arange(attrs.sizes[k])[:, None] * attrs.strides[k] + np.arange(attrs.kernel[k]) * attrs.dilations[k] - attrs.begins[k]
            low, high = (-attrs.begins[k], n + attrs.ends[k]) if attrs.count_pads else (0, n)
            out.append(((at >= low) & (at < high)).sum(1))
        return out

    def compute(self, attrs: AvgPoolAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        acc = accumulate_dtype(x.dtype)
        total = self.body(attrs, x, 0, "sum", lambda v: cast(v, acc))
        counts = self._counts(attrs, x.shape[2:])

        def body(n: Expr, c: Expr, *o: Expr) -> Expr:
            divisor = wrap(1, I64)
            for k, cs in enumerate(counts):
                divisor = divisor * (int(cs[0]) if cs.size and cs.min() == cs.max() else self._count(attrs, x.shape[2 + k], k, o[k]))
            return cast(total(n, c, *o) / cast(divisor, acc), x.dtype)
        return (compute("out0", x.dtype, outs[0].shape, body),)

    @staticmethod
    def _count(attrs: AvgPoolAttrs, n: int, k: int, o: Expr) -> Expr:
        d, begin = attrs.dilations[k], attrs.begins[k]
        high = n + attrs.ends[k] if attrs.count_pads else n
        p = o * attrs.strides[k] - begin                    # where the window starts
        last = call("min", (wrap(high + d - 1, I64) - p) // d, attrs.kernel[k])  # taps t with p + t*d < high
        first = wrap(0, I64) if attrs.count_pads else call("max", (wrap(d - 1, I64) - p) // d, 0)
        return call("max", last - first, 0)

    def samples(self) -> Iterable[Sample]:
        yield from super().samples()
        for x, a in self.windows():
            yield Sample((x,), AvgPoolAttrs(a.kernel, a.strides, a.pads, a.dilations, a.sizes, True))
        x, a = next(iter(self.windows()))
        yield Sample((x.astype("f2"),), a, 2e-3)


def math_outer(vectors: list[np.ndarray]) -> np.ndarray:
    """The outer product of vectors, one dimension each."""
    out = np.ones(())
    for v in vectors:
        out = out[..., None] * v
    return out


@dataclass(frozen=True, slots=True)
class LpPoolAttrs(WindowAttrs):
    p: int = 2


@register
class LpPool(Pool):
    """(sum |x|^p)^(1/p) over each window."""

    name = "lp_pool"
    Attrs = LpPoolAttrs
    make = LpPoolAttrs

    def reference(self, attrs: LpPoolAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        total = sum(np.abs(v) ** attrs.p for v in tap_views(attrs, x.astype(np.float64), 0.0))
        return ((total ** (1 / attrs.p)).astype(x.dtype),)

    def compute(self, attrs: LpPoolAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        acc, p = accumulate_dtype(x.dtype), attrs.p

        def term(v: Expr) -> Expr:
            v = cast(v, acc)
            return v * v if p == 2 else call("abs", v) if p == 1 else call("pow", call("abs", v), float(p))
        total = self.body(attrs, x, 0, "sum", term)

        def body(*i: Expr) -> Expr:
            s = total(*i)
            return cast(call("sqrt", s) if p == 2 else s if p == 1 else call("pow", s, 1 / p), x.dtype)
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        yield from super().samples()
        for x, a in self.windows():
            yield Sample((x,), LpPoolAttrs(a.kernel, a.strides, a.pads, a.dilations, a.sizes, 3), 1e-4)


# -- ONNX -------------------------------------------------------------------------------------------------------------
def _window(n: OnnxNode) -> tuple[Value, WindowAttrs]:
    x = n.need(0)
    r = x.type.rank - 2
    if r < 1 or "kernel_shape" not in n.attrs:
        raise ShapeError(f"{n.op_type} {n.name!r}: needs a kernel_shape and an NC… tensor, got {x.type}")
    return x, window_of(n, x.type.shape[2:], attr_ints(n, "kernel_shape", (0,) * r))


def _args(a: WindowAttrs) -> dict[str, object]:
    return {"kernel": a.kernel, "strides": a.strides, "pads": a.pads, "dilations": a.dilations, "sizes": a.sizes}


@from_onnx("MaxPool")
def _max_pool(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    x, a = _window(n)
    y = b.op("max_pool", x, **_args(a))
    if n.n_outputs < 2:
        return [y]
    return [y, b.op("max_pool_index", x, y, **_args(a), column_major=bool(n.attrs.get("storage_order", 0)))]


@from_onnx("AveragePool")
def _average_pool(n: OnnxNode, b: GraphBuilder) -> Value:
    x, a = _window(n)
    return b.op("avg_pool", x, **_args(a), count_pads=bool(n.attrs.get("count_include_pad", 0)))


@from_onnx("LpPool")
def _lp_pool(n: OnnxNode, b: GraphBuilder) -> Value:
    x, a = _window(n)
    return b.op("lp_pool", x, **_args(a), p=n.attrs.get("p", 2))


@from_onnx("MaxUnpool")
def _max_unpool(n: OnnxNode, b: GraphBuilder) -> Value:
    x, at = n.need(0), n.need(1)
    r = x.type.rank - 2
    kernel, strides = attr_ints(n, "kernel_shape", (0,) * r), attr_ints(n, "strides", (1,) * r)
    pads, shape = attr_ints(n, "pads", (0,) * (2 * r)), n.ints(2)
    natural = (*x.type.shape[:2], *((m - 1) * s + k - pads[j] - pads[j + r]
                                    for j, (m, s, k) in enumerate(zip(x.type.shape[2:], strides, kernel, strict=True))))
    # indices count inside the natural shape; a larger output_shape only adds room behind it
    size = math.prod(natural)
    flat = b.op("scatter_elements", full(b, (size,), 0, x.type), reshape(b, at, (x.type.size,)), reshape(b, x, (x.type.size,)), axis=0)
    y = reshape(b, flat, natural)
    if shape is None or tuple(shape) == natural:
        return y
    return pad(b, y, (0,) * len(natural), [m - k for m, k in zip(shape, natural, strict=True)])

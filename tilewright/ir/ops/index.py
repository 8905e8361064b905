"""Ops that read at indices computed from data: gathers, one-hot, reversed sequences, cache updates. All are regular: each
output element says where it comes from. Indices count from the end when negative; one outside its dimension is an
InputError of the call (`Checked`)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Checked, Expr, call, cast, eq, select, wrap
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute
from ..types import I64, TensorType
from .shape import normalize_axis, reshape
from .slices import AxisAttrs


def checked(index: np.ndarray, n: int, op: str) -> np.ndarray:
    """`index` counted from the front. Raises InputError where one is outside [-n, n)."""
    index = index.astype(np.int64)
    if index.size and (index.min() < -n or index.max() >= n):
        raise InputError(f"{op}: an index is outside [-{n}, {n})")
    return np.where(index < 0, index + n, index)


def need_elements(op: Op, n: int, out: tuple[int, ...]) -> None:
    if n == 0 and 0 not in out:
        raise op.fail("nothing to gather from: the dimension is empty")


@register
class Gather(Op):
    """out[a…, i…, b…] = x[a…, index[i…], b…]; `axis` is counted from the front."""

    name = "gather"
    Attrs = AxisAttrs

    def infer(self, attrs: AxisAttrs, x: TensorType, index: TensorType) -> tuple[TensorType, ...]:
        a = attrs.axis
        if not 0 <= a < x.rank or not index.dtype.is_int:
            raise self.fail(f"cannot gather {index} along axis {a} of {x}")
        shape = (*x.shape[:a], *index.shape, *x.shape[a + 1:])
        need_elements(self, x.shape[a], shape)
        return (TensorType(x.dtype, shape),)

    def reference(self, attrs: AxisAttrs, x: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, ...]:
        at = checked(index, x.shape[attrs.axis], self.name)
        return (np.asarray(np.take(x, at, axis=attrs.axis)),)

    def compute(self, attrs: AxisAttrs, outs: tuple[TensorType, ...], x: Buffer, index: Buffer) -> tuple[Compute, ...]:
        a, r = attrs.axis, len(index.shape)
        return (compute("out0", x.dtype, outs[0].shape, lambda *i: x[(
            *i[:a], Checked(cast(index[i[a:a + r]], I64), x.shape[a]), *i[a + r:])]),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(35, dtype="f4").reshape(5, 7)
        yield Sample((x, np.array([[0, 4, -1], [2, 2, -5]])), AxisAttrs(0))
        yield Sample((x, np.array([6, -7], "i4")), AxisAttrs(1))
        yield Sample((x.astype("i1"), np.array(3)), AxisAttrs(1))
        yield Sample((x, np.zeros((0, 2), "i8")), AxisAttrs(0))
        yield Sample((x[0], np.array(-2)), AxisAttrs(0))


@register
class GatherElements(Op):
    """out[…, i, …] = x[…, index[…, i, …], …] along `axis`; out has the index's shape."""

    name = "gather_elements"
    Attrs = AxisAttrs

    def infer(self, attrs: AxisAttrs, x: TensorType, index: TensorType) -> tuple[TensorType, ...]:
        a = attrs.axis
        if x.rank != index.rank or not 0 <= a < x.rank or not index.dtype.is_int or any(
                i > n for k, (i, n) in enumerate(zip(index.shape, x.shape, strict=True)) if k != a):
            raise self.fail(f"cannot gather {index} along axis {a} of {x}")
        need_elements(self, x.shape[a], index.shape)
        return (TensorType(x.dtype, index.shape),)

    def reference(self, attrs: AxisAttrs, x: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, ...]:
        a = attrs.axis
        part = x[tuple(slice(None) if k == a else slice(n) for k, n in enumerate(index.shape))]
        return (np.take_along_axis(part, checked(index, x.shape[a], self.name), axis=a),)

    def compute(self, attrs: AxisAttrs, outs: tuple[TensorType, ...], x: Buffer, index: Buffer) -> tuple[Compute, ...]:
        a = attrs.axis
        return (compute("out0", x.dtype, outs[0].shape, lambda *i: x[(
            *i[:a], Checked(cast(index[i], I64), x.shape[a]), *i[a + 1:])]),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(15, dtype="f4").reshape(3, 5)
        yield Sample((x, np.array([[0, -1, 2], [1, 1, 0]])), AxisAttrs(0))
        yield Sample((x, np.array([[4, 0], [-5, 2], [3, 3]], "i4")), AxisAttrs(1))


@dataclass(frozen=True, slots=True)
class GatherNDAttrs(Attrs):
    batch_dims: int = 0


@register
class GatherND(Op):
    """out[b…, i…, r…] = x[b…, index[b…, i…, 0], index[b…, i…, 1], …, r…]."""

    name, onnx = "gather_nd", "GatherND"
    Attrs = GatherNDAttrs

    def infer(self, attrs: GatherNDAttrs, x: TensorType, index: TensorType) -> tuple[TensorType, ...]:
        k = attrs.batch_dims
        if not index.rank or not 0 <= k < min(index.rank, x.rank + 1) or x.shape[:k] != index.shape[:k] or not index.dtype.is_int \
                or k + index.shape[-1] > x.rank:
            raise self.fail(f"cannot gather {index} from {x} with {k} batch dimensions")
        shape = (*index.shape[:-1], *x.shape[k + index.shape[-1]:])
        for n in x.shape[k:k + index.shape[-1]]:
            need_elements(self, n, shape)
        return (TensorType(x.dtype, shape),)

    def reference(self, attrs: GatherNDAttrs, x: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, ...]:
        k, depth = attrs.batch_dims, index.shape[-1]
        shape = (*index.shape[:-1], *x.shape[k + depth:])
        grid = [np.arange(n).reshape([-1 if j == d else 1 for j in range(index.ndim - 1)]) for d, n in enumerate(index.shape[:k])]
        at = [checked(index[..., d], x.shape[k + d], self.name) for d in range(depth)]
        return (np.array(x[tuple(grid + at)] if grid or at else np.broadcast_to(x, shape)).reshape(shape),)

    def compute(self, attrs: GatherNDAttrs, outs: tuple[TensorType, ...], x: Buffer, index: Buffer) -> tuple[Compute, ...]:
        k, lead, depth = attrs.batch_dims, len(index.shape) - 1, index.shape[-1]

        def body(*i: Expr) -> Expr:
            at = [Checked(cast(index[(*i[:lead], d)], I64), x.shape[k + d]) for d in range(depth)]
            return x[(*i[:k], *at, *i[lead:])]
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(30, dtype="f4").reshape(2, 3, 5)
        yield Sample((x, np.array([[0, 2], [1, -1], [-2, 0]])), GatherNDAttrs(0))
        yield Sample((x, np.array([[[2, 4]], [[-3, 0]]])), GatherNDAttrs(1))
        yield Sample((x, np.array([[1], [0]])), GatherNDAttrs(1))
        yield Sample((x, np.array([[1, 2, 3]])), GatherNDAttrs(0))


@dataclass(frozen=True, slots=True)
class OneHotAttrs(Attrs):
    """`axis` is the place of the new dimension in the output."""

    axis: int = 0
    depth: int = 0


@register
class OneHot(Op):
    """Inputs index and values [off, on]: `on` where the new dimension's position is the index, which counts from the end
    when negative; an index outside [-depth, depth) gives a row of `off`."""

    name = "one_hot"
    Attrs = OneHotAttrs

    def infer(self, attrs: OneHotAttrs, index: TensorType, values: TensorType) -> tuple[TensorType, ...]:
        if values.shape != (2,) or not 0 <= attrs.axis <= index.rank or attrs.depth < 0:
            raise self.fail(f"{attrs} does not fit index {index} and values {values}")
        return (TensorType(values.dtype, (*index.shape[:attrs.axis], attrs.depth, *index.shape[attrs.axis:])),)

    def reference(self, attrs: OneHotAttrs, index: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        at = index.astype(np.int64)
        at = np.expand_dims(np.where(at < 0, at + attrs.depth, at), attrs.axis)
        place = np.arange(attrs.depth).reshape([-1 if k == attrs.axis else 1 for k in range(at.ndim)])
        return (np.where(at == place, values[1], values[0]).astype(values.dtype),)

    def compute(self, attrs: OneHotAttrs, outs: tuple[TensorType, ...], index: Buffer, values: Buffer) -> tuple[Compute, ...]:
        a = attrs.axis

        def body(*i: Expr) -> Expr:
            at = cast(index[(*i[:a], *i[a + 1:])], I64)
            return select(eq(select(at < 0, at + attrs.depth, at), i[a]), values[1], values[0])
        return (compute("out0", values.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        values = np.array([2, 5], "f4")
        yield Sample((np.array([[0, 2], [-1, 7]]), values), OneHotAttrs(2, 3))
        yield Sample((np.array([1, -3, -4], "f4"), values.astype("i1")), OneHotAttrs(0, 3))
        yield Sample((np.array(1), values > 3), OneHotAttrs(0, 2))


@dataclass(frozen=True, slots=True)
class TriluAttrs(Attrs):
    upper: bool = True
    k: int = 0


@register
class Trilu(Op):
    """The part of the last two dimensions on and above (below) the k-th diagonal; zero elsewhere."""

    name = "trilu"
    Attrs = TriluAttrs

    def infer(self, attrs: TriluAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if x.rank < 2:
            raise self.fail(f"{x} is no matrix")
        return (x,)

    def reference(self, attrs: TriluAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        d = np.arange(x.shape[-1]) - np.arange(x.shape[-2])[:, None]
        return (np.where(d >= attrs.k if attrs.upper else d <= attrs.k, x, np.zeros((), x.dtype)),)

    def compute(self, attrs: TriluAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        def body(*i: Expr) -> Expr:
            d = i[-1] - i[-2]
            return select(d >= attrs.k if attrs.upper else d <= attrs.k, x[i], wrap(0, x.dtype))
        return (compute("out0", x.dtype, x.shape, body),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(30, dtype="f4").reshape(2, 3, 5) + 1
        x[0, 2, 0] = np.nan
        for upper in (False, True):
            for k in (-2, 0, 1, 9):
                yield Sample((x,), TriluAttrs(upper, k))
        yield Sample((x > 3,), TriluAttrs())


@dataclass(frozen=True, slots=True)
class ReverseSequenceAttrs(Attrs):
    batch_axis: int = 1
    time_axis: int = 0


@register
class ReverseSequence(Op):
    """Reverses the first lengths[b] steps of each batch entry b; lengths are clamped into [0, steps]."""

    name, onnx = "reverse_sequence", "ReverseSequence"
    Attrs = ReverseSequenceAttrs

    def infer(self, attrs: ReverseSequenceAttrs, x: TensorType, lengths: TensorType) -> tuple[TensorType, ...]:
        if x.rank < 2 or {attrs.batch_axis, attrs.time_axis} != {0, 1} or lengths.shape != (x.shape[attrs.batch_axis],):
            raise self.fail(f"{attrs} and lengths {lengths} do not fit {x}")
        return (x,)

    def reference(self, attrs: ReverseSequenceAttrs, x: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
        steps = x.shape[attrs.time_axis]
        t, n = np.arange(steps), np.clip(lengths.astype(np.int64), 0, steps)[:, None]
        at = np.where(t < n, n - 1 - t, t)
        at = at.T if attrs.time_axis == 0 else at
        return (np.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), axis=attrs.time_axis),)

    def compute(self, attrs: ReverseSequenceAttrs, outs: tuple[TensorType, ...], x: Buffer, lengths: Buffer) -> tuple[Compute, ...]:
        steps = x.shape[attrs.time_axis]

        def body(*i: Expr) -> Expr:
            t = i[attrs.time_axis]
            n = call("min", cast(lengths[i[attrs.batch_axis]], I64), steps)
            at = [*i]
            at[attrs.time_axis] = Checked(select(t < n, n - t - 1, t), steps)
            return x[tuple(at)]
        return (compute("out0", x.dtype, x.shape, body),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(30, dtype="f4").reshape(5, 3, 2)
        yield Sample((x, np.array([1, 5, 3])), ReverseSequenceAttrs(1, 0))
        yield Sample((x, np.array([0, 1, 2, 3, 3], "i8")), ReverseSequenceAttrs(0, 1))


@dataclass(frozen=True, slots=True)
class CacheUpdateAttrs(Attrs):
    axis: int = 0
    circular: bool = False


@register
class CacheUpdate(Op):
    """Inputs cache [B, …], update (shorter along `axis`), start [B] or absent (0): the cache with update[b] written from
    position start[b] on, wrapping around where circular. (ONNX TensorScatter.)"""

    name = "cache_update"
    Attrs = CacheUpdateAttrs

    def infer(self, attrs: CacheUpdateAttrs, cache: TensorType, update: TensorType,
              start: TensorType | None = None) -> tuple[TensorType, ...]:
        a = attrs.axis
        fits = cache.rank == update.rank and 0 < a < cache.rank and update.shape[a] <= cache.shape[a]
        if not fits or cache.dtype != update.dtype or any(
                m != n for k, (m, n) in enumerate(zip(cache.shape, update.shape, strict=True)) if k != a):
            raise self.fail(f"update {update} does not fit {cache} along axis {a}")
        if start is not None and start.shape != cache.shape[:1]:
            raise self.fail(f"positions {start} do not fit the batch of {cache}")
        return (cache,)

    def reference(self, attrs: CacheUpdateAttrs, cache: np.ndarray, update: np.ndarray,
                  start: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        out, a = cache.copy(), attrs.axis
        for b in range(cache.shape[0]):
            at = (0 if start is None else int(start[b])) + np.arange(update.shape[a])
            keep = np.ones(at.shape, bool) if attrs.circular else (at >= 0) & (at < cache.shape[a])
            at = at % cache.shape[a] if attrs.circular and cache.shape[a] else at
            np.moveaxis(out[b], a - 1, 0)[at[keep]] = np.moveaxis(update[b], a - 1, 0)[keep]
        return (out,)

    def compute(self, attrs: CacheUpdateAttrs, outs: tuple[TensorType, ...], cache: Buffer, update: Buffer,
                start: Buffer | None = None) -> tuple[Compute, ...]:
        a, length = attrs.axis, update.shape[attrs.axis]

        def body(*i: Expr) -> Expr:
            j = i[a] if start is None else i[a] - cast(start[i[0]], I64)
            j = j % cache.shape[a] if attrs.circular else j
            new = (j >= 0) & (j < length)
            return select(new, update[(*i[:a], Checked(select(new, j, 0), length), *i[a + 1:])], cache[i])
        return (compute("out0", cache.dtype, cache.shape, body if length else lambda *i: cache[i]),)

    def samples(self) -> Iterable[Sample]:
        cache, update = np.zeros((2, 5, 3), "f4"), np.arange(12, dtype="f4").reshape(2, 2, 3) + 1
        yield Sample((cache, update, np.array([1, 3])), CacheUpdateAttrs(1))
        yield Sample((cache, update, np.array([4, 2])), CacheUpdateAttrs(1, True))
        yield Sample((cache, update, None), CacheUpdateAttrs(1))


# -- ONNX -------------------------------------------------------------------------------------------------------------
def onnx_axis(n: OnnxNode, default: int, rank: int) -> int:
    """The node's `axis` attribute, counted from the front."""
    return normalize_axis(int(n.attrs.get("axis", default)), rank, n.op_type)  # type: ignore[call-overload]


@from_onnx("Gather")
def _gather(n: OnnxNode, b: GraphBuilder) -> Value:
    return b.op("gather", n.need(0), n.need(1), axis=onnx_axis(n, 0, n.need(0).type.rank))


@from_onnx("GatherElements")
def _gather_elements(n: OnnxNode, b: GraphBuilder) -> Value:
    return b.op("gather_elements", n.need(0), n.need(1), axis=onnx_axis(n, 0, n.need(0).type.rank))


@from_onnx("OneHot")
def _one_hot(n: OnnxNode, b: GraphBuilder) -> Value:
    index, depth = n.need(0), n.static(1)
    if depth is None or depth.size != 1:
        raise ShapeError(f"OneHot {n.name!r}: depth must be one number")
    return b.op("one_hot", index, reshape(b, n.need(2), (2,)), axis=onnx_axis(n, -1, index.type.rank + 1), depth=int(depth.reshape(-1)[0]))


@from_onnx("Trilu")
def _trilu(n: OnnxNode, b: GraphBuilder) -> Value:
    k = n.ints(1)
    return b.op("trilu", n.need(0), upper=bool(n.attrs.get("upper", 1)), k=k[0] if k else 0)


@from_onnx("TensorScatter")
def _tensor_scatter(n: OnnxNode, b: GraphBuilder) -> Value:
    return b.op("cache_update", n.need(0), n.need(1), n.input(2), axis=onnx_axis(n, -2, n.need(0).type.rank),
                circular=n.attrs.get("mode", "linear") == "circular")

"""Ops whose element order or output shape depends on the data: scatters, top-k, and the
data-dependent ones (NonZero, Unique, Compress, NonMaxSuppression), which run between two segments of a model.

A kernel returns 0, or 1 where an index was outside its dimension; such updates are dropped, so memory stays safe.
float16 and bfloat16 arrive as uint16 bit patterns; ops that compare or add elements decompose into casts for them.
"""
from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..types import F32, I64, TensorType, contiguous_strides
from .index import checked, onnx_axis

REDUCTIONS = ("none", "add", "mul", "max", "min")
_UFUNC = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _larger(old, new):  # noqa: ANN001, ANN202
    return new if new > old or new != new else old  # noqa: PLR0124  (NaN wins)


def _smaller(old, new):  # noqa: ANN001, ANN202
    return new if new < old or new != new else old  # noqa: PLR0124  (NaN wins)


def _replace(old, new):  # noqa: ANN001, ANN202
    return new


_COMBINE: dict[str, Callable[..., object]] = {"none": _replace, "add": operator.add, "mul": operator.mul, "max": _larger, "min": _smaller}


@dataclass(frozen=True, slots=True)
class ScatterAttrs(Attrs):
    axis: int = 0
    reduction: str = "none"


class Scatter(Op):
    """Base: half floats are reduced in f32, bool with "add" is or, with "mul" and."""

    Attrs = ScatterAttrs
    flat = True

    def check(self, x: TensorType, index: TensorType, updates: TensorType, reduction: str) -> None:
        if updates.dtype != x.dtype or not index.dtype.is_int or reduction not in REDUCTIONS:
            raise self.fail(f"{updates} at {index} into {x} with reduction {reduction!r}")

    def halves(self, attrs: Attrs, reduction: str, b: GraphBuilder, x: Value, index: Value, updates: Value) -> tuple[Value, ...] | None:
        if reduction == "none" or not x.type.dtype.is_float or x.type.dtype.bits > 16:
            return None
        y = b.emit(self.name, (b.op("cast", x, dtype=F32), index, b.op("cast", updates, dtype=F32)), attrs)[0]
        return (b.op("cast", y, dtype=x.type.dtype),)


@register
class ScatterElements(Scatter):
    """x with x[…, index[…, i, …], …] set to (or combined with) updates[…, i, …] along `axis`, in row-major order."""

    name = "scatter_elements"

    def infer(self, attrs: ScatterAttrs, x: TensorType, index: TensorType, updates: TensorType) -> tuple[TensorType, ...]:
        self.check(x, index, updates, attrs.reduction)
        if index.shape != updates.shape or index.rank != x.rank or not 0 <= attrs.axis < x.rank or any(
                i > n for k, (i, n) in enumerate(zip(index.shape, x.shape, strict=True)) if k != attrs.axis):
            raise self.fail(f"{updates} at {index} does not fit into {x} along axis {attrs.axis}")
        return (x,)

    def reference(self, attrs: ScatterAttrs, x: np.ndarray, index: np.ndarray, updates: np.ndarray) -> tuple[np.ndarray, ...]:
        out = x.copy()
        at = [np.asarray(i) for i in np.indices(index.shape)]
        at[attrs.axis] = checked(index, x.shape[attrs.axis], self.name)
        return (_scatter(out, tuple(at), updates, attrs.reduction),)

    def decompose(self, attrs: ScatterAttrs, b: GraphBuilder, x: Value, index: Value, updates: Value) -> tuple[Value, ...] | None:
        return self.halves(attrs, attrs.reduction, b, x, index, updates)

    def kernel(self, attrs: ScatterAttrs, x: TensorType, index: TensorType, updates: TensorType) -> Callable[..., int]:
        axis, extent = attrs.axis, x.shape[attrs.axis]
        dims = [d for d in range(x.rank) if d == axis or index.shape[d] != 1]  # the others' digits are all 0
        *outer, last = dims
        rows, width, depth = math.prod(index.shape[d] for d in outer), index.shape[last], len(outer)
        steps = contiguous_strides(x.shape)
        along, beside = steps[axis], 0 if last == axis else steps[last]
        shape = np.array((*(index.shape[d] for d in outer), 1), np.int64)
        strides = np.array((*(0 if d == axis else steps[d] for d in outer), 0), np.int64)
        combine, mask = _combine(attrs.reduction), x.dtype.name == "bool" and attrs.reduction != "none"

        def scatter_elements(data, index, updates, out):  # noqa: ANN001, ANN202
            for k in range(data.size):
                out[k] = data[k]
            bad = 0
            for row in range(rows):
                rest, base = row, 0
                for d in range(depth - 1, -1, -1):  # divisions cost more than the update: once a row
                    base += rest % shape[d] * strides[d]
                    rest //= shape[d]
                for j in range(width):
                    k = row * width + j
                    digit = np.int64(index[k])
                    if digit < 0:
                        digit += extent
                    if digit < 0 or digit >= extent:
                        bad = 1
                    else:
                        place = base + digit * along + j * beside
                        value = combine(out[place], updates[k])
                        out[place] = value != 0 if mask else value
            return bad
        return scatter_elements

    def samples(self) -> Iterable[Sample]:
        x = np.arange(15, dtype="f4").reshape(3, 5)
        index, updates = np.array([[0, -1, 2], [1, 1, 0]]), np.array([[1, 2, 3], [4, 5, np.nan]], "f4")
        for kind in REDUCTIONS:
            yield Sample((x, index, updates), ScatterAttrs(0, kind))
        yield Sample((x, np.array([[1, 1, -2]]), np.array([[7, 8, 9]], "f4")), ScatterAttrs(1, "add"))
        deep = np.arange(48, dtype="f4").reshape(2, 3, 1, 2, 4)
        for axis, shape in ((1, (2, 5, 1, 2, 3)), (4, (2, 2, 1, 2, 7)), (0, (4, 3, 1, 1, 1)), (3, (1, 3, 1, 5, 1)), (2, (2, 1, 3, 2, 4))):
            at = np.arange(math.prod(shape)).reshape(shape) * 7 % deep.shape[axis]
            yield Sample((deep, at, np.cos(at).astype("f4") + np.arange(at.size, dtype="f4").reshape(shape)), ScatterAttrs(axis, "add"))
        yield Sample((x.astype("i1"), np.array([[1, 4]], "i4"), np.array([[-7, 100]], "i1")), ScatterAttrs(1, "mul"))
        yield Sample((x.astype("f2"), np.array([[1, 1]]), np.array([[0.5, 1]], "f2")), ScatterAttrs(1, "add"), 2e-3)
        yield Sample((x.astype("f2"), np.array([[1, 2]]), np.array([[0.5, 1]], "f2")), ScatterAttrs(1))
        yield Sample((x > 5, np.array([[1, 2]]), np.array([[True, False]])), ScatterAttrs(1, "add"))


@dataclass(frozen=True, slots=True)
class ScatterNDAttrs(Attrs):
    reduction: str = "none"


@register
class ScatterND(Scatter):
    """x with x[index[i…, 0], index[i…, 1], …, r…] set to (or combined with) updates[i…, r…], in row-major order of i."""

    name, onnx = "scatter_nd", "ScatterND"
    Attrs = ScatterNDAttrs

    def infer(self, attrs: ScatterNDAttrs, x: TensorType, index: TensorType, updates: TensorType) -> tuple[TensorType, ...]:
        self.check(x, index, updates, attrs.reduction)
        if not index.rank or index.shape[-1] > x.rank or updates.shape != (*index.shape[:-1], *x.shape[index.shape[-1]:]):
            raise self.fail(f"{updates} at {index} does not fit into {x}")
        return (x,)

    def reference(self, attrs: ScatterNDAttrs, x: np.ndarray, index: np.ndarray, updates: np.ndarray) -> tuple[np.ndarray, ...]:
        at = tuple(checked(index[..., d], x.shape[d], self.name) for d in range(index.shape[-1]))
        if not at:  # every update covers all of x
            out = x.copy()
            for u in updates.reshape(-1, *x.shape) if updates.size else ():
                out = u.copy() if attrs.reduction == "none" else _UFUNC[attrs.reduction](out, u)
            return (out,)
        return (_scatter(x.copy(), at, updates, attrs.reduction),)

    def decompose(self, attrs: ScatterNDAttrs, b: GraphBuilder, x: Value, index: Value, updates: Value) -> tuple[Value, ...] | None:
        return self.halves(attrs, attrs.reduction, b, x, index, updates)

    def kernel(self, attrs: ScatterNDAttrs, x: TensorType, index: TensorType, updates: TensorType) -> Callable[..., int]:
        depth = index.shape[-1]
        count, inner = math.prod(index.shape[:-1]), math.prod(x.shape[depth:])
        shape = np.array((*x.shape[:depth], 1), np.int64)
        combine, mask = _combine(attrs.reduction), x.dtype.name == "bool" and attrs.reduction != "none"

        def scatter_nd(data, index, updates, out):  # noqa: ANN001, ANN202
            for k in range(data.size):
                out[k] = data[k]
            bad = 0
            for k in range(count):
                place, inside = 0, True
                for d in range(depth):
                    digit = np.int64(index[k * depth + d])
                    if digit < 0:
                        digit += shape[d]
                    if digit < 0 or digit >= shape[d]:
                        bad, inside = 1, False
                        break
                    place = place * shape[d] + digit
                if inside:
                    for j in range(inner):
                        value = combine(out[place * inner + j], updates[k * inner + j])
                        out[place * inner + j] = value != 0 if mask else value
            return bad
        return scatter_nd

    def samples(self) -> Iterable[Sample]:
        x = np.arange(24, dtype="f4").reshape(4, 3, 2)
        updates = np.array([[[5, np.nan]] * 3, [[1, 2]] * 3, [[-3, 30]] * 3], "f4")
        for kind in REDUCTIONS:
            yield Sample((x, np.array([[0], [-2], [0]]), updates), ScatterNDAttrs(kind))
        yield Sample((x.astype("i8"), np.array([[1, 2, 0], [3, -1, 1]]), np.array([-5, -6])), ScatterNDAttrs())
        yield Sample((x, np.zeros((0, 2), "i8"), np.zeros((0, 2), "f4")), ScatterNDAttrs())


def _scatter(out: np.ndarray, at: tuple[np.ndarray, ...], updates: np.ndarray, reduction: str) -> np.ndarray:
    if reduction == "none":
        out[at] = updates
    else:
        sums = out.astype(np.float32) if out.dtype.itemsize == 2 and out.dtype.kind not in "iu" else out
        _UFUNC[reduction].at(sums, at, updates.astype(sums.dtype))
        out = sums.astype(out.dtype)
    return out


def _combine(reduction: str) -> Callable[..., object]:
    """The reduction of two scalars, callable from a kernel."""
    return _COMBINE[reduction]


@dataclass(frozen=True, slots=True)
class TopKAttrs(Attrs):
    axis: int = 0
    k: int = 1
    largest: bool = True


@register
class TopK(Op):
    """The k largest (smallest) elements along `axis` in order, and their positions (i64). Of equal elements the first
    comes first; NaN counts as larger than every number."""

    name, flat = "topk", True
    Attrs = TopKAttrs

    def infer(self, attrs: TopKAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if not 0 <= attrs.axis < x.rank or not 0 <= attrs.k <= x.shape[attrs.axis]:
            raise self.fail(f"no {attrs.k} elements along axis {attrs.axis} of {x}")
        shape = (*x.shape[:attrs.axis], attrs.k, *x.shape[attrs.axis + 1:])
        return TensorType(x.dtype, shape), TensorType(I64, shape)

    def reference(self, attrs: TopKAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        a = attrs.axis
        keys = x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
        if attrs.largest:  # a stable descending order is a stable ascending one of the reversed row, read backwards
            order = x.shape[a] - 1 - np.flip(np.argsort(np.flip(keys, a), axis=a, kind="stable"), a)
        else:
            order = np.argsort(keys, axis=a, kind="stable")
        order = np.take(order, np.arange(attrs.k), axis=a)
        return np.take_along_axis(x, order, axis=a), order.astype(np.int64)

    def decompose(self, attrs: TopKAttrs, b: GraphBuilder, x: Value) -> tuple[Value, ...] | None:
        if not x.type.dtype.is_float or x.type.dtype.bits > 16:
            return None
        values, order = b.emit(self.name, (b.op("cast", x, dtype=F32),), attrs)
        return b.op("cast", values, dtype=x.type.dtype), order

    def kernel(self, attrs: TopKAttrs, x: TensorType) -> Callable[..., int]:
        n, k, largest = x.shape[attrs.axis], attrs.k, attrs.largest
        outer, inner = math.prod(x.shape[:attrs.axis]), math.prod(x.shape[attrs.axis + 1:])

        def before(a, b):  # noqa: ANN001, ANN202
            """Whether a stands strictly before b."""
            if largest:
                return a > b or (a != a and b == b)  # noqa: PLR0124
            return a < b or (b != b and a == a)  # noqa: PLR0124

        def topk(src, out, heap):  # noqa: ANN001, ANN202
            for row in range(outer * inner if k else 0):
                base, to = row // inner * n * inner + row % inner, row // inner * k * inner + row % inner
                size = 0  # of the heap of positions in the row's part of the second output; its root stands last of those kept
                for j in range(n):
                    if size == k and not before(src[base + j * inner], src[base + heap[to] * inner]):
                        continue  # later equal elements never displace earlier ones
                    if size < k:
                        node, size = size, size + 1
                        while node > 0:  # sift up
                            parent = (node - 1) // 2
                            p = heap[to + parent * inner]
                            if before(src[base + j * inner], src[base + p * inner]):
                                break
                            heap[to + node * inner], node = p, parent
                        heap[to + node * inner] = j
                    else:
                        _sift_down(src, base, heap, to, size, j)
                while size > 0:  # take the last one off, again and again, and put it where the heap ended
                    size -= 1
                    last, item = heap[to], heap[to + size * inner]
                    _sift_down(src, base, heap, to, size, item)
                    heap[to + size * inner], out[to + size * inner] = last, src[base + last * inner]
            return 0

        def _sift_down(src, base, heap, to, size, item):  # noqa: ANN001, ANN202
            """`item` instead of the root of a heap of `size`."""
            node = 0
            while True:
                child = 2 * node + 1
                if child >= size:
                    break
                if child + 1 < size and _after(src, base, heap[to + (child + 1) * inner], heap[to + child * inner]):
                    child += 1
                if not _after(src, base, heap[to + child * inner], item):
                    break
                heap[to + node * inner], node = heap[to + child * inner], child
            if size > 0:
                heap[to + node * inner] = item

        def _after(src, base, i, j):  # noqa: ANN001, ANN202
            """Whether position i stands after position j."""
            a, b = src[base + i * inner], src[base + j * inner]
            return before(b, a) or (not before(a, b) and i > j)
        return topk

    def samples(self) -> Iterable[Sample]:
        x = np.array([[3, 1, np.nan, 7, 3, -2, 7], [0, 0, 0, -np.inf, np.inf, np.nan, 1]], "f4")
        for largest in (True, False):
            for k in (0, 1, 3, 7):
                yield Sample((x,), TopKAttrs(1, k, largest))
            yield Sample((x,), TopKAttrs(0, 1, largest))
            yield Sample((np.random.default_rng(0).integers(-20, 20, (2, 31, 3), "i1"),), TopKAttrs(1, 17, largest))
        yield Sample((x.astype("f2"),), TopKAttrs(1, 4))
        long = np.random.default_rng(1).integers(-9, 9, (3, 300)).astype("f8")
        long[1, ::5], long[2, 7:] = np.nan, np.nan
        for kind in ("f4", "f8"):
            yield Sample((long.astype(kind),), TopKAttrs(1, 5, True))
            yield Sample((long.astype(kind),), TopKAttrs(1, 12, False))
        yield Sample((x[:0],), TopKAttrs(1, 2))


@from_onnx("TopK")
def _topk(n: OnnxNode, b: GraphBuilder) -> tuple[Value, ...]:
    x = n.need(0)
    k = n.ints(1) if len(n.inputs) > 1 else (int(n.attrs["k"]),)  # type: ignore[call-overload]
    if not k or len(k) != 1:
        raise ShapeError(f"TopK {n.name!r}: k must be one number")
    return b.emit("topk", (x,), axis=onnx_axis(n, -1, x.type.rank), k=k[0], largest=bool(n.attrs.get("largest", 1)))


@from_onnx("Scatter")
@from_onnx("ScatterElements")
def _scatter_elements(n: OnnxNode, b: GraphBuilder) -> Value:
    return b.op("scatter_elements", *(n.need(i) for i in range(3)), axis=onnx_axis(n, 0, n.need(0).type.rank),
                reduction=n.attrs.get("reduction", "none"))



"""Reductions over axes, and the position of an extreme. Half floats are reduced in f32 and rounded once."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, accumulate_dtype, call, cast, eq, select, wrap
from ..graph import Attrs, Value
from ..op import OnnxImporter, OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute, reduce
from ..samples import tolerance, values
from ..types import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, U32, DType, TensorType
from .elementwise import scalar_like
from .shape import normalize_axis

KINDS = ("sum", "mean", "prod", "max", "min", "any", "all", "l1", "l2", "sum_square", "log_sum", "log_sum_exp")
Index = tuple[Expr, ...]


# -- rows: what reductions and normalisations share ---------------------------------------------------------------------
def merge(axes: Sequence[int], kept: Sequence[Expr], inner: Sequence[Expr]) -> Index:
    """The full index from that of the kept dimensions and that of the reduced ones, `axes`, in order."""
    k, r = iter(kept), iter(inner)
    return tuple(next(r) if d in axes else next(k) for d in range(len(kept) + len(inner)))


def kept(axes: Sequence[int], full: Sequence[Expr]) -> Index:
    """The part of a full index, or shape, that reducing `axes` keeps."""
    return tuple(e for d, e in enumerate(full) if d not in axes)


def row_reduce(name: str, kind: str, dtype: DType, shape: tuple[int, ...], axes: Sequence[int], body: Callable[..., Expr],
               finish: Callable[[Expr], Expr] = lambda e: e) -> Compute:
    """name[kept] = finish(`kind` over `axes` of body(*full index)): one number a row, without the reduced dimensions."""
    outer = tuple(n for d, n in enumerate(shape) if d not in axes)
    extents = [n for d, n in enumerate(shape) if d in axes]

    def value(*k: Expr) -> Expr:
        return finish(reduce(kind, extents, lambda *r: body(*merge(axes, k, r))) if extents else body(*k))
    return compute(name, dtype, outer, value)


def reduced_shape(shape: tuple[int, ...], axes: Sequence[int], keepdims: int) -> tuple[int, ...]:
    return tuple(1 if d in axes else n for d, n in enumerate(shape) if keepdims or d not in axes)


# -- reduce ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ReduceAttrs(Attrs):
    """axes: ascending, from the front; none of them reduces nothing, but applies the kind to single elements."""

    kind: str = "sum"
    axes: tuple[int, ...] = ()
    keepdims: int = 1


@register
class ReduceOp(Op):
    """One of KINDS over `axes`. Over nothing, sums give 0, prod 1, max -inf or the smallest integer, min the opposite,
    mean NaN. mean, l2 and the log kinds of integers are computed in f64 and truncated."""

    name = "reduce"
    Attrs = ReduceAttrs

    def infer(self, attrs: ReduceAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if attrs.kind not in KINDS:
            raise self.fail(f"kind {attrs.kind!r} is none of {', '.join(KINDS)}")
        if any(not 0 <= a < x.rank for a in attrs.axes) or len(set(attrs.axes)) < len(attrs.axes):
            raise self.fail(f"axes {attrs.axes} do not fit {x}")
        if (x.dtype is BOOL) != (attrs.kind in ("any", "all")):
            raise self.fail(f"kind {attrs.kind} is not defined on {x.dtype}")
        return (TensorType(x.dtype, reduced_shape(x.shape, attrs.axes, attrs.keepdims)),)

    def reference(self, attrs: ReduceAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        y = _numpy_reduce(attrs.kind, x, attrs.axes, keepdims=bool(attrs.keepdims))
        return (np.asarray(y).astype(x.dtype),)

    def compute(self, attrs: ReduceAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        wide = working_type(attrs.kind, x.dtype)
        axes, kind = attrs.axes, attrs.kind
        count = math.prod(x.shape[a] for a in axes)

        def load(full: Index) -> Expr:
            return cast(x[full], wide)

        def out(body: Callable[[Index], Expr], fold: str, finish: Callable[[Expr, Index], Expr]) -> Compute:
            def value(*i: Expr) -> Expr:
                k = kept(axes, i) if attrs.keepdims else i
                inner = reduce(fold, [x.shape[a] for a in sorted(axes)], lambda *r: body(merge(axes, k, r))) if axes else body(k)
                return cast(finish(inner, k), x.dtype)
            return compute("out0", outs[0].dtype, outs[0].shape, value)
        if kind == "log_sum_exp":
            # the row's maximum first; where that is not finite, 0 in its place lets inf and NaN come through exp and log
            top = row_reduce("top", "max", wide, x.shape, axes, lambda *f: load(f), lambda m: select(call("isinf", m), 0, m))
            return (top, out(lambda f: call("exp", load(f) - top.buffer[kept(axes, f)]), "sum",
                             lambda s, k: call("log", s) + top.buffer[k]))
        body: dict[str, Callable[[Expr], Expr]] = {"l1": lambda e: call("abs", e), "l2": lambda e: e * e, "sum_square": lambda e: e * e}
        finish: dict[str, Callable[[Expr], Expr]] = {
            "mean": lambda s: s / count, "l2": lambda s: call("sqrt", s), "log_sum": lambda s: call("log", s)}
        fold = kind if kind in ("prod", "max", "min", "any", "all") else "sum"
        return (out(lambda f: body.get(kind, lambda e: e)(load(f)), fold, lambda s, k: finish.get(kind, lambda e: e)(s)),)

    def samples(self) -> Iterable[Sample]:
        def case(kind: str, shape: tuple[int, ...], axes: tuple[int, ...], keepdims: int = 1, dtype: DType = F32,
                 special: bool = False) -> Sample:
            x = values(shape, dtype, low=0.1 if kind == "log_sum" else -4, special=special)
            return Sample((x,), ReduceAttrs(kind, axes, keepdims), rtol=tolerance(dtype))
        for kind in KINDS:
            t = BOOL if kind in ("any", "all") else F32
            yield case(kind, (3, 197), (1,), 0, t)
            yield case(kind, (2, 3, 5), (0, 2), 1, t)
            yield case(kind, (7, 3), (0,), 1, t)
            yield case(kind, (2, 3), (), 1, t)
            yield case(kind, (3, 0, 2), (1,), 0, t)
            yield case(kind, (2, 3, 2), (0, 1, 2), 0, t)
            if t is F32:
                yield case(kind, (5, 2), (0,), special=True)
                yield case(kind, (9, 3), (0,), dtype=F16)
                yield case(kind, (2, 17), (1,), dtype=I32)
        for d in (F64, BF16, I64, I8, U8, U32):
            for kind in ("sum", "max", "min", "mean"):
                yield case(kind, (3, 11), (1,), dtype=d)
        yield Sample((np.array([[np.inf, 1], [-np.inf, -np.inf], [np.nan, 1], [1000, 1000.5]], "f4"),), ReduceAttrs("log_sum_exp", (1,)))


def working_type(kind: str, d: DType) -> DType:
    """What a reduction of this kind is carried in."""
    if d.is_int and kind in ("mean", "l2", "log_sum", "log_sum_exp"):
        return F64
    return accumulate_dtype(d)


def _numpy_reduce(kind: str, x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    if not axes:  # np.sum(x, axis=()) keeps every element
        keepdims = True
    if kind in ("any", "all"):
        return (np.any if kind == "any" else np.all)(x, axis=axes, keepdims=keepdims)
    if kind in ("max", "min"):
        if math.prod(x.shape[a] for a in axes) == 0:
            return np.full(reduced_shape(x.shape, axes, keepdims), _extreme(kind, x.dtype), x.dtype)
        return (np.max if kind == "max" else np.min)(x, axis=axes, keepdims=keepdims)
    w = x if x.dtype.kind in "iu" and kind in ("sum", "prod", "l1", "sum_square") else x.astype(np.float64)
    if kind == "prod":
        return np.prod(w, axis=axes, keepdims=keepdims, dtype=w.dtype)
    top = np.zeros((), w.dtype)
    if kind == "log_sum_exp":
        top = np.max(w, axis=axes, keepdims=True, initial=-np.inf)
        top = np.where(np.isinf(top), 0, top)
    body = {"l1": np.abs, "l2": np.square, "sum_square": np.square, "log_sum_exp": lambda v: np.exp(v - top)}.get(kind, lambda v: v)
    total = np.sum(body(w), axis=axes, keepdims=keepdims, dtype=w.dtype)
    if kind == "mean":
        return np.asarray(total / math.prod(x.shape[a] for a in axes) if total.size else total)
    if kind == "log_sum_exp":
        return np.log(total) + top.reshape(total.shape)
    return np.asarray({"l2": np.sqrt, "log_sum": np.log}.get(kind, lambda v: v)(total))


def _extreme(kind: str, dtype: np.dtype) -> float | int:
    if dtype.kind in "iu":
        return np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max
    return -np.inf if kind == "max" else np.inf


# -- position of an extreme --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ArgReduceAttrs(Attrs):
    kind: str = "max"
    axis: int = 0
    keepdims: int = 1
    select_last_index: int = 0


@register
class ArgReduce(Op):
    """Index of the largest ("max") or smallest ("min") element along `axis`, the first or the last of equals. As in
    NumPy, NaN counts as the extreme."""

    name = "arg_reduce"
    Attrs = ArgReduceAttrs

    def infer(self, attrs: ArgReduceAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if not 0 <= attrs.axis < x.rank:
            raise self.fail(f"axis {attrs.axis} does not fit {x}")
        shape = reduced_shape(x.shape, (attrs.axis,), attrs.keepdims)
        if x.shape[attrs.axis] == 0 and math.prod(shape):
            raise self.fail(f"axis {attrs.axis} of {x} is empty, so no element is the {attrs.kind}imum")
        return (TensorType(I64, shape),)

    def reference(self, attrs: ArgReduceAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        if x.size == 0:
            return (np.zeros(reduced_shape(x.shape, (attrs.axis,), attrs.keepdims), np.int64),)
        find = np.argmax if attrs.kind == "max" else np.argmin
        n = x.shape[attrs.axis]
        w = x.astype(np.float32) if x.dtype.name == "bfloat16" else x
        i = n - 1 - find(np.flip(w, attrs.axis), axis=attrs.axis) if attrs.select_last_index else find(w, axis=attrs.axis)
        return (np.asarray(np.expand_dims(i, attrs.axis) if attrs.keepdims else i, np.int64),)

    def compute(self, attrs: ArgReduceAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        axes, n = (attrs.axis,), x.shape[attrs.axis]
        top = row_reduce("top", attrs.kind, x.dtype, x.shape, axes, lambda *f: x[f])

        def found(f: Index) -> Expr:
            hit = eq(x[f], top.buffer[kept(axes, f)])
            return hit | call("isnan", x[f]) if x.dtype.is_float else hit

        def value(*i: Expr) -> Expr:
            k = kept(axes, i) if attrs.keepdims else i
            last = bool(attrs.select_last_index)
            return reduce("max" if last else "min", (n,), lambda r: select(found(merge(axes, k, (r,))), r, wrap(-1 if last else n, I64)))
        return (top, compute("out0", I64, outs[0].shape, value))

    def samples(self) -> Iterable[Sample]:
        ties = np.array([[2, 1, 2, 1], [5, 5, 5, 5], [np.nan, 1, np.nan, 9], [-np.inf, np.inf, np.inf, -np.inf]], "f4")
        for kind in ("max", "min"):
            for last in (0, 1):
                yield Sample((ties,), ArgReduceAttrs(kind, 1, 1, last))
                yield Sample((ties,), ArgReduceAttrs(kind, 0, 0, last))
        for d in (F64, F16, BF16, I32, I8, U8):
            yield Sample((values((3, 17, 2), d),), ArgReduceAttrs("max", 1, 0))
        yield Sample((values((5, 1), F32),), ArgReduceAttrs("min", 1, 1))
        yield Sample((values((0, 3), F32),), ArgReduceAttrs("max", 1, 0))


# -- ONNX ------------------------------------------------------------------------------------------------------------
def node_axis(n: OnnxNode, rank: int, default: int) -> int:
    """The attribute `axis` of an ONNX node, from the front."""
    return normalize_axis(int(n.attrs.get("axis", default)), rank, f"{n.op_type} {n.name!r}")  # type: ignore[call-overload]


def node_axes(n: OnnxNode, rank: int, as_input_since: int) -> tuple[int, ...] | None:
    """The `axes` of an ONNX reduction, ascending: an attribute or, since some opset, input 1. None: not given or empty."""
    given = n.ints(1) if n.opset >= as_input_since else n.attrs.get("axes")
    if not given:
        return None
    return tuple(sorted({normalize_axis(int(a), rank, f"{n.op_type} {n.name!r}") for a in given}))  # type: ignore[union-attr]


def _import_reduce(kind: str, as_input_since: int) -> OnnxImporter:
    def build(n: OnnxNode, b: GraphBuilder) -> Value:
        x = n.need(0)
        axes = node_axes(n, x.type.rank, as_input_since)
        if axes is None:
            axes = () if n.opset >= as_input_since and n.attrs.get("noop_with_empty_axes", 0) else tuple(range(x.type.rank))
        k = {"max": "any", "min": "all"}.get(kind, kind) if x.type.dtype is BOOL else kind
        return b.op("reduce", x, kind=k, axes=axes, keepdims=n.attrs.get("keepdims", 1))
    return build


for _onnx, _kind in {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceProd": "prod", "ReduceMax": "max", "ReduceMin": "min",
                     "ReduceL1": "l1", "ReduceL2": "l2", "ReduceSumSquare": "sum_square", "ReduceLogSum": "log_sum",
                     "ReduceLogSumExp": "log_sum_exp"}.items():
    from_onnx(_onnx)(_import_reduce(_kind, 13 if _kind == "sum" else 18))


def _import_arg(kind: str) -> OnnxImporter:
    def build(n: OnnxNode, b: GraphBuilder) -> Value:
        x = n.need(0)
        axis = node_axis(n, x.type.rank, 0)
        return b.op("arg_reduce", x, kind=kind, axis=axis, keepdims=n.attrs.get("keepdims", 1),
                    select_last_index=n.attrs.get("select_last_index", 0))
    return build


from_onnx("ArgMax")(_import_arg("max"))
from_onnx("ArgMin")(_import_arg("min"))


def _spatial(n: OnnxNode) -> tuple[Value, tuple[int, ...]]:
    x = n.need(0)
    if x.type.rank < 2:
        raise ShapeError(f"{n.op_type} {n.name!r}: takes batch, channels and spatial dimensions, not {x.type}")
    return x, tuple(range(2, x.type.rank))


def _import_global(kind: str) -> OnnxImporter:
    def build(n: OnnxNode, b: GraphBuilder) -> Value:
        x, axes = _spatial(n)
        return b.op("reduce", x, kind=kind, axes=axes, keepdims=1)
    return build


from_onnx("GlobalAveragePool")(_import_global("mean"))
from_onnx("GlobalMaxPool")(_import_global("max"))


@from_onnx("GlobalLpPool")
def _global_lp_pool(n: OnnxNode, b: GraphBuilder) -> Value:
    x, axes = _spatial(n)
    return lp_norm(b, x, float(n.attrs.get("p", 2)), axes)  # type: ignore[arg-type]


def lp_norm(b: GraphBuilder, x: Value, p: float, axes: tuple[int, ...]) -> Value:
    """(sum |x|^p)^(1/p) over `axes`, which stay as extents of 1."""
    if p in (1, 2):
        return b.op("reduce", x, kind="l1" if p == 1 else "l2", axes=axes, keepdims=1)
    powers = b.op("pow", b.op("abs", x), scalar_like(b, x, p))
    return b.op("pow", b.op("reduce", powers, kind="sum", axes=axes, keepdims=1), scalar_like(b, x, 1 / p))

"""Ops that cut tensors and put them together: slice, concat, pad. Split, Tile, CenterCropPad… import as these."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, all_of, call, select, wrap
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute
from ..types import I64, TensorType, dtype_of
from .shape import expand, normalize_axis, reshape


@dataclass(frozen=True, slots=True)
class SliceAttrs(Attrs):
    """starts[k] + i * steps[k] for i < sizes[k], all inside dimension k; steps may be negative."""

    starts: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@register
class Slice(Op):
    name = "slice"
    Attrs = SliceAttrs

    def infer(self, attrs: SliceAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if not len(attrs.starts) == len(attrs.steps) == len(attrs.sizes) == x.rank:
            raise self.fail(f"starts, steps and sizes need {x.rank} entries each, got {attrs}")
        for k, (a, s, m, n) in enumerate(zip(attrs.starts, attrs.steps, attrs.sizes, x.shape, strict=True)):
            if m < 0 or (m and not (0 <= a < n and 0 <= a + (m - 1) * s < n)):
                raise self.fail(f"dimension {k}: {m} elements from {a} by {s} leave the extent {n}")
        return (TensorType(x.dtype, attrs.sizes),)

    def reference(self, attrs: SliceAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        for k, (a, s, m) in enumerate(zip(attrs.starts, attrs.steps, attrs.sizes, strict=True)):
            x = np.take(x, a + s * np.arange(m, dtype=np.int64), axis=k)
        return (np.ascontiguousarray(x).reshape(attrs.sizes),)

    def compute(self, attrs: SliceAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        return (compute("out0", x.dtype, attrs.sizes, lambda *i: x[tuple(
            e * s + a for e, s, a in zip(i, attrs.steps, attrs.starts, strict=True))]),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(35, dtype="f4").reshape(5, 7)
        yield Sample((x,), SliceAttrs((1, 6), (1, -2), (3, 4)))
        yield Sample((x,), SliceAttrs((0, 0), (1, 1), (0, 7)))
        yield Sample((x.astype("i1"),), SliceAttrs((4, 2), (-1, 1), (5, 1)))


@dataclass(frozen=True, slots=True)
class AxisAttrs(Attrs):
    axis: int = 0


@register
class Concat(Op):
    """Any number of inputs of one dtype, joined along `axis` (counted from the front)."""

    name = "concat"
    Attrs = AxisAttrs

    def infer(self, attrs: AxisAttrs, *ins: TensorType) -> tuple[TensorType, ...]:
        a, first = attrs.axis, ins[0]
        if not 0 <= a < first.rank:
            raise self.fail(f"axis {a} is outside {first}")
        for t in ins:
            if t.dtype != first.dtype or t.rank != first.rank or t.shape[:a] + t.shape[a + 1:] != first.shape[:a] + first.shape[a + 1:]:
                raise self.fail(f"{t} does not fit {first} along axis {a}")
        return (TensorType(first.dtype, (*first.shape[:a], sum(t.shape[a] for t in ins), *first.shape[a + 1:])),)

    def reference(self, attrs: AxisAttrs, *ins: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.concatenate(ins, axis=attrs.axis),)

    def compute(self, attrs: AxisAttrs, outs: tuple[TensorType, ...], *ins: Buffer) -> tuple[Compute, ...]:
        a = attrs.axis
        present = [x for x in ins if x.shape[a]] or [ins[0]]

        def body(*i: Expr) -> Expr:
            end = outs[0].shape[a]
            result: Expr | None = None
            for x in reversed(present):  # the last input first: each earlier one is chosen before what follows it
                begin = end - x.shape[a]
                inside = all_of(([i[a] >= begin] if begin else []) + ([i[a] < end] if end < outs[0].shape[a] else []))
                at = (*i[:a], i[a] - begin, *i[a + 1:])
                load = x[at] if inside is None else x.at(at, inside, 0)
                result = load if result is None else select(i[a] < end, load, result)
                end = begin
            assert result is not None
            return result
        return (compute("out0", outs[0].dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(12, dtype="f4").reshape(2, 3, 2)
        yield Sample((x, x[:, :1], x[:, :0], x + 5), AxisAttrs(1))
        yield Sample((x > 3, x < 2), AxisAttrs(0))
        yield Sample((x,), AxisAttrs(2))


@dataclass(frozen=True, slots=True)
class PadAttrs(Attrs):
    """`before` and `after` count new elements a dimension; mode is constant, reflect, edge or wrap."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    mode: str = "constant"
    value: int | float = 0


@register
class Pad(Op):
    name = "pad"
    Attrs = PadAttrs

    def infer(self, attrs: PadAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if not len(attrs.before) == len(attrs.after) == x.rank or min((*attrs.before, *attrs.after), default=0) < 0:
            raise self.fail(f"{x} needs {x.rank} non-negative pads on each side, got {attrs.before} and {attrs.after}")
        if attrs.mode not in ("constant", "reflect", "edge", "wrap"):
            raise self.fail(f"mode {attrs.mode!r} is not constant, reflect, edge or wrap")
        if attrs.mode != "constant" and any(n == 0 and p + q for n, p, q in zip(x.shape, attrs.before, attrs.after, strict=True)):
            raise self.fail(f"mode {attrs.mode} has nothing to copy in {x}")
        return (TensorType(x.dtype, tuple(p + n + q for n, p, q in zip(x.shape, attrs.before, attrs.after, strict=True))),)

    def reference(self, attrs: PadAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        if attrs.mode == "constant":
            out = np.full(self.infer(attrs, _type(x))[0].shape, attrs.value, x.dtype)
            out[tuple(slice(p, p + n) for p, n in zip(attrs.before, x.shape, strict=True))] = x
            return (out,)
        for k, (p, q, n) in enumerate(zip(attrs.before, attrs.after, x.shape, strict=True)):
            if p or q:
                at = np.arange(-p, n + q)
                if attrs.mode == "edge":
                    at = np.clip(at, 0, n - 1)
                elif attrs.mode == "wrap":
                    at = at % n
                else:
                    at = np.abs(at) % max(2 * (n - 1), 1)
                    at = np.minimum(at, 2 * (n - 1) - at)
                x = np.take(x, at, axis=k)
        return (x.copy(),)

    def compute(self, attrs: PadAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        dims = list(zip(attrs.before, attrs.after, x.shape, strict=True))

        def body(*i: Expr) -> Expr:
            at = [e - p for e, (p, _, _) in zip(i, dims, strict=True)]
            if attrs.mode == "constant":
                inside = all_of([c for j, (p, q, n) in zip(at, dims, strict=True) for c in _inside(j, p, q, n)])
                return x[tuple(at)] if inside is None else x.at(tuple(at), inside, attrs.value)
            return x[tuple(_padded(attrs.mode, j, n) if p or q else j for j, (p, q, n) in zip(at, dims, strict=True))]
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(15, dtype="f4").reshape(3, 5)
        x[1, 2] = np.nan
        yield Sample((x,), PadAttrs((1, 0), (2, 3), "constant", -1.5))
        for mode in ("reflect", "edge", "wrap"):
            yield Sample((x,), PadAttrs((1, 2), (2, 4), mode))
            yield Sample((x[:1, :2],), PadAttrs((2, 3), (1, 5), mode))
        yield Sample((x[:0].astype("i4"),), PadAttrs((2, 0), (1, 1), "constant", 7))
        yield Sample((x > 3,), PadAttrs((0, 1), (0, 0), "constant", 1))


def _type(x: np.ndarray) -> TensorType:
    return TensorType(dtype_of(x.dtype), x.shape)


def _inside(j: Expr, p: int, q: int, n: int) -> list[Expr]:
    return ([j >= 0] if p else []) + ([j < n] if q else [])


def _padded(mode: str, j: Expr, n: int) -> Expr:
    """The element of a dimension of extent n that position j, possibly outside, shows."""
    if n == 1:
        return wrap(0, I64)
    if mode == "edge":
        return call("min", call("max", j, 0), n - 1)
    if mode == "wrap":
        return j % n
    r = j % (2 * (n - 1))
    return call("min", r, wrap(2 * (n - 1), I64) - r)


def slice_axis(b: GraphBuilder, x: Value, axis: int, start: int, size: int, step: int = 1) -> Value:
    """`size` elements of one dimension, from `start` by `step`."""
    shape = x.type.shape
    if (start, size, step) == (0, shape[axis], 1):
        return x
    def one(v: int, rest: Sequence[int]) -> tuple[int, ...]:
        return tuple(v if k == axis else r for k, r in enumerate(rest))
    return b.op("slice", x, starts=one(start, [0] * len(shape)), steps=one(step, [1] * len(shape)), sizes=one(size, shape))


def concat(b: GraphBuilder, xs: Sequence[Value], axis: int) -> Value:
    return xs[0] if len(xs) == 1 else b.op("concat", *xs, axis=axis)


def pad(b: GraphBuilder, x: Value, before: Sequence[int], after: Sequence[int], mode: str = "constant", value: int | float = 0) -> Value:
    """Pads; a negative count cuts elements off first, as ONNX's Pad does."""
    shape = x.type.shape
    if min((*before, *after), default=0) < 0:
        starts = tuple(max(-p, 0) for p in before)
        sizes = tuple(n + min(p, 0) + min(q, 0) for n, p, q in zip(shape, before, after, strict=True))
        if min(sizes) < 0:
            raise ShapeError(f"pad: pads {list(before)} and {list(after)} cut more than {x.type} has")
        x = b.op("slice", x, starts=starts, steps=(1,) * len(shape), sizes=sizes)
    if not any(p > 0 for p in (*before, *after)):
        return x
    return b.op("pad", x, before=tuple(max(int(p), 0) for p in before), after=tuple(max(int(q), 0) for q in after), mode=mode, value=value)


# -- ONNX -------------------------------------------------------------------------------------------------------------
@from_onnx("Slice")
def _slice(n: OnnxNode, b: GraphBuilder) -> Value:
    x = n.need(0)
    if "starts" in n.attrs:
        starts, ends = tuple(n.attrs["starts"]), tuple(n.attrs["ends"])  # type: ignore[arg-type]
        axes, steps = n.attrs.get("axes"), None
    else:
        starts, ends, axes, steps = n.ints(1) or (), n.ints(2) or (), n.ints(3), n.ints(4)
    axes = tuple(range(len(starts))) if axes is None else tuple(axes)  # type: ignore[arg-type]
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ShapeError(f"Slice {n.name!r}: starts, ends, axes and steps differ in length")
    first, by, sizes = [0] * x.type.rank, [1] * x.type.rank, list(x.type.shape)
    for a, e, axis, s in zip(starts, ends, axes, steps, strict=True):
        k = normalize_axis(int(axis), x.type.rank, "Slice")
        if s == 0:
            raise ShapeError(f"Slice {n.name!r}: step 0")
        r = _clamped(int(a), int(e), int(s), x.type.shape[k])
        first[k], by[k], sizes[k] = (r.start if len(r) else 0), r.step, len(r)
    if tuple(sizes) == x.type.shape and set(by) <= {1}:
        return x
    return b.op("slice", x, starts=tuple(first), steps=tuple(by), sizes=tuple(sizes))


def _clamped(start: int, end: int, step: int, n: int) -> range:
    """ONNX clamps like Python slices, except that a negative step's end of INT_MIN means "through element 0"."""
    start = start + n if start < 0 else start
    end = end + n if end < 0 else end
    if step > 0:
        return range(min(max(start, 0), n), min(max(end, 0), n), step)
    return range(min(max(start, 0), n - 1), min(max(end, -1), n), step)


@from_onnx("Split")
def _split(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    x = n.need(0)
    axis = normalize_axis(int(n.attrs.get("axis", 0)), x.type.rank, "Split")  # type: ignore[call-overload]
    total = x.type.shape[axis]
    sizes = tuple(n.attrs["split"]) if "split" in n.attrs else n.ints(1)  # type: ignore[arg-type]
    if sizes is None:
        parts = int(n.attrs.get("num_outputs", n.n_outputs))  # type: ignore[call-overload]
        size = -(-total // parts)
        sizes = tuple(max(0, min(size, total - k * size)) for k in range(parts))
    if sum(sizes) != total or min(sizes, default=0) < 0:
        raise ShapeError(f"Split {n.name!r}: sizes {list(sizes)} do not sum to dimension {axis} of {x.type}")
    return [slice_axis(b, x, axis, sum(sizes[:k]), s) for k, s in enumerate(sizes)]


@from_onnx("Concat")
def _concat(n: OnnxNode, b: GraphBuilder) -> Value:
    xs = [n.need(i) for i in range(len(n.inputs))]
    return concat(b, xs, normalize_axis(int(n.attrs.get("axis", 1)), xs[0].type.rank, "Concat"))  # type: ignore[call-overload]


@from_onnx("Pad")
def _pad(n: OnnxNode, b: GraphBuilder) -> Value:
    x, rank = n.need(0), n.need(0).type.rank
    if "pads" in n.attrs:
        pads, value = tuple(int(p) for p in n.attrs["pads"]), n.attrs.get("value", 0.0)  # type: ignore[union-attr]
        axes = None
    else:
        pads, axes = n.ints(1) or (), n.ints(3)
        fill = n.static(2)
        value = 0 if fill is None or not fill.size else fill.reshape(-1)[0].item()
    where = list(range(rank)) if axes is None else [normalize_axis(a, rank, "Pad") for a in axes]
    if len(pads) != 2 * len(where):
        raise ShapeError(f"Pad {n.name!r}: {len(pads)} pads for {len(where)} axes")
    before, after = [0] * rank, [0] * rank
    for k, a in enumerate(where):
        before[a], after[a] = pads[k], pads[k + len(where)]
    return pad(b, x, before, after, str(n.attrs.get("mode", "constant")), value)  # type: ignore[arg-type]


@from_onnx("Tile")
def _tile(n: OnnxNode, b: GraphBuilder) -> Value:
    x, reps = n.need(0), n.ints(1) or ()
    if len(reps) != x.type.rank or min(reps, default=0) < 0:
        raise ShapeError(f"Tile {n.name!r}: repeats {list(reps)} do not fit {x.type}")
    if all(1 in pair for pair in zip(reps, x.type.shape, strict=True)):
        return expand(b, x, [r * n_ for r, n_ in zip(reps, x.type.shape, strict=True)])
    apart = reshape(b, x, [d for n_ in x.type.shape for d in (1, n_)])
    y = expand(b, apart, [d for r, n_ in zip(reps, x.type.shape, strict=True) for d in (r, n_)])
    return reshape(b, y, [r * n_ for r, n_ in zip(reps, x.type.shape, strict=True)])


@from_onnx("CenterCropPad")
def _center_crop_pad(n: OnnxNode, b: GraphBuilder) -> Value:
    x, target = n.need(0), n.ints(1) or ()
    axes = n.attrs.get("axes")
    where = range(x.type.rank) if axes is None else [normalize_axis(int(a), x.type.rank, "CenterCropPad") for a in axes]  # type: ignore[union-attr]
    for axis, size in zip(where, target, strict=True):
        have = x.type.shape[axis]
        if size < have:
            x = slice_axis(b, x, axis, (have - size) // 2, size)
        elif size > have:
            before = [(size - have) // 2 if k == axis else 0 for k in range(x.type.rank)]
            after = [size - have - (size - have) // 2 if k == axis else 0 for k in range(x.type.rank)]
            x = pad(b, x, before, after)
    return x

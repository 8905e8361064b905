"""Resize and Upsample: one axis after another, each by a table of source positions and weights made while importing.

Nearest becomes a repeat (whole factors), a slice or a gather; the other modes become `resample`. Semantics follow the
ONNX reference (Resize-19), coordinates in f64.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError, UnsupportedError
from ..builder import GraphBuilder
from ..expr import Buffer, Checked, Expr, accumulate_dtype, cast
from ..graph import Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute, reduce
from ..types import F32, TensorType
from .shape import normalize_axis
from .slices import AxisAttrs, slice_axis


@register
class Resample(Op):
    """out[…, m, …] = sum over t of x[…, index[m, t], …] * weight[m, t] along `axis`."""

    name = "resample"
    Attrs = AxisAttrs

    def infer(self, attrs: AxisAttrs, x: TensorType, index: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        a = attrs.axis
        if not 0 <= a < x.rank or index.rank != 2 or index.shape != weight.shape or not x.dtype.is_float or weight.dtype != x.dtype:
            raise self.fail(f"tables {index} and {weight} do not fit axis {a} of {x}")
        if x.shape[a] == 0 and index.shape[0]:
            raise self.fail(f"nothing to resample along axis {a} of {x}")
        return (TensorType(x.dtype, (*x.shape[:a], index.shape[0], *x.shape[a + 1:])),)

    def reference(self, attrs: AxisAttrs, x: np.ndarray, index: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
        a = attrs.axis
        taken = np.take(x.astype(np.float64), index.reshape(-1), axis=a).reshape((*x.shape[:a], *index.shape, *x.shape[a + 1:]))
        w = weight.astype(np.float64).reshape((*weight.shape, *(1,) * (x.ndim - a - 1)))
        return ((taken * w).sum(a + 1).astype(x.dtype),)

    def compute(self, attrs: AxisAttrs, outs: tuple[TensorType, ...], x: Buffer, index: Buffer, weight: Buffer) -> tuple[Compute, ...]:
        a, acc = attrs.axis, accumulate_dtype(x.dtype)

        def body(*i: Expr) -> Expr:
            return cast(reduce("sum", (index.shape[1],), lambda t: cast(x[(*i[:a], Checked(index[i[a], t], x.shape[a]), *i[a + 1:])], acc)
                               * cast(weight[i[a], t], acc)), x.dtype)
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(30, dtype="f4").reshape(2, 5, 3)
        index, weight = np.array([[0, 1], [1, 4], [3, 3], [2, 0]]), np.array([[0.5, 0.5], [0.25, 0.75], [1, 0], [2, -1]], "f4")
        yield Sample((x, index, weight), AxisAttrs(1))
        yield Sample((x, index[:, :1] % 3, weight[:, :1]), AxisAttrs(2))
        yield Sample((x[:0], index, weight), AxisAttrs(1))


@dataclass(frozen=True)
class Sampling:
    """How a Resize node maps positions to source coordinates and weights."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool


@dataclass(frozen=True)
class Axis:
    """One axis to resize: extents, the (float) scale, the region of interest, normalised."""

    axis: int
    n: int
    m: int
    scale: float
    roi: tuple[float, float]


def _source(s: Sampling, a: Axis) -> np.ndarray:
    """The source coordinate of each output position."""
    y, width = np.arange(a.m, dtype=np.float64), a.scale * a.n
    match s.coordinates:
        case "align_corners":
            return np.zeros(a.m) if width == 1 else y * (a.n - 1) / (width - 1)
        case "asymmetric":
            return y / a.scale
        case "tf_half_pixel_for_nn":
            return (y + 0.5) / a.scale
        case "tf_crop_and_resize":
            lo, hi = a.roi
            span = np.full(a.m, (hi - lo) * (a.n - 1) / 2) if width == 1 else y * (hi - lo) * (a.n - 1) / (width - 1)
            return span + lo * (a.n - 1)
        case "pytorch_half_pixel" if width == 1:
            return np.full(a.m, -0.5)
        case "half_pixel" | "pytorch_half_pixel":
            return (y + 0.5) / a.scale - 0.5
        case "half_pixel_symmetric":
            return a.n / 2 * (1 - a.m / width) + (y + 0.5) / a.scale - 0.5
    raise UnsupportedError(f"Resize: coordinate transformation {s.coordinates!r} is not supported")


def _kernel(s: Sampling) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The interpolation kernel, as a function of the distance, and its radius."""
    c = s.cubic

    def cubic(d: np.ndarray) -> np.ndarray:
        d = np.abs(d)
        near = ((c + 2) * d - (c + 3)) * d * d + 1
        far = ((c * d - 5 * c) * d + 8 * c) * d - 4 * c
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    return (cubic, 2) if s.mode == "cubic" else (lambda d: np.clip(1 - np.abs(d), 0, 1), 1)


def tables(s: Sampling, a: Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source positions [m, taps] (inside the input), their weights, and the source coordinates [m].

    The coordinate counts as lying in (floor, floor + 1]: a whole one takes the pixel to its left as its floor.
    """
    x = _source(s, a)
    floor = np.ceil(x).astype(np.int64) - 1
    ratio = x - floor
    if s.mode == "nearest":
        whole = ratio == 1
        right = {"round_prefer_floor": ratio > 0.5, "round_prefer_ceil": ratio >= 0.5, "floor": whole,
                 "ceil": np.ones(a.m, bool)}[s.nearest]
        return np.clip(floor + (right | whole), 0, a.n - 1)[:, None], np.ones((a.m, 1)), x
    kernel, radius = _kernel(s)
    shrink = min(a.scale, 1.0) if s.antialias else 1.0
    first = math.floor(-radius / shrink) + 1
    at = floor[:, None] + np.arange(first, 2 - first)
    weight = kernel((at - x[:, None]) * shrink)
    if s.antialias:
        weight = weight / weight.sum(1, keepdims=True)
    if s.exclude_outside:
        weight = np.where((at < 0) | (at >= a.n), 0.0, weight)
        weight = weight / np.where(weight.sum(1, keepdims=True) == 0, 1, weight.sum(1, keepdims=True))
    keep = np.any(weight != 0, axis=0)
    return np.clip(at, 0, a.n - 1)[:, keep], weight[:, keep], x


def _nearest(b: GraphBuilder, x: Value, a: Axis, index: np.ndarray) -> Value:
    """Elements `index` of one axis, without an index table where their pattern allows."""
    if a.m % a.n == 0 and np.array_equal(index, np.arange(a.m) // (a.m // a.n)):
        return b.op("repeat", x, factors=tuple(a.m // a.n if k == a.axis else 1 for k in range(x.type.rank)))
    steps = np.unique(np.diff(index))
    if steps.size <= 1:
        return slice_axis(b, x, a.axis, int(index[0]), a.m, int(steps[0]) if steps.size else 1)
    return b.op("gather", x, b.constant(index), axis=a.axis)


def resize(b: GraphBuilder, x: Value, s: Sampling, axes: list[Axis], outside: float) -> Value:
    dtype, interpolated = x.type.dtype, s.mode != "nearest"
    if interpolated and not dtype.is_float:
        x = b.op("cast", x, dtype=F32)
    masks: list[tuple[int, np.ndarray]] = []
    for a in axes:
        if a.m and not a.n:
            raise ShapeError(f"Resize: axis {a.axis} of {x.type} is empty")
        if not a.m:
            x = slice_axis(b, x, a.axis, 0, 0)
            continue
        index, weight, at = tables(s, a)
        if s.coordinates == "tf_crop_and_resize" and np.any(beyond := (at < 0) | (at > a.n - 1)):
            masks.append((a.axis, beyond))
        if index.shape[1] == 1 and np.all(weight == 1):
            x = _nearest(b, x, a, index[:, 0])
        else:
            x = b.op("resample", x, b.constant(index), b.constant(weight.astype(x.type.dtype.numpy)), axis=a.axis)
    for axis, mask in masks:
        where = b.constant(mask.reshape([-1 if k == axis else 1 for k in range(x.type.rank)]))
        x = b.op("where", where, b.constant(np.asarray(outside, x.type.dtype.numpy)), x)
    return x if x.type.dtype == dtype else b.op("cast", x, dtype=dtype)


# -- ONNX -------------------------------------------------------------------------------------------------------------
def _from_scales(n: OnnxNode, x: TensorType, scales: tuple[float, ...], where: list[int], roi: tuple[float, ...]) -> list[Axis]:
    if len(scales) != len(where) or min(scales, default=1) <= 0:
        raise ShapeError(f"{n.op_type} {n.name!r}: scales {list(scales)} do not fit {x}")
    return [Axis(a, x.shape[a], int(np.float32(x.shape[a]) * np.float32(scales[k])), scales[k], _roi(roi, k, len(where)))
            for k, a in enumerate(where)]


def _from_sizes(n: OnnxNode, x: TensorType, sizes: tuple[int, ...], where: list[int], roi: tuple[float, ...]) -> list[Axis]:
    if len(sizes) != len(where) or min(sizes, default=0) < 0:
        raise ShapeError(f"{n.op_type} {n.name!r}: sizes {list(sizes)} do not fit {x}")
    scales = [m / max(x.shape[a], 1) for m, a in zip(sizes, where, strict=True)]
    policy = n.attrs.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        scales = [min(scales) if policy == "not_larger" else max(scales)] * len(where)
        sizes = tuple(int(scales[0] * x.shape[a] + 0.5) for a in where)
    return [Axis(a, x.shape[a], sizes[k], scales[k], _roi(roi, k, len(where))) for k, a in enumerate(where)]


def _roi(roi: tuple[float, ...], k: int, count: int) -> tuple[float, float]:
    return (roi[k], roi[count + k]) if len(roi) == 2 * count else (0.0, 1.0)


def _floats(n: OnnxNode, i: int) -> tuple[float, ...]:
    a = n.static(i)
    return () if a is None else tuple(float(v) for v in a.reshape(-1))


def _mode(n: OnnxNode) -> str:
    mode = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "cubic": "cubic"}.get(str(n.attrs.get("mode", "nearest")))
    if mode is None:
        raise UnsupportedError(f"{n.op_type} {n.name!r}: mode {n.attrs.get('mode')!r} is not supported")
    return mode


@from_onnx("Upsample")
@from_onnx("Resize")
def _resize_10(n: OnnxNode, b: GraphBuilder) -> Value:
    """Upsample of all versions, Resize-10."""
    x = n.need(0)
    scales = tuple(float(v) for v in n.attrs["scales"]) if "scales" in n.attrs else _floats(n, 1)  # type: ignore[union-attr]
    s = Sampling(_mode(n), "asymmetric", "floor", -0.75, False, False)
    return resize(b, x, s, [a for a in _from_scales(n, x.type, scales, list(range(x.type.rank)), ()) if a.scale != 1], 0.0)


@from_onnx("Resize", since=11)
def _resize(n: OnnxNode, b: GraphBuilder) -> Value:
    x, given = n.need(0), n.attrs.get("axes")
    where = list(range(x.type.rank)) if given is None else [normalize_axis(int(a), x.type.rank, "Resize") for a in given]  # type: ignore[union-attr]
    s = Sampling(_mode(n), str(n.attrs.get("coordinate_transformation_mode", "half_pixel")),
                 str(n.attrs.get("nearest_mode", "round_prefer_floor")), float(n.attrs.get("cubic_coeff_a", -0.75)),  # type: ignore[arg-type]
                 bool(n.attrs.get("exclude_outside", 0)), bool(n.attrs.get("antialias", 0)))
    cropped = s.coordinates == "tf_crop_and_resize"
    roi = _floats(n, 1) if cropped else ()
    sizes, scales = n.ints(3), _floats(n, 2)
    if sizes:
        axes = _from_sizes(n, x.type, sizes, where, roi)
    elif scales:
        axes = _from_scales(n, x.type, scales, where, roi)
    else:
        raise ShapeError(f"Resize {n.name!r}: neither sizes nor scales are given")
    axes = [a for a in axes if a.m != a.n or a.scale != 1 or cropped]
    return resize(b, x, s, axes, float(n.attrs.get("extrapolation_value", 0.0)))  # type: ignore[arg-type]

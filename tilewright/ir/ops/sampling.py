"""Reading images between their pixels: GridSample, AffineGrid, DeformConv; and Col2Im, which puts patches back together."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError, UnsupportedError
from ..builder import GraphBuilder
from ..expr import Buffer, Checked, Expr, accumulate_dtype, all_of, call, cast, eq, select, wrap
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute, reduce
from ..types import I64, TensorType
from .shape import reshape, transpose
from .window import attr_ints, extent

TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
CUBIC = -0.75


@dataclass(frozen=True, slots=True)
class GridSampleAttrs(Attrs):
    """mode: nearest, linear, cubic. padding: zeros, border, reflection. `normalized` grids lie in [-1, 1] and name the
    last dimension first; others hold pixel coordinates in the order of x's dimensions."""

    mode: str = "linear"
    padding: str = "zeros"
    align_corners: bool = False
    normalized: bool = True


@register
class GridSample(Op):
    """x [N, C, spatial…] (r dimensions) at grid [N, out…, r] -> [N, C, out…]."""

    name = "grid_sample"
    Attrs = GridSampleAttrs

    def infer(self, attrs: GridSampleAttrs, x: TensorType, grid: TensorType) -> tuple[TensorType, ...]:
        r = x.rank - 2
        if r < 1 or grid.rank < 2 or grid.shape[-1] != r or grid.shape[0] != x.shape[0] or not x.dtype.is_float or not grid.dtype.is_float:
            raise self.fail(f"grid {grid} does not fit {x}")
        if attrs.mode not in TAPS or attrs.padding not in ("zeros", "border", "reflection"):
            raise self.fail(f"mode {attrs.mode!r} or padding {attrs.padding!r} is not known")
        out = TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1]))
        if 0 in x.shape[2:] and out.size:
            raise self.fail(f"nothing to sample in {x}")
        return (out,)

    def reference(self, attrs: GridSampleAttrs, x: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, ...]:
        r, out = x.ndim - 2, (*x.shape[:2], *grid.shape[1:-1])
        if 0 in out:
            return (np.zeros(out, x.dtype),)
        total = np.zeros(out)
        dims = [self._taps(attrs, grid[..., r - 1 - k if attrs.normalized else k], n) for k, n in enumerate(x.shape[2:])]
        batch = np.arange(x.shape[0]).reshape(-1, *(1,) * (grid.ndim - 2))
        image = np.moveaxis(x, 1, -1).astype(np.float64)
        with np.errstate(invalid="ignore"):
            for choice in itertools.product(*dims):
                weight = math.prod((w for _, w in choice), start=np.ones(()))
                total += np.moveaxis(image[(batch, *(i for i, _ in choice))] * weight[..., None], -1, 1)
        return (total.astype(x.dtype),)

    @staticmethod
    def _taps(attrs: GridSampleAttrs, g: np.ndarray, n: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(index, weight) of each tap in one dimension of extent n; weight 0 where padding is zeros and the tap outside."""
        p = g.astype(np.float64 if g.dtype == np.float64 else np.float32)
        if attrs.normalized:
            p = (p + 1) / 2 * (n - 1) if attrs.align_corners else ((p + 1) * n - 1) / 2
        if attrs.mode == "nearest":
            p = np.rint(p)
        low, high = (0, n - 1) if attrs.align_corners else (-0.5, n - 0.5)
        if attrs.padding == "border":
            p = np.where((p < low) | (p > high), np.clip(p, 0, n - 1), p)
        elif attrs.padding == "reflection":
            t = np.mod(p - low, 2 * (high - low)) if high > low else np.zeros_like(p)
            p = np.where((p < low) | (p > high), np.where(t > high - low, 2 * (high - low) - t, t) + low, p)
        p = np.clip(p, -4, n + 4)
        first = np.floor(np.where(np.isnan(p), 0, p)).astype(np.int64) - (1 if attrs.mode == "cubic" else 0)
        out = []
        for k in range(TAPS[attrs.mode]):
            i = first + k
            d = np.abs(p - i)
            weight = np.ones_like(p) if attrs.mode == "nearest" else 1 - d if attrs.mode == "linear" else np.where(
                d <= 1, ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1, ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC)
            if attrs.padding == "zeros":
                weight = np.where((i >= 0) & (i < n), weight, 0)
            elif attrs.padding == "reflection":
                period = max(2 * (n - 1), 1) if attrs.align_corners else 2 * n
                m = i % period
                i = np.minimum(m, period - m) if attrs.align_corners else np.minimum(m, period - 1 - m)
            out.append((np.clip(i, 0, n - 1), weight))
        return out

    def compute(self, attrs: GridSampleAttrs, outs: tuple[TensorType, ...], x: Buffer, grid: Buffer) -> tuple[Compute, ...]:
        r, taps = len(x.shape) - 2, TAPS[attrs.mode]
        acc, coord = accumulate_dtype(x.dtype), accumulate_dtype(grid.dtype)

        def body(b: Expr, c: Expr, *o: Expr) -> Expr:
            points = [self._point(attrs, cast(grid[(b, *o, r - 1 - k if attrs.normalized else k)], coord), n)
                      for k, n in enumerate(x.shape[2:])]

            def term(*t: Expr) -> Expr:
                index: list[Expr] = []
                weight: Expr | None = None
                for (p, first), k, n in zip(points, t, x.shape[2:], strict=True):
                    i, w = self._tap(attrs, p, first + k, n)
                    index.append(Checked(i, n))
                    w = cast(w, acc)
                    weight = w if weight is None else weight * w
                assert weight is not None
                return cast(x[(b, c, *index)], acc) * weight
            return cast(reduce("sum", (taps,) * r, term), x.dtype)
        return (compute("out0", x.dtype, outs[0].shape, body),)

    @staticmethod
    def _point(attrs: GridSampleAttrs, p: Expr, n: int) -> tuple[Expr, Expr]:
        """The pixel coordinate after padding, and the first tap's index, which may be outside."""
        if attrs.normalized:
            p = (p + 1) / 2 * (n - 1) if attrs.align_corners else ((p + 1) * n - 1) / 2
        if attrs.mode == "nearest":
            p = call("round", p)
        low, high = (0.0, n - 1.0) if attrs.align_corners else (-0.5, n - 0.5)
        outside = (p < low) | (p > high)
        if attrs.padding == "border":
            p = select(outside, call("min", call("max", p, 0), n - 1), p)
        elif attrs.padding == "reflection":
            span = high - low
            if span > 0:
                t = p - low
                t = t - call("floor", t / (2 * span)) * (2 * span)
                p = select(outside, select(t > span, wrap(2 * span, p.dtype) - t, t) + low, p)
            else:
                p = select(outside, wrap(low, p.dtype), p)
        p = call("min", call("max", p, -4), n + 4)
        whole = cast(call("floor", select(call("isnan", p), wrap(0, p.dtype), p)), I64)
        return p, whole - (1 if attrs.mode == "cubic" else 0)

    @staticmethod
    def _tap(attrs: GridSampleAttrs, p: Expr, i: Expr, n: int) -> tuple[Expr, Expr]:
        d = call("abs", p - cast(i, p.dtype))
        if attrs.mode == "nearest":
            weight = wrap(1, p.dtype)
        elif attrs.mode == "linear":
            weight = wrap(1, p.dtype) - d
        else:
            near = (d * (CUBIC + 2) - (CUBIC + 3)) * d * d + 1
            weight = select(d <= 1, near, ((d * CUBIC - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC)
        if attrs.padding == "zeros":
            weight = select((i >= 0) & (i < n), weight, 0)
        elif attrs.padding == "reflection":
            period = max(2 * (n - 1), 1) if attrs.align_corners else 2 * n
            m = i % period
            i = call("min", m, wrap(period if attrs.align_corners else period - 1, I64) - m)
        return call("min", call("max", i, 0), n - 1), weight

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x, grid = rng.standard_normal((2, 3, 5, 4)).astype("f4"), (rng.random((2, 3, 2, 2)) * 3 - 1.5).astype("f4")
        for mode in TAPS:
            for padding in ("zeros", "border", "reflection"):
                for corners in (False, True):
                    yield Sample((x, grid), GridSampleAttrs(mode, padding, corners), 1e-4)
        grid[0, 0, 0, 0] = np.nan
        yield Sample((x, grid), GridSampleAttrs("linear", "zeros", False), 1e-4)
        yield Sample((x[:, :, :1], grid[1:].repeat(2, 0)), GridSampleAttrs("linear", "reflection", True), 1e-4)
        volume, grid3 = rng.standard_normal((1, 2, 3, 4, 5)).astype("f4"), (rng.random((1, 2, 1, 3, 3)) * 2 - 1).astype("f4")
        yield Sample((volume, grid3), GridSampleAttrs(), 1e-4)
        yield Sample((x, grid[1:].repeat(2, 0) * 3), GridSampleAttrs("linear", "zeros", True, False), 1e-4)


@dataclass(frozen=True, slots=True)
class Col2ImAttrs(Attrs):
    image: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sliding blocks a dimension."""
        r = len(self.image)
        return tuple((self.image[k] + self.pads[k] + self.pads[k + r] - extent(self.kernel[k], self.dilations[k])) // self.strides[k] + 1
                     for k in range(r))


@register
class Col2Im(Op):
    """x [N, C * kernel…, blocks…] -> [N, C, image…]: each pixel is the sum of the block elements that lie on it."""

    name = "col2im"
    Attrs = Col2ImAttrs

    def infer(self, attrs: Col2ImAttrs, x: TensorType) -> tuple[TensorType, ...]:
        size = math.prod(attrs.kernel)
        if x.rank != 3 or x.shape[1] % size or min(attrs.blocks) < 1 or x.shape[2] != math.prod(attrs.blocks):
            raise self.fail(f"{x} does not hold blocks of {attrs}")
        return (TensorType(x.dtype, (x.shape[0], x.shape[1] // size, *attrs.image)),)

    def reference(self, attrs: Col2ImAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        r, size = len(attrs.image), math.prod(attrs.kernel)
        n, c = x.shape[0], x.shape[1] // size
        cols = x.astype(np.float64).reshape(n, c, *attrs.kernel, *attrs.blocks)
        whole = [max(i + attrs.pads[k] + attrs.pads[k + r], 0) for k, i in enumerate(attrs.image)]
        out = np.zeros((n, c, *whole))
        for t in itertools.product(*map(range, attrs.kernel)):
            where = tuple(slice(a * d, a * d + (m - 1) * s + 1, s)
                          for a, d, m, s in zip(t, attrs.dilations, attrs.blocks, attrs.strides, strict=True))
            out[(slice(None), slice(None), *where)] += cols[(slice(None), slice(None), *t)]
        cut = tuple(slice(attrs.pads[k], attrs.pads[k] + i) for k, i in enumerate(attrs.image))
        return (out[(slice(None), slice(None), *cut)].astype(x.dtype),)

    def compute(self, attrs: Col2ImAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        acc = accumulate_dtype(x.dtype)

        def body(n: Expr, c: Expr, *p: Expr) -> Expr:
            def term(*t: Expr) -> Expr:
                row, col, inside = c, wrap(0, I64), []
                for k, at in enumerate(p):
                    q = at + attrs.pads[k] - t[k] * attrs.dilations[k]
                    block = q // attrs.strides[k]
                    inside += [q >= 0, block < attrs.blocks[k]] + ([eq(q % attrs.strides[k], 0)] if attrs.strides[k] > 1 else [])
                    row, col = row * attrs.kernel[k] + t[k], col * attrs.blocks[k] + block
                where = all_of(inside)
                assert where is not None
                return cast(x.at((n, row, col), where, 0), acc)
            return cast(reduce("sum", attrs.kernel, term), x.dtype)
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        for attrs, c in ((Col2ImAttrs((5, 5), (2, 3), (1, 1), (0, 0, 0, 0), (1, 1)), 2),
                         (Col2ImAttrs((7, 6), (3, 2), (2, 3), (1, 0, 1, 2), (2, 1)), 1),
                         (Col2ImAttrs((4, 3, 5), (1, 2, 2), (1, 1, 2), (0,) * 6, (1, 1, 1)), 1)):
            shape = (2, c * math.prod(attrs.kernel), math.prod(attrs.blocks))
            yield Sample((np.arange(math.prod(shape), dtype="f4").reshape(shape),), attrs)


# -- ONNX -------------------------------------------------------------------------------------------------------------
_MODES = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}


@from_onnx("GridSample")
def _grid_sample(n: OnnxNode, b: GraphBuilder) -> Value:
    mode = _MODES.get(str(n.attrs.get("mode", "linear")))
    if mode is None:
        raise UnsupportedError(f"GridSample {n.name!r}: mode {n.attrs['mode']!r} is not supported")
    return b.op("grid_sample", n.need(0), n.need(1), mode=mode, padding=n.attrs.get("padding_mode", "zeros"),
                align_corners=bool(n.attrs.get("align_corners", 0)))


@from_onnx("AffineGrid")
def _affine_grid(n: OnnxNode, b: GraphBuilder) -> Value:
    theta, size = n.need(0), n.ints(1)
    if size is None or len(size) not in (4, 5):
        raise ShapeError(f"AffineGrid {n.name!r}: {size} is no size [N, C, spatial…] of two or three dimensions")
    spatial, r = size[2:], len(size) - 2
    if theta.type.shape != (size[0], r, r + 1):
        raise ShapeError(f"AffineGrid {n.name!r}: theta {theta.type} does not fit size {list(size)}")
    corners = bool(n.attrs.get("align_corners", 0))
    lines = [np.linspace(-1, 1, m) if corners else (2 * np.arange(m) + 1) / m - 1 for m in spatial]
    grid = np.stack([*reversed(np.meshgrid(*lines, indexing="ij")), np.ones(spatial)], -1).reshape(-1, r + 1)
    y = b.op("matmul", b.constant(grid.astype(theta.type.dtype.numpy)), transpose(b, theta, (0, 2, 1)))
    return reshape(b, y, (size[0], *spatial, r))


@from_onnx("Col2Im")
def _col2im(n: OnnxNode, b: GraphBuilder) -> Value:
    image, kernel = n.ints(1) or (), n.ints(2) or ()
    r = len(image)
    return b.op("col2im", n.need(0), image=image, kernel=kernel, strides=attr_ints(n, "strides", (1,) * r),
                pads=attr_ints(n, "pads", (0,) * (2 * r)), dilations=attr_ints(n, "dilations", (1,) * r))


@from_onnx("DeformConv")
def _deform_conv(n: OnnxNode, b: GraphBuilder) -> Value:
    """Samples x at every tap's shifted position, weighs by the mask, and multiplies by the kernel matrix."""
    x, w, offset, bias, mask = n.need(0), n.need(1), n.need(2), n.input(3), n.input(4)
    batch, channels, *spatial = x.type.shape
    r, kernel = len(spatial), w.type.shape[2:]
    groups, sets = int(n.attrs.get("group", 1)), int(n.attrs.get("offset_group", 1))  # type: ignore[call-overload]
    out, k = offset.type.shape[2:], math.prod(kernel)
    if channels % sets or channels != w.type.shape[1] * groups or offset.type.shape[:2] != (batch, sets * k * r):
        raise ShapeError(f"DeformConv {n.name!r}: input {x.type}, weight {w.type} and offset {offset.type} do not fit")
    order = (0, 1, 2, *range(4, 4 + r), 3)
    shifts = transpose(b, reshape(b, offset, (batch, sets, k, r, *out)), order)
    at = b.op("add", reshape(b, shifts, (batch * sets, k, *out, r)), b.constant(_positions(n, kernel, out).astype(x.type.dtype.numpy)))
    cols = b.op("grid_sample", reshape(b, x, (batch * sets, channels // sets, *spatial)), at, normalized=False, align_corners=True)
    if mask is not None:
        cols = b.op("mul", reshape(b, cols, (batch, sets, channels // sets, k, *out)), reshape(b, mask, (batch, sets, 1, k, *out)))
    rows = channels // groups * k
    y = b.op("matmul", reshape(b, w, (groups, w.type.shape[0] // groups, rows)), reshape(b, cols, (batch, groups, rows, math.prod(out))))
    y = reshape(b, y, (batch, w.type.shape[0], *out))
    return y if bias is None else b.op("add", y, reshape(b, bias, (w.type.shape[0], *(1,) * r)))


def _positions(n: OnnxNode, kernel: Sequence[int], out: Sequence[int]) -> np.ndarray:
    """Where each tap of each output reads without an offset: [taps, out…, r]."""
    r = len(kernel)
    strides, dilations, pads = attr_ints(n, "strides", (1,) * r), attr_ints(n, "dilations", (1,) * r), attr_ints(n, "pads", (0,) * (2 * r))
    base = np.stack(np.meshgrid(*(np.arange(m) * s - p for m, s, p in zip(out, strides, pads[:r], strict=True)), indexing="ij"), -1)
    tap = np.stack(np.meshgrid(*(np.arange(m) * d for m, d in zip(kernel, dilations, strict=True)), indexing="ij"), -1).reshape(-1, r)
    return tap.reshape(-1, *(1,) * r, r) + base

"""Pooling of regions of interest: RoiAlign, MaxRoiPool. Their loops depend on the regions, so they are loops for numba."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..types import F32, TensorType


@dataclass(frozen=True, slots=True)
class RoiAttrs(Attrs):
    height: int = 1
    width: int = 1
    scale: float = 1.0
    ratio: int = 0          # sampling points a bin and dimension, 0: as many as the bin has pixels
    maximum: bool = False   # pool by maximum instead of mean
    half_pixel: bool = True


@register
class RoiAlign(Op):
    """x [N, C, H, W], regions [R, 4] (x1, y1, x2, y2), batch index [R] -> [R, C, height, width]: each bin pools bilinear
    samples. As in the ONNX reference, "max" takes the largest of the four weighted corners of each sample."""

    name = "roi_align"
    Attrs = RoiAttrs

    def infer(self, attrs: RoiAttrs, x: TensorType, rois: TensorType, batch: TensorType) -> tuple[TensorType, ...]:
        fits = x.rank == 4 and rois.rank == 2 and rois.shape[1] == 4 and batch.shape == rois.shape[:1]
        if not fits or rois.dtype != x.dtype or 0 in x.shape[2:]:
            raise self.fail(f"regions {rois} of batches {batch} do not fit {x}")
        return (TensorType(x.dtype, (rois.shape[0], x.shape[1], attrs.height, attrs.width)),)

    def reference(self, attrs: RoiAttrs, x: np.ndarray, rois: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        wide = np.float64 if x.dtype == np.float64 else np.float32
        out = np.zeros((rois.shape[0], x.shape[1], attrs.height, attrs.width), wide)
        _roi_align(attrs, x.shape)(x.astype(wide), rois.astype(wide), batch, out)
        return (out.astype(x.dtype),)

    def decompose(self, attrs: RoiAttrs, b: GraphBuilder, x: Value, rois: Value, batch: Value) -> tuple[Value, ...] | None:
        if x.type.dtype.bits > 16:
            return None
        y = b.emit(self.name, (b.op("cast", x, dtype=F32), b.op("cast", rois, dtype=F32), batch), attrs)[0]
        return (b.op("cast", y, dtype=x.type.dtype),)

    def kernel(self, attrs: RoiAttrs, x: TensorType, rois: TensorType, batch: TensorType) -> Callable[..., int]:
        return _roi_align(attrs, x.shape)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2, 3, 9, 7)).astype("f4")
        rois, batch = np.array([[0, 0, 5, 6], [-3, 2, 4, 30], [2.5, 1.5, 2.6, 1.7]], "f4"), np.array([0, 1, 1])
        for attrs in (RoiAttrs(3, 2), RoiAttrs(2, 2, 0.5, 2), RoiAttrs(2, 3, 1.0, 0, True, False), RoiAttrs(1, 1, 2.0, 3, False, False)):
            yield Sample((x, rois, batch), attrs)
        yield Sample((x.astype("f2"), rois.astype("f2"), batch), RoiAttrs(2, 2), 1e-2)


def _roi_align(attrs: RoiAttrs, shape: tuple[int, ...]) -> Callable[..., int]:
    """The pooling, as plain loops that numba compiles."""
    images, channels, rows, cols = shape
    height, width, scale, ratio, maximum = attrs.height, attrs.width, attrs.scale, attrs.ratio, attrs.maximum
    shift, least = (0.5, -np.inf) if attrs.half_pixel else (0.0, 1.0)

    def roi_align(x, rois, batch, out):  # noqa: ANN001, ANN202
        bad = 0
        for r in range(rois.shape[0]):
            image = batch[r]
            if image < 0 or image >= images:
                bad = 1
                out[r] = 0
                continue
            left, top = rois[r, 0] * scale - shift, rois[r, 1] * scale - shift
            wide, high = max(rois[r, 2] * scale - shift - left, least), max(rois[r, 3] * scale - shift - top, least)
            bin_h, bin_w = high / height, wide / width
            grid_h = ratio if ratio > 0 else max(int(np.ceil(bin_h)), 0)
            grid_w = ratio if ratio > 0 else max(int(np.ceil(bin_w)), 0)
            for ph in range(height):
                for pw in range(width):
                    for c in range(channels):
                        total, first = 0.0, True
                        for iy in range(grid_h):
                            y = top + ph * bin_h + (iy + 0.5) * bin_h / grid_h
                            for ix in range(grid_w):
                                xx = left + pw * bin_w + (ix + 0.5) * bin_w / grid_w
                                v00 = v01 = v10 = v11 = 0.0
                                if y >= -1.0 and y <= rows and xx >= -1.0 and xx <= cols:
                                    y0, x0 = min(int(max(y, 0.0)), rows - 1), min(int(max(xx, 0.0)), cols - 1)
                                    y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, cols - 1)
                                    ly = max(y, 0.0) - y0 if y1 > y0 else 0.0
                                    lx = max(xx, 0.0) - x0 if x1 > x0 else 0.0
                                    v00, v01 = (1 - ly) * (1 - lx) * x[image, c, y0, x0], (1 - ly) * lx * x[image, c, y0, x1]
                                    v10, v11 = ly * (1 - lx) * x[image, c, y1, x0], ly * lx * x[image, c, y1, x1]
                                if maximum:
                                    v = max(max(v00, v01), max(v10, v11))
                                    total = v if first else max(total, v)
                                    first = False
                                else:
                                    total += v00 + v01 + v10 + v11
                        out[r, c, ph, pw] = total if maximum else total / max(grid_h * grid_w, 1)
        return bad
    return roi_align


@dataclass(frozen=True, slots=True)
class MaxRoiPoolAttrs(Attrs):
    height: int = 1
    width: int = 1
    scale: float = 1.0


@register
class MaxRoiPool(Op):
    """x [N, C, H, W], regions [R, 5] (batch, x1, y1, x2, y2, inclusive) -> [R, C, height, width]: the maximum of each bin's
    pixels, 0 for an empty bin."""

    name = "max_roi_pool"
    Attrs = MaxRoiPoolAttrs

    def infer(self, attrs: MaxRoiPoolAttrs, x: TensorType, rois: TensorType) -> tuple[TensorType, ...]:
        if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 5 or rois.dtype != x.dtype:
            raise self.fail(f"regions {rois} do not fit {x}")
        return (TensorType(x.dtype, (rois.shape[0], x.shape[1], attrs.height, attrs.width)),)

    def reference(self, attrs: MaxRoiPoolAttrs, x: np.ndarray, rois: np.ndarray) -> tuple[np.ndarray, ...]:
        wide = np.float64 if x.dtype == np.float64 else np.float32
        out = np.zeros((rois.shape[0], x.shape[1], attrs.height, attrs.width), wide)
        _max_roi_pool(attrs, x.shape)(x.astype(wide), rois.astype(wide), out)
        return (out.astype(x.dtype),)

    def decompose(self, attrs: MaxRoiPoolAttrs, b: GraphBuilder, x: Value, rois: Value) -> tuple[Value, ...] | None:
        if x.type.dtype.bits > 16:
            return None
        y = b.emit(self.name, (b.op("cast", x, dtype=F32), b.op("cast", rois, dtype=F32)), attrs)[0]
        return (b.op("cast", y, dtype=x.type.dtype),)

    def kernel(self, attrs: MaxRoiPoolAttrs, x: TensorType, rois: TensorType) -> Callable[..., int]:
        return _max_roi_pool(attrs, x.shape)

    def samples(self) -> Iterable[Sample]:
        x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype("f4")
        rois = np.array([[0, 0, 0, 5, 6], [1, 2, 2, 4, 30], [1, 3, 3, 3, 3]], "f4")
        yield Sample((x, rois), MaxRoiPoolAttrs(3, 2))
        yield Sample((x, rois), MaxRoiPoolAttrs(2, 5, 0.5))


def _max_roi_pool(attrs: MaxRoiPoolAttrs, shape: tuple[int, ...]) -> Callable[..., int]:
    images, channels, rows, cols = shape
    height, width, scale = attrs.height, attrs.width, attrs.scale

    def max_roi_pool(x, rois, out):  # noqa: ANN001, ANN202
        bad = 0
        for r in range(rois.shape[0]):
            image = int(rois[r, 0])
            if image < 0 or image >= images:
                bad = 1
                out[r] = 0
                continue
            left, top = int(np.floor(rois[r, 1] * scale + 0.5)), int(np.floor(rois[r, 2] * scale + 0.5))
            right, bottom = int(np.floor(rois[r, 3] * scale + 0.5)), int(np.floor(rois[r, 4] * scale + 0.5))
            bin_h, bin_w = max(bottom - top + 1, 1) / height, max(right - left + 1, 1) / width
            for ph in range(height):
                y0 = min(max(int(np.floor(ph * bin_h)) + top, 0), rows)
                y1 = min(max(int(np.ceil((ph + 1) * bin_h)) + top, 0), rows)
                for pw in range(width):
                    x0 = min(max(int(np.floor(pw * bin_w)) + left, 0), cols)
                    x1 = min(max(int(np.ceil((pw + 1) * bin_w)) + left, 0), cols)
                    for c in range(channels):
                        best, empty = 0.0, True
                        for y in range(y0, y1):
                            for xx in range(x0, x1):
                                v = x[image, c, y, xx]
                                if empty or v > best:
                                    best, empty = v, False
                        out[r, c, ph, pw] = best
        return bad
    return max_roi_pool


# -- ONNX -------------------------------------------------------------------------------------------------------------
@from_onnx("RoiAlign")
def _import_roi_align(n: OnnxNode, b: GraphBuilder) -> Value:
    a = n.attrs
    default = "half_pixel" if n.opset >= 16 else "output_half_pixel"
    return b.op("roi_align", n.need(0), n.need(1), n.need(2), height=a.get("output_height", 1), width=a.get("output_width", 1),
                scale=a.get("spatial_scale", 1.0), ratio=a.get("sampling_ratio", 0), maximum=a.get("mode", "avg") == "max",
                half_pixel=a.get("coordinate_transformation_mode", default) == "half_pixel")


@from_onnx("MaxRoiPool")
def _import_max_roi_pool(n: OnnxNode, b: GraphBuilder) -> Value:
    shape = tuple(n.attrs.get("pooled_shape", ()))  # type: ignore[arg-type]
    if len(shape) != 2:
        raise ShapeError(f"MaxRoiPool {n.name!r}: pooled_shape must have two entries")
    return b.op("max_roi_pool", n.need(0), n.need(1), height=shape[0], width=shape[1], scale=n.attrs.get("spatial_scale", 1.0))

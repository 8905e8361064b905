"""Convolution over any number of spatial dimensions, grouped and dilated."""
from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, accumulate_dtype, cast
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute, reduce
from ..types import TensorType
from .slices import pad
from .window import WindowAttrs, extent, taps, window_of


@dataclass(frozen=True, slots=True)
class ConvAttrs(Attrs):
    """`pads` holds all begins, then all ends (non-negative)."""

    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1


def conv_window(attrs: ConvAttrs, x: tuple[int, ...], w: tuple[int, ...]) -> WindowAttrs:
    """The sliding window of a convolution of shapes x [N, C, spatial…] and w [O, C/groups, kernel…]."""
    r = len(x) - 2
    sizes = tuple((x[2 + k] + attrs.pads[k] + attrs.pads[k + r] - extent(w[2 + k], attrs.dilations[k])) // attrs.strides[k] + 1
                  for k in range(r))
    return WindowAttrs(w[2:], attrs.strides, attrs.pads, attrs.dilations, sizes)


def wide(dtype: np.dtype) -> np.dtype:
    """The type references sum in: f64 for floats, i64 for integers (which wraps as the narrow one would)."""
    return np.dtype(np.int64) if dtype.kind in "iu" else np.dtype(np.float64)


@register
class Conv(Op):
    """out[n, o, p…] = bias[o] + sum over c, t… of x[n, g*C/groups + c, p*stride + t*dilation - pad] * w[o, c, t…], where
    g = o // (O/groups); x is zero outside. x [N, C, spatial…], w [O, C/groups, kernel…], bias [O] or absent."""

    name = "conv"
    Attrs = ConvAttrs

    def infer(self, attrs: ConvAttrs, x: TensorType, w: TensorType, bias: TensorType | None = None) -> tuple[TensorType, ...]:
        r = x.rank - 2
        if r < 1 or w.rank != x.rank or x.dtype != w.dtype or not len(attrs.strides) == len(attrs.dilations) == r == len(attrs.pads) // 2:
            raise self.fail(f"input {x} and weight {w} do not fit each other or {attrs}")
        if x.shape[1] != w.shape[1] * attrs.groups or w.shape[0] % attrs.groups:
            raise self.fail(f"{x.shape[1]} channels of {x} and weight {w} do not divide into {attrs.groups} groups")
        if bias is not None and (bias.shape != w.shape[:1] or bias.dtype != x.dtype):
            raise self.fail(f"bias {bias} does not fit weight {w}")
        if min(attrs.pads) < 0 or min((*attrs.strides, *attrs.dilations)) < 1:
            raise self.fail(f"pads must not be negative, strides and dilations at least 1: {attrs}")
        sizes = conv_window(attrs, x.shape, w.shape).sizes
        if min(sizes) < 0:
            raise self.fail(f"the kernel of {w} is larger than the padded input {x}")
        return (TensorType(x.dtype, (x.shape[0], w.shape[0], *sizes)),)

    def reference(self, attrs: ConvAttrs, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        r, g = x.ndim - 2, attrs.groups
        n, c, o = x.shape[0], x.shape[1], w.shape[0]
        sizes = conv_window(attrs, x.shape, w.shape).sizes
        padded = np.pad(x.astype(wide(x.dtype)), [(0, 0), (0, 0), *((attrs.pads[k], attrs.pads[k + r]) for k in range(r))])
        kernels = w.astype(wide(x.dtype)).reshape(g, o // g, c // g, *w.shape[2:])
        points = int(np.prod(sizes))
        out = np.zeros((n, g, o // g, points), padded.dtype)
        every = slice(None)
        for t in itertools.product(*map(range, w.shape[2:])):
            cut = tuple(slice(a * d, a * d + (m - 1) * s + 1, s) if m else slice(0, 0)
                        for a, d, s, m in zip(t, attrs.dilations, attrs.strides, sizes, strict=True))
            out += kernels[(every, every, every, *t)] @ padded[(every, every, *cut)].reshape(n, g, c // g, points)
        out = out.reshape(n, o, *sizes)
        if bias is not None:
            out += bias.astype(out.dtype).reshape(o, *(1,) * r)
        return (out.astype(x.dtype),)

    def compute(self, attrs: ConvAttrs, outs: tuple[TensorType, ...], x: Buffer, w: Buffer,
                bias: Buffer | None = None) -> tuple[Compute, ...]:
        window, acc = conv_window(attrs, x.shape, w.shape), accumulate_dtype(x.dtype)
        per_group, channels = w.shape[0] // attrs.groups, w.shape[1]

        def body(n: Expr, o: Expr, *p: Expr) -> Expr:
            first = o // per_group * channels if attrs.groups > 1 else None  # the group's first channel

            def term(c: Expr, *t: Expr) -> Expr:
                at, inside = taps(window, x.shape[2:], p, t)
                index = (n, c if first is None else first + c, *at)
                load = x[index] if inside is None else x.at(index, inside, 0)
                return cast(load, acc) * cast(w[(o, c, *t)], acc)
            total: Expr = reduce("sum", (channels, *window.kernel), term)
            return cast(total if bias is None else total + cast(bias[o], acc), x.dtype)
        return (compute("out0", x.dtype, outs[0].shape, body),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)

        def case(x: tuple[int, ...], w: tuple[int, ...], attrs: ConvAttrs, bias: bool = True, dtype: str = "f4",
                 rtol: float = 1e-5) -> Sample:
            def draw(shape: tuple[int, ...]) -> np.ndarray:
                return rng.integers(-9, 9, shape).astype(dtype) if dtype[0] == "i" else rng.standard_normal(shape).astype(dtype)
            return Sample((draw(x), draw(w), draw(w[:1]) if bias else None), attrs, rtol)
        yield case((1, 3, 7, 7), (5, 3, 3, 3), ConvAttrs((1, 1), (1, 1, 1, 1), (1, 1)))
        yield case((2, 17, 5, 3), (7, 17, 1, 1), ConvAttrs((1, 1), (0,) * 4, (1, 1)), bias=False)
        yield case((1, 6, 11, 9), (4, 3, 3, 2), ConvAttrs((2, 1), (0, 2, 1, 0), (2, 3), 2))
        yield case((1, 5, 7, 7), (5, 1, 5, 5), ConvAttrs((2, 2), (2, 2, 2, 2), (1, 1), 5))
        yield case((1, 4, 6, 6), (8, 1, 3, 3), ConvAttrs((1, 1), (0, 0, 0, 0), (1, 1), 4))
        yield case((2, 3, 13), (4, 3, 3), ConvAttrs((1,), (2, 0), (1,)))
        yield case((1, 2, 4, 5, 3), (3, 2, 2, 3, 1), ConvAttrs((1, 2, 1), (1, 0, 0, 0, 1, 0), (1, 1, 1)))
        yield case((0, 3, 4, 4), (2, 3, 3, 3), ConvAttrs((1, 1), (0,) * 4, (1, 1)))
        yield case((1, 0, 4, 4), (2, 0, 3, 3), ConvAttrs((1, 1), (0,) * 4, (1, 1)))
        yield case((1, 3, 5, 5), (2, 3, 3, 3), ConvAttrs((1, 1), (1,) * 4, (1, 1)), dtype="i4")
        yield case((1, 3, 5, 5), (2, 3, 3, 3), ConvAttrs((1, 1), (1,) * 4, (1, 1)), dtype="f2", rtol=2e-3)
        yield case((1, 3, 5, 5), (2, 3, 3, 3), ConvAttrs((1, 1), (1,) * 4, (1, 1)), dtype="f8", rtol=1e-12)


@from_onnx("Conv")
def _conv(n: OnnxNode, b: GraphBuilder) -> Value:
    return conv_node(n, b, n.need(0), n.need(1), n.input(2))


def conv_node(n: OnnxNode, b: GraphBuilder, x: Value, w: Value, bias: Value | None) -> Value:
    """A conv of these values with the attributes of an ONNX convolution node."""
    if x.type.rank < 3 or w.type.rank != x.type.rank:
        raise ShapeError(f"{n.op_type} {n.name!r}: input {x.type} and weight {w.type} do not fit")
    kernel = n.attrs.get("kernel_shape")
    if kernel is not None and tuple(kernel) != w.type.shape[2:]:  # type: ignore[arg-type]
        raise ShapeError(f"{n.op_type} {n.name!r}: kernel_shape {kernel} is not that of weight {w.type}")
    win = window_of(n, x.type.shape[2:], w.type.shape[2:])
    if min(win.pads) < 0:
        x = pad(b, x, (0, 0, *(min(p, 0) for p in win.begins)), (0, 0, *(min(p, 0) for p in win.ends)))
    return b.op("conv", x, w, bias, strides=win.strides, pads=tuple(max(p, 0) for p in win.pads), dilations=win.dilations,
                groups=n.attrs.get("group", 1))

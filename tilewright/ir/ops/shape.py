"""Ops that only rename positions: reshape, transpose, expand. Squeeze, Flatten, DepthToSpace… import as these."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, wrap
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute
from ..types import I64, TensorType, broadcast_shapes


@dataclass(frozen=True, slots=True)
class ShapeAttrs(Attrs):
    shape: tuple[int, ...] = ()


def normalize_axis(axis: int, rank: int, what: str) -> int:
    """`axis` counted from the front. Raises ShapeError outside [-rank, rank)."""
    if not -rank <= axis < rank:
        raise ShapeError(f"{what}: axis {axis} is outside a tensor of rank {rank}")
    return axis % rank


def reshape_index(index: Sequence[Expr], shape: tuple[int, ...], source: tuple[int, ...]) -> tuple[Expr, ...]:
    """Where element `index` of a tensor reshaped to `shape` sits in its `source` shape.

    Dimensions are matched in the smallest groups of equal size, so merged dimensions stay affine and only split ones
    need // and %: source [6,4] as [2,3,4] reads source[i*3 + j, k].
    """
    if 0 in shape:
        return tuple(wrap(0, I64) for _ in source)
    out: list[Expr] = []
    i = j = 0
    while i < len(shape) or j < len(source):
        i0, j0 = i, j
        n = m = 1
        while True:  # grow the smaller side until both groups hold the same number of elements
            if n <= m and i < len(shape) and (n < m or i == i0):
                n, i = n * shape[i], i + 1
            elif n != m or j == j0:
                if j == len(source):
                    n, i = n * shape[i], i + 1
                else:
                    m, j = m * source[j], j + 1
            if n == m and (j > j0 or j == len(source)) and (i > i0 or i == len(shape)):
                break
        linear = wrap(0, I64)
        for e, extent in zip(index[i0:i], shape[i0:i], strict=True):
            if extent != 1:
                linear = linear * extent + e
        out += _delinearize(linear, source[j0:j])
    return tuple(out)


def _delinearize(linear: Expr, dims: tuple[int, ...]) -> list[Expr]:
    out: list[Expr] = []
    left = math.prod(dims)
    for n in dims:
        above, left = left, left // n
        if n == 1:
            out.append(wrap(0, I64))
        else:
            e = linear if left == 1 else linear // left
            out.append(e if above == n * left == math.prod(dims) else e % n)
    return out


@register
class Reshape(Op):
    """The same elements in row-major order under another shape, which is concrete."""

    name = "reshape"
    Attrs = ShapeAttrs

    def infer(self, attrs: ShapeAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if math.prod(attrs.shape) != x.size or min(attrs.shape, default=0) < 0:
            raise self.fail(f"{x} does not have the {math.prod(attrs.shape)} elements of shape {list(attrs.shape)}")
        return (TensorType(x.dtype, attrs.shape),)

    def reference(self, attrs: ShapeAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (x.reshape(attrs.shape),)

    def compute(self, attrs: ShapeAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        return (compute("out0", x.dtype, attrs.shape, lambda *i: x[reshape_index(i, attrs.shape, x.shape)]),)

    def samples(self) -> Iterable[Sample]:
        for src, dst in (((6, 4), (2, 3, 4)), ((2, 3, 4), (6, 4)), ((6,), (1, 3, 2, 1)), ((3, 4), (2, 6)), ((1, 1), ()),
                         ((), (1, 1)), ((2, 3, 5, 7), (2, 15, 7)), ((2, 3, 5), (5, 3, 2)), ((0, 3), (3, 0, 7)), ((1, 2, 1, 9), (3, 1, 6))):
            yield Sample((np.arange(math.prod(src), dtype="f4").reshape(src),), ShapeAttrs(dst))


@dataclass(frozen=True, slots=True)
class TransposeAttrs(Attrs):
    perm: tuple[int, ...] = ()


@register
class Transpose(Op):
    """out[i0, i1, …] = x with its dimension perm[k] becoming dimension k."""

    name = "transpose"
    Attrs = TransposeAttrs

    def infer(self, attrs: TransposeAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if sorted(attrs.perm) != list(range(x.rank)):
            raise self.fail(f"{list(attrs.perm)} is no permutation of the dimensions of {x}")
        return (TensorType(x.dtype, tuple(x.shape[p] for p in attrs.perm)),)

    def reference(self, attrs: TransposeAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        if attrs.perm == (1, 0) and x.size >= 1 << 20:
            return (_transposed_matrix(x),)
        return (np.ascontiguousarray(x.transpose(attrs.perm)).reshape(tuple(x.shape[p] for p in attrs.perm)),)

    def compute(self, attrs: TransposeAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        inverse = [attrs.perm.index(k) for k in range(len(attrs.perm))]
        return (compute("out0", x.dtype, outs[0].shape, lambda *i: x[tuple(i[p] for p in inverse)]),)

    def samples(self) -> Iterable[Sample]:
        yield Sample((np.arange(30, dtype="f4").reshape(2, 3, 5),), TransposeAttrs((2, 0, 1)))
        yield Sample((np.arange(6, dtype="i8").reshape(2, 3),), TransposeAttrs((1, 0)))
        yield Sample((np.array([[True, False]]),), TransposeAttrs((0, 1)))
        yield Sample((np.zeros((), "f8"),), TransposeAttrs(()))


def _transposed_matrix(x: np.ndarray, block: int = 256) -> np.ndarray:
    """x.T in blocks that stay in cache, more than twice as fast as NumPy's copy: weights are transposed at load."""
    out = np.empty(x.shape[::-1], x.dtype)
    for i in range(0, x.shape[0], block):
        for j in range(0, x.shape[1], block):
            out[j:j + block, i:i + block] = x[i:i + block, j:j + block].T
    return out


@register
class Expand(Op):
    """Broadcast to `shape` (which x's dimensions fit, NumPy style)."""

    name = "expand"
    Attrs = ShapeAttrs

    def infer(self, attrs: ShapeAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if broadcast_shapes(x.shape, attrs.shape) != attrs.shape:
            raise self.fail(f"{x} does not broadcast to {list(attrs.shape)}")
        return (TensorType(x.dtype, attrs.shape),)

    def reference(self, attrs: ShapeAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.broadcast_to(x, attrs.shape).copy(),)

    def compute(self, attrs: ShapeAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        from .elementwise import broadcast_load
        return (compute("out0", x.dtype, attrs.shape, lambda *i: broadcast_load(x, i)),)

    def samples(self) -> Iterable[Sample]:
        yield Sample((np.arange(3, dtype="f4").reshape(3, 1),), ShapeAttrs((2, 3, 5)))
        yield Sample((np.array(True),), ShapeAttrs((2, 1)))
        yield Sample((np.ones((1, 2), "u1"),), ShapeAttrs((0, 2)))


def reshape(b: GraphBuilder, x: Value, shape: Sequence[int]) -> Value:
    """x under `shape`; x itself where it has that shape already."""
    shape = tuple(int(n) for n in shape)
    return x if x.type.shape == shape else b.op("reshape", x, shape=shape)


def transpose(b: GraphBuilder, x: Value, perm: Sequence[int]) -> Value:
    return x if list(perm) == list(range(x.type.rank)) else b.op("transpose", x, perm=tuple(perm))


def expand(b: GraphBuilder, x: Value, shape: Sequence[int]) -> Value:
    shape = tuple(int(n) for n in shape)
    return x if x.type.shape == shape else b.op("expand", x, shape=shape)


def full(b: GraphBuilder, shape: Sequence[int], value: object, like: TensorType) -> Value:
    """A tensor of `shape` filled with one value of `like`'s dtype."""
    return expand(b, b.constant(np.asarray(value, like.dtype.numpy)), shape)


# -- ONNX -------------------------------------------------------------------------------------------------------------
@from_onnx("Reshape")
def _reshape(n: OnnxNode, b: GraphBuilder) -> Value:
    x = n.need(0)
    target = n.ints(1) if len(n.inputs) > 1 else tuple(n.attrs.get("shape", ()))  # type: ignore[arg-type]
    assert target is not None
    keep_zero = bool(n.attrs.get("allowzero", 0))
    dims = []
    for k, d in enumerate(target):
        if d == 0 and not keep_zero:
            if k >= x.type.rank:
                raise ShapeError(f"Reshape {n.name!r}: dimension {k} is copied from the input, which has rank {x.type.rank}")
            d = x.type.shape[k]
        dims.append(int(d))
    if dims.count(-1) > 1 or min(dims, default=0) < -1:
        raise ShapeError(f"Reshape {n.name!r}: {list(target)} is no shape; at most one dimension may be -1")
    if -1 in dims:
        rest = -math.prod(dims)
        if (rest == 0 and x.type.size) or (rest and x.type.size % rest):
            raise ShapeError(f"Reshape {n.name!r}: {x.type} does not divide into {list(target)}")
        dims[dims.index(-1)] = x.type.size // rest if rest else 0
    return reshape(b, x, dims)


@from_onnx("Flatten")
def _flatten(n: OnnxNode, b: GraphBuilder) -> Value:
    x = n.need(0)
    axis = int(n.attrs.get("axis", 1))  # type: ignore[call-overload]
    if not -x.type.rank <= axis <= x.type.rank:
        raise ShapeError(f"Flatten {n.name!r}: axis {axis} is outside {x.type}")
    axis = axis + x.type.rank if axis < 0 else axis
    return reshape(b, x, (math.prod(x.type.shape[:axis]), math.prod(x.type.shape[axis:])))


def _axes(n: OnnxNode, i: int) -> tuple[int, ...] | None:
    """Axes are an attribute in older opsets and input i in newer ones."""
    if "axes" in n.attrs:
        return tuple(n.attrs["axes"])  # type: ignore[arg-type]
    return n.ints(i)


@from_onnx("Squeeze")
def _squeeze(n: OnnxNode, b: GraphBuilder) -> Value:
    x, axes = n.need(0), _axes(n, 1)
    shape = x.type.shape
    drop = {k for k, d in enumerate(shape) if d == 1} if axes is None else {normalize_axis(a, len(shape), "Squeeze") for a in axes}
    if any(shape[k] != 1 for k in drop):
        raise ShapeError(f"Squeeze {n.name!r}: axes {sorted(drop)} of {x.type} are not all 1")
    return reshape(b, x, [d for k, d in enumerate(shape) if k not in drop])


@from_onnx("Unsqueeze")
def _unsqueeze(n: OnnxNode, b: GraphBuilder) -> Value:
    x, axes = n.need(0), _axes(n, 1)
    if axes is None:
        raise ShapeError(f"Unsqueeze {n.name!r}: axes are missing")
    rank = x.type.rank + len(axes)
    new = {normalize_axis(a, rank, "Unsqueeze") for a in axes}
    if len(new) != len(axes):
        raise ShapeError(f"Unsqueeze {n.name!r}: axes {list(axes)} repeat")
    rest = iter(x.type.shape)
    return reshape(b, x, [1 if k in new else next(rest) for k in range(rank)])


@from_onnx("Transpose")
def _transpose(n: OnnxNode, b: GraphBuilder) -> Value:
    x = n.need(0)
    perm = n.attrs.get("perm")
    return transpose(b, x, tuple(reversed(range(x.type.rank))) if perm is None else tuple(int(p) for p in perm))  # type: ignore[union-attr]


@from_onnx("Expand")
def _expand(n: OnnxNode, b: GraphBuilder) -> Value:
    x, wanted = n.need(0), n.ints(1) or ()
    shape = broadcast_shapes(x.type.shape, wanted)
    if shape is None:
        raise ShapeError(f"Expand {n.name!r}: {x.type} and shape {list(wanted)} do not broadcast")
    return expand(b, x, shape)


@from_onnx("Shape")
def _shape(n: OnnxNode, b: GraphBuilder) -> Value:
    shape = n.need(0).type.shape
    start, end = int(n.attrs.get("start", 0)), n.attrs.get("end")  # type: ignore[call-overload]
    return b.constant(np.array(shape[slice(start, end)], np.int64))  # type: ignore[arg-type]


@from_onnx("Size")
def _size(n: OnnxNode, b: GraphBuilder) -> Value:
    return b.constant(np.array(n.need(0).type.size, np.int64))


def _block(n: OnnxNode) -> tuple[Value, int]:
    x, s = n.need(0), int(n.attrs["blocksize"])  # type: ignore[call-overload]
    if x.type.rank != 4 or s < 1:
        raise ShapeError(f"{n.op_type} {n.name!r}: takes an NCHW tensor and a positive blocksize, not {x.type} and {s}")
    return x, s


@from_onnx("DepthToSpace")
def _depth_to_space(n: OnnxNode, b: GraphBuilder) -> Value:
    x, s = _block(n)
    nb, c, h, w = x.type.shape
    if c % (s * s):
        raise ShapeError(f"DepthToSpace {n.name!r}: {c} channels do not divide into blocks of {s}x{s}")
    if n.attrs.get("mode", "DCR") == "DCR":
        y = transpose(b, reshape(b, x, (nb, s, s, c // (s * s), h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = transpose(b, reshape(b, x, (nb, c // (s * s), s, s, h, w)), (0, 1, 4, 2, 5, 3))
    return reshape(b, y, (nb, c // (s * s), h * s, w * s))


@from_onnx("SpaceToDepth")
def _space_to_depth(n: OnnxNode, b: GraphBuilder) -> Value:
    x, s = _block(n)
    nb, c, h, w = x.type.shape
    if h % s or w % s:
        raise ShapeError(f"SpaceToDepth {n.name!r}: {h}x{w} does not divide into blocks of {s}x{s}")
    y = reshape(b, x, (nb, c, h // s, s, w // s, s))
    order = (0, 1, 3, 5, 2, 4) if n.attrs.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return reshape(b, transpose(b, y, order), (nb, c * s * s, h // s, w // s))

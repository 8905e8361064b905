"""Fourier transforms as one matmul with a literal matrix: DFT, STFT."""
from __future__ import annotations

import numpy as np

from ...errors import ShapeError, UnsupportedError
from ..builder import GraphBuilder
from ..graph import Value
from ..op import OnnxNode, from_onnx
from .shape import normalize_axis, reshape, transpose

MAX_LENGTH = 4096  # beyond, the matrix (length^2 entries) stops being a reasonable way to transform


def dft_matrix(n: int, length: int, parts: int, inverse: bool, onesided: bool) -> np.ndarray:
    """M [n * parts, bins * out_parts] such that y = x @ M is the transform of n elements, cut or zero-padded to `length`.

    Elements and bins are interleaved (real, imaginary); parts = 1: real input. One-sided inverse: the input holds the
    first length // 2 + 1 bins of a real signal's transform, the output has one part.
    """
    real_out = inverse and onesided
    rows = min(n, length // 2 + 1 if real_out else length)
    bins = length if real_out or not onesided else length // 2 + 1
    angle = 2 * np.pi * (np.outer(np.arange(rows), np.arange(bins)) % length) / length * (1 if inverse else -1)
    cos, sin = np.cos(angle), np.sin(angle)
    if real_out:  # each bin but the first and the middle stands for its conjugate too
        weight = np.where((np.arange(rows) == 0) | (2 * np.arange(rows) == length), 1, 2)[:, None]
        m = np.zeros((n, parts, bins, 1))
        m[:rows, 0, :, 0] = cos * weight
        if parts == 2:
            m[:rows, 1, :, 0] = -sin * weight
    else:
        m = np.zeros((n, parts, bins, 2))
        m[:rows, 0, :, 0], m[:rows, 0, :, 1] = cos, sin
        if parts == 2:
            m[:rows, 1, :, 0], m[:rows, 1, :, 1] = -sin, cos
    return (m / (length if inverse else 1)).reshape(n * parts, -1)


def _transform(n: OnnxNode, b: GraphBuilder, x: Value, length: int, inverse: bool, onesided: bool) -> Value:
    """x [batch…, n, parts] -> [batch…, bins, out parts]."""
    *batch, count, parts = x.type.shape
    if parts not in (1, 2) or length < 1:
        raise ShapeError(f"{n.op_type} {n.name!r}: {x.type} has no real or complex elements, or the length {length} is not positive")
    if length > MAX_LENGTH:
        raise UnsupportedError(f"{n.op_type} {n.name!r}: transforms longer than {MAX_LENGTH} are not supported (asked for {length})")
    matrix = dft_matrix(count, length, parts, inverse, onesided).astype(x.type.dtype.numpy)
    out_parts = 1 if inverse and onesided else 2
    rows = int(np.prod(batch, dtype=np.int64))
    y = b.op("matmul", reshape(b, x, (rows, count * parts)), b.constant(matrix))
    return reshape(b, y, (*batch, matrix.shape[1] // out_parts, out_parts))


@from_onnx("DFT")
def _dft(n: OnnxNode, b: GraphBuilder) -> Value:
    x, rank = n.need(0), n.need(0).type.rank
    if n.opset >= 20:
        given = n.ints(2)
        axis = given[0] if given else -2
    else:
        axis = int(n.attrs.get("axis", 1))  # type: ignore[call-overload]
    axis = normalize_axis(axis, rank, "DFT")
    if axis == rank - 1:
        raise ShapeError(f"DFT {n.name!r}: the last dimension of {x.type} holds the complex parts")
    inverse, onesided = bool(n.attrs.get("inverse", 0)), bool(n.attrs.get("onesided", 0))
    count, given = x.type.shape[axis], n.ints(1)
    length = given[0] if given else 2 * (count - 1) if inverse and onesided else count
    order = [k for k in range(rank - 1) if k != axis] + [axis, rank - 1]
    y = _transform(n, b, transpose(b, x, order), length, inverse, onesided)
    return transpose(b, y, [order.index(k) for k in range(rank)])


@from_onnx("STFT")
def _stft(n: OnnxNode, b: GraphBuilder) -> Value:
    x, step, window, given = n.need(0), n.ints(1), n.input(2), n.ints(3)
    if x.type.rank == 2:
        x = reshape(b, x, (*x.type.shape, 1))
    if x.type.rank != 3 or not step or step[0] < 1:
        raise ShapeError(f"STFT {n.name!r}: needs a signal [batch, length, parts] and a positive step, got {x.type} and {step}")
    total = x.type.shape[1]
    length = given[0] if given else window.type.shape[0] if window is not None else total
    if not 0 < length <= total:
        raise ShapeError(f"STFT {n.name!r}: frames of {length} do not fit a signal of {total}")
    frames = 1 + (total - length) // step[0]
    at = np.arange(frames)[:, None] * step[0] + np.arange(length)
    cut = b.op("gather", x, b.constant(at), axis=1)
    if window is not None:
        cut = b.op("mul", cut, reshape(b, window, (length, 1)))
    return _transform(n, b, cut, length, False, bool(n.attrs.get("onesided", 1)))

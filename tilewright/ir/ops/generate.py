"""ONNX ops that make tensors from parameters alone; they become literals while a model is imported."""
from __future__ import annotations

import math

import numpy as np

from ...errors import ShapeError, UnsupportedError
from ..builder import GraphBuilder
from ..graph import Value
from ..op import OnnxNode, from_onnx
from ..types import DType, TensorType, dtype_of
from .convert import ONNX_TYPES
from .shape import full


def element_type(code: object, what: str) -> DType:
    """The DType of an ONNX data-type number. Raises UnsupportedError for strings, complex and packed types."""
    dtype = ONNX_TYPES.get(int(code))  # type: ignore[call-overload]
    if dtype is None:
        raise UnsupportedError(f"{what}: ONNX element type {code} is not supported")
    return dtype


def _scalar(n: OnnxNode, i: int) -> np.generic:
    a = n.static(i)
    if a is None or a.size != 1:
        raise ShapeError(f"{n.op_type} {n.name!r}: input {i} must be one number")
    return a.reshape(-1)[0]


@from_onnx("ConstantOfShape")
def _constant_of_shape(n: OnnxNode, b: GraphBuilder) -> Value:
    value = np.asarray(n.attrs.get("value", np.zeros(1, np.float32)))
    shape = n.ints(0) or ()
    if min(shape, default=0) < 0:
        raise ShapeError(f"ConstantOfShape {n.name!r}: {list(shape)} is no shape")
    return full(b, shape, value.reshape(-1)[0], TensorType(dtype_of(value.dtype), shape))


@from_onnx("Range")
def _range(n: OnnxNode, b: GraphBuilder) -> Value:
    start, limit, delta = (_scalar(n, i) for i in range(3))
    if delta == 0:
        raise ShapeError(f"Range {n.name!r}: delta is 0")
    lo, hi, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((hi - lo) / step), 0) if isinstance(lo, float) else len(range(lo, hi, step))
    if count > 1 << 28:
        raise ShapeError(f"Range {n.name!r}: {count} elements; the model or its inputs are damaged")
    return b.constant((lo + np.arange(count) * step).astype(start.dtype))


@from_onnx("EyeLike")
def _eye_like(n: OnnxNode, b: GraphBuilder) -> Value:
    t = n.need(0).type
    if t.rank != 2:
        raise ShapeError(f"EyeLike {n.name!r}: {t} is no matrix")
    dtype = element_type(n.attrs["dtype"], "EyeLike") if "dtype" in n.attrs else t.dtype
    return b.constant(np.eye(*t.shape, k=int(n.attrs.get("k", 0)), dtype=np.float32).astype(dtype.numpy))  # type: ignore[call-overload]


def _window(n: OnnxNode, b: GraphBuilder, terms: tuple[float, ...]) -> Value:
    """sum of (-1)^k terms[k] cos(2 pi k i / (size or size - 1)), for i < size."""
    size = int(_scalar(n, 0))
    span = size if n.attrs.get("periodic", 1) else max(size - 1, 1)
    i = np.arange(size)
    w = sum((-1) ** k * a * np.cos(2 * math.pi * k * i / span) for k, a in enumerate(terms)) if size else np.zeros(0)
    dtype = element_type(n.attrs.get("output_datatype", 1), n.op_type)
    return b.constant(np.asarray(w).astype(dtype.numpy))


@from_onnx("HannWindow")
def _hann(n: OnnxNode, b: GraphBuilder) -> Value:
    return _window(n, b, (0.5, 0.5))


@from_onnx("HammingWindow")
def _hamming(n: OnnxNode, b: GraphBuilder) -> Value:
    return _window(n, b, (25 / 46, 1 - 25 / 46))


@from_onnx("BlackmanWindow")
def _blackman(n: OnnxNode, b: GraphBuilder) -> Value:
    return _window(n, b, (0.42, 0.5, 0.08))


@from_onnx("MelWeightMatrix")
def _mel_weight_matrix(n: OnnxNode, b: GraphBuilder) -> Value:
    """Triangles between mel-spaced centres, as the ONNX operator spells them (bins are rounded down)."""
    bands, dft, rate = (int(_scalar(n, i)) for i in range(3))
    low, high = float(_scalar(n, 3)), float(_scalar(n, 4))
    dtype = element_type(n.attrs.get("output_datatype", 1), "MelWeightMatrix")
    bins = dft // 2 + 1
    mel_low, mel_high = (2595 * math.log10(1 + f / 700) for f in (low, high))
    step = (mel_high - mel_low) / (bands + 2)
    hz = 700 * (10 ** ((np.arange(bands + 2) * step + mel_low) / 2595) - 1)
    at = ((dft + 1) * hz // rate).astype(np.int64)
    out = np.zeros((bins, bands))
    for i in range(bands):
        lower, centre, upper = at[i:i + 3]
        if centre == lower:
            out[centre, i] = 1
        else:
            rise = np.arange(lower, centre + 1)
            out[rise, i] = (rise - lower) / (centre - lower)
        if upper > centre:
            fall = np.arange(centre, upper)
            out[fall, i] = (upper - fall) / (upper - centre)
    return b.constant(out.astype(dtype.numpy))



"""Operators of ai.onnx.ml that are plain tensor arithmetic. Trees and encoders of strings are not among them."""
from __future__ import annotations

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..graph import Value
from ..op import OnnxNode, from_onnx


@from_onnx("Binarizer", domain="ai.onnx.ml")
def binarizer(n: OnnxNode, b: GraphBuilder) -> Value:
    """1 where x > threshold, else 0, in x's type."""
    x = n.need(0)
    threshold = float(n.attrs.get("threshold", 0.0))  # type: ignore[arg-type]
    if x.type.dtype.is_int:
        threshold = np.floor(threshold)  # the same comparison among integers
    above = b.op("gt", x, b.constant(np.array(threshold).astype(x.type.dtype.numpy)))
    return b.op("cast", above, dtype=x.type.dtype)


@from_onnx("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(n: OnnxNode, b: GraphBuilder) -> Value:
    """x[…, y]: columns of the last axis by their indices; a vector counts as one row."""
    x, y = n.need(0), n.need(1)
    if x.type.rank < 1 or y.type.size < 1:
        raise ShapeError(f"ArrayFeatureExtractor cannot take columns {y.type} of {x.type}")
    if x.type.rank == 1:
        x = b.op("reshape", x, shape=(1, *x.type.shape))
    return b.op("gather", x, b.op("reshape", y, shape=(y.type.size,)), axis=x.type.rank - 1)

"""Ops whose output shapes are known only once their inputs are: NonZero, Compress, Unique, NonMaxSuppression. The frontend
cuts a model at them; they run on the host between the compiled segments. Names, inputs and attributes are ONNX's."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ..graph import Attrs
from ..op import Op, Sample, register


@register
class NonZero(Op):
    """Positions of all elements that are not zero (NaN is not), row-major: i64 [rank, count]."""

    name, onnx, data_dependent = "nonzero", "NonZero", True

    def reference(self, attrs: Attrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        found = np.nonzero(x.reshape(-1))[0]
        return (np.stack(np.unravel_index(found, x.shape)).astype(np.int64) if x.ndim else np.zeros((0, found.size), np.int64),)

    def samples(self) -> Iterable[Sample]:
        yield Sample((np.array([[1, 0, 2], [0, np.nan, 0]], "f4"),))
        yield Sample((np.zeros((0, 3), "?"),))


@dataclass(frozen=True, slots=True)
class OptionalAxisAttrs(Attrs):
    """axis None: the flattened tensor."""

    axis: int | None = None


@register
class Compress(Op):
    """The slices along `axis` where the bool vector `condition` (perhaps shorter than the axis) holds."""

    name, onnx, data_dependent = "compress", "Compress", True
    Attrs = OptionalAxisAttrs

    def reference(self, attrs: OptionalAxisAttrs, x: np.ndarray, condition: np.ndarray) -> tuple[np.ndarray, ...]:
        n = x.size if attrs.axis is None else x.shape[attrs.axis]
        at = np.nonzero(condition)[0]
        if at.size and at[-1] >= n:
            raise InputError(f"Compress: the condition selects element {at[-1]} of {n}")
        return (np.take(x, at, axis=attrs.axis),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(6, dtype="f4").reshape(3, 2)
        yield Sample((x, np.array([False, True, True])), OptionalAxisAttrs(0))
        yield Sample((x, np.array([False, True])), OptionalAxisAttrs(-1))
        yield Sample((x, np.array([True, False, False, True])), OptionalAxisAttrs())


@dataclass(frozen=True, slots=True)
class UniqueAttrs(Attrs):
    axis: int | None = None
    sorted: int = 1


@register
class Unique(Op):
    """Unique elements (slices along `axis`), where each first occurs, which of them each input element is, and how often
    each occurs. Unsorted: in order of first occurrence."""

    name, onnx, data_dependent = "unique", "Unique", True
    Attrs = UniqueAttrs

    def reference(self, attrs: UniqueAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        y, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True, axis=attrs.axis)
        inverse = inverse.reshape(-1)
        if not attrs.sorted:
            order = np.argsort(first, kind="stable")
            rank = np.empty_like(order)
            rank[order] = np.arange(order.size)
            y, first, counts, inverse = np.take(y, order, axis=attrs.axis or 0), first[order], counts[order], rank[inverse]
        return y, *(a.astype(np.int64) for a in (first, inverse, counts))

    def samples(self) -> Iterable[Sample]:
        x = np.array([[2, 1, 1], [2, 1, 1], [3, 4, 3]], "f4")
        for attrs in (UniqueAttrs(), UniqueAttrs(0), UniqueAttrs(1), UniqueAttrs(None, 0), UniqueAttrs(0, 0)):
            yield Sample((x, ), attrs)


@dataclass(frozen=True, slots=True)
class NonMaxSuppressionAttrs(Attrs):
    center_point_box: int = 0


@register
class NonMaxSuppression(Op):
    """boxes [B, N, 4], scores [B, C, N] and up to three numbers (boxes to keep per class, IoU above which the lower score
    goes, score that must be exceeded) -> i64 [M, 3] of (batch, class, box), by class and falling score. Ties: lower box first."""

    name, onnx, data_dependent = "non_max_suppression", "NonMaxSuppression", True
    Attrs = NonMaxSuppressionAttrs

    def reference(self, attrs: NonMaxSuppressionAttrs, boxes: np.ndarray, scores: np.ndarray, limit: np.ndarray | None = None,
                  iou: np.ndarray | None = None, score: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.ndim != 3 or (scores.shape[0], scores.shape[2]) != boxes.shape[:2]:
            raise InputError(f"NonMaxSuppression: boxes {boxes.shape} and scores {scores.shape} do not fit")
        keep = 0 if limit is None else int(limit.reshape(-1)[0])
        overlap = 0.0 if iou is None else float(iou.reshape(-1)[0])
        least = -np.inf if score is None else float(score.reshape(-1)[0])
        low, high = _corners(boxes.astype(np.float32), bool(attrs.center_point_box))
        found = [(b, c, k) for b in range(scores.shape[0]) for c in range(scores.shape[1])
                 for k in _suppress(low[b], high[b], scores[b, c], keep, overlap, least)]
        return (np.array(found, np.int64).reshape(-1, 3),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        corner = rng.random((2, 13, 2), "f4")
        boxes = np.concatenate([corner, corner + rng.random((2, 13, 2), "f4")], 2)
        scores = rng.random((2, 3, 13), "f4")
        yield Sample((boxes, scores, np.array([5]), np.array([0.3], "f4"), np.array([0.2], "f4")), NonMaxSuppressionAttrs())
        yield Sample((boxes, rng.random((2, 1, 13), "f4"), np.array([5]), None, None), NonMaxSuppressionAttrs(1))


def _corners(boxes: np.ndarray, centered: bool) -> tuple[np.ndarray, np.ndarray]:
    a, b = boxes[..., :2], boxes[..., 2:]
    return (a - b / 2, a + b / 2) if centered else (np.minimum(a, b), np.maximum(a, b))


def _suppress(low: np.ndarray, high: np.ndarray, scores: np.ndarray, keep: int, overlap: float, least: float) -> list[int]:
    order = np.argsort(-scores.astype(np.float32), kind="stable")
    order = order[scores[order] > least]
    area = np.prod(high - low, axis=1)
    chosen: list[int] = []
    while order.size and len(chosen) < keep:
        best, order = int(order[0]), order[1:]
        chosen.append(best)
        shared = np.prod(np.maximum(np.minimum(high[best], high[order]) - np.maximum(low[best], low[order]), 0), axis=1)
        union = area[best] + area[order] - shared
        order = order[~((shared > overlap * union) & (union > 0))]
    return chosen

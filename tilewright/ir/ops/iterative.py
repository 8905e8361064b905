"""Ops that iterate row by row until something holds, or look for other rows: libsvm's coupling of probabilities, the coordinate
descent of a non-negative factorisation, filling in from the nearest rows. Loops for numba."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ..graph import Attrs
from ..op import Op, Sample, register
from ..types import F32, F64, TensorType


@dataclass(frozen=True, slots=True)
class ClassesAttrs(Attrs):
    classes: int = 2


@register
class CouplePairs(Op):
    """Probabilities of classes from those of pairs, r[rows, pairs] = P(i | i or j) for i < j, by the second method of Wu, Lin and
    Weng (2004) as libsvm iterates it: at most max(100, classes) steps, to an error of 0.005 / classes. f64."""

    name = "couple_pairs"
    Attrs = ClassesAttrs

    def infer(self, attrs: ClassesAttrs, r: TensorType) -> tuple[TensorType, ...]:
        k = attrs.classes
        if r.rank != 2 or r.dtype != F64 or k < 2 or r.shape[1] != k * (k - 1) // 2:
            raise self.fail(f"{r} for {k} classes")
        return (TensorType(F64, (r.shape[0], k)),)

    def reference(self, attrs: ClassesAttrs, r: np.ndarray) -> tuple[np.ndarray, ...]:
        k = attrs.classes
        first, second = np.triu_indices(k, 1)
        out = np.empty((len(r), k))
        for row, y in zip(r, out, strict=True):
            pair = np.zeros((k, k))
            pair[first, second], pair[second, first] = row, 1 - row
            q = -pair.T * pair
            np.fill_diagonal(q, (pair * pair).sum(0))
            p = np.full(k, 1 / k)
            for _ in range(max(100, k)):
                qp = q @ p
                pqp = p @ qp
                if np.abs(qp - pqp).max() < 0.005 / k:
                    break
                for t in range(k):
                    d = (pqp - qp[t]) / q[t, t]
                    p[t] += d
                    pqp = (pqp + d * (d * q[t, t] + 2 * qp[t])) / (1 + d) / (1 + d)
                    qp = (qp + d * q[t]) / (1 + d)
                    p /= 1 + d
            y[:] = p
        return (out,)

    def kernel(self, attrs: ClassesAttrs, r: TensorType) -> Callable[..., int]:
        rows, k = r.shape[0], attrs.classes

        def couple(r, y, q):  # noqa: ANN001, ANN202
            for row in range(rows):
                for t in range(k):
                    q[t, t] = 0.0
                    y[row, t] = 1.0 / k
                pair = 0
                for i in range(k):
                    for j in range(i + 1, k):
                        a = r[row, pair]
                        b = 1.0 - a
                        q[j, j] += a * a
                        q[i, i] += b * b
                        q[i, j] = -b * a
                        q[j, i] = -b * a
                        pair += 1
                for _ in range(max(100, k)):
                    both = 0.0
                    for t in range(k):
                        q[k, t] = 0.0
                        for j in range(k):
                            q[k, t] += q[t, j] * y[row, j]
                        both += y[row, t] * q[k, t]
                    worst = 0.0
                    for t in range(k):
                        worst = max(worst, abs(q[k, t] - both))
                    if worst < 0.005 / k:
                        break
                    for t in range(k):
                        d = (both - q[k, t]) / q[t, t]
                        y[row, t] += d
                        both = (both + d * (d * q[t, t] + 2 * q[k, t])) / (1 + d) / (1 + d)
                        for j in range(k):
                            q[k, j] = (q[k, j] + d * q[t, j]) / (1 + d)
                            y[row, j] /= 1 + d
            return 0
        return couple

    def memory(self, attrs: ClassesAttrs, r: TensorType) -> tuple[TensorType, ...]:
        """The matrix that is iterated with, and its product with the probabilities."""
        return (TensorType(F64, (attrs.classes + 1, attrs.classes)),)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for k in (2, 3, 7):
            yield Sample((rng.uniform(1e-7, 1 - 1e-7, (5, k * (k - 1) // 2)),), ClassesAttrs(k), 1e-12)


@dataclass(frozen=True, slots=True)
class DescentAttrs(Attrs):
    steps: int = 200
    tolerance: float = 1e-4


@register
class NonNegativeFactors(Op):
    """w[rows, k] >= 0 that makes |x - w h|^2 small, from x h' [rows, k] and h h' [k, k] (with penalties in both): coordinate
    descent from 0, each row until the sum of its violations is `tolerance` of the first step's, or for `steps` steps."""

    name = "non_negative_factors"
    Attrs = DescentAttrs

    def infer(self, attrs: DescentAttrs, xh: TensorType, hh: TensorType) -> tuple[TensorType, ...]:
        if xh.rank != 2 or xh.dtype not in (F32, F64) or hh != TensorType(xh.dtype, (xh.shape[1], xh.shape[1])):
            raise self.fail(f"{xh} and {hh}")
        return (xh,)

    def reference(self, attrs: DescentAttrs, xh: np.ndarray, hh: np.ndarray) -> tuple[np.ndarray, ...]:
        out = np.zeros_like(xh)
        for x, w in zip(xh, out, strict=True):
            first = 0.0
            for step in range(attrs.steps):
                violation = xh.dtype.type(0)
                for t in range(len(w)):
                    gradient = -x[t]
                    for j in range(len(w)):
                        gradient += hh[t, j] * w[j]
                    violation += abs(min(xh.dtype.type(0), gradient) if w[t] == 0 else gradient)
                    if hh[t, t] != 0:
                        w[t] = max(w[t] - gradient / hh[t, t], 0)
                first = float(violation) if step == 0 else first
                if first == 0 or float(violation) / first <= attrs.tolerance:
                    break
        return (out,)

    def kernel(self, attrs: DescentAttrs, xh: TensorType, hh: TensorType) -> Callable[..., int]:
        rows, k = xh.shape
        steps, tolerance, zero = attrs.steps, attrs.tolerance, xh.dtype.numpy.type(0)

        def descend(xh, hh, w):  # noqa: ANN001, ANN202
            for row in range(rows):
                for t in range(k):
                    w[row, t] = zero
                first = 0.0
                for step in range(steps):
                    violation = zero
                    for t in range(k):
                        gradient = -xh[row, t]
                        for j in range(k):
                            gradient += hh[t, j] * w[row, j]
                        violation += abs(min(zero, gradient) if w[row, t] == 0 else gradient)
                        if hh[t, t] != 0:
                            w[row, t] = max(w[row, t] - gradient / hh[t, t], zero)
                    if step == 0:
                        first = float(violation)
                    if first == 0 or float(violation) / first <= tolerance:
                        break
            return 0
        return descend

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for kind in ("f4", "f8"):
            h = rng.random((3, 6)).astype(kind)
            yield Sample((rng.random((5, 6)).astype(kind) @ h.T, h @ h.T), DescentAttrs(), 1e-4 if kind == "f4" else 1e-12)


@dataclass(frozen=True, slots=True)
class FillAttrs(Attrs):
    k: int = 5
    by_distance: int = 0


@register
class FillFromNearest(Op):
    """x[rows, columns] with each NaN replaced by the mean of that column in the k rows of `known` nearest to the row that have it,
    weighted by 1 / distance with `by_distance`; by means[column] where no distance is known. Distances are Euclidean over the
    columns that both rows have, scaled up to all. f64."""

    name = "fill_from_nearest"
    Attrs = FillAttrs

    def infer(self, attrs: FillAttrs, x: TensorType, known: TensorType, means: TensorType) -> tuple[TensorType, ...]:
        if x.rank != 2 or known.rank != 2 or x.dtype != F64 or attrs.k < 1 or (known.shape[1], *means.shape) != (x.shape[1], x.shape[1]):
            raise self.fail(f"{attrs.k} nearest of {known}, {means} for {x}")
        return (x,)

    def reference(self, attrs: FillAttrs, x: np.ndarray, known: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, ...]:
        out = x.copy()
        for row, y in zip(x, out, strict=True):
            both = ~np.isnan(row) & ~np.isnan(known)
            count = both.sum(1)
            with np.errstate(invalid="ignore", divide="ignore"):
                d = np.sqrt(np.where(both, known - row, 0.0).__pow__(2).sum(1) / count * x.shape[1])
            for c in np.flatnonzero(np.isnan(row)):
                at = np.flatnonzero(~np.isnan(known[:, c]) & (count > 0))
                at = at[np.argsort(d[at], kind="stable")][:attrs.k]
                if not len(at):
                    y[c] = means[c]
                    continue
                with np.errstate(divide="ignore"):
                    w = 1 / d[at] if attrs.by_distance else np.ones(len(at))
                w = np.isinf(w).astype(float) if np.isinf(w).any() else w
                y[c] = (known[at, c] * w).sum() / w.sum()
        return (out,)

    def kernel(self, attrs: FillAttrs, x: TensorType, known: TensorType, means: TensorType) -> Callable[..., int]:
        (rows, width), n, k, by_distance = x.shape, known.shape[0], attrs.k, bool(attrs.by_distance)

        def fill(x, known, means, y, d, near):  # noqa: ANN001, ANN202
            for row in range(rows):
                some = False
                for c in range(width):
                    y[row, c] = x[row, c]
                    some = some or x[row, c] != x[row, c]
                if not some:
                    continue
                for i in range(n):
                    total, count = 0.0, 0
                    for c in range(width):
                        gap = x[row, c] - known[i, c]
                        if gap == gap:  # noqa: PLR0124
                            total += gap * gap
                            count += 1
                    d[i] = np.sqrt(total / count * width) if count else np.nan
                for c in range(width):
                    if x[row, c] == x[row, c]:
                        continue
                    found = 0
                    for i in range(n):
                        v = known[i, c]
                        if v != v or d[i] != d[i] or (found == k and d[i] >= near[0, k - 1]):  # noqa: PLR0124
                            continue
                        at = min(found, k - 1)
                        found = min(found + 1, k)
                        while at > 0 and near[0, at - 1] > d[i]:
                            near[0, at], near[1, at] = near[0, at - 1], near[1, at - 1]
                            at -= 1
                        near[0, at], near[1, at] = d[i], v
                    total, weights = 0.0, 0.0
                    for i in range(found):
                        w = 1.0
                        if by_distance and near[0, 0] == 0:
                            w = 1.0 if near[0, i] == 0 else 0.0
                        elif by_distance:
                            w = 1.0 / near[0, i]
                        total += near[1, i] * w
                        weights += w
                    y[row, c] = total / weights if found else means[c]
            return 0
        return fill

    def memory(self, attrs: FillAttrs, x: TensorType, known: TensorType, means: TensorType) -> tuple[TensorType, ...]:
        """Distances of a row, and the nearest ones that have a column with what they have there."""
        return TensorType(F64, known.shape[:1]), TensorType(F64, (2, attrs.k))

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x, known = (np.where(rng.random(s) < 0.3, np.nan, rng.standard_normal(s)) for s in ((9, 4), (20, 4)))
        x[0], known[3] = np.nan, np.nan
        x[1, :3], known[5, 0] = known[5, :3], 1.5
        for by_distance in (0, 1):
            yield Sample((x, known, np.arange(4.0)), FillAttrs(3, by_distance), 1e-12)

"""Einsum in terms of matmul, multiplication, sums and transposes; repeated labels become a `diagonal`."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer
from ..graph import Attrs, Value
from ..op import OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute
from ..samples import values
from ..types import F32, I32, TensorType

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiagonalAttrs(Attrs):
    """pick[d]: the output dimension that indexes dimension d of the input."""

    pick: tuple[int, ...] = ()


@register
class Diagonal(Op):
    """The elements whose indices agree: pick (0, 0, 1) is out[i, j] = x[i, i, j]."""

    name = "diagonal"
    Attrs = DiagonalAttrs

    def infer(self, attrs: DiagonalAttrs, x: TensorType) -> tuple[TensorType, ...]:
        rank = max(attrs.pick, default=-1) + 1
        sizes = [{n for n, p in zip(x.shape, attrs.pick, strict=False) if p == d} for d in range(rank)]
        if len(attrs.pick) != x.rank or any(len(s) != 1 for s in sizes):
            raise self.fail(f"dimensions of {x} that share an index (by {attrs.pick}) differ in extent")
        return (TensorType(x.dtype, tuple(s.pop() for s in sizes)),)

    def reference(self, attrs: DiagonalAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        (out,) = self.infer(attrs, TensorType(F32, x.shape))
        index = np.indices(out.shape, sparse=True)
        return (x[tuple(index[p] for p in attrs.pick)],)

    def compute(self, attrs: DiagonalAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        return (compute("out0", x.dtype, outs[0].shape, lambda *i: x[tuple(i[p] for p in attrs.pick)]),)

    def samples(self) -> Iterable[Sample]:
        for shape, pick in (((3, 3), (0, 0)), ((3, 3, 5), (0, 0, 1)), ((3, 5, 3), (1, 0, 1)), ((2, 2, 2), (0, 0, 0)), ((0, 0), (0, 0))):
            yield Sample((values(shape, F32),), DiagonalAttrs(pick))
        yield Sample((values((7, 7), I32),), DiagonalAttrs((0, 0)))


@dataclass(frozen=True)
class _Term:
    """A value whose dimensions are named."""

    value: Value
    labels: Labels

    def size(self, label: str) -> int:
        return self.value.type.shape[self.labels.index(label)]

    def sizes(self, labels: Iterable[str]) -> tuple[int, ...]:
        return tuple(map(self.size, labels))


@from_onnx("Einsum")
def _einsum(n: OnnxNode, b: GraphBuilder) -> Value:
    operands = [n.need(k) for k in range(len(n.inputs))]
    inputs, output = parse_equation(str(n.attrs["equation"]), [v.type.rank for v in operands])
    terms = [_without_repeats(b, _Term(v, labels)) for v, labels in zip(operands, inputs, strict=True)]
    extent: dict[str, int] = {}
    for t in terms:
        for label, size in zip(t.labels, t.value.type.shape, strict=True):
            if 1 != extent.get(label, 1) != size != 1:
                raise ShapeError(f"Einsum {n.name!r}: label {label} has extents {extent[label]} and {size}")
            extent[label] = size if extent.get(label, 1) == 1 else extent[label]
    terms = [_without_ones(b, t, extent) for t in terms]
    total = terms[0]
    for k, t in enumerate(terms[1:], 1):
        later = set(output).union(*(u.labels for u in terms[k + 1:]))
        total = _pair(b, total, t, later)
    return _ordered(b, _summed(b, total, set(output)), output)


def parse_equation(equation: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """The labels of each operand and of the result. Dimensions under an ellipsis get the labels "…0" (the last), "…1" …"""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(ranks):
        raise ShapeError(f"Einsum {equation!r}: {len(texts)} terms for {len(ranks)} operands")

    def labels(text: str, hidden: int) -> Labels:
        head, dots, tail = text.partition("...")
        return (*head, *(f"…{k}" for k in reversed(range(hidden if dots else 0))), *tail)
    hidden = [r - len(t.replace("...", "")) for t, r in zip(texts, ranks, strict=True)]
    if any(h < 0 or h > 0 and "..." not in t for h, t in zip(hidden, texts, strict=True)):
        raise ShapeError(f"Einsum {equation!r}: its terms do not fit operands of ranks {', '.join(map(str, ranks))}")
    inputs = [labels(t, h) for t, h in zip(texts, hidden, strict=True)]
    if arrow:
        output = labels(right, max(hidden))
    else:
        count: dict[str, int] = {}
        for x in (x for term in inputs for x in term):
            count[x] = count.get(x, 0) + 1
        dots = tuple(f"…{k}" for k in reversed(range(max(hidden))))
        output = (*dots, *sorted(x for x, c in count.items() if c == 1 and x not in dots))
    known = {x for term in inputs for x in term}
    if not known.issuperset(output) or len(set(output)) < len(output):
        raise ShapeError(f"Einsum {equation!r}: the result repeats a label or names an unknown one")
    return inputs, output


def _without_repeats(b: GraphBuilder, t: _Term) -> _Term:
    unique = tuple(dict.fromkeys(t.labels))
    if unique == t.labels:
        return t
    return _Term(b.op("diagonal", t.value, pick=tuple(unique.index(x) for x in t.labels)), unique)


def _without_ones(b: GraphBuilder, t: _Term, extent: dict[str, int]) -> _Term:
    """Extents of 1 that broadcast against longer ones carry no index."""
    keep = tuple(x for x in t.labels if t.size(x) == extent[x])
    return t if keep == t.labels else _Term(b.op("reshape", t.value, shape=t.sizes(keep)), keep)


def _summed(b: GraphBuilder, t: _Term, keep: set[str]) -> _Term:
    axes = tuple(d for d, x in enumerate(t.labels) if x not in keep)
    if not axes:
        return t
    return _Term(b.op("reduce", t.value, kind="sum", axes=axes, keepdims=0), tuple(x for x in t.labels if x in keep))


def _ordered(b: GraphBuilder, t: _Term, labels: Labels) -> Value:
    perm = tuple(t.labels.index(x) for x in labels)
    return t.value if perm == tuple(range(len(perm))) else b.op("transpose", t.value, perm=perm)


def _pair(b: GraphBuilder, x: _Term, y: _Term, later: set[str]) -> _Term:
    """The product of two terms, summed over labels that nothing `later` names."""
    x, y = _summed(b, x, later | set(y.labels)), _summed(b, y, later | set(x.labels))
    shared = tuple(a for a in x.labels if a in y.labels)
    batch, inner = tuple(a for a in shared if a in later), tuple(a for a in shared if a not in later)
    rows, columns = tuple(a for a in x.labels if a not in shared), tuple(a for a in y.labels if a not in shared)
    out, shape = batch + rows + columns, x.sizes(batch + rows) + y.sizes(columns)
    left, right = _ordered(b, x, batch + rows + inner), _ordered(b, y, batch + inner + columns)
    if not inner:  # nothing to sum: an outer or element-wise product
        right = b.op("reshape", right, shape=x.sizes(batch) + (1,) * len(rows) + y.sizes(columns))
        left = b.op("reshape", left, shape=x.sizes(batch + rows) + (1,) * len(columns))
        return _Term(b.op("mul", left, right), out)
    stack = (math.prod(x.sizes(batch)),) if batch else ()
    m, k, n = (math.prod(s) for s in (x.sizes(rows), x.sizes(inner), y.sizes(columns)))
    product = b.op("matmul", b.op("reshape", left, shape=(*stack, m, k)), b.op("reshape", right, shape=(*stack, k, n)))
    return _Term(b.op("reshape", product, shape=shape), out)

"""Images made larger by whole factors: elements repeated (nearest-neighbour resize), or phases interleaved (transposed
convolutions with strides)."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..builder import GraphBuilder
from ..expr import Buffer, Expr, all_of, eq, select
from ..graph import Attrs, Value
from ..op import Op, Sample, register
from ..program import Compute, compute
from ..types import TensorType
from .shape import reshape, transpose
from .slices import concat


@dataclass(frozen=True, slots=True)
class FactorAttrs(Attrs):
    """One whole factor a dimension, at least 1."""

    factors: tuple[int, ...] = ()


@register
class Repeat(Op):
    """out[i…] = x[i // factor…]: every element `factor` times in a row."""

    name = "repeat"
    Attrs = FactorAttrs

    def infer(self, attrs: FactorAttrs, x: TensorType) -> tuple[TensorType, ...]:
        if len(attrs.factors) != x.rank or min(attrs.factors, default=1) < 1:
            raise self.fail(f"{x} needs {x.rank} factors of at least 1, got {attrs.factors}")
        return (TensorType(x.dtype, tuple(n * f for n, f in zip(x.shape, attrs.factors, strict=True))),)

    def reference(self, attrs: FactorAttrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
        for k, f in enumerate(attrs.factors):
            x = np.repeat(x, f, k)
        return (x.copy(),)

    def compute(self, attrs: FactorAttrs, outs: tuple[TensorType, ...], x: Buffer) -> tuple[Compute, ...]:
        return (compute("out0", x.dtype, outs[0].shape, lambda *i: x[tuple(
            e // f if f > 1 else e for e, f in zip(i, attrs.factors, strict=True))]),)

    def samples(self) -> Iterable[Sample]:
        x = np.arange(24, dtype="f4").reshape(1, 2, 3, 4)
        yield Sample((x,), FactorAttrs((1, 1, 2, 3)))
        yield Sample((x.astype("i4"),), FactorAttrs((2, 1, 1, 1)))
        yield Sample((np.arange(96, dtype="f4").reshape(1, 1, 3, 4, 8),), FactorAttrs((1, 1, 2, 2, 1)))
        yield Sample((x[:0],), FactorAttrs((1, 1, 2, 2)))


@register
class Interleave(Op):
    """out[i…] = part p [i // factor…], where p numbers the phases i % factor… in row-major order. As many parts of one type
    as the factors have product."""

    name = "interleave"
    Attrs = FactorAttrs

    def infer(self, attrs: FactorAttrs, *parts: TensorType) -> tuple[TensorType, ...]:
        x = parts[0]
        if len(attrs.factors) != x.rank or any(p != x for p in parts) or len(parts) != math.prod(attrs.factors):
            raise self.fail(f"{len(parts)} parts, the first {x}, do not fit factors {attrs.factors}")
        return (TensorType(x.dtype, tuple(n * f for n, f in zip(x.shape, attrs.factors, strict=True))),)

    def reference(self, attrs: FactorAttrs, *parts: np.ndarray) -> tuple[np.ndarray, ...]:
        out = np.empty(tuple(n * f for n, f in zip(parts[0].shape, attrs.factors, strict=True)), parts[0].dtype)
        for at, x in zip(phase_starts(attrs.factors), parts, strict=True):
            out[tuple(slice(a, None, f) for a, f in zip(at, attrs.factors, strict=True))] = x
        return (out,)

    def compute(self, attrs: FactorAttrs, outs: tuple[TensorType, ...], *parts: Buffer) -> tuple[Compute, ...]:
        starts = phase_starts(attrs.factors)

        def body(*i: Expr) -> Expr:
            at = tuple(e // f if f > 1 else e for e, f in zip(i, attrs.factors, strict=True))
            value: Expr = parts[-1][at]
            for start, x in list(zip(starts, parts, strict=True))[-2::-1]:
                here = all_of([eq(e % f, a) for e, a, f in zip(i, start, attrs.factors, strict=True) if f > 1])
                value = value if here is None else select(here, x[at], value)
            return value
        return (compute("out0", parts[0].dtype, outs[0].shape, body),)

    def decompose(self, attrs: FactorAttrs, b: GraphBuilder, *parts: Value) -> tuple[Value, ...]:
        """The parts behind each other, then their dimensions sorted: vectors are moved where select would choose lanes."""
        shape, factors = parts[0].type.shape, attrs.factors
        split = [k for k, f in enumerate(factors) if f > 1]
        whole = concat(b, [reshape(b, x, (1, *shape)) for x in parts], 0)
        y = reshape(b, whole, (*(factors[k] for k in split), *shape))
        order: list[int] = []
        for k in range(len(shape)):
            order += [len(split) + k, *([split.index(k)] if k in split else [])]
        return (reshape(b, transpose(b, y, order), tuple(n * f for n, f in zip(shape, factors, strict=True))),)

    def samples(self) -> Iterable[Sample]:
        parts = tuple(np.arange(24, dtype="f4").reshape(1, 3, 2, 4) + 100 * k for k in range(6))
        yield Sample(parts[:4], FactorAttrs((1, 1, 2, 2)))
        yield Sample(parts, FactorAttrs((1, 2, 3, 1)))
        yield Sample(parts[:1], FactorAttrs((1, 1, 1, 1)))
        yield Sample(tuple(x.reshape(1, 1, 3, 1, 8) for x in parts[:4]), FactorAttrs((1, 1, 2, 2, 1)))


def phase_starts(factors: Sequence[int]) -> list[tuple[int, ...]]:
    """Where each phase begins in the interleaved tensor."""
    return list(itertools.product(*map(range, factors)))

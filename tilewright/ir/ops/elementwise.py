"""Maps: one output element from the elements at the same place of (broadcast) inputs."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..expr import Buffer, Expr, select, wrap
from ..graph import Attrs
from ..op import Op, Sample, register
from ..program import Compute, compute
from ..types import DType, TensorType, broadcast_shapes


def broadcast_load(x: Buffer, index: tuple[Expr, ...]) -> Expr:
    """x at `index` of a result that x broadcasts to, NumPy style."""
    own = index[len(index) - len(x.shape):]
    return x[tuple(wrap(0, i.dtype) if n == 1 else i for i, n in zip(own, x.shape, strict=True))]


class Map(Op):
    """Base: `scalar` gives the meaning of one element as an expression; broadcasting and types follow from it."""

    result: ClassVar[DType | None] = None  # the output's dtype where it differs from the inputs'

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        raise NotImplementedError(self.name)

    def infer(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        types = [t for t in ins if t is not None]
        shape = broadcast_shapes(*(t.shape for t in types))
        if shape is None:
            raise self.fail(f"shapes {', '.join(map(repr, types))} do not broadcast")
        return (TensorType(self.result or types[-1].dtype, shape),)

    def compute(self, attrs: Attrs, outs: tuple[TensorType, ...], *ins: Buffer | None) -> tuple[Compute, ...]:
        present = [x for x in ins if x is not None]
        return (compute("out0", outs[0].dtype, outs[0].shape,
                        lambda *i: self.scalar(attrs, *(broadcast_load(x, i) for x in present))),)


@register
class Relu(Map):
    name, onnx = "relu", "Relu"

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        return select(xs[0] < 0, 0, xs[0])  # not max(x, 0): NaN must pass

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        (x,) = ins
        assert x is not None
        return (np.where(x < 0, np.zeros((), x.dtype), x),)

    def samples(self) -> Iterable[Sample]:
        yield Sample((np.array([[-1, 0, 2], [np.nan, 3, -4]], "f4"),))

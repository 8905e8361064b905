"""Maps that compare, decide and work on bits: comparisons, logic, bitwise ops, shifts, predicates, where."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Expr, call, eq, select, wrap
from ..graph import Attrs, Value
from ..op import OnnxNode, Sample, from_onnx, register
from ..samples import values
from ..types import BF16, BOOL, F16, F32, F64, I32, I64, U8, U64, TensorType
from .elementwise import Map, function, given, import_binary

for _name in ("eq", "ne"):
    function(_name, "", arity=2, kinds="fiub", result=BOOL, domain=(-1, 1))
for _name in ("lt", "le", "gt", "ge"):
    function(_name, "", arity=2, kinds="fiu", result=BOOL, domain=(-1, 1))
for _name in ("and", "or", "xor"):
    function(_name, "", arity=2, kinds="biu", domain=(-120, 120))
function("not", "", kinds="biu", domain=(-120, 120))
function("isnan", "IsNaN", result=BOOL)


class Shift(Map):
    """Base of shifts: a count that is negative, or not below the width, moves everything out."""

    kinds = "ui"
    arity = 2
    domain = (-3, 12)

    def in_range(self, count: np.ndarray) -> np.ndarray:
        return (count >= 0) & (count < count.dtype.itemsize * 8)


@register
class ShiftLeft(Shift):
    """x << count; bits beyond the width are lost."""

    name = "shl"

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        x, count = xs
        if x.dtype.kind == "u":
            return call("shl", x, count)
        fits = (count >= 0) & (count < x.dtype.bits)
        return select(fits, call("shl", x, select(fits, count, 0)), 0)

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        x, count = given(*ins)
        fits = self.in_range(count)
        return (np.where(fits, np.left_shift(x, np.where(fits, count, 0)), 0).astype(x.dtype),)


@register
class ShiftRight(Shift):
    """x >> count; copies of the sign come in from the left, zeros where x is unsigned."""

    name = "shr"

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        x, count = xs
        if x.dtype.kind == "u":
            return call("shr", x, count)
        fits = (count >= 0) & (count < x.dtype.bits)
        return call("shr", x, select(fits, count, x.dtype.bits - 1))

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        x, count = given(*ins)
        fits, top = self.in_range(count), x.dtype.itemsize * 8 - 1
        shifted = np.right_shift(x, np.where(fits, count, top).astype(x.dtype))
        return (shifted if x.dtype.kind == "i" else np.where(fits, shifted, 0).astype(x.dtype),)


@dataclass(frozen=True, slots=True)
class IsInfAttrs(Attrs):
    detect_negative: int = 1
    detect_positive: int = 1


@register
class IsInf(Map):
    """x is +inf (`detect_positive`) or -inf (`detect_negative`)."""

    name, onnx = "isinf", "IsInf"
    Attrs = IsInfAttrs
    result = BOOL

    def scalar(self, attrs: IsInfAttrs, *xs: Expr) -> Expr:
        if attrs.detect_negative and attrs.detect_positive:
            return call("isinf", xs[0])
        if attrs.detect_positive:
            return eq(xs[0], float("inf"))
        return eq(xs[0], float("-inf")) if attrs.detect_negative else wrap(False, BOOL)

    def reference(self, attrs: IsInfAttrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        (x,) = given(*ins)
        wanted = (x > 0) & bool(attrs.detect_positive) | (x < 0) & bool(attrs.detect_negative)
        return (np.asarray(np.isinf(x) & wanted),)

    def sample_attrs(self) -> Iterable[Attrs]:
        yield from (IsInfAttrs(), IsInfAttrs(0, 1), IsInfAttrs(1, 0), IsInfAttrs(0, 0))


@register
class Where(Map):
    """x where cond else y."""

    name, onnx = "where", "Where"
    arity = 3

    def check_types(self, types: list[TensorType]) -> None:
        if types[0].dtype is not BOOL or types[1].dtype != types[2].dtype:
            raise self.fail(f"takes a bool and two tensors of one element type, not {', '.join(map(repr, types))}")

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        return select(xs[0], xs[1], xs[2])

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        return (np.where(*given(*ins)),)

    def samples(self) -> Iterable[Sample]:
        for d in (F32, F64, F16, BF16, I64, I32, U8, U64, BOOL):
            yield Sample((values((3, 1, 5), BOOL), values((4, 1), d, special=True), values((5,), d, seed=1)))
        yield Sample((values((), BOOL), values((2, 0), F32), values((1,), F32)))
        yield Sample((values((1, 7), BOOL), values((), F32), values((3, 7), F32, special=True)))


# -- ONNX ------------------------------------------------------------------------------------------------------------
for _onnx, _name in {"Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge", "And": "and", "Or": "or",
                     "Xor": "xor", "BitwiseAnd": "and", "BitwiseOr": "or", "BitwiseXor": "xor"}.items():
    from_onnx(_onnx)(import_binary(_name))


@from_onnx("Not")
@from_onnx("BitwiseNot")
def _not(n: OnnxNode, b: GraphBuilder) -> Value:
    return b.op("not", n.need(0))


@from_onnx("BitShift")
def _bit_shift(n: OnnxNode, b: GraphBuilder) -> Value:
    direction = n.attrs.get("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise ShapeError(f"BitShift {n.name!r}: direction must be LEFT or RIGHT, not {direction!r}")
    return b.op("shl" if direction == "LEFT" else "shr", n.need(0), n.need(1))

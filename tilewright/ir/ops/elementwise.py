"""Maps: one output element from the elements at the same place of (broadcast) inputs. Arithmetic and functions of one
argument live here; logic.py, activation.py and convert.py hold the other maps."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..expr import Buffer, Expr, accumulate_dtype, call, cast, wrap
from ..functions import FUNCTIONS
from ..graph import Attrs, Value
from ..op import OnnxImporter, OnnxNode, Op, Sample, from_onnx, register
from ..program import Compute, compute
from ..samples import tolerance, values
from ..types import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType, TensorType, broadcast_shapes

FLOATS, SIGNED, UNSIGNED = (F32, F64, F16, BF16), (I8, I16, I32, I64), (U8, U16, U32, U64)
SAMPLE_TYPES = {"f": FLOATS, "i": (I32, I64, I8), "u": (U8, U32), "b": (BOOL,)}


def broadcast_load(x: Buffer, index: tuple[Expr, ...]) -> Expr:
    """x at `index` of a result that x broadcasts to, NumPy style."""
    own = index[len(index) - len(x.shape):]
    return x[tuple(wrap(0, i.dtype) if n == 1 else i for i, n in zip(own, x.shape, strict=True))]


def given(*ins: np.ndarray | None) -> list[np.ndarray]:
    """A reference's inputs, those that are present."""
    return [x for x in ins if x is not None]


def in_f64(x: np.ndarray) -> np.ndarray:
    """Floats widened for a reference that rounds once, at its end."""
    return x.astype(np.float64)


class Map(Op):
    """Base: `scalar` gives the meaning of one element as an expression; broadcasting and types follow from it."""

    result: ClassVar[DType | None] = None  # the output's dtype where it differs from the inputs'
    kinds: ClassVar[str] = "f"             # kinds of dtype the op takes: f(loat) i(nt) u(int) b(ool)
    arity: ClassVar[int] = 1
    domain: ClassVar[tuple[float, float]] = (-4, 4)  # of the finite sample values

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        raise NotImplementedError(self.name)

    def check_types(self, types: list[TensorType]) -> None:
        if len({t.dtype for t in types}) > 1:
            raise self.fail(f"operands must share an element type, not {', '.join(map(repr, types))}")
        if types[0].dtype.kind not in self.kinds:
            raise self.fail(f"is not defined on {types[0].dtype}")

    def infer(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        types = [t for t in ins if t is not None]
        if len(types) != self.arity:
            raise self.fail(f"takes {self.arity} inputs, not {len(types)}")
        self.check_types(types)
        shape = broadcast_shapes(*(t.shape for t in types))
        if shape is None:
            raise self.fail(f"shapes {', '.join(map(repr, types))} do not broadcast")
        return (TensorType(self.result or types[-1].dtype, shape),)

    def compute(self, attrs: Attrs, outs: tuple[TensorType, ...], *ins: Buffer | None) -> tuple[Compute, ...]:
        present = [x for x in ins if x is not None]
        return (compute("out0", outs[0].dtype, outs[0].shape,
                        lambda *i: self.scalar(attrs, *(broadcast_load(x, i) for x in present))),)

    def sample_attrs(self) -> Iterable[Attrs]:
        """Attributes to try; the first are used with every sample shape, the others with one."""
        yield self.Attrs()

    def samples(self) -> Iterable[Sample]:
        low, high = self.domain
        first, *others = self.sample_attrs()
        dtypes = [d for k in self.kinds for d in SAMPLE_TYPES[k]]

        def case(d: DType, shapes: Iterable[tuple[int, ...]], attrs: Attrs) -> Sample:
            ins = tuple(values(s, d, low=low, high=high, special=True, seed=k) for k, s in enumerate(shapes))
            return Sample(ins, attrs, rtol=tolerance(d))
        for d in dtypes:
            yield case(d, ((3, 7), (7,), (3, 1))[:self.arity], first)
        for shapes in (((13,), (13,), ()), ((), (5,), (1,)), ((0, 3), (1,), (3,)), ((2, 1, 3), (1, 17, 1), (2, 17, 3)),
                       ((1,), (1, 1), (1,))):
            yield case(dtypes[0], shapes[:self.arity], first)
        for attrs in others:
            yield case(dtypes[0], ((3, 7), (7,), (3, 1))[:self.arity], attrs)


class FloatMap(Map):
    """A map of several steps: half floats are computed in f32 and rounded once. `wide` is the meaning, `exact` the
    same on f64 arrays."""

    def wide(self, attrs: Attrs, *xs: Expr) -> Expr:
        raise NotImplementedError(self.name)

    def exact(self, attrs: Attrs, *xs: np.ndarray) -> np.ndarray:
        raise NotImplementedError(self.name)

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        return cast(self.wide(attrs, *(cast(x, accumulate_dtype(x.dtype)) for x in xs)), xs[0].dtype)

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        xs = given(*ins)
        return (np.asarray(self.exact(attrs, *map(in_f64, xs))).astype(xs[0].dtype),)


class Function(Map):
    """A map that is one scalar function of `ir/functions.py`, named `fn`."""

    fn: ClassVar[str]

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        return call(self.fn, *xs)

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        xs = given(*ins)
        y = np.asarray(FUNCTIONS[self.fn].numpy(*xs))
        return (y.astype(self.result.numpy if self.result else xs[0].dtype, copy=False),)


def function(name: str, onnx: str, *, fn: str = "", arity: int = 1, kinds: str = "f", result: DType | None = None,
             domain: tuple[float, float] = (-4, 4)) -> type[Op]:
    """Registers the op `name` that is the scalar function `fn` (default: of the same name) of `arity` operands."""
    return register(type(onnx or name.title(), (Function,), {
        "__module__": __name__, "__doc__": f"{fn or name}, element by element.", "name": name, "onnx": onnx, "fn": fn or name,
        "arity": arity, "kinds": kinds, "result": result, "domain": domain}))


for _name, _onnx in {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}.items():
    function(_name, _onnx, arity=2, kinds="fiu")
for _name in ("min", "max", "mod", "fmod"):
    function(_name, "", arity=2, kinds="fiu")
function("pow", "", arity=2, kinds="fiu", domain=(-3, 5))
for _name, _onnx in {"neg": "Neg", "abs": "Abs", "sign": "Sign"}.items():
    function(_name, _onnx, kinds="fiu")
for _name, _onnx in {
        "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos",
        "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "tanh": "Tanh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
        "erf": "Erf", "floor": "Floor", "ceil": "Ceil", "round": "Round", "expm1": "", "log1p": "", "trunc": ""}.items():
    function(_name, _onnx)


@register
class Reciprocal(Map):
    name, onnx = "reciprocal", "Reciprocal"

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        return call("div", wrap(1, xs[0].dtype), xs[0])

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        (x,) = given(*ins)
        return (np.divide(np.ones((), x.dtype), x),)


# -- ONNX ------------------------------------------------------------------------------------------------------------
def scalar_like(b: GraphBuilder, x: Value, v: float) -> Value:
    """The literal `v` of x's dtype, rank 0."""
    return b.constant(np.asarray(v).astype(x.type.dtype.numpy))


def legacy_operand(n: OnnxNode, b: GraphBuilder, a: Value, c: Value) -> Value:
    """Before opset 7 the second operand broadcasts only with broadcast=1, aligned at `axis` (default: at the end)."""
    axis = n.attrs.get("axis")
    if not n.attrs.get("broadcast", 0) or axis is None:
        return c
    at = int(axis) % max(a.type.rank, 1)  # type: ignore[call-overload]
    return b.op("reshape", c, shape=c.type.shape + (1,) * (a.type.rank - at - c.type.rank))


def import_binary(op: str) -> OnnxImporter:
    def build(n: OnnxNode, b: GraphBuilder) -> Value:
        a, c = n.need(0), n.need(1)
        return b.op(op, a, legacy_operand(n, b, a, c) if n.opset < 7 else c)
    return build


for _onnx, _name in {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}.items():
    from_onnx(_onnx)(import_binary(_name))


@from_onnx("Mod")
def _mod(n: OnnxNode, b: GraphBuilder) -> Value:
    return b.op("fmod" if n.attrs.get("fmod", 0) else "mod", n.need(0), n.need(1))


@from_onnx("Pow")
def _pow(n: OnnxNode, b: GraphBuilder) -> Value:
    """The result has the base's type; an integer base with a float exponent is computed in f64."""
    x, e = n.need(0), n.need(1)
    if n.opset < 7:
        e = legacy_operand(n, b, x, e)
    t = x.type.dtype
    known = b.value_of(e)
    if known is not None and known.size == 1 and e.type.rank <= x.type.rank and (power := float(known.reshape(()))) in (1.0, 2.0, 3.0):
        return x if power == 1 else b.op("mul", x, x) if power == 2 else b.op("mul", b.op("mul", x, x), x)
    if t.is_int and e.type.dtype.is_float:
        wide = b.op("pow", b.op("cast", x, dtype=F64), b.op("cast", e, dtype=F64))
        return b.op("cast", wide, dtype=t)
    return b.op("pow", x, e if e.type.dtype == t else b.op("cast", e, dtype=t))


def _variadic(op: str) -> Callable[[OnnxNode, GraphBuilder], Value]:
    def build(n: OnnxNode, b: GraphBuilder) -> Value:
        total = n.need(0)
        for k in range(1, len(n.inputs)):
            total = b.op(op, total, n.need(k))
        return total
    return build


for _onnx, _name in {"Max": "max", "Min": "min", "Sum": "add"}.items():
    from_onnx(_onnx)(_variadic(_name))


@from_onnx("Mean")
def _mean(n: OnnxNode, b: GraphBuilder) -> Value:
    total = _variadic("add")(n, b)
    return b.op("div", total, scalar_like(b, total, len(n.inputs)))


@from_onnx("Clip")
def _clip(n: OnnxNode, b: GraphBuilder) -> Value:
    """max, then min: where the bounds cross, the upper one wins. NaN passes. Before opset 11 the bounds are attributes."""
    x = n.need(0)
    if n.opset < 11:
        low, high = (scalar_like(b, x, float(v)) if (v := n.attrs.get(k)) is not None else None for k in ("min", "max"))  # type: ignore[arg-type]
    else:
        low, high = n.input(1), n.input(2)
    for op, bound in (("max", low), ("min", high)):
        if bound is None:
            continue
        if bound.type.size != 1:
            raise ShapeError(f"Clip {n.name!r}: the bound {bound} is not a scalar")
        x = b.op(op, x, b.op("reshape", bound, shape=()) if bound.type.rank else bound)
    return x


@from_onnx("Identity")
def _identity(n: OnnxNode, b: GraphBuilder) -> Value:
    return n.need(0)

"""Activation functions: maps of several scalar steps. Half floats are computed in f32 and rounded once."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import UnsupportedError
from ..builder import GraphBuilder
from ..expr import Expr, call, cast, select, wrap
from ..functions import FUNCTIONS
from ..graph import Attrs, Value
from ..op import OnnxNode, Sample, from_onnx, register
from ..types import F64, TensorType
from .elementwise import FloatMap, Map, given, import_binary


@dataclass(frozen=True, slots=True)
class AlphaAttrs(Attrs):
    alpha: float = 1.0


def _exp(x: Expr) -> Expr:
    return call("exp", x)


def _expm1(x: Expr) -> Expr:
    return call("expm1", x)


def _sigmoid(x: Expr) -> Expr:
    return call("div", wrap(1, x.dtype), _exp(-x) + 1)


def _clamp01(x: Expr) -> Expr:
    return call("min", call("max", x, 0), 1)


@register
class Relu(Map):
    name, onnx = "relu", "Relu"
    kinds = "fi"

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        return select(xs[0] < 0, 0, xs[0])  # not max(x, 0): NaN must pass

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        (x,) = given(*ins)
        return (np.where(x < 0, np.zeros((), x.dtype), x),)


@register
class Sigmoid(FloatMap):
    """1 / (1 + exp(-x))"""

    name, onnx = "sigmoid", "Sigmoid"

    def wide(self, attrs: Attrs, *xs: Expr) -> Expr:
        return _sigmoid(xs[0])

    def exact(self, attrs: Attrs, *xs: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-xs[0]))


@dataclass(frozen=True, slots=True)
class LeakyReluAttrs(AlphaAttrs):
    alpha: float = 0.01


@register
class LeakyRelu(FloatMap):
    """alpha * x where x < 0, else x"""

    name, onnx = "leaky_relu", "LeakyRelu"
    Attrs = LeakyReluAttrs

    def wide(self, attrs: AlphaAttrs, *xs: Expr) -> Expr:
        return select(xs[0] < 0, xs[0] * attrs.alpha, xs[0])

    def exact(self, attrs: AlphaAttrs, *xs: np.ndarray) -> np.ndarray:
        return np.where(xs[0] < 0, attrs.alpha * xs[0], xs[0])


@register
class PRelu(Map):
    """slope * x where x < 0, else x; slope broadcasts to x."""

    name = "prelu"
    kinds = "fiu"
    arity = 2

    def infer(self, attrs: Attrs, *ins: TensorType | None) -> tuple[TensorType, ...]:
        (out,) = super().infer(attrs, *ins)
        assert ins[0] is not None
        if out != ins[0]:
            raise self.fail(f"the slope {ins[1]} does not broadcast to {ins[0]}")
        return (out,)

    def scalar(self, attrs: Attrs, *xs: Expr) -> Expr:
        return select(xs[0] < 0, xs[0] * xs[1], xs[0])

    def reference(self, attrs: Attrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        x, slope = given(*ins)
        return (np.where(x < 0, x * slope, x),)

    def samples(self) -> Iterable[Sample]:
        for s in super().samples():
            x, slope = given(*s.inputs)
            if np.broadcast_shapes(x.shape, slope.shape) == x.shape:
                yield s


@register
class Elu(FloatMap):
    """alpha * (exp(x) - 1) where x < 0, else x"""

    name, onnx = "elu", "Elu"
    Attrs = AlphaAttrs

    def wide(self, attrs: AlphaAttrs, *xs: Expr) -> Expr:
        return select(xs[0] < 0, _expm1(xs[0]) * attrs.alpha, xs[0])

    def exact(self, attrs: AlphaAttrs, *xs: np.ndarray) -> np.ndarray:
        return np.where(xs[0] < 0, attrs.alpha * np.expm1(xs[0]), xs[0])

    def sample_attrs(self) -> Iterable[Attrs]:
        yield from (AlphaAttrs(), AlphaAttrs(0.3))


@dataclass(frozen=True, slots=True)
class SeluAttrs(Attrs):
    alpha: float = 1.67326319217681884765625
    gamma: float = 1.05070102214813232421875


@register
class Selu(FloatMap):
    """gamma * elu(x; alpha)"""

    name, onnx = "selu", "Selu"
    Attrs = SeluAttrs

    def wide(self, attrs: SeluAttrs, *xs: Expr) -> Expr:
        return select(xs[0] < 0, _expm1(xs[0]) * (attrs.alpha * attrs.gamma), xs[0] * attrs.gamma)

    def exact(self, attrs: SeluAttrs, *xs: np.ndarray) -> np.ndarray:
        return attrs.gamma * np.where(xs[0] < 0, attrs.alpha * np.expm1(xs[0]), xs[0])


@register
class Celu(FloatMap):
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))"""

    name, onnx = "celu", "Celu"
    Attrs = AlphaAttrs

    def wide(self, attrs: AlphaAttrs, *xs: Expr) -> Expr:
        return select(xs[0] < 0, _expm1(xs[0] / attrs.alpha) * attrs.alpha, xs[0])

    def exact(self, attrs: AlphaAttrs, *xs: np.ndarray) -> np.ndarray:
        return np.where(xs[0] < 0, attrs.alpha * np.expm1(xs[0] / attrs.alpha), xs[0])

    def sample_attrs(self) -> Iterable[Attrs]:
        yield from (AlphaAttrs(), AlphaAttrs(2.0))


@dataclass(frozen=True, slots=True)
class HardSigmoidAttrs(Attrs):
    alpha: float = 0.2
    beta: float = 0.5


@register
class HardSigmoid(FloatMap):
    """max(0, min(1, alpha * x + beta))"""

    name, onnx = "hard_sigmoid", "HardSigmoid"
    Attrs = HardSigmoidAttrs

    def wide(self, attrs: HardSigmoidAttrs, *xs: Expr) -> Expr:
        return _clamp01(xs[0] * attrs.alpha + attrs.beta)

    def exact(self, attrs: HardSigmoidAttrs, *xs: np.ndarray) -> np.ndarray:
        return np.clip(xs[0] * attrs.alpha + attrs.beta, 0, 1)


@register
class HardSwish(FloatMap):
    """x * max(0, min(1, x / 6 + 1/2))"""

    name, onnx = "hard_swish", "HardSwish"

    def wide(self, attrs: Attrs, *xs: Expr) -> Expr:
        return xs[0] * _clamp01(xs[0] * (1 / 6) + 0.5)

    def exact(self, attrs: Attrs, *xs: np.ndarray) -> np.ndarray:
        return xs[0] * np.clip(xs[0] / 6 + 0.5, 0, 1)


@register
class Softplus(FloatMap):
    """log(1 + exp(x)), without overflow: max(x, 0) + log1p(exp(-|x|))"""

    name, onnx = "softplus", "Softplus"
    domain: ClassVar[tuple[float, float]] = (-20, 100)

    def wide(self, attrs: Attrs, *xs: Expr) -> Expr:
        return call("max", xs[0], 0) + call("log1p", _exp(-call("abs", xs[0])))

    def exact(self, attrs: Attrs, *xs: np.ndarray) -> np.ndarray:
        return np.logaddexp(xs[0], 0)


@register
class Softsign(FloatMap):
    """x / (1 + |x|)"""

    name, onnx = "softsign", "Softsign"

    def wide(self, attrs: Attrs, *xs: Expr) -> Expr:
        return xs[0] / (call("abs", xs[0]) + 1)

    def exact(self, attrs: Attrs, *xs: np.ndarray) -> np.ndarray:
        return xs[0] / (1 + np.abs(xs[0]))


@dataclass(frozen=True, slots=True)
class GeluAttrs(Attrs):
    approximate: str = "none"


@register
class Gelu(FloatMap):
    """x * Phi(x), exact (`approximate` "none") or with tanh: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))"""

    name, onnx = "gelu", "Gelu"
    Attrs = GeluAttrs

    def wide(self, attrs: GeluAttrs, *xs: Expr) -> Expr:
        (x,) = xs
        if attrs.approximate == "tanh":
            return x * _sigmoid((x + x * x * x * 0.044715) * math.sqrt(8 / math.pi))  # (1 + tanh t) / 2 = sigmoid(2t)
        return call("gelu", x)

    def exact(self, attrs: GeluAttrs, *xs: np.ndarray) -> np.ndarray:
        (x,) = xs
        if attrs.approximate == "tanh":
            return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return FUNCTIONS["gelu"].numpy(x)

    def sample_attrs(self) -> Iterable[Attrs]:
        yield from (GeluAttrs(), GeluAttrs("tanh"))


@register
class Mish(FloatMap):
    """x * tanh(softplus(x)) = x * n / (n + 2) with n = e(e + 2), e = exp(x); from x = 20 on that is x."""

    name, onnx = "mish", "Mish"
    domain: ClassVar[tuple[float, float]] = (-10, 40)

    def wide(self, attrs: Attrs, *xs: Expr) -> Expr:
        (x,) = xs
        e = _exp(call("min", x, 20))
        n = e * (e + 2)
        return x * (n / (n + 2))

    def exact(self, attrs: Attrs, *xs: np.ndarray) -> np.ndarray:
        return xs[0] * np.tanh(np.logaddexp(xs[0], 0))


@register
class ThresholdedRelu(FloatMap):
    """x where x > alpha, else 0"""

    name, onnx = "thresholded_relu", "ThresholdedRelu"
    Attrs = AlphaAttrs

    def wide(self, attrs: AlphaAttrs, *xs: Expr) -> Expr:
        return select(xs[0] > attrs.alpha, xs[0], 0)

    def exact(self, attrs: AlphaAttrs, *xs: np.ndarray) -> np.ndarray:
        return np.where(xs[0] > attrs.alpha, xs[0], 0)


@register
class Swish(FloatMap):
    """x * sigmoid(alpha * x)"""

    name, onnx = "swish", "Swish"
    Attrs = AlphaAttrs

    def wide(self, attrs: AlphaAttrs, *xs: Expr) -> Expr:
        return xs[0] * _sigmoid(xs[0] if attrs.alpha == 1 else xs[0] * attrs.alpha)

    def exact(self, attrs: AlphaAttrs, *xs: np.ndarray) -> np.ndarray:
        return xs[0] / (1 + np.exp(-attrs.alpha * xs[0]))

    def sample_attrs(self) -> Iterable[Attrs]:
        yield from (AlphaAttrs(), AlphaAttrs(1.702))


@dataclass(frozen=True, slots=True)
class ShrinkAttrs(Attrs):
    bias: float = 0.0
    lambd: float = 0.5


@register
class Shrink(Map):
    """x - bias where x > lambd, x + bias where x < -lambd, else 0"""

    name, onnx = "shrink", "Shrink"
    kinds = "fiu"

    Attrs = ShrinkAttrs

    def scalar(self, attrs: ShrinkAttrs, *xs: Expr) -> Expr:
        (x,) = xs
        wide = cast(x, F64) if x.dtype.is_int else x
        low, high = wide + attrs.bias, wide - attrs.bias
        return cast(select(wide < -attrs.lambd, low, select(wide > attrs.lambd, high, 0)), x.dtype)

    def reference(self, attrs: ShrinkAttrs, *ins: np.ndarray | None) -> tuple[np.ndarray, ...]:
        (x,) = given(*ins)
        w = x.astype(np.float64)
        y = np.where(w < -attrs.lambd, w + attrs.bias, np.where(w > attrs.lambd, w - attrs.bias, 0))
        return (y.astype(x.dtype),)

    def sample_attrs(self) -> Iterable[Attrs]:
        yield from (ShrinkAttrs(), ShrinkAttrs(1.0, 1.5))


# -- ONNX ------------------------------------------------------------------------------------------------------------
from_onnx("PRelu")(import_binary("prelu"))


@from_onnx("Dropout")
def _dropout(n: OnnxNode, b: GraphBuilder) -> list[Value]:
    """The identity, as at inference. Raises UnsupportedError for a training step that really drops."""
    x = n.need(0)
    if n.opset >= 12 and n.input(2) is not None and (training := n.static(2)) is not None and training.any():
        ratio = n.static(1)
        if ratio is None or float(np.ravel(ratio)[0]) != 0:
            raise UnsupportedError(f"Dropout {n.name!r} is in training mode with a ratio above 0, which is random; "
                                   "export the model for inference")
    if n.n_outputs < 2:
        return [x]
    mask = b.constant(np.ones((), bool if n.opset >= 10 else x.type.dtype.numpy))
    return [x, b.op("expand", mask, shape=x.type.shape)]

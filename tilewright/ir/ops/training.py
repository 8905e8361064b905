"""The optimisers of ai.onnx.preview.training as element-wise arithmetic: Adagrad, Adam, Momentum.

Inputs are the learning rate R, the update count T, then for all tensors the parameters X, the gradients G and one or two
kinds of state; outputs the new parameters and states. Formulas: ONNX, Operators-preview-training.md.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import ShapeError
from ..builder import GraphBuilder
from ..graph import Value
from ..op import OnnxNode, from_onnx

DOMAIN = "ai.onnx.preview.training"


class _Rule:
    """One optimiser node: its tensors in groups, and arithmetic in the parameters' element type."""

    def __init__(self, n: OnnxNode, b: GraphBuilder, kinds: int):
        tensors = [n.need(i) for i in range(2, len(n.inputs))]
        if not tensors or len(tensors) % kinds:
            raise ShapeError(f"{n.op_type} needs {kinds} tensors for each parameter, not {len(tensors)} in all")
        count = len(tensors) // kinds
        self.groups = [tensors[k * count:(k + 1) * count] for k in range(kinds)]
        self.n, self.b, self.dtype = n, b, tensors[0].type.dtype
        self.rate = b.op("cast", n.need(0), dtype=self.dtype)
        self.time = b.op("cast", n.need(1), dtype=self.dtype)

    def number(self, name: str, default: float) -> Value:
        value = self.n.attrs.get(name, default)
        assert isinstance(value, float)
        return self.const(value)

    def const(self, value: float) -> Value:
        return self.b.constant(np.array(value, self.dtype.numpy))

    def __call__(self, op: str, *xs: Value) -> Value:
        return self.b.op(op, *xs)

    def gradient(self, x: Value, g: Value) -> Value:
        """G + norm_coefficient X: the gradient with L2 regularisation."""
        return self("add", g, self("mul", self.number("norm_coefficient", 0.0), x))

    def started(self, later: Value, first: Value) -> Value:
        """`later` if this is not the first update."""
        return self("where", self("gt", self.time, self.const(0)), later, first)


def _step(r: _Rule, x: Value, rate: Value, direction: Value) -> Value:
    return r("sub", x, r("mul", rate, direction))


@from_onnx("Adagrad", domain=DOMAIN)
def adagrad(n: OnnxNode, b: GraphBuilder) -> Sequence[Value]:
    r = _Rule(n, b, 3)
    rate = r("div", r.rate, r("add", r.const(1), r("mul", r.time, r.number("decay_factor", 0.0))))
    xs, hs = [], []
    for x, g0, h0 in zip(*r.groups, strict=True):
        g = r.gradient(x, g0)
        h = r("add", h0, r("mul", g, g))
        hs.append(h)
        xs.append(_step(r, x, rate, r("div", g, r("add", r("sqrt", h), r.number("epsilon", 0.0)))))
    return (*xs, *hs)


@from_onnx("Adam", domain=DOMAIN)
def adam(n: OnnxNode, b: GraphBuilder) -> Sequence[Value]:
    r = _Rule(n, b, 4)
    one, alpha, beta = r.const(1), r.number("alpha", 0.9), r.number("beta", 0.999)
    unbiased = r("div", r("sqrt", r("sub", one, r("pow", beta, r.time))), r("sub", one, r("pow", alpha, r.time)))
    rate = r.started(r("mul", r.rate, unbiased), r.rate)
    kept = r("sub", one, r.number("norm_coefficient_post", 0.0))
    xs, vs, hs = [], [], []
    for x, g0, v0, h0 in zip(*r.groups, strict=True):
        g = r.gradient(x, g0)
        v = r("add", r("mul", alpha, v0), r("mul", r("sub", one, alpha), g))
        h = r("add", r("mul", beta, h0), r("mul", r("sub", one, beta), r("mul", g, g)))
        vs.append(v)
        hs.append(h)
        xs.append(r("mul", kept, _step(r, x, rate, r("div", v, r("add", r("sqrt", h), r.number("epsilon", 0.0))))))
    return (*xs, *vs, *hs)


@from_onnx("Momentum", domain=DOMAIN)
def momentum(n: OnnxNode, b: GraphBuilder) -> Sequence[Value]:
    r = _Rule(n, b, 3)
    alpha = r.number("alpha", 0.0)
    share = r.started(r.number("beta", 0.0), r.const(1))
    mode = n.attrs.get("mode")
    if mode not in ("standard", "nesterov"):
        raise ShapeError(f"Momentum has mode {mode!r}; expected 'standard' or 'nesterov'")
    xs, vs = [], []
    for x, g0, v0 in zip(*r.groups, strict=True):
        g = r.gradient(x, g0)
        v = r("add", r("mul", alpha, v0), r("mul", share, g))
        vs.append(v)
        xs.append(_step(r, x, r.rate, v if mode == "standard" else r("add", g, r("mul", alpha, v))))
    return (*xs, *vs)

"""Subnormal weights take part as 0 in products (docs/accuracy.md), unless the caller is strict; other operators keep them."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.compiler.compile import compile
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.types import F32, TensorType

SMALL = np.float32(1e-40)


def convolution(groups: int) -> tuple[Graph, np.ndarray]:
    """The second output channel has subnormal weights and bias only; inputs of 1e30 would make them count."""
    b, rng = GraphBuilder("conv"), np.random.default_rng(0)
    w = rng.uniform(0.5, 1, (16, 16 // groups, 3, 3)).astype("f4")
    w[1] = SMALL
    bias = np.zeros(16, "f4")
    bias[1] = SMALL
    x = b.input("x", TensorType(F32, (1, 16, 6, 6)))
    y = b.op("conv", x, b.weight("w", w), b.weight("b", bias), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), groups=groups)
    return b.graph((y,)), np.full((1, 16, 6, 6), 1e30, "f4")


def product() -> tuple[Graph, np.ndarray]:
    b = GraphBuilder("matmul")
    w = np.random.default_rng(0).uniform(0.5, 1, (5, 40)).astype("f4")
    w[:, 1] = SMALL
    return b.graph((b.op("matmul", b.input("x", TensorType(F32, (3, 5))), b.weight("w", w)),)), np.full((3, 5), 1e30, "f4")


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["convolution", "depthwise", "product"])
def test_products(kind: str, strict: bool) -> None:
    graph, x = {"convolution": lambda: convolution(1), "depthwise": lambda: convolution(16), "product": product}[kind]()
    y = compile(graph, strict=strict, cache=False)(x)
    assert isinstance(y, np.ndarray)
    second = y[:, 1]
    assert (second > 0).all() if strict else (second == 0).all()
    assert (np.delete(y, 1, axis=1) > 1e30).all()


def test_other_operators_keep_them() -> None:
    b = GraphBuilder("mul")
    graph = b.graph((b.op("mul", b.input("x", TensorType(F32, (16,))), b.weight("w", np.full(16, SMALL))),))
    y = compile(graph, cache=False)(np.full(16, 1e30, "f4"))
    assert isinstance(y, np.ndarray)
    np.testing.assert_allclose(y, 1e-10, rtol=1e-4)

"""Winograd convolutions: right at every edge, within the error that docs/accuracy.md states, and only where strict is off."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.compiler.compile import compile
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.types import F32, TensorType

STATED = 3e-5


def conv_graph(n: int, i: int, o: int, h: int, w: int, pads: tuple[int, int, int, int], weights: np.ndarray, bias: np.ndarray) -> Graph:
    b = GraphBuilder("conv")
    x = b.input("x", TensorType(F32, (n, i, h, w)))
    y = b.op("conv", x, b.weight("w", weights), b.weight("bias", bias), strides=(1, 1), pads=pads, dilations=(1, 1))
    return b.graph([b.op("relu", y)])


def exact(x: np.ndarray, w: np.ndarray, bias: np.ndarray, pads: tuple[int, int, int, int]) -> np.ndarray:
    """The convolution in f64."""
    d = np.pad(x.astype("f8"), [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    windows = np.lib.stride_tricks.sliding_window_view(d, (3, 3), (2, 3))
    y = np.einsum("nihwrs,oirs->nohw", windows, w.astype("f8"), optimize=True) + bias[None, :, None, None]
    return np.maximum(y, 0)


@pytest.mark.parametrize(("n", "i", "o", "h", "w", "pads"), [
    (1, 32, 40, 9, 13, (1, 1, 1, 1)), (2, 35, 33, 16, 15, (1, 1, 1, 1)), (1, 64, 64, 14, 18, (0, 0, 0, 0)),
    (1, 33, 32, 17, 14, (2, 0, 1, 1)), (3, 48, 32, 7, 8, (0, 1, 2, 0)), (1, 256, 64, 14, 14, (1, 1, 1, 1))])
@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_error_stays_within_what_is_stated(n, i, o, h, w, pads, target):
    rng = np.random.default_rng(i * h + o)
    x, k, bias = (rng.standard_normal(s).astype("f4") for s in ((n, i, h, w), (o, i, 3, 3), (o,)))
    graph = conv_graph(n, i, o, h, w, pads, k, bias)
    want = exact(x, k, bias, pads)
    fast, strict = (compile(graph, cache=False, target=target, strict=s) for s in (False, True))
    labels = " ".join(c.label for c in fast.instances()[0].plan.calls)
    assert "winograd" in labels
    assert "winograd" not in " ".join(c.label for c in strict.instances()[0].plan.calls)
    assert np.abs(fast(x) - want).max() <= STATED * np.abs(want).max()
    assert np.abs(strict(x) - want).max() <= 8 * np.sqrt(9 * i) * np.finfo("f4").eps * np.abs(want).max()

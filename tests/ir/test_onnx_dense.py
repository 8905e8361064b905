"""Importers of convolutions, pools and recurrent layers against ONNX Runtime, over random geometries."""
from __future__ import annotations

import numpy as np
import pytest
from test_onnx_math import Case, imported, runtime

SEEDS = range(12)


class Draw:
    """Random geometry of a windowed operator over `r` spatial dimensions."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.r = self.ints(1, 3)[0]
        self.groups = self.ints(1, 3)[0]
        self.kernel, self.strides, self.dilations = self.ints(1, 3, self.r), self.ints(1, 3, self.r), self.ints(1, 2, self.r)
        self.spatial, self.pads = self.ints(5, 9, self.r), self.ints(0, 2, 2 * self.r)

    def ints(self, low: int, high: int, count: int = 1) -> list[int]:
        return [int(v) for v in self.rng.integers(low, high + 1, count)]

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)


def assert_agrees(case: Case) -> None:
    for got, want in zip(imported(case), runtime(case), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_convolutions(seed: int) -> None:
    d = Draw(seed)
    ins, outs = d.groups * d.ints(1, 3)[0], d.groups * d.ints(1, 3)[0]
    x, bias = d.floats(2, ins, *d.spatial), d.floats(outs) if seed % 2 else None
    attrs: dict[str, object] = {"strides": d.strides, "dilations": d.dilations, "group": d.groups, "pads": d.pads}
    assert_agrees(Case("Conv", 13, (x, d.floats(outs, ins // d.groups, *d.kernel), bias), attrs))
    extra = [min(e, s - 1) for e, s in zip(d.ints(0, 2, d.r), d.strides, strict=True)]  # ONNX Runtime takes no more
    assert_agrees(Case("ConvTranspose", 13, (x, d.floats(ins, outs // d.groups, *d.kernel), bias), attrs | {"output_padding": extra}))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_pads(auto_pad: str) -> None:
    d = Draw(1)
    x, w = d.floats(1, 2, 7, 8), d.floats(2, 3, 3, 2)
    assert_agrees(Case("ConvTranspose", 13, (x, w), {"strides": [2, 3], "auto_pad": auto_pad}))
    assert_agrees(Case("Conv", 13, (x, d.floats(3, 2, 3, 2)), {"strides": [2, 3], "auto_pad": auto_pad}))
    assert_agrees(Case("MaxPool", 13, (x,), {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": auto_pad}))


@pytest.mark.parametrize("seed", SEEDS)
def test_pools(seed: int) -> None:
    d = Draw(seed)
    kernel = [max(k, 2) for k in d.kernel]
    pads = [min(p, k // 2) for p, k in zip(d.pads, kernel * 2, strict=True)]
    attrs: dict[str, object] = {"kernel_shape": kernel, "strides": d.strides, "pads": pads, "ceil_mode": seed % 2}
    x = d.floats(2, 3, *d.spatial)
    assert_agrees(Case("MaxPool", 12, (x,), attrs | {"dilations": d.dilations, "storage_order": seed // 2 % 2 if d.r > 1 else 0}, 2))
    assert_agrees(Case("AveragePool", 19, (x,), attrs | {"dilations": d.dilations, "count_include_pad": seed // 2 % 2}))
    assert_agrees(Case("LpPool", 18, (x,), attrs | {"p": 1 + seed % 3, "ceil_mode": 0}))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(op: str, gates: int, seed: int) -> None:
    d = Draw(seed)
    steps, batch, size, hidden = d.ints(1, 4, 4)
    direction = ("forward", "reverse", "bidirectional")[seed % 3]
    n = 2 if direction == "bidirectional" else 1
    lengths = np.minimum(np.arange(1, batch + 1, dtype=np.int32), steps) if seed % 2 else None
    if lengths is not None:
        lengths[-1] = steps
    ins = [d.floats(steps, batch, size), d.floats(n, gates * hidden, size), d.floats(n, gates * hidden, hidden),
           d.floats(n, 2 * gates * hidden), lengths, d.floats(n, batch, hidden)]
    attrs: dict[str, object] = {"hidden_size": hidden, "direction": direction}
    if op == "LSTM":
        ins += [d.floats(n, batch, hidden), d.floats(n, 3 * hidden) if seed % 4 < 2 else None]
    if op == "GRU":
        attrs["linear_before_reset"] = seed // 2 % 2
    if seed % 4 == 3:
        attrs["clip"] = 0.5
    assert_agrees(Case(op, 14, ins, attrs, 3 if op == "LSTM" else 2))

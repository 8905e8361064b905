"""Dilated convolutions by Winograd: on every d-th pixel, for all sizes, paddings and dilations, and only where it pays."""
from __future__ import annotations

import numpy as np
import pytest

from tests.compiler.test_winograd import assert_same, labels
from tests.compiler.test_winograd import run as call
from tilewright.backends.target import Target
from tilewright.compiler.compile import compile
from tilewright.compiler.passes.dilation import phases
from tilewright.compiler.passes.winograd_choice import Layer, best_form
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.types import F32, TensorType

Pads = tuple[int, int, int, int]
ERROR = 2e-5  # of the largest result: what docs/accuracy.md states for so few channels, and more


def graph(shape: tuple[int, ...], w: np.ndarray, bias: np.ndarray, pads: Pads, dilations: tuple[int, int], residual: bool) -> Graph:
    """relu(conv(x) + bias), with `residual` relu(conv(x) + bias + r)."""
    b = GraphBuilder("conv")
    y = b.op("conv", b.input("x", TensorType(F32, shape)), b.weight("w", w), b.weight("bias", bias), strides=(1, 1), pads=pads,
             dilations=dilations)
    return b.graph([b.op("relu", b.op("add", y, b.input("r", y.type)) if residual else y)])


def exact(x: np.ndarray, w: np.ndarray, bias: np.ndarray, pads: Pads, dilations: tuple[int, int]) -> np.ndarray:
    """In f64, without the activation."""
    d = np.pad(x.astype("f8"), [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    windows = np.lib.stride_tricks.sliding_window_view(d, [2 * k + 1 for k in dilations], (2, 3))[..., ::dilations[0], ::dilations[1]]
    with np.errstate(invalid="ignore"):
        return np.einsum("nihwrs,oirs->nohw", windows, w.astype("f8"), optimize=True) + bias[None, :, None, None]


def data(n: int, i: int, o: int, h: int, w: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, weights, bias)."""
    rng = np.random.default_rng(7)
    weights = (rng.standard_normal((o, i, 3, 3)) / np.sqrt(9 * i)).astype("f4")
    return rng.standard_normal((n, i, h, w)).astype("f4"), weights, rng.standard_normal(o).astype("f4")


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("n", "i", "o", "h", "w", "pads", "dilations"), [
    (1, 64, 64, 32, 32, (2, 2, 2, 2), (2, 2)), (1, 128, 96, 32, 32, (4, 4, 4, 4), (4, 4)), (2, 64, 48, 33, 29, (2, 2, 2, 2), (2, 2)),
    (1, 64, 64, 31, 37, (3, 1, 0, 5), (2, 3)), (1, 64, 64, 40, 40, (0, 0, 0, 0), (2, 2)), (1, 64, 64, 40, 41, (2, 1, 2, 1), (2, 1)),
    (1, 64, 64, 40, 41, (1, 7, 1, 9), (1, 3)), (1, 70, 50, 41, 33, (1, 3, 2, 2), (2, 2))])
def test_every_size_padding_and_dilation(n: int, i: int, o: int, h: int, w: int, pads: Pads, dilations: tuple[int, int],
                                         residual: bool) -> None:
    x, weights, bias = data(n, i, o, h, w)
    want = exact(x, weights, bias, pads, dilations)
    r = np.random.default_rng(8).standard_normal(want.shape).astype("f4")
    exe = compile(graph(x.shape, weights, bias, pads, dilations, residual))
    assert "winograd" in labels(exe)
    assert_same(call(exe, x, r) if residual else call(exe, x), np.maximum(want + r if residual else want, 0), ERROR)


def test_threads_compute_the_same_bits() -> None:
    x, weights, bias = data(1, 64, 64, 37, 37)
    g = graph(x.shape, weights, bias, (2, 2, 2, 2), (2, 2), False)
    one, *others = (call(compile(g, threads=t), x) for t in (1, 2, 3))
    for y in others:
        np.testing.assert_array_equal(y.view("u4"), one.view("u4"))


def test_strict_keeps_to_direct_sums() -> None:
    x, weights, bias = data(1, 64, 64, 32, 32)
    exe = compile(graph(x.shape, weights, bias, (2, 2, 2, 2), (2, 2), False), strict=True)
    assert "winograd" not in labels(exe)
    assert_same(call(exe, x), np.maximum(exact(x, weights, bias, (2, 2, 2, 2), (2, 2)), 0), ERROR)


def test_what_is_not_finite_stays_where_it_belongs() -> None:
    x, weights, bias = data(1, 64, 64, 32, 32)
    x[0, 3, 5, 6], x[0, 9, 20, 31], x[0, 1, 31, 0] = np.inf, -np.inf, np.nan
    exe = compile(graph(x.shape, weights, bias, (2, 2, 2, 2), (2, 2), False))
    assert "winograd" in labels(exe)
    want = exact(x, weights, bias, (2, 2, 2, 2), (2, 2))
    assert_same(call(exe, x), np.where(np.isnan(want), want, np.maximum(want, 0)), ERROR)


def test_few_channels_are_not_worth_moving() -> None:
    """What moving the pixels costs grows with the channels, what it saves with their square."""
    target = Target.parse("x86-64-v4")
    for channels, wanted in ((16, False), (256, True)):
        p = phases((32, 32), (32, 32), (2, 2), (2, 2, 2, 2))
        form = best_form(p.layer(1, channels, channels), target, 1, Layer(1, channels, channels, 32, 32), p.cycles(1, 2 * channels))
        assert (form is not None) == wanted


@pytest.mark.parametrize(("size", "result", "dilation", "pads", "before", "skipped", "outputs"), [
    ((32, 32), (32, 32), (2, 2), (2, 2, 2, 2), (1, 1), (0, 0), (16, 16)),
    ((32, 32), (28, 28), (2, 2), (0, 0, 0, 0), (0, 0), (0, 0), (14, 14)),
    ((33, 31), (33, 31), (4, 2), (4, 2, 4, 2), (1, 1), (0, 0), (9, 16)), ((10, 10), (9, 12), (2, 2), (1, 3, 2, 3), (1, 2), (1, 1), (5, 7)),
    ((8, 8), (8, 8), (1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (8, 8))])
def test_how_images_are_taken_apart(size: tuple[int, int], result: tuple[int, int], dilation: tuple[int, int], pads: Pads,
                                    before: tuple[int, int], skipped: tuple[int, int], outputs: tuple[int, int]) -> None:
    p = phases(size, result, dilation, pads)
    assert (p.before, p.skipped, p.outputs, p.count) == (before, skipped, outputs, dilation[0] * dilation[1])

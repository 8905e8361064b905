"""Winograd convolutions: right at every edge, within the error that docs/accuracy.md states, infinities and NaN where direct
sums have them, and only where strict is off."""
from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.backends.test_export import GCC, need
from tilewright.backends.executable import Executable
from tilewright.backends.saved import load
from tilewright.compiler.compile import compile
from tilewright.compiler.inspect import inspect
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.types import F32, TensorType

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"
STATED = {int(i): (float(fast), float(direct)) for i, fast, direct in
          re.findall(r"^\| (\d+) \| (\d\.?\d*e-\d) \| (\d\.?\d*e-\d) \|$", PAGE.read_text(), re.M)}
ONES = (1, 1, 1, 1)


def conv_graph(n: int, i: int, o: int, h: int, w: int, pads: tuple[int, int, int, int], weights: np.ndarray, bias: np.ndarray,
               residual: bool = False) -> Graph:
    """relu(conv(x) + bias), or relu(conv(x) + bias + r) with a second input r."""
    b = GraphBuilder("conv")
    x = b.input("x", TensorType(F32, (n, i, h, w)))
    y = b.op("conv", x, b.weight("w", weights), b.weight("bias", bias), strides=(1, 1), pads=pads, dilations=(1, 1))
    if residual:
        y = b.op("add", y, b.input("r", y.type))
    return b.graph([b.op("relu", y)])


def exact(x: np.ndarray, w: np.ndarray, bias: np.ndarray, pads: tuple[int, int, int, int], r: np.ndarray | None = None) -> np.ndarray:
    """The convolution in f64, what f32 cannot hold being infinite."""
    d = np.pad(x.astype("f8"), [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    windows = np.lib.stride_tricks.sliding_window_view(d, (3, 3), (2, 3))
    with np.errstate(all="ignore"):
        y = np.einsum("nihwrs,oirs->nohw", windows, w.astype("f8"), optimize=True) + bias[None, :, None, None]
        y = np.maximum(y if r is None else y + r, 0)
        return np.where(y > np.finfo("f4").max, np.inf, y)


def run(exe: Executable, *xs: np.ndarray) -> np.ndarray:
    """The only result of a call."""
    y = exe(*xs)
    assert isinstance(y, np.ndarray)
    return y


def labels(exe: Executable) -> str:
    return " ".join(c.label for c in exe.instances()[0].plan.calls)


def assert_same(got: np.ndarray, want: np.ndarray, error: float, size: float | None = None) -> None:
    """Infinities and NaN in the same places, all else within `error` times the largest finite value (or `size`)."""
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[~finite], want[~finite].astype("f4"))
    size = float(np.abs(want[finite]).max(initial=0)) if size is None else size
    assert np.abs(got[finite].astype("f8") - want[finite]).max(initial=0) <= error * size


# -- accuracy ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("i", "size"), [(64, 28), (128, 28), (256, 14), (512, 14)])
@pytest.mark.parametrize("positive", [False, True])
def test_errors_are_what_the_page_states(i: int, size: int, positive: bool) -> None:
    rng = np.random.default_rng(i)
    x, k = (rng.standard_normal(s).astype("f4") for s in ((1, i, size, size), (64, i, 3, 3)))
    x, bias = np.maximum(x, 0) if positive else x, np.zeros(64, "f4")
    graph, want = conv_graph(1, i, 64, size, size, ONES, k, bias), exact(x, k, bias, ONES)
    for strict, stated in zip((False, True), STATED[i], strict=True):
        exe = compile(graph, strict=strict)
        assert ("winograd" in labels(exe)) != strict
        assert_same(run(exe, x), want, stated)


@pytest.mark.parametrize(("n", "i", "o", "h", "w", "pads"), [
    (1, 64, 40, 9, 13, (1, 1, 1, 1)), (2, 35, 33, 16, 15, (1, 1, 1, 1)), (1, 64, 64, 14, 18, (0, 0, 0, 0)),
    (1, 33, 32, 17, 14, (2, 0, 1, 1)), (3, 48, 32, 7, 8, (0, 1, 2, 0)), (1, 256, 64, 14, 14, (1, 1, 1, 1))])
@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_every_edge_is_right(n: int, i: int, o: int, h: int, w: int, pads: tuple[int, int, int, int], target: str) -> None:
    rng = np.random.default_rng(i * h + o)
    x, k, bias = (rng.standard_normal(s).astype("f4") for s in ((n, i, h, w), (o, i, 3, 3), (o,)))
    graph = conv_graph(n, i, o, h, w, pads, k, bias)
    want = exact(x, k, bias, pads)
    fast, strict = (compile(graph, cache=False, target=target, strict=s) for s in (False, True))
    assert "winograd" in labels(fast) and "winograd" not in labels(strict)
    assert_same(run(fast, x), want, max(fast for fast, _ in STATED.values()))
    assert_same(run(strict, x), want, 8 * np.sqrt(9 * i) * np.finfo("f4").eps)


def test_strict_reaches_the_compiler() -> None:
    k = np.ones((32, 32, 3, 3), "f4")
    graph = conv_graph(1, 32, 32, 16, 16, ONES, k, k[:, 0, 0, 0])
    assert "winograd" in inspect(graph, "fused") and "winograd" not in inspect(graph, "fused", strict=True)
    assert "winograd" in labels(compile(graph)) and "winograd" not in labels(compile(graph, strict=True))


# -- infinities and NaN ------------------------------------------------------------------------------------------------
LAYER = (2, 35, 33, 18, 15)  # two images, channels past the last whole block both ways, ragged tiles both ways


def special(values: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, w and bias of LAYER with rare values at corners, on both sides of tiles' edges and in ragged tiles."""
    n, i, o, h, w = LAYER
    x, k, bias = (rng.standard_normal(s).astype("f4") for s in ((n, i, h, w), (o, i, 3, 3), (o,)))
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    k[:, 3, 1, 1] = 0  # 0 * inf is NaN, as a direct sum says
    match values:
        case "inf":
            x[0, 0, 0, 0], x[0, 34, h - 1, w - 1], x[1, 7, 3, 4], x[1, 8, 8, 3] = inf, -inf, inf, -inf
        case "nan":
            x[0, 20, 0, w - 1], x[1, 34, 16, 12], x[1, 5, 4, 4] = nan, nan, nan
        case "mixed":
            x[0, 3, 5, 5], x[0, 4, 5, 7], x[1, 3, 0, 0], x[1, 9, 17, 0] = inf, -inf, nan, inf
        case "weights":
            k[0, 0, 0, 0], k[7, 34, 2, 2], k[32, 1, 1, 0] = inf, nan, -inf
        case "everywhere":
            x[:] = nan
    return x, k, bias


@pytest.mark.parametrize("values", ["inf", "nan", "mixed", "weights", "everywhere"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("target", ["native", "x86-64-v3", "x86-64-v2"])
def test_infinities_and_nan_reach_what_direct_sums_say(values: str, residual: bool, target: str) -> None:
    rng = np.random.default_rng(1)
    x, k, bias = special(values, rng)
    n, i, o, h, w = LAYER
    r = rng.standard_normal((n, o, h, w)).astype("f4")
    r[0, 1, 2, 3], r[1, 30, 17, 14] = np.inf, np.nan
    args = (x, r) if residual else (x,)
    graph = conv_graph(n, i, o, h, w, ONES, k, bias, residual)
    want = exact(x, k, bias, ONES, r if residual else None)
    fast, strict = (compile(graph, target=target, strict=s) for s in (False, True))
    assert "winograd" in labels(fast)
    assert_same(run(fast, *args), want, 3e-5)
    assert_same(run(strict, *args), want, 1e-5)


def test_large_values_overflow_only_where_their_sums_do() -> None:
    """Images and weights near the ends of f32's range: the transforms overflow, most sums do not."""
    n, i, o, h, w = LAYER
    rng = np.random.default_rng(2)
    x, k, bias = special("none", rng)
    for sx, sw in ((1e38, 2e-2), (2e37, 0.5), (1e-2, 3e37), (3e38, 1e-3)):
        xs, ks = np.clip(x, -1, 1) * np.float32(sx), np.clip(k, -1, 1) * np.float32(sw)
        exe = compile(conv_graph(n, i, o, h, w, ONES, ks, bias))
        got, want = run(exe, xs), exact(xs, ks, bias, ONES)
        close = np.abs(want - np.finfo("f4").max) < 1e-4 * np.finfo("f4").max  # rounding decides these
        assert_same(np.where(close, 0, got), np.where(close, 0, want), 3e-5)


def test_one_huge_value_costs_only_its_tiles() -> None:
    """3e38 at one place: finite where the sums are, and tiles that do not read it keep every bit."""
    n, i, o, h, w = LAYER
    x, k, bias = special("none", np.random.default_rng(3))
    exe = compile(conv_graph(n, i, o, h, w, ONES, k, bias))
    before = run(exe, x)
    x[0, 11, 6, 6] = 3e38
    got, want = run(exe, x), exact(x, k, bias, ONES)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    reads = np.zeros((h, w), bool)
    reads[4:8, 4:8] = True  # the tile of the place itself; its neighbours begin further than one row away
    far = np.ones((n, h, w), bool)
    far[0] = ~reads
    far[0, 3:9, 3:9] = False
    np.testing.assert_array_equal(got.transpose(0, 2, 3, 1)[far], before.transpose(0, 2, 3, 1)[far])


@pytest.mark.parametrize("values", ["none", "mixed"])
def test_every_number_of_threads_gives_the_same_bits(values: str) -> None:
    n, i, o, h, w = LAYER
    x, k, bias = special(values, np.random.default_rng(4))
    results = [run(compile(conv_graph(n, i, o, h, w, ONES, k, bias), threads=t), x) for t in (1, 2, 3)]
    assert len({r.tobytes() for r in results}) == 1


def test_exchanged_weights_rescue_too() -> None:
    """The plain sums read the weights of the moment."""
    n, i, o, h, w = LAYER
    x, k, bias = special("mixed", np.random.default_rng(5))
    exe = compile(conv_graph(n, i, o, h, w, ONES, np.ones_like(k), bias))
    exe.update_weights({"w": k})
    assert_same(run(exe, x), exact(x, k, bias, ONES), 3e-5)


# -- away from this process --------------------------------------------------------------------------------------------
def test_saved_and_exported_code_rescues_too(tmp_path: Path) -> None:
    n, i, o, h, w = LAYER
    x, k, bias = special("mixed", np.random.default_rng(6))
    exe = compile(conv_graph(n, i, o, h, w, ONES, k, bias), threads=1)
    want = run(exe, x)
    exe.save(tmp_path / "m.twx")
    assert run(load(tmp_path / "m.twx"), x).tobytes() == want.tobytes()
    exe.export(tmp_path / "net.so")
    lib = ctypes.CDLL(str(tmp_path / "net.so"))
    got = np.zeros_like(want)
    workspace = ctypes.create_string_buffer(lib.net_workspace_bytes() + 1)
    assert lib.net_run(x.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p), workspace) == 0
    assert got.tobytes() == want.tobytes()


MAIN = r"""
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
static float x[%d], y[%d];
int main(void) {
  if (fread(x, sizeof x, 1, stdin) != 1 || net_run(x, y, malloc(net_workspace_bytes()))) return 1;
  return fwrite(y, sizeof y, 1, stdout) != 1;
}
"""


def test_arm_rescues_too(tmp_path: Path) -> None:
    n, i, o, h, w = LAYER
    x, k, bias = special("mixed", np.random.default_rng(7))
    want = exact(x, k, bias, ONES)
    compile(conv_graph(n, i, o, h, w, ONES, k, bias), target="aarch64").export(tmp_path / "net.o", header=True)
    (tmp_path / "main.c").write_text(MAIN % (x.size, want.size))
    subprocess.run([need(GCC["aarch64"]), "-static", "-Wall", "main.c", "net.o", "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run([need("qemu-aarch64"), "./main"], cwd=tmp_path, check=True, input=x.tobytes(), capture_output=True)
    assert_same(np.frombuffer(done.stdout, "f4").reshape(want.shape), want, 3e-5)

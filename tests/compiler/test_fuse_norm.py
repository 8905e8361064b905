"""Layer norm in the kernel of the product before it: where it is joined, and that results are those of two kernels."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.compiler.programs import product_norm, random_inputs, run_native
from tests.ir.op_graphs import random_schedules
from tests.machines import need, run_models
from tests.precision import bounds
from tilewright.autotune.site import Way
from tilewright.backends.llvm.emit import parallel_extent, workspace_bytes
from tilewright.backends.target import Target, runs_here
from tilewright.compiler.build import lower_graph, make_options
from tilewright.compiler.fuse_norm import pays
from tilewright.compiler.schedule.default import default_schedule
from tilewright.compiler.schedule.legality import check_legal
from tilewright.compiler.schedule.product_rows import find_product_rows, schedule_product_rows
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import run_program
from tilewright.ir.types import F32, TensorType

RNG = np.random.default_rng(3)
JOINED = Way("norm", "joined")  # by themselves, only larger ones are


def block(rows: tuple[int, ...] = (2, 67), k: int = 24, n: int = 40, *, residual: bool = True, stream: bool = True, center: int = 1,
          after: str = "") -> tuple[Graph, dict[str, np.ndarray]]:
    """x w + b (+ r), normalised by rows. stream: what is normalised is a result as well."""
    b = GraphBuilder("block")
    arrays = {"x": RNG.standard_normal((*rows, k)).astype(np.float32), "r": RNG.standard_normal((*rows, n)).astype(np.float32)}
    x, r = (b.input(name, TensorType(F32, a.shape)) for name, a in arrays.items())
    w, bias, scale, shift = (b.weight(name, RNG.standard_normal(s).astype(np.float32))
                             for name, s in (("w", (k, n)), ("b", (n,)), ("g", (n,)), ("h", (n,))))
    t = b.op("add", b.op("matmul", x, w), bias)
    t = b.op("add", t, r) if residual else t
    y = b.op("layer_norm", t, scale, shift, axes=(len(rows),), center=center)
    y = b.op(after, y) if after else y
    return b.graph((y, t) if stream else (y,)), arrays


def labels(g: Graph, target: str = "native", way: str = "joined") -> list[str]:
    low = lower_graph(g, make_options(target, 1, "f32", Way("norm", way) if way else None, True))
    return [k.label for k in low.kernels]


def check(g: Graph, arrays: dict[str, np.ndarray], threads: int = 1) -> list[np.ndarray]:
    found = tw.compile(g, threads=threads, cache=False, schedules=JOINED).run(arrays)
    for name, b in bounds(g, arrays).items():
        b.check(np.asarray(found[name]), name)
    return [np.asarray(a) for a in found.values()]


# -- where ---------------------------------------------------------------------------------------------------------------
def test_joined_and_apart() -> None:
    g, _ = block()
    assert labels(g) == ["matmul+add+add+layer_norm"]
    assert labels(g, way="apart") == ["matmul+add+add", "layer_norm"]
    assert labels(block(rows=(3, 5))[0]) == ["matmul+add+add", "layer_norm"]
    for rows, kernels in ((200, 2), (20000, 1)):
        assert len(labels(block((rows,))[0], "x86-64-v3", "")) == kernels


def test_rows_steps_and_caches_decide() -> None:
    small, large = (replace(Target.parse("x86-64-v3"), l2=n) for n in (256 << 10, 2 << 20))
    assert pays(784, 768, 192, large) and not pays(784, 768, 192, small)
    assert pays(1024, 64, 64, small) and not pays(1024, 64, 64, large)
    assert not pays(128, 384, 384, large) and not pays(196, 384, 384, large)


def test_norms_of_other_axes_and_of_products_of_two_inputs_stay() -> None:
    b = GraphBuilder("g")
    x, y = (b.input(n, TensorType(F32, s)) for n, s in (("x", (2, 200, 16)), ("y", (16, 32))))
    w = b.weight("w", RNG.standard_normal((16, 32)).astype(np.float32))
    g = b.graph((b.op("layer_norm", b.op("matmul", x, w), axes=(1, 2)), b.op("layer_norm", b.op("matmul", x, y), axes=(2,))))
    assert not any("matmul" in n and "layer_norm" in n for n in labels(g))


def test_weights_that_are_read_again_after_the_norm() -> None:
    """Packed for the product they would not serve the rest."""
    b = GraphBuilder("g")
    arrays = {"x": RNG.standard_normal((160, 160)).astype(np.float32)}
    x, w = b.input("x", TensorType(F32, (160, 160))), b.weight("w", RNG.standard_normal((160, 160)).astype(np.float32))
    g = b.graph((b.op("mul", b.op("layer_norm", b.op("matmul", x, w), axes=(1,)), w),))
    assert len(labels(g)) == 2
    check(g, arrays)


def test_a_norm_that_comes_before_the_product_keeps_its_kernel_apart() -> None:
    """The order of the nodes in a file: in a kernel whose first rows are another norm's the product would have no microkernel."""
    b = GraphBuilder("g")
    arrays = {"x": RNG.standard_normal((200, 24)).astype(np.float32), "r": RNG.standard_normal((200, 40)).astype(np.float32)}
    x, r = (b.input(n, TensorType(F32, a.shape)) for n, a in arrays.items())
    first = b.op("layer_norm", r, axes=(1,))
    t = b.op("matmul", x, b.weight("w", RNG.standard_normal((24, 40)).astype(np.float32)))
    g = b.graph((b.op("add", b.op("layer_norm", t, axes=(1,)), first),))
    assert labels(g)[0] == "matmul"
    check(g, arrays)


# -- results -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 31, 40, 97])
@pytest.mark.parametrize("stream", [True, False])
def test_columns(n: int, stream: bool) -> None:
    g, arrays = block((1, 131), 17, n, stream=stream)
    assert len(labels(g)) == 1
    check(g, arrays)


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize("after", ["", "relu", "gelu"])
def test_root_mean_squares_and_maps_after_it(center: int, after: str) -> None:
    g, arrays = block((4, 5, 9), center=center, after=after, stream=not after)
    assert labels(g)[0].startswith("matmul+add+add+layer_norm")
    check(g, arrays)


@pytest.mark.parametrize("stream", [True, False])
def test_threads_give_the_same_bits(stream: bool) -> None:
    g, arrays = block((2, 301), 40, 56, stream=stream)
    one = check(g, arrays, 1)
    for threads in (2, 3, 5):
        for a, b in zip(one, check(g, arrays, threads), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(6))
def test_random_schedules(seed: int) -> None:
    g, arrays = block(stream=seed % 2 == 0, residual=seed % 3 > 0)
    with random_schedules(seed):
        check(g, arrays, 2)


@pytest.mark.parametrize("level", ["native", "x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("shape", [(1, 9, 20), (7, 3, 2), (61, 19, 45), (300, 70, 33), (257, 64, 130)])
@pytest.mark.parametrize("both", [True, False])
def test_programs(level: str, shape: tuple[int, int, int], both: bool) -> None:
    target = Target.parse(level)
    p = product_norm(*shape, both)
    s = default_schedule(p, target, frozenset({"w"}))
    check_legal(s)
    assert s.stages[0].tensorize is not None
    if shape[0] > 200:
        assert parallel_extent(s) > 4 and workspace_bytes(s) < 4 * shape[0] * shape[2]
    if runs_here(target):
        inputs = random_inputs(p)
        got = run_native(s, target, inputs)
        for name, want in run_program(p, inputs).items():
            np.testing.assert_allclose(got[name], want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("m_block", [0, 1, 3, 1000])
@pytest.mark.parametrize("order", ["n", "m"])
def test_blocks(m_block: int, order: str) -> None:
    target, w = Target.host(), frozenset({"w"})
    p = product_norm(150, 33, 70, False)
    found = find_product_rows(p, target, w)
    assert found is not None
    s = schedule_product_rows(p, target, w, replace(found.choice, m_block=m_block, order=order, n_block=2, vectors=1, columns=7))
    assert s is not None
    check_legal(s)
    inputs = random_inputs(p)
    for name, want in run_program(p, inputs).items():
        np.testing.assert_allclose(run_native(s, target, inputs)[name], want, rtol=2e-5, atol=2e-5)


def test_exported_for_aarch64(tmp_path: Path) -> None:
    need("qemu-aarch64")
    target = Target.parse("aarch64")
    models = []
    for k, stream in enumerate((True, False)):
        g, arrays = block((2, 85), 21, 35, stream=stream)
        assert len(labels(g, "aarch64")) == 1
        exe = tw.compile(g, target=target, threads=1, cache=False, schedules=JOINED)
        models.append((g, arrays, (f"block{k}", exe, list(arrays.values()))))
    for (g, arrays, _), found in zip(models, run_models([m for _, _, m in models], target, tmp_path), strict=True):
        for (name, b), got in zip(bounds(g, arrays).items(), found, strict=True):
            b.check(got, name)

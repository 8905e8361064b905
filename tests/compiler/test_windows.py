"""Depthwise convolutions in strips with what makes their image: right at every edge, the same bits for every number of threads,
and only where the image is large and nothing else reads it."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.compiler.programs import program_inputs, random_inputs, run_native
from tests.compiler.test_random_schedules import check, targets
from tests.precision import bounds
from tilewright.autotune.site import Way, runnable, site_tasks
from tilewright.backends.target import Target
from tilewright.compiler import fuse_windows
from tilewright.compiler.build import lower_graph, make_options
from tilewright.compiler.compile import compile
from tilewright.compiler.schedule import windows
from tilewright.compiler.schedule.default import default_schedule
from tilewright.compiler.schedule.random import random_schedule
from tilewright.compiler.schedule.windows import Image, Strips, Window, choose_strips, schedule_windows
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.expr import Buffer, Expr, call
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Program, compute, reduce
from tilewright.ir.types import F32, TensorType

#        n  in   c   h   w  kernel stride | depthwise: kernel stride dilation pads (top, left, bottom, right)
CASES = [(1, 16, 48, 15, 17, (1, 1), 1, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
         (2, 5, 33, 14, 11, (1, 1), 1, (3, 3), (2, 2), (1, 1), (0, 1, 1, 0)),
         (1, 7, 20, 13, 9, (1, 1), 1, (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
         (1, 12, 16, 16, 31, (1, 1), 1, (5, 3), (2, 1), (1, 2), (3, 0, 1, 2)),
         (3, 3, 32, 19, 18, (3, 3), 2, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
         (1, 9, 64, 12, 12, (1, 1), 1, (3, 3), (1, 1), (2, 3), (2, 3, 2, 3)),
         (1, 8, 16, 10, 10, (1, 1), 1, (3, 3), (1, 1), (1, 1), (0, 0, 0, 0)),
         (1, 6, 17, 6, 5, (1, 1), 1, (7, 7), (1, 1), (1, 1), (3, 3, 3, 3)),
         (1, 24, 96, 9, 8, (1, 1), 1, (3, 3), (3, 3), (1, 1), (1, 1, 0, 0))]
ACTS = ("relu", "swish", "hard_swish")


def network(n: int, i: int, c: int, h: int, w: int, kernel: tuple[int, int], stride: int, taps: tuple[int, int], strides: tuple[int, int],
            dilations: tuple[int, int], pads: tuple[int, int, int, int], act: str = "relu") -> Graph:
    """A convolution, a depthwise one and a 1x1, with activations between them."""
    rng = np.random.default_rng(c * h + w)
    b = GraphBuilder("g")

    def conv(x: Value, out: int, k: tuple[int, int], groups: int = 1, **attrs: object) -> Value:
        filters = rng.standard_normal((out, x.type.shape[1] // groups, *k)).astype("f4") / np.sqrt(k[0] * k[1] * x.type.shape[1] / groups)
        bias = rng.standard_normal(out).astype("f4")
        return b.op("conv", x, b.weight("w", filters.astype("f4")), b.weight("b", bias), groups=groups,
                    **{"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), **attrs})
    x = b.input("x", TensorType(F32, (n, i, h, w)))
    wide = b.op(act, conv(x, c, kernel, strides=(stride, stride), pads=(kernel[0] // 2,) * 4))
    deep = b.op(act, conv(wide, c, taps, c, strides=strides, dilations=dilations, pads=pads))
    return b.graph([conv(deep, 10, (1, 1))])


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Joins whatever can be joined."""
    monkeypatch.setattr(fuse_windows, "LARGE", 0.0)
    monkeypatch.setattr(fuse_windows, "_pays", lambda *_: True)
    return monkeypatch


def joined(g: Graph, target: Target, threads: int = 1) -> bool:
    low = lower_graph(g, make_options(target, threads, "f32", None, False))
    return any(p.kind == "strips" for p in low.partition.groups)


def run(g: Graph, x: np.ndarray, target: str = "native", threads: int = 1) -> np.ndarray:
    exe = compile(g, cache=False, target=target, threads=threads)
    assert any("conv_direct" in c.label and "conv_depthwise" in c.label for c in exe.instances()[0].plan.calls)
    y = exe(x)
    assert isinstance(y, np.ndarray)
    return y


@pytest.mark.parametrize("case", range(len(CASES)))
def test_right_at_every_edge(case: int, always: pytest.MonkeyPatch) -> None:
    g = network(*CASES[case], act=ACTS[case % len(ACTS)])
    x = np.random.default_rng(1).standard_normal(g.inputs[0].type.shape).astype("f4")
    (bound,) = bounds(g, {"x": x}).values()
    bound.check(run(g, x))
    for cut in (Strips(3, 1), Strips(100, 1) if case % 2 else Strips(1, 1)):
        always.setattr(windows, "choose_strips", lambda *_, cut=cut: (cut, 0.0))
        bound.check(run(g, x), str(cut))


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
@pytest.mark.parametrize("case", [1, 3, 7])
def test_other_vector_widths(case: int, target: str, always: pytest.MonkeyPatch) -> None:
    g = network(*CASES[case])
    x = np.random.default_rng(2).standard_normal(g.inputs[0].type.shape).astype("f4")
    (bound,) = bounds(g, {"x": x}).values()
    bound.check(run(g, x, target))


@pytest.mark.parametrize("case", [1, 4])
def test_same_bits_for_every_number_of_threads(case: int, always: pytest.MonkeyPatch) -> None:
    always.setattr(windows, "choose_strips", lambda *_: (Strips(2, 1), 0.0))
    g = network(*CASES[case])
    x = np.random.default_rng(3).standard_normal(g.inputs[0].type.shape).astype("f4")
    one = run(g, x)
    for threads in (2, 3, 4):
        np.testing.assert_array_equal(run(g, x, threads=threads), one)


@pytest.mark.parametrize("kind", ["residual", "reflect", "filters"])
def test_what_strips_cannot_read_stays_apart(kind: str, always: pytest.MonkeyPatch) -> None:
    """An image that is read after the windows, too; borders that are no zeros; filters that nothing packs."""
    b, rng = GraphBuilder("g"), np.random.default_rng(5)
    arrays = {"x": rng.standard_normal((1, 8, 12, 12)).astype("f4"), "w": rng.standard_normal((32, 8, 1, 1)).astype("f4")}
    x = b.input("x", TensorType(F32, arrays["x"].shape))
    w = b.input("w", TensorType(F32, arrays["w"].shape)) if kind == "filters" else b.weight("w", arrays["w"])
    plain = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    wide = b.op("relu", b.op("conv", x, w, groups=1, **plain))
    image, size = wide, 1 if kind == "residual" else 3
    if kind == "reflect":
        image = b.op("pad", wide, before=(0, 0, 1, 1), after=(0, 0, 1, 1), mode="reflect")
    deep = b.op("conv", image, b.weight("f", rng.standard_normal((32, 1, size, size)).astype("f4")), groups=32, **plain)
    g = b.graph([b.op("add", deep, wide) if kind == "residual" else deep])
    given = {v.name: arrays[v.name] for v in g.inputs}
    assert not joined(g, Target.host())
    for name, bound in bounds(g, given).items():
        bound.check(np.asarray(compile(g, cache=False).run(given)[name]))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_what_is_joined_has_strips(case: int, always: pytest.MonkeyPatch) -> None:
    low = lower_graph(network(*CASES[case]), make_options("x86-64-v3", 1, "f32", None, False))
    found = [s for s in low.scheduled if s is not None and len(s.stages) > 1 and "conv_depthwise" in s.program.name]
    assert found and all(any(st.inside for st in s.stages) for s in found)


def test_infinities_and_nan_go_where_windows_reach_them(always: pytest.MonkeyPatch) -> None:
    g = network(*CASES[0])
    x = np.random.default_rng(4).standard_normal(g.inputs[0].type.shape).astype("f4")
    x[0, 3, 0, 0], x[0, 5, 14, 9] = np.nan, np.inf
    (bound,) = bounds(g, {"x": x}).values()
    bound.check(run(g, x))


LARGE = (1, 16, 96, 112, 112, (1, 1), 1, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1))


@pytest.mark.parametrize("threads", [1, 2])
def test_only_large_images(threads: int) -> None:
    t = replace(Target.parse("x86-64-v4"), l2=2 << 20)
    assert joined(network(*LARGE), t, threads) and joined(network(4, 16, 96, 56, 56, *LARGE[5:]), t, threads)
    assert not joined(network(1, 16, 96, 56, 56, *LARGE[5:]), t, threads)
    assert not joined(network(*LARGE), replace(t, l2=8 << 20), threads)


def test_not_where_products_take_longer_than_the_image_travels() -> None:
    t = replace(Target.parse("x86-64-v4"), l2=2 << 20)
    assert not joined(network(1, 128, *LARGE[2:]), t)
    assert not joined(network(*LARGE, act="swish"), t)


def test_not_what_something_else_reads() -> None:
    g, t = network(*LARGE), replace(Target.parse("x86-64-v4"), l2=2 << 20)
    wide = next(v for n in g.nodes if n.op == "relu" for v in n.outputs)
    assert joined(g, t) and not joined(g.replace(outputs=(*g.outputs, wide)), t)


@pytest.mark.parametrize("option", ["joined", "apart"])
def test_a_source_of_schedules_may_know_better(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_windows, "LARGE", 0.0)
    low = lower_graph(network(*CASES[0]), make_options("native", 1, "f32", Way("depthwise", option), True))
    assert any(g.kind == "strips" for g in low.partition.groups) == (option == "joined")


def test_the_part_compiles_alone_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_windows, "LARGE", 0.0)
    options = make_options("native", 1, "f32", None, False)
    task, = (t for t in site_tasks(lower_graph(network(*CASES[1]), options), options) if t.kind == "depthwise")
    inside = runnable(task.graph, 0)
    x = np.random.default_rng(5).standard_normal(inside.inputs[0].type.shape).astype("f4")
    (bound,) = bounds(inside, {inside.inputs[0].name: x}).values()
    for option, kernels in (("joined", 1), ("apart", 2)):
        exe = compile(inside, cache=False, threads=1, schedules=Way("depthwise", option))
        assert sum("conv_" in c.label for c in exe.instances()[0].plan.calls) == kernels
        y = exe(x)
        assert isinstance(y, np.ndarray)
        bound.check(y)


def test_estimates_prefer_high_strips_that_fit() -> None:
    image, t = Image(1, 6, 112, 112, 1, 64, 16), Target.parse("x86-64-v4")
    cut, cycles = choose_strips(image, Window(2, 1, 3, 1, 112), 56, t)
    rows = Window(2, 1, 3, 1, 112).rows(cut.rows)
    assert 6 % cut.blocks == 0 and rows * 114 * 64 * cut.blocks <= t.l2 // windows.SHARE
    assert image.cycles(6, 112, t) < cycles < 1.5 * image.cycles(6, 112, t)


def program() -> Program:
    """A 1x1 convolution and a 3x3 depthwise one of stride 2 with a border, on two blocks of four channels."""
    x, w, f = Buffer("x", F32, (1, 2, 9, 7, 4)), Buffer("w", F32, (8, 6)), Buffer("f", F32, (2, 3, 3, 4))

    def point(*at: Expr) -> Expr:
        n, b, h, v, lane = at
        return reduce("sum", (6,), lambda k: x[n, k // 4, h, v, k % 4] * w[b * 4 + lane, k])
    t = compute("t", F32, (1, 2, 9, 7, 4), lambda *at: call("max", point(*at), 0.0))

    def tap(r: Expr, s: Expr, *at: Expr) -> Expr:
        n, b, h, v, lane = at
        row, column = h * 2 + r - 1, v * 2 + s - 1
        inside = (row >= 0) & (row < 9) & (column >= 0) & (column < 7)
        return t.buffer.at((n, b, row, column, lane), inside, 0) * f[b, r, s, lane]
    y = compute("y", F32, (1, 2, 5, 4, 4), lambda *at: reduce("sum", (3, 3), lambda r, s: tap(r, s, *at)))
    return Program("windows", (x, w, f), (y.buffer,), (t, y))


def test_default_strips_and_random_schedules_of_the_program() -> None:
    p, packable = program(), frozenset({"w"})
    inputs = random_inputs(p)
    want = run_program(p, inputs)
    for target in targets():
        for cut in (None, Strips(1, 1), Strips(2, 1), Strips(3, 2)):
            s = schedule_windows(p, target, packable, cut)
            assert s is not None and (cut is not None or str(s) == str(default_schedule(p, target, packable)))
            assert set(program_inputs(s, inputs)) == {b.name for b in s.program.inputs}
            for k, got in run_native(s, target, inputs).items():
                check(p.name, got, want[k], str(s))
    for seed in range(8):
        s = random_schedule(p, seed, packable)
        for k, got in run_native(s, targets()[0], inputs).items():
            check(p.name, got, want[k], str(s))

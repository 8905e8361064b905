"""The arena: nothing that lives at the same time overlaps, and what dies is written over where that is safe."""
from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright.ir.ops  # noqa: F401
from tests.compiler.plan_interpreter import compile_plan
from tests.precision import bounds
from tilewright.compiler.compile import compile
from tilewright.compiler.kernel import Kernel, Ref
from tilewright.compiler.memory import ALIGN, PAGE, overwrites_safely, plan_arena
from tilewright.compiler.views import Storage
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.expr import Buffer
from tilewright.ir.program import Compute, Program, compute, reduce
from tilewright.ir.types import F32, TensorType


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=25),
       st.lists(st.integers(0, 3000), max_size=13))
def test_living_storages_do_not_overlap(spans: list[tuple[int, int, int]], workspaces: list[int]) -> None:
    storages = {f"s{k}": Storage(f"s{k}", F32, n, "arena") for k, (n, _, _) in enumerate(spans)}
    lives = {f"s{k}": (min(a, b), max(a, b)) for k, (_, a, b) in enumerate(spans)}
    kernels = [Kernel(None, None, tuple(Ref(s, 0) for s, (a, b) in lives.items() if t in (a, b)), (), "") for t in range(13)]
    plan = plan_arena(kernels, storages, workspaces)
    blocks = [(plan.offsets[s], storages[s].bytes, *lives[s]) for s in storages]
    blocks += [(at, workspaces[k], k, k) for k, at in plan.workspaces.items()]
    assert len(plan.workspaces) == sum(n > 0 for n in workspaces)
    for (o, n, a, b), (p, m, c, d) in itertools.combinations(blocks, 2):
        assert b < c or d < a or o + n <= p or p + m <= o
    assert all(o % ALIGN == 0 and o + n <= plan.bytes for o, n, _, _ in blocks)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 12), st.integers(0, 12), st.sampled_from([None, "a", "b"])),
                min_size=1, max_size=20))
def test_kept_borders_share_memory_with_their_like_alone(spans: list[tuple[int, int, int, str | None]]) -> None:
    sizes = {"a": 100, "b": 120}
    storages = {f"s{k}": Storage(f"s{k}", F32, sizes[g] if g else n, "arena") for k, (n, _, _, g) in enumerate(spans)}
    kept = {f"s{k}": g for k, (*_, g) in enumerate(spans) if g}
    lives = {f"s{k}": (min(a, b), max(a, b)) for k, (_, a, b, _) in enumerate(spans)}
    kernels = [Kernel(None, None, tuple(Ref(s, 0) for s, (a, b) in lives.items() if t in (a, b)), (), "") for t in range(13)]
    plan = plan_arena(kernels, storages, kept=kept)
    for s, t in itertools.combinations(storages, 2):
        (o, n), (p, m) = ((plan.offsets[x], storages[x].bytes) for x in (s, t))
        apart = o + n <= p or p + m <= o
        together = lives[s][1] >= lives[t][0] and lives[t][1] >= lives[s][0]
        if s in kept and t in kept and kept[s] == kept[t] and not together:
            assert apart or o == p
        else:
            assert apart or not (together or s in kept or t in kept)


def test_neighbours_do_not_alias_modulo_a_page() -> None:
    storages = {s: Storage(s, F32, PAGE // 4, "arena") for s in "ab"}
    plan = plan_arena([Kernel(None, None, (), (Ref("a", 0), Ref("b", 0)), "")], storages)
    assert abs(plan.offsets["a"] - plan.offsets["b"]) % PAGE == ALIGN


def test_a_chain_of_kernels_needs_two_buffers_and_maps_overwrite() -> None:
    b = GraphBuilder("chain")
    x = b.input("x", TensorType(F32, (64, 64)))
    for _ in range(4):
        x = b.op("matmul", x, b.weight("w", np.ones((64, 64), np.float32)))
    kernels, views, plan = compile_plan(b.graph([x]))
    assert plan.bytes == 2 * (64 * 64 * 4 + ALIGN) and not plan.reused
    y = b.op("softmax", b.op("softmax", x, axis=0), axis=1)
    kernels, views, plan = compile_plan(b.graph([b.op("softmax", y, axis=0)]))
    assert len(plan.reused) == 1 and len(kernels) == 7 and len(views.roles) == 7


def test_in_place_needs_the_same_element_in_the_last_reader() -> None:
    x = compute("x", F32, (4, 8), lambda i, j: 0.0).buffer
    neg = compute("y", F32, (4, 8), lambda i, j: x[i, j] + 1.0)
    flip = compute("y", F32, (4, 8), lambda i, j: x[i, 7 - j] + 1.0)
    top = compute("m", F32, (4,), lambda i: reduce("max", (8,), lambda r: x[i, r]))
    rows = compute("y", F32, (4, 8), lambda i, j: x[i, j] - top.buffer[i])
    cols = compute("m", F32, (8,), lambda j: reduce("max", (4,), lambda r: x[r, j]))
    across = compute("y", F32, (4, 8), lambda i, j: x[i, j] - cols.buffer[j])
    total = compute("y", F32, (4, 8), lambda i, j: reduce("sum", (3,), lambda r: x[i, j]) + x[i, j])
    after = compute("z", F32, (4, 8), lambda i, j: x[i, j] * neg.buffer[i, j])

    def safe(*computes: Compute) -> bool:
        p = Program("p", (x,), tuple(c.buffer for c in computes if c.buffer.name != "m"), computes)
        return overwrites_safely(p, 0, 0)
    assert safe(neg) and safe(top, rows)
    assert not safe(flip) and not safe(cols, across) and not safe(total) and not safe(neg, after)


def test_rows_that_move_are_not_written_over_those_that_are_yet_to_be_read() -> None:
    """A norm whose result stands transposed, of a sum that dies in its kernel (a residual block before a recurrent layer)."""
    b, rng = GraphBuilder("g"), np.random.default_rng(0)
    x = b.input("x", TensorType(F32, (4, 6, 8)))
    w, v = (b.weight("w", rng.standard_normal((8, n)).astype("f4")) for n in (8, 16))
    scale, bias = (b.weight("s", rng.standard_normal(8).astype("f4")) for _ in range(2))
    first = b.op("matmul", x, w)
    gates = b.op("matmul", b.op("exp", first), v)
    one, other = (b.op("slice", gates, starts=(0, 0, k), steps=(1, 1, 1), sizes=(4, 6, 8)) for k in (0, 8))
    total = b.op("add", first, b.op("mul", b.op("sigmoid", one), other))
    norm = b.op("layer_norm", total, scale, bias, axes=(2,), epsilon=1e-5)
    y = b.op("reshape", b.op("transpose", norm, perm=(1, 0, 2)), shape=(24, 8))
    g = b.graph([b.op("matmul", y, w)])
    inputs = {"x": rng.standard_normal((4, 6, 8)).astype("f4")}
    name = g.outputs[0].name
    bounds(g, inputs)[name].check(np.asarray(compile(g, cache=False, threads=1).run(inputs)[name]))


@pytest.mark.parametrize(("strides", "same"), [((48, 8, 1), True), ((8, 32, 1), False), ((48, 1, 6), False), ((56, 8, 1), False)], ids=str)
def test_in_place_needs_the_same_rows(strides: tuple[int, ...], same: bool) -> None:
    x = compute("x", F32, (4, 6, 8), lambda i, j, k: 0.0).buffer
    mean = compute("m", F32, (4, 6), lambda i, j: reduce("sum", (8,), lambda r: x[i, j, r]))
    copy = compute("t", F32, (4, 6, 8), lambda i, j, k: x[i, j, k] + 1.0)
    for before in (mean, copy):
        y = compute("y", F32, (4, 6, 8), lambda i, j, k, b=before: b.buffer[(i, j, k)[:len(b.buffer.shape)]] * 2.0)
        y = replace(y, buffer=Buffer("y", F32, (4, 6, 8), strides))
        assert overwrites_safely(Program("p", (x,), (y.buffer,), (before, y)), 0, 0) is same

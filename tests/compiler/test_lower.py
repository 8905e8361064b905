"""What groups look like as programs."""
from __future__ import annotations

import numpy as np

import tilewright.ir.ops  # noqa: F401
from tests.compiler.plan_interpreter import compile_plan, run_plan
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.expr import loads
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.types import F32, TensorType


def bodies(g: Graph) -> list[list[str]]:
    return [[x.strip() for x in str(k.program).splitlines()[1:-1]] for k in compile_plan(g)[0]]


def start(*shape: int) -> tuple[GraphBuilder, Value]:
    b = GraphBuilder("g")
    return b, b.input("x", TensorType(F32, shape))


def test_the_product_never_touches_memory() -> None:
    b, x = start(8, 64)
    w, c = b.weight("w", np.ones((64, 10), np.float32)), b.weight("c", np.ones(10, np.float32))
    y = b.op("relu", b.op("add", b.op("matmul", x, w), c))
    assert bodies(b.graph([y])) == [[
        "y0[i0<8,i1<10] = let t0 = (sum(r0<64: (x0[i0,r0] * x1[r0,i1])) + x2[i1]) in select((t0 < 0.0:f32), 0.0:f32, t0)"]]


def test_literals_become_constants_and_shared_parts_are_computed_once() -> None:
    b, x = start(4, 4)
    e = b.op("exp", x)
    y = b.op("add", b.op("mul", e, e), b.op("mul", b.op("exp", x), b.constant(np.float32(2))))
    assert bodies(b.graph([y])) == [["y0[i0<16] = let t0 = exp(x0[i0]) in ((t0 * t0) + (t0 * 2.0:f32))"]]


def test_guards_reach_the_loads_of_what_is_inlined() -> None:
    b, x = start(1, 1, 6, 6)
    y = b.op("max_pool", b.op("tanh", x), kernel=(1, 2), strides=(2, 3), pads=(1, 1, 0, 1), dilations=(1, 1), sizes=(3, 3))
    g = b.graph([y])
    (kernel,) = compile_plan(g)[0]
    assert kernel.program is not None
    guarded = [x for c in kernel.program.computes for x in loads(c.body)]
    assert guarded and all(x.where is not None for x in guarded)
    value = np.random.default_rng(0).standard_normal((1, 1, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run_plan(g, {"x": value})[0], run_graph(g, {"x": value})[y.name], rtol=1e-6)


def test_a_cheap_scale_is_repeated_and_an_expensive_one_kept() -> None:
    b, x = start(4, 8)
    cheap = bodies(b.graph([b.op("layer_norm", b.op("neg", x), axes=(1,))]))
    assert len(cheap) == 1 and sum("local" in c for c in cheap[0]) == 2
    b, x = start(4, 8)
    dear = bodies(b.graph([b.op("layer_norm", b.op("exp", x), axes=(1,))]))
    assert len(dear) == 1 and dear[0][0] == "local t0: f32[4,8]; t0[i0<4,i1<8] = exp(x0[i0,i1])"


def test_equal_groups_have_equal_keys() -> None:
    b, x = start(8, 16)
    for _ in range(3):
        x = b.op("tanh", b.op("matmul", x, b.weight("w", np.ones((16, 16), np.float32))))
    kernels, _, _ = compile_plan(b.graph([x]))
    assert len(kernels) == 3 and len({k.program.key() for k in kernels if k.program}) == 1


def test_the_border_is_filled_by_one_kernel() -> None:
    b, x = start(1, 3, 4, 4)
    y = b.op("pad", b.op("tanh", x), before=(0, 0, 1, 1), after=(0, 0, 1, 1), value=2.0)
    kernels, _, _ = compile_plan(b.graph([y]))
    assert [k.label for k in kernels] == ["tanh", "pad border"]
    border = kernels[1]
    assert border.program is not None and not border.program.inputs and [r.offset for r in border.outputs] == [0, 30, 6, 11]
    assert sum(int(np.prod(o.shape)) for o in border.program.outputs) == 3 * (36 - 16)

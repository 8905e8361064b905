"""enlarge_last: 1x1 convolutions of enlarged images run before the enlargement, with the same results."""
from __future__ import annotations

import numpy as np
import pytest

from tests.passes.helpers import check
from tests.precision import bounds
from tilewright.compiler.compile import compile
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.enlarge_last import enlarge_last
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.types import F32, TensorType


def clean(g: Graph) -> Graph:
    return dce(enlarge_last(g))


def test_the_example() -> None:
    check(clean, """
        graph @g(%s: f32[1,32,3,3], %t: f32[1,16,6,6]) -> f32[1,24,6,6] {
          const @w: f32[24,48,1,1] weight
          const @b: f32[24] weight
          %u = repeat(%s) {factors=(1, 1, 2, 2)} : f32[1,32,6,6]
          %c = concat(%u, %t) {axis=1} : f32[1,48,6,6]
          %y = conv(%c, @w, @b) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,24,6,6]
          return %y
        }
        """, """
        graph @g(%s: f32[1,32,3,3], %t: f32[1,16,6,6]) -> f32[1,24,6,6] {
          const @w: f32[24,48,1,1] weight
          const @b: f32[24] weight
          %v = slice(@w) {starts=(0, 32, 0, 0), steps=(1, 1, 1, 1), sizes=(24, 16, 1, 1)} : f32[24,16,1,1]
          %v.1 = conv(%t, %v, @b) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,24,6,6]
          %v.2 = slice(@w) {starts=(0, 0, 0, 0), steps=(1, 1, 1, 1), sizes=(24, 32, 1, 1)} : f32[24,32,1,1]
          %v.3 = conv(%s, %v.2) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,24,3,3]
          %v.4 = repeat(%v.3) {factors=(1, 1, 2, 2)} : f32[1,24,6,6]
          %v.5 = add(%v.1, %v.4) : f32[1,24,6,6]
          return %v.5
        }
        """)


def linear(b: GraphBuilder, x: Value, extent: int, total: float = 1.0) -> Value:
    """`x` enlarged to `extent` points a side by weights that sum to `total`."""
    for axis in (2, 3):
        small = x.type.shape[axis]
        index = np.minimum(np.arange(extent)[:, None] * small // extent + [0, 1], small - 1)
        weight = np.tile(np.array([0.25, total - 0.25], "f4"), (extent, 1))
        x = b.op("resample", x, b.constant(index), b.constant(weight), axis=axis)
    return x


def model(outputs: int, parts: tuple[tuple[int, str], ...], bias: bool = True, total: float = 1.0) -> Graph:
    """A 1x1 convolution and relu over parts of (channels, how they are enlarged) joined."""
    b, rng = GraphBuilder("g"), np.random.default_rng(0)
    made = []
    for k, (channels, how) in enumerate(parts):
        size = {"": 12, "repeat": 6, "linear": 5, "nearest": 7}.get(how, 1)
        x = b.op("relu", b.input(f"x{k}", TensorType(F32, (2, channels, size, 12 if how == "row" else size))))
        if how in ("repeat", "one"):
            x = b.op("repeat", x, factors=(1, 1, 12 // size, 12 // size))
        elif how in ("expand", "row"):
            x = b.op("expand", x, shape=(2, channels, 12, 12))
        elif how == "linear":
            x = linear(b, x, 12, total)
        elif how == "nearest":
            at = b.constant(np.arange(12) * 7 // 12)
            x = b.op("gather", b.op("gather", x, at, axis=2), at, axis=3)
        made.append(x)
    joined = made[0] if len(made) == 1 else b.op("concat", *made, axis=1)
    rest = (b.weight("b", rng.standard_normal(outputs).astype("f4")),) if bias else ()
    w = b.weight("w", rng.standard_normal((outputs, joined.type.shape[1], 1, 1)).astype("f4"))
    y = b.op("conv", joined, w, *rest, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), groups=1)
    return b.graph((b.op("relu", y),))


def at_full_size(g: Graph) -> int:
    """Input channels of the convolutions that run on 12 by 12 points."""
    return sum(n.operands[1].type.shape[1] for n in g.nodes if n.op == "conv" and n.outputs[0].type.shape[2] == 12)


CASES = [
    (24, ((32, "repeat"), (16, "")), 16), (32, ((24, "linear"), (32, "linear"), (16, "")), 16), (16, ((32, "nearest"), (20, "")), 20),
    (32, ((32, "one"), (48, "")), 48), (32, ((32, "expand"), (16, "")), 16), (24, ((32, "row"), (16, "")), 16), (24, ((32, "expand"),), 0),
    (20, ((32, "linear"),), 0), (24, ((32, "repeat"), (32, "linear")), 0),
    (200, ((16, "repeat"), (16, "")), 32),  # few channels of many are saved
    (16, ((8, "repeat"), (16, "")), 24),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_stay(case: tuple[int, tuple[tuple[int, str], ...], int], bias: bool) -> None:
    outputs, parts, full = case
    g = model(outputs, parts, bias)
    assert at_full_size(clean(g)) == full
    rng = np.random.default_rng(1)
    inputs = {v.name: rng.standard_normal(v.type.shape).astype("f4") for v in g.inputs}
    want = bounds(g, inputs)[g.outputs[0].name]
    for strict in (False, True):
        want.check(np.asarray(compile(g, cache=False, strict=strict, threads=2).run(inputs)[g.outputs[0].name]))


@pytest.mark.parametrize("flat", [True, False])
def test_one_vector_beside_signals(flat: bool) -> None:
    b, rng = GraphBuilder("g"), np.random.default_rng(0)
    x, v = b.input("x", TensorType(F32, (1, 16, 40))), b.input("v", TensorType(F32, (1, 48) if flat else (1, 48, 1)))
    one = b.op("reshape", v, shape=(1, 48, 1)) if flat else v
    joined = b.op("concat", x, b.op("expand", one, shape=(1, 48, 40)), axis=1)
    w, bias = (b.weight(n, rng.standard_normal(s).astype("f4")) for n, s in (("w", (40, 64, 1)), ("b", (40,))))
    g = b.graph((b.op("conv", joined, w, bias, strides=(1,), pads=(0, 0), dilations=(1,), groups=1),))
    assert [n.outputs[0].type.shape[2] for n in clean(g).nodes if n.op == "conv"] == [40, 1]
    inputs = {i.name: rng.standard_normal(i.type.shape).astype("f4") for i in g.inputs}
    bounds(g, inputs)[g.outputs[0].name].check(np.asarray(compile(g, cache=False).run(inputs)[g.outputs[0].name]))


def test_a_bias_stays_where_the_enlargement_changes_constants() -> None:
    assert at_full_size(clean(model(32, ((32, "linear"),), total=0.5))) == 32
    assert at_full_size(clean(model(32, ((32, "linear"),), bias=False, total=0.5))) == 0
    assert at_full_size(clean(model(32, ((32, "linear"), (16, "")), total=0.5))) == 16


def test_what_others_read_is_not_moved() -> None:
    b, rng = GraphBuilder("g"), np.random.default_rng(0)
    u = b.op("repeat", b.input("x", TensorType(F32, (1, 32, 6, 6))), factors=(1, 1, 2, 2))
    w = b.weight("w", rng.standard_normal((16, 32, 1, 1)).astype("f4"))
    y = b.op("conv", u, w, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), groups=1)
    assert at_full_size(clean(b.graph((y, b.op("exp", u))))) == 32

"""recognize: activations and norms that models spell out."""
from __future__ import annotations

import numpy as np
import pytest

from tests.passes.helpers import check, graph, unchanged
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.recognize import recognize
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.interpreter import run_graph
from tilewright.ir.types import F32, I64, TensorType


def clean(g):
    return dce(recognize(g))


CONSTS = {"half": 0.5, "one": 1.0, "three": 3.0, "six": 6.0, "zero": 0.0,
          "rsqrt2": 0.70710677, "sqrt2": 1.4142135, "k": 0.044715, "r": 0.7978846, "alpha": 1.702}


def spelled(lines: str) -> str:
    used = "".join(f"const @{k}: f32[] = {v}\n" for k, v in CONSTS.items() if f"@{k})" in lines or f"@{k}," in lines)
    typed = "".join(f"{line.strip()} : f32[2,5]\n" for line in lines.strip().splitlines())
    return f"graph @g(%x: f32[2,5]) -> f32[2,5] {{\n{used}{typed}return %y\n}}\n"


@pytest.mark.parametrize(("lines", "op"), [
    ("%a = mul(%x, @rsqrt2)\n%b = erf(%a)\n%c = add(%b, @one)\n%d = mul(%x, %c)\n%y = mul(%d, @half)", "gelu(%x)"),
    ("%a = div(%x, @sqrt2)\n%b = erf(%a)\n%c = add(@one, %b)\n%d = mul(@half, %x)\n%y = mul(%d, %c)", "gelu(%x)"),
    ("%s = mul(%x, %x)\n%q = mul(%s, %x)\n%e = mul(%q, @k)\n%f = add(%x, %e)\n%h = mul(%f, @r)\n%t = tanh(%h)\n%c = add(%t, @one)\n"
     "%d = mul(%x, %c)\n%y = mul(%d, @half)", 'gelu(%x) {approximate="tanh"}'),
    ("%a = sigmoid(%x)\n%y = mul(%a, %x)", "swish(%x)"),
    ("%m = mul(%x, @alpha)\n%a = sigmoid(%m)\n%y = mul(%x, %a)", "swish(%x) {alpha=1.7020000219345093}"),
    ("%a = add(%x, @three)\n%b = relu(%a)\n%c = min(%b, @six)\n%d = mul(%x, %c)\n%y = div(%d, @six)", "hard_swish(%x)"),
    ("%a = add(%x, @three)\n%b = min(%a, @six)\n%c = max(%b, @zero)\n%d = div(%c, @six)\n%y = mul(%d, %x)", "hard_swish(%x)"),
    ("%a = hard_sigmoid(%x) {alpha=0.16666667, beta=0.5}\n%y = mul(%x, %a)", "hard_swish(%x)"),
    ("%a = add(%x, @three)\n%b = relu(%a)\n%c = min(%b, @six)\n%y = div(%c, @six)",
     "hard_sigmoid(%x) {alpha=0.16666666666666666}"),
    ("%a = softplus(%x)\n%b = tanh(%a)\n%y = mul(%x, %b)", "mish(%x)"),
    ("%a = neg(%x)\n%b = exp(%a)\n%c = add(%b, @one)\n%y = div(@one, %c)", "sigmoid(%x)"),
    ("%a = neg(%x)\n%b = exp(%a)\n%c = add(@one, %b)\n%y = reciprocal(%c)", "sigmoid(%x)"),
])
def test_activations(lines, op):
    check(clean, spelled(lines), f"graph @g(%x: f32[2,5]) -> f32[2,5] {{\n%y = {op} : f32[2,5]\nreturn %y\n}}\n")


@pytest.mark.parametrize("lines", [
    "%a = mul(%x, @half)\n%b = erf(%a)\n%c = add(%b, @one)\n%d = mul(%x, %c)\n%y = mul(%d, @half)",          # not 1 / sqrt 2
    "%a = mul(%x, @rsqrt2)\n%b = erf(%a)\n%c = add(%b, @one)\n%d = mul(%a, %c)\n%y = mul(%d, @half)",        # gates another value
    "%a = add(%x, @three)\n%b = relu(%a)\n%c = min(%b, @six)\n%d = mul(%x, %c)\n%y = div(%d, @three)",       # another divisor
    "%a = hard_sigmoid(%x)\n%y = mul(%x, %a)",                                                               # alpha = 0.2
])
def test_near_misses_stay(lines):
    unchanged(clean, spelled(lines))


def norm(body: str, out: str = "f32[2,3,8]") -> str:
    return f"graph @g(%x: f32[2,3,8]) -> {out} {{\nconst @eps: f32[] = 1e-05\n{body}\nreturn %y\n}}\n"


CENTRED = """
%m = reduce(%x) {kind="mean", axes=(2,)} : f32[2,3,1]
%d = sub(%x, %m) : f32[2,3,8]
%q = mul(%d, %d) : f32[2,3,8]
%v = reduce(%q) {kind="mean", axes=(2,)} : f32[2,3,1]
%e = add(%v, @eps) : f32[2,3,1]
%s = sqrt(%e) : f32[2,3,1]
"""


def test_layer_norm_with_scale_and_bias():
    affine = "".join(f"const @{n}: f32[8] weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]\n" for n in "gb")
    check(clean, norm(affine + CENTRED + "%n = div(%d, %s) : f32[2,3,8]\n%p = mul(%n, @g) : f32[2,3,8]\n%y = add(@b, %p) : f32[2,3,8]"),
          f"graph @g(%x: f32[2,3,8]) -> f32[2,3,8] {{\n{affine}"
          "%y = layer_norm(%x, @g, @b) {axes=(2,), epsilon=9.999999747378752e-06} : f32[2,3,8]\nreturn %y\n}\n")


def test_rms_norm():
    check(clean, norm("""%q = mul(%x, %x) : f32[2,3,8]
        %v = reduce(%q) {kind="mean", axes=(2,)} : f32[2,3,1]
        %e = add(%v, @eps) : f32[2,3,1]
        %s = sqrt(%e) : f32[2,3,1]
        %r = reciprocal(%s) : f32[2,3,1]
        %y = mul(%x, %r) : f32[2,3,8]"""), """
        graph @g(%x: f32[2,3,8]) -> f32[2,3,8] {
          %y = layer_norm(%x, none, none) {axes=(2,), epsilon=9.999999747378752e-06, center=0} : f32[2,3,8]
          return %y
        }""")


def test_layer_norm_from_raw_moments():
    """As Flax exports it: sums, E[x^2] - E[x]^2 kept positive, reductions without the axis, the scale on 1/deviation."""
    gamma = "const @n: f32[] = 0.125\nconst @g: f32[8] weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]\n"
    check(clean, norm(gamma + """%t = reduce(%x) {axes=(2,), keepdims=0} : f32[2,3]
        %q = mul(%x, %x) : f32[2,3,8]
        %u = reduce(%q) {axes=(2,), keepdims=0} : f32[2,3]
        %m = mul(%t, @n) : f32[2,3]
        %m2 = mul(%u, @n) : f32[2,3]
        %mm = mul(%m, %m) : f32[2,3]
        %v0 = sub(%m2, %mm) : f32[2,3]
        %v = relu(%v0) : f32[2,3]
        %vr = reshape(%v) {shape=(2, 3, 1)} : f32[2,3,1]
        %e = add(%vr, @eps) : f32[2,3,1]
        %s = sqrt(%e) : f32[2,3,1]
        %i = reciprocal(%s) : f32[2,3,1]
        %ig = mul(%i, @g) : f32[2,3,8]
        %mr = reshape(%m) {shape=(2, 3, 1)} : f32[2,3,1]
        %d = sub(%x, %mr) : f32[2,3,8]
        %y = mul(%d, %ig) : f32[2,3,8]"""), """
        graph @g(%x: f32[2,3,8]) -> f32[2,3,8] {
          const @g: f32[8] weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
          %y = layer_norm(%x, @g, none) {axes=(2,), epsilon=9.999999747378752e-06} : f32[2,3,8]
          return %y
        }""", rtol=1e-4)


def test_softmax():
    check(clean, """
        graph @g(%x: f32[2,3,8]) -> f32[2,3,8] {
          %m = reduce(%x) {kind="max", axes=(1,), keepdims=0} : f32[2,8]
          %r = reshape(%m) {shape=(2, 1, 8)} : f32[2,1,8]
          %d = sub(%x, %r) : f32[2,3,8]
          %e = exp(%d) : f32[2,3,8]
          %s = reduce(%e) {axes=(1,)} : f32[2,1,8]
          %y = div(%e, %s) : f32[2,3,8]
          return %y
        }""", """
        graph @g(%x: f32[2,3,8]) -> f32[2,3,8] {
          %y = softmax(%x) {axis=1} : f32[2,3,8]
          return %y
        }""")


def test_means_that_do_not_belong_to_the_rows_stay():
    """A square tensor: the mean over dimension 1 is subtracted along dimension 0."""
    unchanged(clean, """
        graph @g(%x: f32[4,4]) -> f32[4,4] {
          const @eps: f32[] = 1e-05
          %m = reduce(%x) {kind="mean", axes=(1,), keepdims=0} : f32[4]
          %d = sub(%x, %m) : f32[4,4]
          %q = mul(%d, %d) : f32[4,4]
          %v = reduce(%q) {kind="mean", axes=(1,), keepdims=0} : f32[4]
          %e = add(%v, @eps) : f32[4]
          %s = sqrt(%e) : f32[4]
          %y = div(%d, %s) : f32[4,4]
          return %y
        }""")


def test_half_precision_constants_are_known_as_rounded():
    check(clean, """
        graph @g(%x: f16[4]) -> f16[4] {
          const @c: f16[] = 0.707
          const @one: f16[] = 1.0
          const @half: f16[] = 0.5
          %a = mul(%x, @c) : f16[4]
          %b = erf(%a) : f16[4]
          %d = add(%b, @one) : f16[4]
          %e = mul(%x, %d) : f16[4]
          %y = mul(%e, @half) : f16[4]
          return %y
        }""", """
        graph @g(%x: f16[4]) -> f16[4] {
          %y = gelu(%x) : f16[4]
          return %y
        }""", rtol=4e-3)


def test_long_chains_of_products_are_no_problem():
    lines = "\n".join(f"%v{k + 1} = mul(%v{k}, %x)" for k in range(2000)).replace("%v0,", "%x,").replace("%v2000 =", "%y =")
    text = spelled(lines)
    assert len(recognize(graph(text)).nodes) == 2000


ONE_HOT = """
    graph @g(%i: i32[3,1]) -> f32[3,2] {{
      const @ramp: i32[1,5] = {ramp}
      const @table: f32[5,2] weight
      %h = eq(%i, @ramp) : bool[3,5]
      %o = cast(%h) {{dtype=f32}} : f32[3,5]
      %y = matmul(%o, @table) : f32[3,2]
      return %y
    }}"""


def test_products_with_one_hot_rows_are_look_ups() -> None:
    g = graph(ONE_HOT.format(ramp="[0, 1, 2, 3, 4]"))
    after = clean(g)
    assert [n.op for n in after.nodes if n.op in ("matmul", "gather")] == ["gather"]
    arrays = {"i": np.array([[3], [-1], [5]], "i4")}
    np.testing.assert_array_equal(run_graph(after, arrays)[after.outputs[0].name], run_graph(g, arrays)[g.outputs[0].name])
    other = graph(ONE_HOT.format(ramp="[0, 1, 3, 2, 4]"))
    assert [n.op for n in clean(other).nodes] == [n.op for n in other.nodes]


@pytest.mark.parametrize("rank", [1, 2])
def test_one_hot_operators_too(rank: int) -> None:
    b = GraphBuilder("g")
    i = b.input("i", TensorType(I64, (2, 3)[:rank]))
    hot = b.op("one_hot", i, b.constant(np.array([0, 1], "f4")), axis=rank, depth=7)
    g = b.graph([b.op("matmul", hot if rank == 2 else b.op("reshape", hot, shape=(1, 2, 7)), b.weight("w", np.ones((7, 4), "f4")))])
    assert ("gather" in [n.op for n in clean(g).nodes]) == (rank == 2)
    arrays = {"i": np.array([[0, -1, 7], [-8, -7, 6]])[:, :].reshape(-1)[:i.type.size].reshape(i.type.shape)}
    after = clean(g)
    np.testing.assert_array_equal(run_graph(after, arrays)[after.outputs[0].name], run_graph(g, arrays)[g.outputs[0].name])


@pytest.mark.parametrize(("axis", "expanded", "found"), [(0, (6, 1, 1), True), (0, (6, 2, 1), False), (1, (3, 1, 1), False)],
                         ids=["rows", "part_of_a_row", "other_axis"])
@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_updates_with_an_index_per_row_are_updates_of_rows(axis: int, expanded: tuple[int, ...], found: bool, reduction: str) -> None:
    b = GraphBuilder("g")
    shape = (6, 2, 4) if axis == 0 else (3, 6, 4)
    x, u = b.input("x", TensorType(F32, (3, 2, 4))), b.input("u", TensorType(F32, shape))
    i = b.input("i", TensorType(I64, expanded))
    g = b.graph([b.op("scatter_elements", x, b.op("expand", i, shape=shape), u, axis=axis, reduction=reduction)])
    after = clean(g)
    assert [n.op for n in after.nodes if n.op.startswith("scatter")] == ["scatter_nd" if found else "scatter_elements"]
    arrays = {"x": np.ones((3, 2, 4), "f4"), "u": np.arange(np.prod(shape), dtype="f4").reshape(shape),
              "i": np.arange(np.prod(expanded)).reshape(expanded) * 5 % 4 % x.type.shape[axis] - 1}
    np.testing.assert_array_equal(run_graph(after, arrays)[after.outputs[0].name], run_graph(g, arrays)[g.outputs[0].name])

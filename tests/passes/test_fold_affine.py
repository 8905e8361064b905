"""fold_affine: scales and shifts of channels become weights and biases."""
from __future__ import annotations

from tests.passes.helpers import canonical, check, graph, same_results, unchanged
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.fold_affine import fold_affine
from tilewright.compiler.passes.preparation import split_preparation
from tilewright.ir.text import print_graph

CONV = "{strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1)}"


def clean(g):
    return dce(fold_affine(g))


def test_scale_and_shift_fold_into_a_convolution():
    check(clean, f"""
        graph @g(%x: f32[1,2,3,3]) -> f32[1,4,3,3] {{
          const @w: f32[4,2,3,3] weight
          const @s: f32[4,1,1] weight = [1.0, 2.0, 0.5, 4.0]
          const @t: f32[1,4,1,1] weight = [1.0, 2.0, 0.5, 4.0]
          %c = conv(%x, @w) {CONV} : f32[1,4,3,3]
          %m = mul(@s, %c) : f32[1,4,3,3]
          %y = add(%m, @t) : f32[1,4,3,3]
          return %y
        }}""", f"""
        graph @g(%x: f32[1,2,3,3]) -> f32[1,4,3,3] {{
          const @s: f32[4,1,1] weight = [1.0, 2.0, 0.5, 4.0]
          const @w: f32[4,2,3,3] weight
          const @t: f32[1,4,1,1] weight = [1.0, 2.0, 0.5, 4.0]
          %s1 = reshape(@s) {{shape=(4,)}} : f32[4]
          %s2 = reshape(%s1) {{shape=(4, 1, 1, 1)}} : f32[4,1,1,1]
          %w1 = mul(@w, %s2) : f32[4,2,3,3]
          %t1 = reshape(@t) {{shape=(4,)}} : f32[4]
          %y = conv(%x, %w1, %t1) {CONV} : f32[1,4,3,3]
          return %y
        }}""")


def folded_to_main(text: str) -> str:
    """The main graph after folding, preparation aside; results are checked."""
    old = graph(text)
    new = clean(old)
    same_results(old, new)
    return print_graph(canonical(split_preparation(new).main))


def test_batch_norm_grouped_convolution_bias_sub_and_div():
    conv = "{strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=2}"
    vectors = "\n".join(f"const @{n}: f32[4] weight = [1.0, 2.0, 0.5, 4.0]" for n in ("b", "scale", "bias", "mean", "var"))
    main = folded_to_main(f"""
        graph @g(%x: f32[2,2,3,3]) -> f32[2,4,3,3] {{
          {vectors}
          const @w: f32[4,1,3,3] weight
          const @d: f32[] = 3.0
          %c = conv(%x, @w, @b) {conv} : f32[2,4,3,3]
          %n = batch_norm(%c, @scale, @bias, @mean, @var) : f32[2,4,3,3]
          %p = sub(%n, @d) : f32[2,4,3,3]
          %q = div(%p, @d) : f32[2,4,3,3]
          %r = relu(%q) : f32[2,4,3,3]
          return %r
        }}""")
    assert main.count(" = ") == 2 and "conv(" in main and "relu(" in main, main


def test_scale_goes_through_a_matmuls_bias():
    main = folded_to_main("""
        graph @g(%x: f32[2,3,4]) -> f32[2,3,5] {
          const @w: f32[4,5] weight
          const @b: f32[5] weight = [1.0, 2.0, 0.5, 4.0, 3.0]
          const @s: f32[] = 0.125
          %m = matmul(%x, @w) : f32[2,3,5]
          %a = add(%m, @b) : f32[2,3,5]
          %y = mul(%a, @s) : f32[2,3,5]
          return %y
        }""")
    assert [line.split(" = ")[1].split("(")[0] for line in main.splitlines() if " = " in line] == ["matmul", "add"], main


def test_chains_of_affine_maps_become_one():
    main = folded_to_main("""
        graph @g(%x: f32[2,4,3]) -> f32[2,4,3] {
          const @s: f32[4,1] weight = [1.0, 2.0, 0.5, 4.0]
          const @t: f32[4,1] weight = [1.0, 2.0, 0.5, 4.0]
          const @u: f32[4,1] weight = [1.0, 2.0, 0.5, 4.0]
          const @v: f32[4,1] weight = [1.0, 2.0, 0.5, 4.0]
          %a = mul(%x, @s) : f32[2,4,3]
          %b = add(%a, @t) : f32[2,4,3]
          %c = mul(%b, @u) : f32[2,4,3]
          %d = add(%c, @v) : f32[2,4,3]
          return %d
        }""")
    assert [line.split(" = ")[1].split("(")[0] for line in main.splitlines() if " = " in line] == ["mul", "add"], main


def test_what_others_read_or_what_is_not_constant_stays():
    unchanged(clean, f"""
        graph @g(%x: f32[1,2,3,3], %k: f32[4,1,1]) -> (f32[1,4,3,3], f32[1,4,3,3], f32[1,4,3,3], f32[1,4,3,3]) {{
          const @w: f32[4,2,3,3] weight
          const @s: f32[4,1,1] weight = [1.0, 2.0, 0.5, 4.0]
          const @row: f32[3] weight = [1.0, 2.0, 0.5]
          const @v: f32[4,2,3,3] weight
          %c = conv(%x, @w) {CONV} : f32[1,4,3,3]
          %y = mul(%c, @s) : f32[1,4,3,3]
          %z = add(%c, %k) : f32[1,4,3,3]
          %d = conv(%x, @v) {CONV} : f32[1,4,3,3]
          %u = mul(%d, @row) : f32[1,4,3,3]
          %t = mul(%u, %k) : f32[1,4,3,3]
          return %c, %y, %z, %t
        }}""")


def test_transposed_convolutions_and_raw_divisions_fold():
    main = folded_to_main("""
        graph @g(%x: f32[1,2,3,3]) -> f32[1,4,6,6] {
          const @w: f32[2,4,2,2] weight
          const @s: f32[4,1,1] weight = [1.0, 2.0, 0.5, 4.0]
          const @t: f32[4,1,1] weight = [1.0, 2.0, 0.5, 4.0]
          %c = conv_transpose(%x, @w) {strides=(2, 2), dilations=(1, 1), begins=(0, 0), sizes=(6, 6)} : f32[1,4,6,6]
          %m = div(%c, @s) : f32[1,4,6,6]
          %y = sub(%m, @t) : f32[1,4,6,6]
          return %y
        }""")
    assert main.count(" = ") == 1 and "conv_transpose(" in main, main

"""fold_constants, dce, cse, decompose."""
from __future__ import annotations

from tests.passes.helpers import check, unchanged
from tilewright.compiler.passes.cse import cse
from tilewright.compiler.passes.dce import dce
from tilewright.compiler.passes.decompose import decompose
from tilewright.compiler.passes.fold_constants import fold_constants


def test_literals_fold_and_weights_do_not():
    check(fold_constants, """
        graph @g(%x: f32[2]) -> f32[2] {
          const @a: f32[2] = [1.0, 2.0]
          const @b: f32[] = 3.0
          const @w: f32[2] weight = [0.5, 0.25]
          %s = add(@a, @b) : f32[2]
          %t = add(@w, @b) : f32[2]
          %y = mul(%x, %s) : f32[2]
          %z = mul(%y, %t) : f32[2]
          return %z
        }""", """
        graph @g(%x: f32[2]) -> f32[2] {
          const @w: f32[2] weight = [0.5, 0.25]
          const @b: f32[] = 3.0
          const @s: f32[2] = [4.0, 5.0]
          %t = add(@w, @b) : f32[2]
          %y = mul(%x, @s) : f32[2]
          %z = mul(%y, %t) : f32[2]
          return %z
        }""")


def test_dead_nodes_go_and_inputs_stay():
    check(dce, """
        graph @g(%x: f32[2], %unused: f32[3]) -> f32[2] {
          const @w: f32[2] weight = [0.5, 0.25]
          %a = relu(%x) : f32[2]
          %b = add(%a, @w) : f32[2]
          %c = exp(%b) : f32[2]
          return %a
        }""", """
        graph @g(%x: f32[2], %unused: f32[3]) -> f32[2] {
          %a = relu(%x) : f32[2]
          return %a
        }""")


def test_equal_nodes_and_equal_literals_merge():
    check(cse, """
        graph @g(%x: f32[2], %y: f32[2]) -> f32[2] {
          const @one: f32[] = 1.0
          const @uno: f32[] = 1.0
          %a = add(%x, %y) : f32[2]
          %b = add(%y, %x) : f32[2]
          %c = sub(%a, @one) : f32[2]
          %d = sub(%b, @uno) : f32[2]
          %e = mul(%c, %d) : f32[2]
          return %e
        }""", """
        graph @g(%x: f32[2], %y: f32[2]) -> f32[2] {
          const @one: f32[] = 1.0
          %a = add(%x, %y) : f32[2]
          %c = sub(%a, @one) : f32[2]
          %e = mul(%c, %c) : f32[2]
          return %e
        }""")


def test_what_only_looks_equal_stays_apart():
    unchanged(cse, """
        graph @g(%x: f32[2], %y: f32[2]) -> (f32[2], f32[2], f32[2], f32[2], f32[3], f32[3]) {
          const @v: f32[2] weight = [1.0, 2.0]
          const @w: f32[2] weight = [1.0, 2.0]
          %a = sub(%x, %y) : f32[2]
          %b = sub(%y, %x) : f32[2]
          %c = add(%x, @v) : f32[2]
          %d = add(%x, @w) : f32[2]
          %e = pad(%x) {before=(1,), after=(0,), value=0.0} : f32[3]
          %f = pad(%x) {before=(1,), after=(0,), value=-0.0} : f32[3]
          return %a, %b, %c, %d, %e, %f
        }""")


def test_composites_decompose_and_the_rest_stays():
    new = check(decompose, """
        graph @g(%x: f32[1,2,3]) -> f32[1,2,3] {
          const @s: f32[2] weight = [1.0, 2.0]
          const @t: f32[2] weight = [0.5, 0.25]
          const @m: f32[2] weight = [0.0, 1.0]
          const @v: f32[2] weight = [1.0, 4.0]
          %y = batch_norm(%x, @s, @t, @m, @v) : f32[1,2,3]
          %z = relu(%y) : f32[1,2,3]
          return %z
        }""", """
        graph @g(%x: f32[1,2,3]) -> f32[1,2,3] {
          const @v: f32[2] weight = [1.0, 4.0]
          const @e: f32[] = 1e-05
          const @s: f32[2] weight = [1.0, 2.0]
          const @m: f32[2] weight = [0.0, 1.0]
          const @t: f32[2] weight = [0.5, 0.25]
          %a = add(@v, @e) : f32[2]
          %b = sqrt(%a) : f32[2]
          %c = div(@s, %b) : f32[2]
          %d = mul(@m, %c) : f32[2]
          %e2 = sub(@t, %d) : f32[2]
          %f = reshape(%c) {shape=(2, 1)} : f32[2,1]
          %g = mul(%x, %f) : f32[1,2,3]
          %h = reshape(%e2) {shape=(2, 1)} : f32[2,1]
          %i = add(%g, %h) : f32[1,2,3]
          %z = relu(%i) : f32[1,2,3]
          return %z
        }""")
    assert all(n.op != "batch_norm" for n in new.nodes)

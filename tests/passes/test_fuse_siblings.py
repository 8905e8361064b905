"""fuse_siblings: contractions of one input side by side."""
from __future__ import annotations

import pytest

from tests.passes.helpers import check, graph, same_results, unchanged
from tilewright.compiler.passes.fuse_siblings import fuse_siblings
from tilewright.ir.ops.slices import SliceAttrs
from tilewright.ir.verify import verify


def test_projections_with_biases_become_one_matmul():
    check(fuse_siblings, """
        graph @g(%x: f32[2,3,4]) -> (f32[6,5], f32[6,2]) {
          const @w: f32[4,5] weight
          const @v: f32[4,2] weight
          const @b: f32[5] weight = [1.0, 2.0, 3.0, 4.0, 5.0]
          const @c: f32[2] weight = [1.0, 2.0]
          %q = matmul(%x, @w) : f32[2,3,5]
          %qb = add(%q, @b) : f32[2,3,5]
          %k = matmul(%x, @v) : f32[2,3,2]
          %kb = add(@c, %k) : f32[2,3,2]
          %qr = reshape(%qb) {shape=(6, 5)} : f32[6,5]
          %kr = reshape(%kb) {shape=(6, 2)} : f32[6,2]
          return %qr, %kr
        }""", """
        graph @g(%x: f32[2,3,4]) -> (f32[6,5], f32[6,2]) {
          const @w: f32[4,5] weight
          const @v: f32[4,2] weight
          const @b: f32[5] weight = [1.0, 2.0, 3.0, 4.0, 5.0]
          const @c: f32[2] weight = [1.0, 2.0]
          %wv = concat(@w, @v) {axis=1} : f32[4,7]
          %m = matmul(%x, %wv) : f32[2,3,7]
          %bc = concat(@b, @c) : f32[7]
          %a = add(%m, %bc) : f32[2,3,7]
          %qb = slice(%a) {starts=(0, 0, 0), steps=(1, 1, 1), sizes=(2, 3, 5)} : f32[2,3,5]
          %kb = slice(%a) {starts=(0, 0, 5), steps=(1, 1, 1), sizes=(2, 3, 2)} : f32[2,3,2]
          %qr = reshape(%qb) {shape=(6, 5)} : f32[6,5]
          %kr = reshape(%kb) {shape=(6, 2)} : f32[6,2]
          return %qr, %kr
        }""")


BRANCHES = """
    graph @g(%x: f32[1,3,5,5]) -> (f32[1,48,5,5], f32[1,8,5,5]) {
      const @w1: f32[16,3,1,1] weight
      const @b1: f32[16] weight
      const @w2: f32[32,3,1,1] weight
      const @w3: f32[8,3,1,1] weight
      const @w4: f32[16,3,3,3] weight
      %c1 = conv(%x, @w1, @b1) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,16,5,5]
      %r1 = relu(%c1) : f32[1,16,5,5]
      %c3 = conv(%x, @w3) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,8,5,5]
      %r3 = relu(%c3) : f32[1,8,5,5]
      %c4 = conv(%x, @w4) {strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1)} : f32[1,16,5,5]
      %c2 = conv(%x, @w2) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,32,5,5]
      %r2 = relu(%c2) : f32[1,32,5,5]
      %y = concat(%r1, %r2) {axis=1} : f32[1,48,5,5]
      %z = slice(%c4) {starts=(0, 8, 0, 0), steps=(1, 1, 1, 1), sizes=(1, 8, 5, 5)} : f32[1,8,5,5]
      %v = add(%r3, %z) : f32[1,8,5,5]
      return %y, %v
    }"""


def test_branches_whose_ends_differ_stay_apart():
    """%r3 is followed by an addition that its convolution alone can apply in registers."""
    unchanged(fuse_siblings, BRANCHES)


def test_branches_of_one_geometry_fuse_with_their_activation():
    text = BRANCHES.replace("%v = add(%r3, %z)", "%v = slice(%r3) {starts=(0, 0, 0, 0), steps=(1, 1, 1, 1), sizes=(1, 8, 5, 5)}").replace(
        "      %z = slice(%c4) {starts=(0, 8, 0, 0), steps=(1, 1, 1, 1), sizes=(1, 8, 5, 5)} : f32[1,8,5,5]\n", "")
    old = graph(text)
    new = fuse_siblings(old)
    same_results(old, new)
    convs = [n for n in new.nodes if n.op == "conv"]
    assert [n.outputs[0].type.shape[1] for n in convs] == [56, 16]
    assert [n.op for n in new.nodes].count("relu") == 1
    wide = convs[0].outputs[0].type
    parts = {n.outputs[0].type.shape[1]: n.attrs for n in new.nodes if n.op == "slice" and n.operands[0].type == wide}
    assert {k: a.starts[1] for k, a in parts.items() if isinstance(a, SliceAttrs)} == {16: 0, 32: 16, 8: 48}, "whole blocks first"


def test_dynamic_weights_and_other_inputs_stay():
    unchanged(fuse_siblings, """
        graph @g(%x: f32[3,4], %y: f32[3,4], %d: f32[4,2]) -> (f32[3,2], f32[3,2], f32[3,2]) {
          const @w: f32[4,2] weight
          const @v: f32[4,2] weight
          %a = matmul(%x, @w) : f32[3,2]
          %b = matmul(%y, @v) : f32[3,2]
          %c = matmul(%x, %d) : f32[3,2]
          return %a, %b, %c
        }""")


HEADS = """
    graph @g(%x: f32[2,3,4]) -> (f32[2,3,2,5], f32[2,3,2,5], f32[2,3,2,3]) {
      const @w: f32[4,10] weight
      const @v: f32[4,10] weight
      const @u: f32[4,6] weight
      const @b: f32[10] weight
      const @c: f32[10] weight
      const @d: f32[6] weight
      %q = matmul(%x, @w) : f32[2,3,10]
      %qb = add(%q, @b) : f32[2,3,10]
      %k = matmul(%x, @v) : f32[2,3,10]
      %kb = add(%k, @c) : f32[2,3,10]
      %o = matmul(%x, @u) : f32[2,3,6]
      %ob = add(@d, %o) : f32[2,3,6]
      %qh = reshape(%qb) {shape=(2, 3, 2, 5)} : f32[2,3,2,5]
      %kh = reshape(%kb) {shape=(2, 3, 2, 5)} : f32[2,3,2,5]
      %oh = reshape(%ob) {shape=(2, 3, 2, 3)} : f32[2,3,2,3]
      return %qh, %kh, %oh
    }"""


def test_heads_of_all_projections_stand_side_by_side():
    old = graph(HEADS)
    new = verify(fuse_siblings(old))
    same_results(old, new)
    assert [n.op for n in new.nodes].count("matmul") == 1
    apart = next(n for n in new.nodes if n.op == "reshape" and n.outputs[0].type.shape == (2, 3, 2, 13))
    parts = [n.attrs for n in new.nodes if n.op == "slice" and n.operands[0] == apart.outputs[0]]
    assert [(a.starts[-1], a.sizes[-1]) for a in parts if isinstance(a, SliceAttrs)] == [(0, 5), (5, 5), (10, 3)]


@pytest.mark.parametrize("other", ["reshape(%ob) {shape=(2, 3, 3, 2)} : f32[2,3,3,2]", "concat(%ob, %kb) {axis=2} : f32[2,3,16]"],
                         ids=["other heads", "no heads"])
def test_columns_that_are_not_taken_apart_alike_keep_their_order(other: str):
    text = HEADS.replace("reshape(%ob) {shape=(2, 3, 2, 3)} : f32[2,3,2,3]", other)
    old = graph(text.replace("f32[2,3,2,3]) {", other.rpartition(" ")[2] + ") {"))
    new = verify(fuse_siblings(old))
    same_results(old, new)
    assert {n.attrs.starts[-1] for n in new.nodes if isinstance(n.attrs, SliceAttrs)} == {0, 10, 20}


def test_the_branch_that_fills_no_block_may_come_first():
    g = graph("""
        graph @g(%x: f32[1,3,5,5]) -> (f32[1,17,5,5]) {
          const @w1: f32[1,3,1,1] weight
          const @w2: f32[16,3,1,1] weight
          %c1 = conv(%x, @w1) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,1,5,5]
          %c2 = conv(%x, @w2) {strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)} : f32[1,16,5,5]
          %y = concat(%c2, %c1) {axis=1} : f32[1,17,5,5]
          return %y
        }""")
    wide = fuse_siblings(g)
    verify(wide)
    assert sum(n.op == "conv" for n in wide.nodes) == 1
    same_results(g, wide)

"""split_preparation: what follows from weights alone."""
from __future__ import annotations

import numpy as np

from tests.passes.helpers import canonical, graph
from tilewright.compiler.passes.preparation import split_preparation
from tilewright.ir.interpreter import run_graph
from tilewright.ir.text import print_graph
from tilewright.ir.verify import verify

TEXT = """
    graph @g(%x: f32[2,3]) -> (f32[2,2], f32[2]) {
      const @w: f32[3,2] weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
      const @s: f32[2] weight = [1.0, 2.0]
      const @b: f32[2] weight = [5.0, 7.0]
      const @half: f32[] = 0.5
      %h = mul(@s, @half) : f32[2]
      %v = mul(@w, %h) : f32[3,2]
      %m = matmul(%x, %v) : f32[2,2]
      %e = expand(@b) {shape=(2, 2)} : f32[2,2]
      %y = add(%m, %e) : f32[2,2]
      %z = mul(%y, @half) : f32[2,2]
      return %z, @s
    }"""


def test_main_has_parameters_and_prep_makes_them():
    p = split_preparation(graph(TEXT))
    verify(p.main)
    verify(p.prep)
    assert print_graph(canonical(p.main)) == print_graph(canonical(graph("""
        graph @g(%x: f32[2,3], %b: f32[2], %v: f32[3,2], %s: f32[2]) -> (f32[2,2], f32[2]) {
          const @half: f32[] = 0.5
          %e = expand(%b) {shape=(2, 2)} : f32[2,2]
          %m = matmul(%x, %v) : f32[2,2]
          %y = add(%m, %e) : f32[2,2]
          %z = mul(%y, @half) : f32[2,2]
          return %z, %s
        }""")))
    assert [v.name for v in p.inputs] == ["x"]
    assert [v.name for v in p.parameters] == [v.name for v in p.prep.outputs] == ["b", "v", "s"]
    assert not any(c.updatable for g in (p.main, p.prep) for c in g.constants.values())


def test_results_agree_and_follow_updated_weights():
    g = graph(TEXT)
    p = split_preparation(g)
    x = np.arange(6, dtype="f4").reshape(2, 3)
    for weights in ({}, {"w": np.ones((3, 2), "f4"), "s": np.array([3, 4], "f4")}):
        values = p.prepare({**p.weights, **weights})
        got = run_graph(p.main, {"x": x, **{v.name: a for v, a in zip(p.parameters, values, strict=True)}})
        want = run_graph(g, {"x": x}, weights)
        for a, b in zip(g.outputs, p.main.outputs, strict=True):
            np.testing.assert_array_equal(got[b.name], want[a.name])


def test_weights_that_need_nothing_are_not_copied():
    p = split_preparation(graph(TEXT))
    values = dict(zip([v.name for v in p.parameters], p.prepare(), strict=True))
    assert values["b"] is p.weights["b"]

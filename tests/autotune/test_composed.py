"""Spaces of programs that are scheduled as a whole: Winograd in strips, attention, products with the layer norm after them."""
from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest

from tests.compiler.programs import product_norm, random_inputs, run_native
from tests.compiler.test_windows import program as windows
from tilewright.autotune.extract import tasks_of
from tilewright.autotune.features import FEATURES, Features
from tilewright.autotune.space import Decisions, Space, schedule_key
from tilewright.autotune.task import Task, task_of
from tilewright.backends.target import Target
from tilewright.compiler.build import Options
from tilewright.compiler.schedule.default import default_schedule
from tilewright.compiler.schedule.source import Wanted
from tilewright.ir import ops as _ops  # noqa: F401  (registers every op)
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.expr import Buffer
from tilewright.ir.interpreter import run_program
from tilewright.ir.op import OPS
from tilewright.ir.program import Program
from tilewright.ir.types import F32, TensorType


def _convolution() -> Task:
    """The op's own first sample as a program."""
    op = OPS["conv_winograd"]
    sample = next(iter(op.samples()))
    types = [None if a is None else TensorType(F32, a.shape) for a in sample.inputs]
    inputs = [None if t is None else Buffer(f"x{k}", F32, t.shape) for k, t in enumerate(types)]
    computes = op.compute(sample.attrs, op.infer(sample.attrs, *types), *inputs)
    assert computes
    p = Program("convolution", tuple(b for b in inputs if b is not None), (computes[-1].buffer,), computes)
    return task_of(Wanted(p, frozenset({"x2"})), Target.host(), 1)


def _attention() -> GraphBuilder:
    b = GraphBuilder("attention")
    q, k, v = (b.input(n, TensorType(F32, s)) for n, s in (("q", (1, 2, 40, 16)), ("k", (1, 2, 16, 40)), ("v", (1, 2, 40, 16))))
    b.op("matmul", b.op("softmax", b.op("matmul", q, k), axis=3), v)
    return b


@cache
def task(sketch: str) -> Task:
    if sketch == "strips":
        return _convolution()
    if sketch == "windows":
        return task_of(Wanted(windows(), frozenset({"w"})), Target.host(), 1)
    if sketch == "product_rows":
        return task_of(Wanted(product_norm(300, 40, 70), frozenset({"w"})), Target.host(), 2)
    b = _attention()
    return tasks_of(b.graph(b.nodes[-1].outputs), Options(Target.host(), 1))[0]


@pytest.mark.parametrize("sketch", ["strips", "attention", "windows", "product_rows"])
def test_points_are_right(sketch: str) -> None:
    t = task(sketch)
    space = Space(t)
    assert space.sketches[0].name == sketch
    assert schedule_key(space.scheduled(space.default())) == schedule_key(default_schedule(t.program, t.target, t.packable))
    rng = random.Random(0)
    points = list(dict.fromkeys([space.default(), *(space.sample(rng) for _ in range(4))]))
    inputs = random_inputs(t.program)
    want = run_program(t.program, inputs)
    for d in points:
        assert space.from_json(space.to_json(d)) == d
        got = run_native(space.scheduled(d), t.target, inputs)
        for k, w in want.items():
            np.testing.assert_allclose(got[k], w, rtol=1e-3, atol=1e-4 * float(np.abs(w).max()), err_msg=str(d))
    assert not np.isinf(Features(space, t)(points)).any()


def test_blocks_of_attention_are_seen() -> None:
    """More vectors of queries in a block: fewer blocks, each of them larger, and never more lanes used than there are."""
    t = task("attention")
    space = Space(t)
    knob, = space["attention"].knobs
    x = Features(space, t)([Decisions("attention", (n,)) for n in knob.options])
    seen = {name: x[:, FEATURES.index(name)] for name in ("vectors", "tile_bytes", "parallel", "lane_use")}
    assert len(knob.options) > 1
    assert (np.diff(seen["vectors"]) > 0).all() and (np.diff(seen["tile_bytes"]) > 0).all() and (np.diff(seen["parallel"]) <= 0).all()
    assert ((seen["lane_use"] > 0) & (seen["lane_use"] <= 1)).all()

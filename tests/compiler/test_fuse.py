"""What joins what, and why."""
from __future__ import annotations

import numpy as np
import pytest

import tilewright.ir.ops  # noqa: F401
from tilewright.compiler.fuse import Partition, fuse
from tilewright.compiler.passes.dce import dce
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.kinds import describe
from tilewright.ir.types import F32, TensorType


def labels(g: Graph) -> list[str]:
    return [f"{p.kind}: {p.label}" for p in fuse(dce(g)).groups]


def start(*shape: int) -> tuple[GraphBuilder, Value]:
    b = GraphBuilder("g")
    return b, b.input("x", TensorType(F32, shape))


def weight(b: GraphBuilder, *shape: int) -> Value:
    return b.weight("w", np.ones(shape, np.float32))


def conv(b: GraphBuilder, x: Value, out: int = 4, k: int = 1) -> Value:
    return b.op("conv", x, weight(b, out, x.type.shape[1], k, k), None, strides=(1, 1), pads=(k // 2,) * 4, dilations=(1, 1), groups=1)


def test_epilogue_takes_bias_residual_and_activation() -> None:
    b, x = start(8, 16)
    y = b.op("relu", b.op("add", b.op("add", b.op("matmul", x, weight(b, 16, 16)), weight(b, 16)), x))
    p = fuse(b.graph([y]))
    assert str(p) == """group 0  contraction matmul+add+add+relu -> %v.3: f32[8,16]
    add (%v.1) joins matmul: it reads each element where it is made
    add (%v.2) joins matmul: it reads each element where it is made
    relu (%v.3) joins matmul: it reads each element where it is made"""
    (group,) = p.groups
    assert group.anchor.op == "matmul" and [v.name for v in group.inputs] == ["x", "w", "w.1"]


def test_epilogue_takes_branches_that_meet_again() -> None:
    b, x = start(1, 4, 5, 5)
    y = conv(b, x)
    swish = b.op("mul", y, b.op("hard_sigmoid", b.op("add", y, weight(b, 4, 1, 1))))
    assert labels(b.graph([b.op("max_pool", swish, kernel=(2, 2), strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), sizes=(4, 4))])) == [
        "contraction: conv+add+hard_sigmoid+mul", "reduce: max_pool"]


def test_a_result_that_others_read_ends_the_epilogue() -> None:
    b, x = start(8, 16)
    y = b.op("matmul", x, weight(b, 16, 16))
    assert labels(b.graph([b.op("relu", y), b.op("matmul", y, weight(b, 16, 2))])) == [
        "contraction: matmul", "map: relu", "contraction: matmul"]
    z = b.op("relu", y)
    assert labels(b.graph([y, b.op("tanh", z)])) == ["contraction: matmul", "map: relu+tanh"]


def test_the_later_of_two_contractions_takes_their_sum() -> None:
    b, x = start(1, 4, 5, 5)
    assert labels(b.graph([b.op("relu", b.op("add", conv(b, x), conv(b, b.op("relu", conv(b, x)))))])) == [
        "contraction: conv", "contraction: conv+relu", "contraction: conv+add+relu"]


def test_a_broadcast_result_is_no_epilogue() -> None:
    b, x = start(1, 16)
    wide = b.input("wide", TensorType(F32, (8, 16)))
    assert labels(b.graph([b.op("add", b.op("matmul", x, weight(b, 16, 16)), wide)])) == ["contraction: matmul", "map: add"]


def test_layer_norm_in_pieces_is_one_group() -> None:
    b, x = start(6, 32)
    d = b.op("sub", x, b.op("reduce", x, kind="mean", axes=(1,), keepdims=1))
    v = b.op("reduce", b.op("mul", d, d), kind="mean", axes=(1,), keepdims=1)
    y = b.op("div", d, b.op("sqrt", b.op("add", v, b.constant(np.float32(1e-5)))))
    assert labels(b.graph([y])) == ["reduce: reduce+sub+mul+reduce+add+sqrt+div"]


def test_residual_sum_is_stored_while_its_rows_are_normalised() -> None:
    b, x = start(6, 32)
    s = b.op("add", x, b.input("y", TensorType(F32, (6, 32))))
    n = b.op("layer_norm", s, axes=(1,))
    (group,) = fuse(b.graph([b.op("tanh", n), s])).groups
    assert group.label == "add+layer_norm+tanh" and len(group.outputs) == 2


def test_scaled_and_masked_softmax_is_one_group() -> None:
    b, x = start(2, 6, 6)
    s = b.op("softmax", b.op("add", b.op("mul", x, b.constant(np.float32(0.5))), b.input("mask", TensorType(F32, (6, 6)))), axis=2)
    assert labels(b.graph([s])) == ["reduce: mul+add+softmax"]


def test_softmax_over_the_first_axis_stays_alone() -> None:
    b, x = start(6, 6)
    assert labels(b.graph([b.op("softmax", b.op("exp", x), axis=0)])) == ["map: exp", "reduce: softmax"]


def test_reductions_over_blocked_layouts() -> None:
    b, x = start(1, 4, 7, 7, 16)
    y = b.op("relu", b.op("reduce", b.op("abs", x), kind="mean", axes=(2, 3), keepdims=1))
    assert labels(b.graph([y])) == ["reduce: abs+reduce+relu"]


def test_maps_over_one_domain_are_one_group_with_several_results() -> None:
    b, x = start(8, 8)
    e = b.op("exp", x)
    (group,) = fuse(b.graph([b.op("add", e, x), b.op("mul", e, x), e])).groups
    assert [v.name for v in group.outputs] == ["v", "v.1", "v.2"]


def test_expensive_maps_are_not_repeated_for_a_larger_domain() -> None:
    b, x = start(8)
    big = b.input("big", TensorType(F32, (64, 8)))
    assert labels(b.graph([b.op("mul", big, b.op("exp", x))])) == ["map: exp", "map: mul"]
    assert labels(b.graph([b.op("mul", big, b.op("neg", x))])) == ["map: neg+mul"]


def test_no_group_is_left_and_entered_again() -> None:
    b, x = start(8, 8)
    a = b.op("exp", x)
    m = b.op("matmul", a, weight(b, 8, 8))
    p = fuse(b.graph([b.op("add", a, b.op("softmax", m, axis=1))]))
    assert_in_order(p)
    assert [g.label for g in p.groups][:2] == ["exp", "matmul"]


def test_movements_are_read_through() -> None:
    b, x = start(8, 6)
    y = b.op("relu", b.op("slice", b.op("tanh", x), starts=(2, 0), steps=(1, 1), sizes=(4, 6)))
    assert labels(b.graph([y])) == ["map: tanh+slice+relu"]
    z = b.op("relu", b.op("transpose", x, perm=(1, 0)))
    assert labels(b.graph([z])) == ["layout: transpose", "map: relu"]


def assert_in_order(p: Partition) -> None:
    made = {v.name for g in p.groups for v in g.outputs}
    seen: set[str] = set()
    for g in p.groups:
        assert all(v.name in seen or v.name not in made for v in g.inputs)
        seen |= {v.name for v in g.outputs}


@pytest.mark.parametrize("op, attrs, shapes, expected", [
    ("relu", {}, [(4,)], "map"), ("gather", {"axis": 0}, [(4, 3), (2,)], "map"), ("transpose", {"perm": (1, 0)}, [(4, 3)], "layout"),
    ("concat", {"axis": 0}, [(4, 3), (2, 3)], "layout"), ("pad", {"before": (1,), "after": (0,)}, [(4,)], "layout"),
    ("softmax", {"axis": 1}, [(4, 3)], "reduce"), ("reduce", {"kind": "sum", "axes": (0,)}, [(4, 3)], "reduce"),
    ("matmul", {}, [(4, 3), (3, 5)], "contraction"), ("topk", {"axis": 0, "k": 1}, [(4,)], "irregular"),
    ("reduce", {"kind": "sum_square", "axes": (0,)}, [(4, 3)], "reduce"),
    ("conv", {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "groups": 3}, [(1, 3, 5, 5), (3, 1, 3, 3)], "contraction"),
])
def test_kinds_follow_from_the_computation(op: str, attrs: dict[str, object], shapes: list[tuple[int, ...]], expected: str) -> None:
    from tilewright.ir.types import I64
    b = GraphBuilder("k")
    ins = [b.input(f"x{k}", TensorType(I64 if op == "gather" and k else F32, s)) for k, s in enumerate(shapes)]
    b.op(op, *ins, **attrs)
    assert describe(b.nodes[-1], {}).kind == expected

"""Where values are placed."""
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright.ir.ops  # noqa: F401
from tilewright.compiler.fuse import fuse
from tilewright.compiler.views import Placement, Views, compose, plan_views, uncompose
from tilewright.compiler.views import _move_of as move_of
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.types import F32, TensorType, contiguous_strides


def plan(g: Graph, parameters: int = 0) -> tuple[Views, list[str]]:
    p = fuse(g)
    v = plan_views(g, p, parameters)
    return v, [f"{x.label}: {r.kind}" for x, r in zip(p.groups, v.roles, strict=True)]


def start(*shape: int) -> tuple[GraphBuilder, Value]:
    b = GraphBuilder("g")
    return b, b.input("x", TensorType(F32, shape))


def matmul(b: GraphBuilder, x: Value, n: int) -> Value:
    return b.op("matmul", x, b.weight("w", np.ones((x.type.shape[-1], n), np.float32)))


def test_source_views_of_one_projection() -> None:
    b, x = start(1, 5, 8)
    y = matmul(b, x, 24)
    part = b.op("slice", y, starts=(0, 0, 8), steps=(1, 1, 1), sizes=(1, 5, 8))
    q = b.op("transpose", b.op("reshape", part, shape=(1, 5, 2, 4)), perm=(0, 2, 1, 3))
    v, roles = plan(b.graph([matmul(b, q, 3)]))
    assert roles == ["matmul: kernel", "slice: view", "reshape: view", "transpose: view", "matmul: kernel"]
    assert v.placements[q.name] == Placement(y.name, 8, (8, 4, 24, 1))  # a stride of an extent of 1 is as in contiguous memory


def test_an_operand_with_a_strided_last_dimension_is_copied() -> None:
    b, x = start(1, 2, 5, 4)
    y = b.op("tanh", x)
    _, roles = plan(b.graph([b.op("matmul", y, b.op("transpose", y, perm=(0, 1, 3, 2)))]))
    assert roles == ["tanh: kernel", "transpose: kernel", "matmul: kernel"]


def test_heads_are_written_where_their_concatenation_is() -> None:
    b, x = start(1, 2, 5, 4)
    y = matmul(b, x, 4)
    out = b.op("reshape", b.op("transpose", y, perm=(0, 2, 1, 3)), shape=(1, 5, 8))
    v, roles = plan(b.graph([out]))
    assert roles == ["matmul: kernel", "transpose: view", "reshape: view"]
    assert v.placements[y.name] == Placement("out0", 0, (8, 4, 8, 1)) and v.storages["out0"].kind == "output"


def test_concat_writes_each_value_once() -> None:
    b, x = start(1, 4, 3, 3)
    y = b.op("max_pool", x, kernel=(1, 1), strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), sizes=(3, 3))
    out = b.op("concat", y, y, x, axis=1)
    p = fuse(b.graph([out]))
    v = plan_views(b.graph([out]), p)
    assert v.roles[-1].parts == (1, 2)
    assert v.placements[y.name] == Placement("out0", 0, (36, 9, 3, 1))


def test_nested_concats_share_the_last_storage() -> None:
    b, x = start(1, 2, 4)
    a, c, d = (matmul(b, x, 4) for _ in range(3))
    first = b.op("concat", a, c, axis=1)
    second = b.op("concat", b.op("softmax", first, axis=2), first, d, axis=1)
    v, roles = plan(b.graph([second]))
    assert {v.placements[k.name].storage for k in (a, c, d, first)} == {"out0"} and "concat: parts" not in roles
    assert [v.placements[k.name].offset for k in (first, a, c, d)] == [16, 16, 24, 32]


def test_padding_encloses_its_input() -> None:
    b, x = start(1, 3, 4, 4)
    y = b.op("relu", x)
    z = b.op("pad", y, before=(0, 0, 1, 2), after=(0, 0, 1, 2))
    v, roles = plan(b.graph([b.op("softmax", z, axis=3)]))
    assert roles == ["relu: kernel", "pad: border", "softmax: kernel"]
    assert v.placements[y.name] == Placement(z.name, 10, (144, 48, 8, 1))


def test_outputs_own_their_memory() -> None:
    b, x = start(4, 6)
    y = b.op("relu", x)
    z = b.op("reshape", y, shape=(24,))
    v, _ = plan(b.graph([y, z, y, x]))
    assert {k: s.kind for k, s in v.storages.items()} == {"x": "input", **{f"out{k}": "output" for k in range(4)}}
    assert [(c.name, k) for c, k in v.copies] == [(y.name, 2), ("x", 3)]


def test_parameters_count_as_weights() -> None:
    b, x = start(2, 3)
    w = b.input("w", TensorType(F32, (3, 2)))
    v, _ = plan(b.graph([b.op("matmul", x, w)]), parameters=1)
    assert (v.storages["w"].kind, v.storages["w"].index) == ("weight", 0) and v.storages["x"].kind == "input"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_uncompose_inverts_compose(data: st.DataObject) -> None:
    """Wherever a move can be undone, reading the source there gives the result where it was wanted."""
    b, x = start(*(data.draw(st.sampled_from([1, 2, 3, 4])) for _ in range(data.draw(st.integers(1, 4)))))
    if data.draw(st.booleans()):
        y = b.op("transpose", x, perm=tuple(data.draw(st.permutations(range(x.type.rank)))))
    else:
        dims = list(x.type.shape)
        k = data.draw(st.integers(0, len(dims) - 1))
        dims[k:k + 2] = [int(np.prod(dims[k:k + 2]))]
        y = b.op("reshape", x, shape=tuple(dims))
    move = move_of(b.nodes[-1])
    assert move is not None
    outer = tuple(n + data.draw(st.integers(0, 2)) for n in y.type.shape)
    want = Placement("s", data.draw(st.integers(0, 5)), contiguous_strides(outer))
    back = uncompose(move, want)
    if back is not None:
        got = compose(move, back)
        assert got is not None and got.offset == want.offset
        assert all(a == c or n == 1 for a, c, n in zip(got.strides, want.strides, y.type.shape, strict=True))
    else:
        assert compose(move, Placement("s", 0, contiguous_strides(x.type.shape))) is not None or outer != y.type.shape

"""What an imported graph looks like: names, constants, functions, control flow, sequences."""
from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.frontends.models import agrees, model, run
from tilewright.compiler.frontends import load
from tilewright.errors import ModelError, TilewrightError
from tilewright.ir.graph import Graph

X = np.array([[1, -2, 3], [4, 5, -6]], "f4")


def graph(m: onnx.ModelProto) -> Graph:
    return load(m).import_graph({}).graph


def test_names_are_kept() -> None:
    m = model("g (float[2,3] x) => (float[2,3] out) <float[3] w = {1, 2, 3}> { h = Add(x, w) out = Abs(h) }")
    g = graph(m)
    assert [v.name for v in g.inputs] == ["x"]
    assert [v.name for n in g.nodes for v in n.outputs] == ["h", "out"]
    assert [n.source for n in g.nodes] == ["Add 'h'", "Abs 'out'"]
    assert list(g.constants) == ["w"]


def test_weights_and_literals() -> None:
    inits = {"f": np.ones(2, "f4"), "one": np.ones(1, "f4"), "scalar": np.array(2, "f4"),
             "shape": np.array([2, 3], "i8"), "table": np.arange(65)[::-1], "positions": np.arange(65)}
    nodes = [helper.make_node("Identity", [k], [f"y_{k}"]) for k in inits]
    outs = [helper.make_tensor_value_info(f"y_{k}", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for k, a in inits.items()]
    m = helper.make_model(helper.make_graph(nodes, "g", [], outs, [numpy_helper.from_array(a, k) for k, a in inits.items()]),
                          opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    s = load(m).import_graph({})
    assert set(s.weights) == {"f", "table"}
    assert {k: c.updatable for k, c in s.graph.constants.items()} == {k: k in ("f", "table") for k in inits}
    for got, want in zip(run(m), inits.values(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_initializer_that_is_also_an_input() -> None:
    m = model("g (float[2,3] x, float[3] w) => (float[2,3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }", ir_version=3)
    assert [i.name for i in load(m).inputs] == ["x"]
    assert [i.name for i in m.graph.input] == ["x", "w"]
    np.testing.assert_array_equal(run(m, X)[0], X + [1, 2, 3])


def test_optional_inputs_that_are_absent() -> None:
    m = model("g (float[2,3] x) => (float[2,3] y) <float hi = {2.0}> { y = Clip(x, , hi) }")
    agrees(m, X)


def test_tiles_of_single_elements_are_broadcasts() -> None:
    m = model("g (float[1,3] x) => (float[4,3] y) <int64[2] reps = {4, 1}> { y = Tile(x, reps) }")
    assert [n.op for n in graph(m).nodes] == ["expand"]
    agrees(m, X[:1])
    agrees(model("g (float[2,3] x) => (float[4,3] y) <int64[2] reps = {2, 1}> { y = Tile(x, reps) }"), X)
    agrees(model("g (float[1,3] x) => (float[0,3] y) <int64[2] reps = {0, 1}> { y = Tile(x, reps) }"), X[:1])


def test_outputs_that_are_inputs_constants_and_duplicates() -> None:
    m = helper.make_model(helper.make_graph(
        [helper.make_node("Abs", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["z"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("x", "w", "y", "z")],
        [numpy_helper.from_array(X * 2, "w")]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    got = run(m, X)
    for a, b in zip(got, (X, X * 2, abs(X), abs(X)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_ways_to_store_a_tensor() -> None:
    tensors = [helper.make_tensor(str(t), t, [3], [1, 0, 1]) for t in (
        TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
        TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT32, TensorProto.UINT64, TensorProto.BFLOAT16)]
    tensors += [numpy_helper.from_array(numpy_helper.to_array(t), f"raw{t.name}") for t in tensors]
    m = helper.make_model(helper.make_graph(
        [], "g", [], [helper.make_tensor_value_info(t.name, t.data_type, [3]) for t in tensors], tensors),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for got, t in zip(run(m), tensors, strict=True):
        assert isinstance(got, np.ndarray)
        want = numpy_helper.to_array(t)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got.astype("f8"), want.astype("f8"))


def test_negative_values_in_typed_data() -> None:
    t = helper.make_tensor("w", TensorProto.INT8, [2], [-1, -128])
    m = helper.make_model(helper.make_graph([], "g", [], [helper.make_tensor_value_info("w", TensorProto.INT8, [2])], [t]),
                          opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    np.testing.assert_array_equal(run(m)[0], np.array([-1, -128], "i1"))


@pytest.mark.parametrize("coordinates", [False, True])
def test_sparse_initializer(coordinates: bool) -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [7, 8])
    indices = helper.make_tensor("i", TensorProto.INT64, *(([2, 2], [0, 1, 1, 2]) if coordinates else ([2], [1, 5])))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy")
    g = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y],
                          sparse_initializer=[helper.make_sparse_tensor(values, indices, [2, 3])])
    m = helper.make_model(g, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    np.testing.assert_array_equal(run(m, X)[0], X + np.array([[0, 7, 0], [0, 0, 8]], "f4"))


def test_model_functions() -> None:
    m = model("g (float[2,3] x) => (float[2,3] y, float[2,3] z) { y, a = f.Outer<k = 3.0>(x) z = f.Inner(x) }", imports=', "f" : 1',
              functions="""
        <domain: "f", opset_import: ["" : 18, "f" : 1]> Outer <k> (a) => (b, c) { c = f.Inner<k: float = @k>(a) b = Abs(c) }
        <domain: "f", opset_import: ["" : 18]> Inner <k: float = 2.0> (a) => (b) {
            c = Constant<value_float: float = @k>() b = Mul(a, c) }""")
    y, z = run(m, X)
    np.testing.assert_array_equal(y, abs(X * 3))
    np.testing.assert_array_equal(z, X * 2)


def test_function_with_a_subgraph_and_missing_arguments() -> None:
    m = model("g (float[2,3] x, bool c) => (float[2,3] y) { y = f.F(x, c) }", imports=', "f" : 1', functions="""
        <domain: "f", opset_import: ["" : 18]> F (a, c, top) => (b) { lo = Constant<value_float = -1.0>()
            b = If (c) <then_branch = t () => (q) { q = Clip(a, lo, top) }, else_branch = e () => (r) { r = Neg(a) }> }""")
    np.testing.assert_array_equal(run(m, X, np.array(True))[0], np.maximum(X, -1))
    np.testing.assert_array_equal(run(m, X, np.array(False))[0], -X)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_loop_captures_and_scans(n: int) -> None:
    m = model(f"""g (float[2,3] x) => (float[2,3] y, float[k,3] rows, float[k,2,3] all) <int64 n = {{{n}}}> {{
        h = Abs(x)
        y, rows, all = Loop(n, , x) <body = b (int64 i, bool c, float[2,3] a) => (bool d, float[2,3] e, float[3] f, float[2,3] g2) {{
            d = Identity(c) e = Add(a, h) zero = Constant<value_int = 0>() f = Gather(e, zero) g2 = Identity(h) }}> }}""")
    agrees(m, X)


def test_iterations_share_their_weights() -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["e"]), helper.make_node("Identity", ["c"], ["d"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("e", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(np.eye(3, dtype="f4") * 2, "w")])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy")
    m = helper.make_model(helper.make_graph([helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)], "g", [x], [y],
                                            [numpy_helper.from_array(np.array(3), "n")]),
                          opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    s = load(m).import_graph({})
    assert [n.op for n in s.graph.nodes] == ["matmul"] * 3
    assert len(s.weights) == len([c for c in s.graph.constants.values() if c.updatable]) == 1
    agrees(m, X)


def test_scan() -> None:
    m = model("""g (float[2] s, float[4,2] x) => (float[2] last, float[4,2] sums, float[2,4] back) {
        last, sums, back = Scan(s, x) <num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [0, 1],
            scan_output_directions = [0, 1], body = b (float[2] acc, float[2] row) => (float[2] out, float[2] copy, float[2] copy2) {
                out = Add(acc, row) copy = Identity(out) copy2 = Neg(out) }> }""")
    agrees(m, np.ones(2, "f4"), np.arange(8, dtype="f4").reshape(4, 2))


def test_sequences() -> None:
    m = model("""g (float[2,3] x) => (float[n,3] y, int64 n, float[2,2,3] s) {
        zero = Constant<value_int = 0>() a = Abs(x) b = Neg(x)
        s0 = SequenceConstruct(x, a) s1 = SequenceInsert(s0, b, zero) s2 = SequenceErase(s1) n = SequenceLength(s2)
        y = ConcatFromSequence<axis = 0>(s2) s = ConcatFromSequence<axis = 0, new_axis = 1>(s2) }""")
    agrees(m, X)


def test_sequences_at_the_border() -> None:
    m = model("g (seq(float[N]) s, float[2] x) => (seq(float[N]) t) { t = SequenceInsert(s, x) }")
    (t,) = run(m, [np.ones(3, "f4"), np.zeros(1, "f4")], np.array([5, 6], "f4"))
    assert isinstance(t, list)
    for got, want in zip(t, ([1, 1, 1], [0], [5, 6]), strict=True):
        np.testing.assert_array_equal(got, want)
    assert run(m, [], np.ones(2, "f4"))[0] is not None


def test_sequence_where_a_tensor_belongs() -> None:
    with pytest.raises(ModelError, match=r"SequenceLength 'y'.*not a sequence"):
        run(model("g (float[2,3] x) => (int64 y) { y = SequenceLength(x) }"), X)
    with pytest.raises(TilewrightError, match=r"Abs 'y'.*is a sequence"):
        run(model("g (float[2,3] x) => (float[2,3] y) { s = SequenceConstruct(x) y = Abs(s) }"), X)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, tilewright, tilewright.compiler.frontends; assert not {'onnx', 'torch'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})

"""Values and shapes that only a call decides: static inputs, cuts, host steps."""
from __future__ import annotations

import numpy as np
import pytest

from tests.frontends.models import agrees, model, run, segments
from tilewright.compiler.frontends import NeedsValue, load
from tilewright.compiler.frontends.driver import specialise
from tilewright.errors import ModelError
from tilewright.ir.types import F32, TensorType

X = np.arange(12, dtype="f4").reshape(3, 4) - 5


def i64(*v: int) -> np.ndarray:
    return np.array(v, "i8")


def test_symbolic_dimensions() -> None:
    m = model("g (float[N,4] x) => (float[N,2,2] y) <int64[3] s = {0, 2, 2}> { y = Reshape(x, s) }")
    source = load(m)
    assert [repr(s) for s in source.inputs] == ["x: float32[N,4]"]
    for n in (1, 3, 7):
        s = source.import_graph({"x": (n, 4)})
        assert s.graph.outputs[0].type == TensorType(F32, (n, 2, 2))
    agrees(m, X)


def test_shape_arithmetic_folds() -> None:
    m = model("""g (float[N,M] x) => (float[P] y) {
        s = Shape(x) k = Constant<value_ints = [0]>() n = Gather(s, k) j = Constant<value_ints = [1]>() q = Gather(s, j)
        p = Mul(n, q) y = Reshape(x, p) }""")
    s = load(m).import_graph({"x": (3, 4)})
    assert [n.op for n in s.graph.nodes] == ["reshape"]
    agrees(m, X)


def test_input_that_decides_a_shape_becomes_static() -> None:
    m = model("g (float[3,4] x, int64[n] s) => (float[a,b] y) { y = Reshape(x, s) }")
    source = load(m)
    with pytest.raises(NeedsValue, match=r"Reshape 'y' needs the value of input s") as e:
        source.import_graph({"s": (2,)})
    assert e.value.names == {"s"}
    special, segment = specialise(source, {"x": X, "s": i64(4, 3)})
    assert special.static_inputs == {"s"}
    assert source.static_inputs == frozenset()
    assert segment.inputs == (("x",),)
    assert segment.next is None
    for s in ((4, 3), (2, 6), (12, 1), (-1, 2)):
        agrees(m, X, i64(*s))


def test_small_integer_inputs_behind_arithmetic_become_static() -> None:
    m = model("""g (float[3,4] x, int64 n) => (float[a,b] y) {
        one = Constant<value_ints = [-1]>() n1 = Add(n, one) y = Reshape(x, s) s = Concat<axis = 0>(n1, one) }""")
    assert segments(m, X, np.array(3, "i8")) == 1
    np.testing.assert_array_equal(run(m, X, np.array(3, "i8"))[0], X.reshape(2, 6))


def test_value_computed_from_data_cuts_the_model() -> None:
    m = model("""g (float[3,4] x, float[2] f) => (float[a,b] y, float[3,4] z) <float[1] w = {2.0}, float[4] big = {1, 2, 3, 4}> {
        z0 = Mul(x, w) z = Add(z0, big) s = Cast<to = 7>(f) y0 = Reshape(z, s) y = Abs(y0) }""")
    assert segments(m, X, np.array([4, 3], "f4")) == 2
    agrees(m, X, np.array([4, 3], "f4"))
    agrees(m, X, np.array([2, 6], "f4"))
    source = load(m)
    _, first = specialise(source, {"x": X, "f": np.array([4, 3], "f4")})
    assert first.next is not None
    assert first.next.step is None
    assert len(first.next.source.static_inputs) == 1
    assert first.results == ()
    assert first.weights == {"big": "big"}


def test_nonzero_runs_on_the_host() -> None:
    m = model("g (float[3,4] x) => (int64[2,n] y, float[m] v) { a = Relu(x) y = NonZero(a) t = Transpose(y) v = GatherND(x, t) }")
    assert segments(m, X) == 2
    agrees(m, X)
    agrees(m, np.zeros((3, 4), "f4"))
    agrees(m, np.ones((3, 4), "f4"))


def test_nonzero_of_constants_is_folded() -> None:
    m = model("g (float[3] x) => (float[n] y) <int64[3] c = {1, 0, 2}> { i = NonZero(c) j = Squeeze(i) y = Gather(x, j) }")
    assert segments(m, np.ones(3, "f4")) == 1


def test_several_cuts() -> None:
    m = model("""g (float[3,4] x, bool[3] c) => (float[n,4] y, float[k] u, float[3,4] z) {
        z = Neg(x) a = Compress<axis = 0>(z, c) y = Abs(a) u = Unique(y) }""")
    assert segments(m, X, np.array([True, False, True])) == 3
    agrees(m, X, np.array([True, False, True]))


def test_static_value_inside_an_importer() -> None:
    """Range takes three scalars that are computed from data: three questions of one node, answered one after the other."""
    m = model("""g (float x, float y) => (float[n] z) { a = Abs(x) b = Add(y, y) c = Constant<value_float = 0.5>() z = Range(a, b, c) }""")
    agrees(m, np.array(-1, "f4"), np.array(3, "f4"))


def test_run_time_condition() -> None:
    m = model("""g (float[3,4] x) => (float[3,4] y) {
        s = ReduceSum<keepdims = 0>(x) zero = Constant<value_float = 0.0>() c = Greater(s, zero)
        y = If (c) <then_branch = t () => (float[3,4] a) { a = Neg(x) }, else_branch = e () => (float[3,4] b) { b = Exp(x) }> }""")
    assert segments(m, X) == 2
    agrees(m, X)
    agrees(m, X + 10)


def test_condition_from_an_input() -> None:
    m = model("""g (float[2] x, bool c) => (float[n] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Neg(x) },
                    else_branch = e () => (float[4] b) { b = Concat<axis=0>(x, x) }> }""")
    for c in (True, False):
        assert segments(m, X[0, :2], np.array(c)) == 1
        agrees(m, X[0, :2], np.array(c))


def test_while_loop() -> None:
    m = model("""g (float[2] x) => (float[2] y, float[k,2] steps) {
        true = Constant<value = bool {1}>()
        y, steps = Loop(, true, x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e, float[2] f) {
            two = Constant<value_float = 2.0>() e = Mul(a, two) f = Identity(e) m = ReduceMax<keepdims = 0>(e)
            limit = Constant<value_float = 20.0>() d = Less(m, limit) }> }""")
    agrees(m, np.array([1, 3], "f4"))
    agrees(m, np.array([1, 100], "f4"))


def test_trip_count_from_an_input() -> None:
    m = model("""g (float[2] x, int64 n) => (float[2] y) {
        y = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e) {
            d = Identity(c) k = Cast<to = 1>(i) e = Add(a, k) }> }""")
    for n in (0, 1, 4):
        agrees(m, np.array([1, 3], "f4"), np.array(n, "i8"))


def test_weight_that_decides_a_shape_is_no_longer_updatable() -> None:
    m = model("g (float[3,4] x) => (float[n,m] y) <float[2] w = {4.0, 3.0}> { s = Cast<to = 7>(w) y = Reshape(x, s) }")
    s = load(m).import_graph({})
    assert s.weights == {}
    assert s.next is None
    assert s.graph.outputs[0].type.shape == (4, 3)


def test_bad_static_values() -> None:
    m = model("g (float[3,4] x, int64[n] s) => (float[a,b] y) { y = Reshape(x, s) }")
    with pytest.raises(ModelError, match=r"Reshape 'y'"):
        run(m, X, i64(5, 5))


def test_segments_keep_sequences_alive() -> None:
    m = model("""g (float[3,4] x) => (float[n,4] y) {
        s = SplitToSequence<axis = 0>(x) i = NonZero(x) one = Constant<value_int = 1>() e = SequenceAt(s, one)
        t = SequenceConstruct(e, e) y = ConcatFromSequence<axis = 0>(t) }""")
    np.testing.assert_array_equal(run(m, X)[0], X[[1, 1]])


def test_cuts_inside_a_function_inside_a_branch_inside_a_loop() -> None:
    m = model("""g (float[3,4] x, bool c) => (float[2] total) {
        n = Constant<value_int = 3>() z = Constant<value_floats = [0.0, 0.0]>()
        total = Loop(n, , z) <body = b (int64 i, bool cc, float[2] acc) => (bool d, float[2] acc2) {
            d = Identity(cc)
            k = If (c) <then_branch = t () => (float k1) { k1 = f.Count(x) },
                        else_branch = e () => (float k2) { k2 = ReduceMax<keepdims = 0>(x) }>
            fi = Cast<to = 1>(i) s = Add(k, fi) w = Constant<value_floats = [1.0, 2.0]>() sv = Mul(s, w) acc2 = Add(acc, sv) }> }""",
              imports=', "f" : 1', functions="""
        <domain: "f", opset_import: ["" : 18]> Count (a) => (k) {
            nz = NonZero(a) s = Shape(nz) one = Constant<value_int = 1>() c = Gather(s, one) k = Cast<to = 1>(c) }""")
    assert segments(m, X, np.array(True)) == 4
    assert segments(m, X, np.array(False)) == 1
    agrees(m, X, np.array(True))
    agrees(m, X, np.array(False))

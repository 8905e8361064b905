"""Models of several segments behind the executable: each segment is compiled once for each set of types and values."""
from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest

from tests.frontends.models import model, run
from tilewright.compiler.compile import compile
from tilewright.compiler.load import load
from tilewright.errors import InputError, ModelError

X = np.arange(12, dtype="f4").reshape(3, 4) - 5


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", "")


def check(m: onnx.ModelProto, *calls: tuple[np.ndarray, ...]) -> int:
    """How many segments were compiled for the calls, each made twice."""
    exe = compile(m)
    for c in (*calls, *calls):
        got = exe(*c)
        for g, w in zip(got if isinstance(got, tuple) else (got,), run(m, *c), strict=True):
            np.testing.assert_allclose(cast(np.ndarray, g), cast(np.ndarray, w), rtol=1e-6)
    return len(exe.instances())


def test_symbolic_dimension() -> None:
    m = model("g (float[N,4] x) => (float[N,2,2] y) <int64[3] s = {0, 2, 2}> { y = Reshape(x, s) }")
    assert check(m, (X,), (X[:2],), (X[:0],)) == 3


def test_static_input() -> None:
    m = model("g (float[3,4] x, int64[n] s) => (float[a,b] y) { y = Reshape(x, s) }")
    assert check(m, (X, np.array([4, 3])), (X, np.array([2, 6])), (X, np.array([4, 3]))) == 2


def test_value_computed_from_data() -> None:
    m = model("""g (float[3,4] x, float[2] f) => (float[a,b] y, float[3,4] z) <float[4] big = {1, 2, 3, 4}> {
        z = Add(x, big) s = Cast<to = 7>(f) y0 = Reshape(z, s) y = Abs(y0) }""")
    assert check(m, (X, np.array([4, 3], "f4")), (X + 1, np.array([2, 6], "f4")), (X, np.array([2, 6], "f4"))) == 3


def test_host_step() -> None:
    m = model("g (float[3,4] x) => (int64[2,n] y, float[m] v) { a = Relu(x) y = NonZero(a) t = Transpose(y) v = GatherND(x, t) }")
    assert check(m, (X,), (X + 1,), (np.zeros((3, 4), "f4"),)) == 4


def test_while_loop() -> None:
    m = model("""g (float[1] x) => (float[1] y) {
        true = Constant<value = bool {1}>()
        y = Loop(, true, x) <body = b (int64 i, bool c, float[1] a) => (bool d, float[1] e) {
            one = Constant<value_float = 1.0>() e = Add(a, one) m = ReduceMax<keepdims = 0>(e)
            limit = Constant<value_float = 30.0>() d = Less(m, limit) }> }""")
    exe = compile(m)
    assert exe(np.zeros(1, "f4")) == np.array([30], "f4")


def test_weights_of_segments_compiled_before_and_after() -> None:
    m = model("""g (float[3,4] x) => (float[n] v) <float[4] a = {1, 1, 1, 1}, float[4] b = {1, 2, 3, 4}> {
        h = Add(x, a) y = NonZero(h) w = Mul(h, b) t = Transpose(y) v = GatherND(w, t) }""")
    exe = compile(m)
    new = np.array([1, 0, 2, 0], "f4")

    def want(x: np.ndarray) -> np.ndarray:
        h = x + np.float32(1)
        return (h * new)[np.nonzero(h)]
    exe(X)
    exe.update_weights({"b": new})
    count = len(exe.instances())
    np.testing.assert_array_equal(cast(np.ndarray, exe(X)), want(X))
    assert len(exe.instances()) == count
    zeros = -np.ones((3, 4), "f4")
    zeros[0, 0] = 3
    np.testing.assert_array_equal(cast(np.ndarray, exe(zeros)), want(zeros))
    assert len(exe.instances()) == count + 1
    with pytest.raises(InputError, match=r"no weight 'c'"):
        exe.update_weights({"c": new})


def test_saved_with_symbolic_shapes(tmp_path: Path) -> None:
    m = model("g (float[N,4] x) => (float[N,2,2] y) <int64[3] s = {0, 2, 2}> { y = Reshape(x, s) }")
    compile(m).save(tmp_path / "m.twx")
    exe = load(tmp_path / "m.twx")
    assert [repr(s) for s in exe.inputs] == ["x: float32[N,4]"]
    np.testing.assert_array_equal(cast(np.ndarray, exe(X)), X.reshape(3, 2, 2))
    with zipfile.ZipFile(tmp_path / "bad.twx", "w") as z:
        z.writestr("manifest.json", json.dumps({"format": 2, "kind": "model", "options": {"threads": "x"}}))
        z.writestr("model.bin", m.SerializeToString())
    with pytest.raises(ModelError, match=r"damaged"):
        load(tmp_path / "bad.twx")


def test_weights_of_a_saved_model(tmp_path: Path) -> None:
    m = model("g (float[2,4] x) => (float[2,3] y) <float[4,3] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}> { h = MatMul(x, w) y = Relu(h) }")
    compile(m).save(tmp_path / "m.twx")
    exe = load(tmp_path / "m.twx")
    w = np.arange(12, dtype="f4").reshape(4, 3)
    np.testing.assert_allclose(cast(np.ndarray, exe(X[:2])), np.maximum(X[:2] @ w, 0), rtol=1e-6)
    exe.update_weights({"w": -w})
    np.testing.assert_allclose(cast(np.ndarray, exe(X[:2])), np.maximum(X[:2] @ -w, 0), rtol=1e-6)

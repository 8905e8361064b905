"""Damaged, unsafe and unusual models: one clear error each, before anything is allocated or executed."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.frontends.models import model, run
from tilewright.compiler.frontends import load
from tilewright.compiler.frontends.onnx.wire import split_weights
from tilewright.errors import InputError, ModelError, TilewrightError, UnsupportedError

ABS = "g (float[2] x) => (float[2] y) { y = Abs(x) }"
X = np.array([1, -2], "f4")


def with_weight(w: np.ndarray | TensorProto) -> onnx.ModelProto:
    t = w if isinstance(w, TensorProto) else numpy_helper.from_array(w, "w")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [t]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def external(**entries: str) -> onnx.ModelProto:
    t = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for k, v in entries.items():
        t.external_data.add(key=k, value=v)
    return with_weight(t)


def test_path_bytes_and_proto_agree(tmp_path: Path) -> None:
    m = with_weight(np.arange(5000, dtype="f4"))
    path = tmp_path / "m.onnx"
    path.write_bytes(m.SerializeToString())
    x = np.ones(5000, "f4")
    for form in (m, m.SerializeToString(), str(path)):
        (y,) = run(form, x)
        np.testing.assert_array_equal(y, np.arange(5000, dtype="f4") + 1)
    assert run(str(path), x)[0] is not None
    assert load(path).name == "g"


def test_large_weights_are_views_of_the_file() -> None:
    data = with_weight(np.arange(5000, dtype="f4")).SerializeToString()
    split = split_weights(data)
    assert split is not None
    skeleton, weights = split
    assert len(skeleton) < 300
    assert weights[0].obj is data
    assert weights[0].nbytes == 20000


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x00" * 100, b"\x08\x07", b"{\"json\": 1}", os.urandom(1000)])
def test_not_a_model(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"is not an ONNX model"):
        load(data)


def test_every_truncation_is_refused() -> None:
    data = with_weight(np.arange(2000, dtype="f4")).SerializeToString()
    for end in [*range(0, 200, 7), *range(200, len(data), 977), len(data) - 1]:
        with pytest.raises(TilewrightError):
            run(data[:end], np.ones(2000, "f4"))


def test_every_flipped_byte_is_refused_or_harmless() -> None:
    data = bytearray(with_weight(np.arange(4, dtype="f4")).SerializeToString())
    for k in range(len(data)):
        for bit in (0, 3, 7):
            damaged = bytes([*data[:k], data[k] ^ 1 << bit, *data[k + 1:]])
            try:
                source = load(damaged)
                source.import_graph({i.name: (4,) for i in source.inputs})
            except TilewrightError:
                pass


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read model .*No such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"cannot read model .*[Dd]irectory"):
        load(tmp_path)


def test_wrong_kind_of_object() -> None:
    with pytest.raises(ModelError, match=r"cannot compile an object of type builtins.dict"):
        load({})


def test_newer_than_onnx() -> None:
    m = model(ABS)
    m.opset_import[0].version = 99
    with pytest.raises(UnsupportedError, match=r"opset 99.*install a newer onnx"):
        load(m)
    m = model(ABS)
    m.ir_version = 99
    with pytest.raises(UnsupportedError, match=r"IR version 99"):
        load(m)


def test_old_opsets() -> None:
    np.testing.assert_array_equal(run(model(ABS, opset=7, ir_version=3), X)[0], abs(X))
    np.testing.assert_array_equal(run(model("g (float[2] x) => (float[2] y) { y = Identity(x) }", opset=1, ir_version=3), X)[0], X)
    with pytest.raises(UnsupportedError, match=r"too old.*version_converter"):
        run(model("g (float[2] x) => (float[2] y) { y = Add(x, x) }", opset=6, ir_version=3), X)


@pytest.mark.parametrize(("entries", "reason"), [
    ({"location": "/etc/passwd"}, "relative path inside"),
    ({"location": "../w.bin"}, "relative path inside"),
    ({"location": "a/../../w.bin"}, "relative path inside"),
    ({"location": "link.bin"}, "link out of the model's folder"),
    ({"location": "up/w.bin"}, "link out of the model's folder"),
    ({"location": "none.bin"}, "cannot be opened: No such file"),
    ({"location": "folder"}, "is not a file"),
    ({"location": "loop"}, "cannot be opened"),
    ({}, "does not say where"),
    ({"location": "w.bin", "offset": "8"}, "needs bytes 8 to 24 .* only 16"),
    ({"location": "w.bin", "offset": "99999999999999999"}, "has only 16"),
    ({"location": "w.bin", "offset": "-4"}, "not a number"),
    ({"location": "w.bin", "length": "12"}, "needs 16 bytes, .* have 12"),
])
def test_external_data_is_refused(tmp_path: Path, entries: dict[str, str], reason: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype="f4").tobytes())
    (folder / "w.bin").write_bytes(np.arange(4, dtype="f4").tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "folder").mkdir()
    path = folder / "m.onnx"
    path.write_bytes(external(**entries).SerializeToString())
    with pytest.raises(ModelError, match=reason):
        run(str(path), np.ones(4, "f4"))


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"12345678" + np.arange(4, dtype="f4").tobytes())
    path = tmp_path / "m.onnx"
    m = external(location="sub/w.bin", offset="8", length="16")
    path.write_bytes(m.SerializeToString())
    np.testing.assert_array_equal(run(str(path), np.ones(4, "f4"))[0], [1, 2, 3, 4])
    with pytest.raises(ModelError, match=r"pass the model's path"):
        run(m, np.ones(4, "f4"))


@pytest.mark.parametrize(("dims", "raw", "reason"), [
    ([1 << 40, 1 << 10], b"1234", "GiB; the model is damaged"),
    ([1 << 62, 1 << 62], b"", "GiB; the model is damaged"),
    ([-4], b"1" * 16, "impossible shape"),
    ([4], b"1" * 15, "needs 16 bytes, but has 15"),
    ([1 << 30], b"1" * 16, "needs 4294967296 bytes, but has 16"),
])
def test_absurd_initializers(dims: list[int], raw: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        run(with_weight(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=raw)), np.ones(4, "f4"))


def test_short_typed_data() -> None:
    with pytest.raises(ModelError, match=r"needs 4 values, but float_data has 2"):
        run(with_weight(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], float_data=[1, 2])), np.ones(4, "f4"))


def test_absurd_sizes_are_not_allocated() -> None:
    with pytest.raises(ModelError, match=r"GiB"):
        load(model("g (float[1000000,1000000,1000] x) => (float[1] y) { y = ReduceSum(x) }"))
    m = model("""g (float[2] x) => (float[n] y) <int64[3] s = {1000000, 1000000, 1000}> { y0 = ConstantOfShape(s)
              y = Add(y0, x) }""")
    with pytest.raises(ModelError, match=r"ConstantOfShape.*GiB"):
        run(m, X)


@pytest.mark.parametrize(("graph", "reason"), [
    ("g (float[2] x) => (float[2] y) { a = Add(x, b) b = Abs(c) c = Neg(a) y = Abs(x) }", "cycle through (Add|Abs|Neg)"),
    ("g (float[2] x) => (float[2] y) { y = Add(x, y) }", "cycle through Add"),
    ("g (float[2] x) => (float[2] y) { y = Abs(x) y = Neg(x) }", "'y' is defined twice"),
    ("g (float[2] x) => (float[2] x) { x = Abs(x) }", "'x' is defined twice"),
    ("g (float[2] x, float[2] x) => (float[2] y) { y = Abs(x) }", "defined twice"),
    ("g (float[2] x) => (float[2] y) { y = Abs(z) }", "reads 'z', which nothing defines"),
    ("g (float[2] x) => (float[2] z) { y = Abs(x) }", "output 'z' is not defined"),
    ("g (float[2] x) => () { y = Abs(x) }", "no outputs"),
    ("g (float[2] x) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }", "Add 'y'.*broadcast"),
    ("g (float[2] x) => (int64[2] y) { y = Abs(x) }", "declared as int64, but the model computes float32"),
    ("g (float[2] x) => (float[2,1] y) { y = Abs(x) }", r"declared with shape \[2, 1\]"),
    ("g (float[2] x) => (float[2] y) { y = Frobnicate(x) }", "Frobnicate 'y'.*no operator"),
    ("g (float[2] x) => (float[2] y) { y = com.acme.Abs(x) }", "does not import the operators of 'com.acme'"),
    ("g (float[2] x) => (float[2] y) { y = Conv(x) }", "Conv 'y'"),
    ("g (float[2] x) => (float[2] y) { y = Concat(x, x) }", "Concat 'y'"),
    ('g (float[2] x) => (float[2] y) { y = Concat<axis = "one">(x, x) }', "Concat 'y'"),
    ("g (float[2] x) => (float[2] y) { y = Transpose<perm = [0, 1]>(x) }", "Transpose 'y'"),
    ("g (string[2] x) => (string[2] y) { y = Identity(x) }", "element type STRING"),
    ("g (complex64[2] x) => (complex64[2] y) { y = Identity(x) }", "element type COMPLEX64"),
])
def test_broken_graphs(graph: str, reason: str) -> None:
    with pytest.raises((ModelError, UnsupportedError), match=reason) as e:
        run(model(graph), X, *[X] * (graph.count(" x,")))
    assert "\n" not in str(e.value)


def test_unknown_domain() -> None:
    m = model("g (float[2] x) => (float[2] y) { y = com.acme.Abs(x) }", imports=', "com.acme" : 1')
    with pytest.raises(UnsupportedError, match=r"com.acme.Abs 'y'.*unknown domain"):
        run(m, X)


def test_unsorted_nodes_are_sorted() -> None:
    m = model("g (float[2] x) => (float[2] y) { a = Abs(x) b = Neg(a) y = Add(a, b) }")
    nodes = list(m.graph.node)
    del m.graph.node[:]
    m.graph.node.extend(reversed(nodes))
    np.testing.assert_array_equal(run(m, X)[0], [0, 0])


def test_wrong_arguments() -> None:
    source = load(model("g (float[N,2] x, float[N] b) => (float[N,2] y) { y = Abs(x) }"))
    for types, reason in (
            ({"x": (3, 2)}, "shape of input 'b' is missing"),
            ({"x": (3, 2), "b": (4,)}, "dimension 'N' is 3 in input 'x' and 4 in input 'b'"),
            ({"x": (3, 3), "b": (3,)}, r"shape \[3, 3\], the model expects \['N', 2\]"),
            ({"x": (3,), "b": (3,)}, r"shape \[3\], the model expects"),
            ({"x": (3, 2), "b": (3,), "z": ()}, "no input 'z'")):
        with pytest.raises(InputError, match=reason):
            source.import_graph(types)


def test_function_that_calls_itself() -> None:
    m = model("g (float[2] x) => (float[2] y) { y = f.F(x) }", imports=', "f" : 1',
              functions='<domain: "f", opset_import: ["" : 18, "f" : 1]> F (a) => (b) { b = f.F(a) }')
    with pytest.raises(ModelError, match=r"nested more than 64 deep, or a function calls itself"):
        run(m, X)


def test_endless_loop_is_refused() -> None:
    m = model("""g (float[2] x) => (float[2] y) <int64 n = {1000000000}> {
        y = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e) { d = Identity(c) e = Neg(a) }> }""")
    import tilewright.compiler.frontends.onnx.importer as importer
    limit, importer.MAX_TASKS = importer.MAX_TASKS, 1000
    try:
        with pytest.raises(UnsupportedError, match=r"more than 1,000 nodes"):
            run(m, X)
    finally:
        importer.MAX_TASKS = limit

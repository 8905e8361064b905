"""`check` lists every unsupported node at once."""
from __future__ import annotations

import pytest

from tests.frontends.models import model
from tilewright.compiler.frontends import check
from tilewright.errors import ModelError


def test_a_good_model_has_no_findings() -> None:
    assert check(model("g (float[N,4] x) => (float[N,4] y) { h = Mish(x) y = Softmax(h) }")) == []
    assert check(model("g (float[N,4] x) => (seq(float[4]) y) { y = SplitToSequence(x) }").SerializeToString()) == []


def test_everything_is_listed_at_once() -> None:
    m = model("""g (float[2] x, bool c) => (float[2] y) {
        a = com.acme.Foo(x)
        b = If (c) <then_branch = t () => (float[2] p) { p = com.acme.Bar(x) }, else_branch = e () => (float[2] q) { q = Abs(x) }>
        d = f.F(a)
        h = Frobnicate(d)
        y = Add(b, h) }""", imports=', "com.acme" : 1, "f" : 1', functions="""
        <domain: "f", opset_import: ["" : 18, "com.acme" : 3]> F (a) => (b) { c = com.acme.Baz(a) b = Abs(c) }""")
    found = check(m)
    assert [(f.domain, f.op, f.name, f.opset, f.where) for f in found] == [
        ("com.acme", "Foo", "a", 1, ""), ("com.acme", "Bar", "p", 1, "If 'b'"), ("com.acme", "Baz", "c", 3, "function 'F'"),
        ("", "Frobnicate", "h", 18, "")]
    assert "unknown domain" in found[0].why
    assert "ModelProto.functions" in found[0].workaround
    assert str(found[1]).startswith("com.acme.Bar 'p' in If 'b' (opset 1): ")


def test_element_types() -> None:
    m = model("g (string[2] s, float8e4m3fn[2] f) => (float[2] y) { y = Cast<to = 1>(f) }")
    assert [(f.name, f.why) for f in check(m)] == [
        ("s", "its element type STRING is not supported"), ("f", "its element type FLOAT8E4M3FN is not supported")]


def test_old_opset() -> None:
    (f,) = check(model("g (float[2] x) => (float[2] y) { y = Add(x, x) }", opset=6, ir_version=3))
    assert "too old" in f.why
    assert "version_converter" in f.workaround


def test_not_a_model() -> None:
    with pytest.raises(ModelError, match=r"cannot check an object of type int"):
        check(3)
    with pytest.raises(ModelError, match=r"not an ONNX model"):
        check(b"nonsense")
    with pytest.raises(ModelError, match=r"cycle through Add"):
        check(model("g (float[2] x) => (float[2] y) { y = Add(x, y) }"))

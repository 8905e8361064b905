"""The graph's text form round-trips exactly; bad text is refused with its line."""
from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

import tilewright.ir.ops  # noqa: F401  (registers the operators)
from tilewright.errors import ModelError
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.op import OPS
from tilewright.ir.text import arrays_of, attrs_text, load_graph, parse_attrs, parse_graph, print_graph, save_graph
from tilewright.ir.types import BF16, DTYPES, F32, TensorType
from tilewright.ir.verify import verify


def example() -> Graph:
    b = GraphBuilder("a graph: with \"odd\" name")
    x = b.input("x:0/y-z", TensorType(F32, (4, 20)))
    w = b.weight("w", np.arange(80, dtype="f4").reshape(20, 4))
    special = b.weight("file", np.array([0.1, math.inf, -math.inf, math.nan, -0.0], "f4"))
    half = b.weight("half", np.arange(20).astype(ml_dtypes.bfloat16))
    b.source = 'Conv "a\\b"\n# é'
    y = b.op("relu", b.op("matmul", x, w))
    norm = b.op("layer_norm", y, None, None, axes=(1,), epsilon=1e-12)
    padded = b.op("pad", norm, before=(0, 1), after=(2, 0), mode="constant", value=-math.inf)
    cast = b.op("cast", b.op("mul", x, b.constant(2.0)), dtype=BF16)
    empty = b.constant(np.zeros((0, 3), np.int64))
    flag = b.constant(np.array(True))
    return verify(b.graph((padded, cast, special, half, empty, flag)))


def test_round_trip():
    g = example()
    back = parse_graph(print_graph(g), arrays_of(g))
    assert back == g
    assert print_graph(back) == print_graph(g)
    assert [n.source for n in back.nodes] == [n.source for n in g.nodes]
    assert set(arrays_of(g)) == {"w", "half"}


@pytest.mark.parametrize("shared", [False, True])
def test_files_round_trip(tmp_path, shared):
    g = example()
    save_graph(g, tmp_path / "000-import.twg", tmp_path / "weights.npz" if shared else None)
    assert load_graph(tmp_path / "000-import.twg") == g
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_value_of_small_constants_survives(dtype):
    rng = np.random.default_rng(0)
    if dtype.kind == "b":
        values = np.array([True, False])
    else:
        values = np.frombuffer(rng.bytes(12 * dtype.bytes), dtype.numpy)
        if dtype.is_float:
            values = np.where(np.isnan(values), np.asarray(1, dtype.numpy), values)
    b = GraphBuilder()
    g = b.graph((b.constant(values.copy()), b.constant(values[:1].reshape(()).copy())))
    back = parse_graph(print_graph(g))
    for name, c in g.constants.items():
        assert back.constants[name].array.tobytes() == c.array.tobytes()


@pytest.mark.parametrize("name", sorted(OPS))
def test_attributes_of_every_sample_round_trip(name):
    for s in OPS[name].samples():
        assert parse_attrs(name, attrs_text(s.attrs)) == s.attrs


GOOD = """graph @g(%x: f32[2]) -> f32[2] {
  const @c: f32[2] = [1.0, 2.0]
  %y = add(%x, @c) : f32[2]
  return %y
}"""


@pytest.mark.parametrize(("old", "new", "message"), [
    ("add(", "nonsense(", "line 3: unknown operator 'nonsense'"),
    ("add(%x", "add(%q", "line 3: 'q' is used before it is defined"),
    ("%y = add", "%x = add", "line 3: 'x' is defined twice"),
    ("= [1.0, 2.0]", "= [1.0]", "line 2: @c has 1 values for f32[2]"),
    (" = [1.0, 2.0]", "", "line 2: no array is given for the constant @c"),
    ("%x: f32[2]", "%x: f99[2]", "line 1: unknown element type 'f99'"),
    ("return %y\n}", "return %y\n", "line 4: the text ends too early"),
    ("-> f32[2]", "-> f32[3]", "its header says"),
    (" : f32[2]\n  return", " {axis=1} : f32[2]\n  return", "line 3: add: got an unexpected keyword argument 'axis'"),
    ("f32[2] = ", "f32[2.5] = ", "line 2"),
    ("graph", "grap$h", "line 1"),
])
def test_bad_text_is_refused_with_its_line(old, new, message):
    parse_graph(GOOD)
    with pytest.raises(ModelError, match=".*" + message.replace("(", r"\(").replace("[", r"\[").replace("]", r"\]")):
        parse_graph(GOOD.replace(old, new, 1))

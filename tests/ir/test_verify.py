"""The verifier names the first broken invariant and where it is."""
from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

import tilewright.ir.ops  # noqa: F401  (registers the operators)
from tilewright.errors import VerifyError
from tilewright.ir.graph import Attrs, Constant, Graph, Node, Value
from tilewright.ir.op import OPS
from tilewright.ir.types import F32, I64, TensorType
from tilewright.ir.verify import verify

T = TensorType(F32, (2,))
X, Y, Z, C = Value("x", T), Value("y", T), Value("z", T), Value("c", T)
ADD, RELU = OPS["add"].Attrs(), OPS["relu"].Attrs()
ONES = Constant(C, np.ones(2, "f4"))


def make(*nodes: Node, outputs: tuple[Value, ...] = (Y,), constants: dict[str, Constant] | None = None) -> Graph:
    return Graph("g", (X,), outputs, nodes, MappingProxyType(constants or {}))


def test_a_sound_graph_is_returned():
    g = make(Node("add", (X, C), ADD, (Y,)), constants={"c": ONES})
    assert verify(g) is g


@pytest.mark.parametrize(("g", "message"), [
    (make(Node("relu", (Z,), RELU, (Y,))), "%z: f32[2] is used by `%y = relu(%z) : f32[2]`, but is not defined before it"),
    (make(Node("relu", (Y,), RELU, (Z,)), Node("relu", (X,), RELU, (Y,))), "not defined before it"),
    (make(Node("relu", (X,), RELU, (X,))), "%x: f32[2] is defined twice"),
    (make(Node("relu", (X,), RELU, (Y,)), Node("relu", (X,), RELU, (Y,))), "%y: f32[2] is defined twice"),
    (make(Node("relu", (X,), RELU, (Value("y", TensorType(F32, (3,))),)), outputs=()), "should give f32[2]"),
    (make(Node("relu", (X,), RELU, (Y, Z))), "should give f32[2]"),
    (make(Node("relu", (Value("x", TensorType(I64, (2,))),), RELU, (Y,))), "but was defined as f32[2]"),
    (make(Node("mystery", (X,), Attrs(), (Y,))), "unknown operator 'mystery'"),
    (make(Node("relu", (X,), OPS["reduce"].Attrs(), (Y,))), "attributes of class ReduceAttrs"),
    (make(Node("matmul", (X, X), OPS["matmul"].Attrs(), (Y,))), "has inputs that do not fit"),
    (make(outputs=(Z,)), "%z: f32[2] is used by the graph's outputs"),
    (make(outputs=(C,), constants={"d": ONES}), "is filed under 'd'"),
    (make(outputs=(C,), constants={"c": Constant(C, np.ones(3, "f4"))}), "holds float32[3]"),
    (make(outputs=(C,), constants={"c": Constant(C, np.ones(4, "f4")[::2])}), "(not contiguous)"),
    (make(outputs=(C,), constants={"c": Constant(C, np.ones(2, "f8"))}), "holds float64[2]"),
])
def test_what_is_broken_is_named(g, message):
    with pytest.raises(VerifyError) as e:
        verify(g)
    assert message in str(e.value)

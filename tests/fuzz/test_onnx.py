"""Random ONNX models through the importer: native code means what the imported graph says, before any pass."""
from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tests.fuzz.test_native import inconvenient
from tests.machines import LONG
from tests.precision import bounds
from tilewright.compiler import frontends

BLOCKS, BLOCK = (25, 20) if LONG else (4, 10)
Shape = tuple[int, ...]


class Modeller:
    """A chain of ONNX nodes with side branches; every shape is known while it is drawn."""

    def __init__(self, seed: int) -> None:
        self.r, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.values: list[tuple[str, Shape]] = []

    def weight(self, a: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(a, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def normal(self, *shape: int) -> str:
        return self.weight((self.rng.standard_normal(shape) * 0.5).astype("f4"))

    def emit(self, op: str, ins: list[str], shape: Shape, **attrs: Any) -> None:
        self.nodes.append(helper.make_node(op, ins, [f"v{len(self.nodes)}"], **attrs))
        self.values.append((f"v{len(self.nodes) - 1}", shape))

    def step(self) -> None:
        x, s = self.values[-1] if self.r.random() < 0.7 else self.r.choice(self.values)
        n, rank = self.r.randrange(10), len(s)
        if n == 0:
            self.emit(self.r.choice(["Relu", "Tanh", "Sigmoid", "Erf", "Softplus", "HardSwish", "Abs", "Neg"]), [x], s)
        elif n == 1:
            self.emit(self.r.choice(["Add", "Mul", "Sub", "Max"]), [x, self.normal(*s[self.r.randint(0, rank):])], s)
        elif n == 2 and rank >= 2:
            k = self.r.choice([1, 3, 7, 16, 19])
            self.emit("MatMul", [x, self.normal(s[-1], k)], (*s[:-1], k))
        elif n == 3 and rank == 4:
            groups = self.r.choice([1, s[1]])
            o, k = groups * self.r.choice([1, 2, 16 if groups == 1 else 1]), self.r.choice([1, 3])
            stride = self.r.choice([1, 2])
            ins = [x, self.normal(o, s[1] // groups, k, k), *([self.normal(o)] if self.r.random() < 0.5 else [])]
            shape = (s[0], o, *((d - 1) // stride + 1 for d in s[2:]))
            self.emit("Conv", ins, shape, pads=[k // 2] * 4, strides=[stride] * 2, group=groups)
        elif n == 4:
            perm = self.r.sample(range(rank), rank)
            self.emit("Transpose", [x], tuple(s[p] for p in perm), perm=perm)
        elif n == 5:
            self.emit("Softmax", [x], s, axis=self.r.randrange(rank))
        elif n == 6:
            axis = self.r.randrange(rank)
            shape = tuple(1 if k == axis else d for k, d in enumerate(s))
            self.emit(self.r.choice(["ReduceMean", "ReduceMax", "ReduceSum"]), [x, self.weight(np.array([axis]))], shape, keepdims=1)
        elif n == 7:
            self.emit("LayerNormalization", [x, self.normal(s[-1]), self.normal(s[-1])], s, axis=-1)
        elif n == 8:
            axis = self.r.randrange(rank)
            same = [v for v, t in self.values if t[:axis] + t[axis + 1:] == s[:axis] + s[axis + 1:] and len(t) == rank]
            other = self.r.choice(same)
            size = dict(self.values)[other][axis]
            self.emit("Concat", [x, other], tuple(d + size if k == axis else d for k, d in enumerate(s)), axis=axis)
        else:
            shape = (s[0] * s[1], *s[2:]) if rank > 2 else (1, *s)
            self.emit("Reshape", [x, self.weight(np.array(shape))], shape)

    def model(self) -> onnx.ModelProto:
        shape = tuple(self.r.choice([1, 2, 3, 5, 8, 11]) for _ in range(self.r.choice([2, 3, 4, 4])))
        self.values.append(("x", shape))
        for _ in range(self.r.randint(2, 10)):
            self.step()
        results = dict([self.values[-1], self.r.choice(self.values[1:])])
        graph = helper.make_graph(
            self.nodes, "fuzz", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(v, TensorProto.FLOAT, s) for v, s in results.items()], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_onnx_models(block: int) -> None:
    for seed in range(block * BLOCK, block * BLOCK + BLOCK):
        maker = Modeller(seed)
        model = maker.model()
        onnx.checker.check_model(model)
        g = frontends.load(model).import_graph({}).graph
        x = np.random.default_rng(seed).standard_normal(maker.values[0][1]).astype("f4")
        wanted = bounds(g, {g.inputs[0].name: x})
        exe = tw.compile(model, cache=False)
        got, again = (y if isinstance(y, tuple) else (y,) for y in (exe(x), exe(inconvenient(x))))
        for v, r, r2 in zip(g.outputs, got, again, strict=True):
            wanted[v.name].check(np.asarray(r), f"seed {seed}: {v.name}")
            assert np.asarray(r).tobytes() == np.asarray(r2).tobytes()

"""Tasks and models for the tuner's tests: small, but with tails everywhere."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.compiler import programs
from tilewright.autotune.task import Task, task_of
from tilewright.backends.target import Target
from tilewright.compiler.schedule.source import Wanted
from tilewright.ir.expr import Buffer, Const, call
from tilewright.ir.program import Program, compute, reduce
from tilewright.ir.types import F32


def matmul(m: int = 17, k: int = 33, n: int = 19, names: tuple[str, str, str] = ("x", "w", "y")) -> Program:
    x, w = Buffer(names[0], F32, (m, k)), Buffer(names[1], F32, (k, n))
    y = compute(names[2], F32, (m, n), lambda i, j: call("max", reduce("sum", (k,), lambda r: x[i, r] * w[r, j]), Const(0.0, F32)))
    return Program("matmul", (x, w), (y.buffer,), (y,))


def softmax(rows: int = 13, columns: int = 29) -> Program:
    return programs.softmax(rows, columns)


def task(p: Program | None = None, threads: int = 1, packable: frozenset[str] = frozenset({"w"})) -> Task:
    p = p or matmul()
    return task_of(Wanted(p, packable & {b.name for b in p.inputs}, p.name, 1), Target.host(), threads)


def mlp(path: Path, seed: int = 0, prefix: str = "") -> Path:
    """An ONNX file: two dense layers, x: f32[9,40]. `prefix` renames everything in it, `seed` makes other weights."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((40, 48)).astype("f4"), rng.standard_normal((48, 21)).astype("f4")

    def n(name: str) -> str:
        return prefix + name
    ops = [("MatMul", "x a", "h"), ("Relu", "h", "r"), ("MatMul", "r b", "z"), ("Softmax", "z", "y")]
    nodes = [helper.make_node(op, [n(i) for i in ins.split()], [n(out)], n(f"make_{out}")) for op, ins, out in ops]
    graph = helper.make_graph(nodes, "mlp", [helper.make_tensor_value_info(n("x"), TensorProto.FLOAT, [9, 40])],
                              [helper.make_tensor_value_info(n("y"), TensorProto.FLOAT, None)],
                              [onnx.numpy_helper.from_array(v, n(k)) for k, v in (("a", a), ("b", b))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path

"""A small model made by hand, as the compiler would make it: y = (x + table[k]) * scale, with scale = 2 * w prepared."""
from __future__ import annotations

import numpy as np

from tests.backends.kernels import binary_f32, table_f32
from tilewright.backends.executable import Executable
from tilewright.backends.instance import Instance, Preparation
from tilewright.backends.llvm.entry import emit_entry
from tilewright.backends.llvm.jit import compile_ir
from tilewright.backends.plan import KernelCall, Plan, Slot
from tilewright.backends.target import Target
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.text import parse_graph
from tilewright.ir.types import F32, I64, TensorSpec, TensorType

TABLE = np.array([1.5, 2.5, 3.5, 4.5], np.float32)


def plan(n: int) -> Plan:
    t = TensorType(F32, (n,))
    a, b, out = Slot("arena", 0, 64), Slot("arena", 0, 64 + 4 * n), Slot("output")
    return Plan((("x", t), ("k", TensorType(I64, (n,)))), (("y", t),), (("scale", t),), 64 + 8 * n, (
        KernelCall("k_table", (Slot("input", 1), a), 1, Slot("arena"), "gather"),
        KernelCall("k_add", (Slot("input", 0), a, b), label="add"),
        KernelCall("k_mul", (b, Slot("weight"), out), label="mul")))


def texts(n: int) -> list[str]:
    return [table_f32("k_table", n), binary_f32("k_add", n), binary_f32("k_mul", n, "fmul")]


def preparation(n: int, w: np.ndarray | None = None) -> Preparation:
    graph = parse_graph(f"""
graph @prep(%w.1: f32[{n}]) -> f32[{n}] {{
  const @two: f32[1] = [2.0]
  %scale = mul(%w.1, @two) : f32[{n}]
  return %scale
}}""")
    return Preparation(graph, {"w.1": np.full(n, 1.5, np.float32) if w is None else w}, {"w": "w.1"}, frozenset({"shape"}))


def instance(n: int, target: Target | None = None) -> Instance:
    target = target or Target.host()
    code = [compile_ir(t, target) for t in (*texts(n), emit_entry(plan(n)))]
    return Instance(plan(n), code, target, preparation(n), ["a note"], lambda: texts(n))


def executable(n: int, target: Target | None = None) -> Executable:
    specs = [TensorSpec("x", (n,), np.dtype(np.float32)), TensorSpec("k", (n,), np.dtype(np.int64))]
    return Executable(specs, [TensorSpec("y", (n,), np.dtype(np.float32))], instance(n, target), target or Target.host(), "small")


def arguments(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n, dtype=np.float32) - 2, np.arange(n) % 4


def expected(x: np.ndarray, k: np.ndarray, w: float | np.ndarray = 1.5) -> np.ndarray:
    return ((x + TABLE[k]) * (np.float32(2) * np.asarray(w, np.float32))).astype(np.float32)


def top() -> Graph:
    """The 70 largest of 200, a kernel that numba lowers."""
    b = GraphBuilder("top")
    return b.graph(b.emit("topk", (b.input("x", TensorType(F32, (3, 200))),), axis=1, k=70, largest=True))

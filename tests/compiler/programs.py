"""Small tensor programs, and a way to run scheduled ones."""
from __future__ import annotations

import ctypes
import math
from dataclasses import replace

import llvmlite.binding as llvm
import numpy as np

from tilewright.backends.llvm.emit import emit_kernel, parallel_extent, workspace_bytes
from tilewright.backends.target import Target
from tilewright.ir.expr import Buffer, Expr, Var, call, select
from tilewright.ir.loops import Pack, Scheduled
from tilewright.ir.program import Program, compute, reduce
from tilewright.ir.types import F16, F32, F64, I32

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()


def matmul_relu(m: int = 7, k: int = 37, n: int = 45) -> Program:
    x, w, b = Buffer("x", F32, (m, k)), Buffer("w", F32, (k, n)), Buffer("b", F32, (n,))
    y = compute("y", F32, (m, n), lambda i, j: call("max", reduce("sum", (k,), lambda r: x[i, r] * w[r, j]) + b[j], 0.0))
    return Program("matmul_relu", (x, w, b), (y.buffer,), (y,))


def matmul_gelu(m: int = 23, k: int = 37, n: int = 90) -> Program:
    """Twenty-three rows and odd columns: ragged tiles, each with a long epilogue, and with a bias that moves with both axes."""
    x, w, b = Buffer("x", F32, (m, k)), Buffer("w", F32, (k, n)), Buffer("b", F32, (m, n))
    s = compute("s", F32, (m, n), lambda i, j: reduce("sum", (k,), lambda r: x[i, r] * w[r, j]))

    def gelu(t: Expr) -> Expr:
        return t * 0.5 * (call("erf", t * 0.5**0.5) + 1.0)
    return Program("matmul_gelu", (x, w, b), (s.buffer,), (replace(s, body=gelu(s.body) + b[Var(s.axes[0]), Var(s.axes[1])]),))


def product_norm(m: int = 61, k: int = 19, n: int = 45, both: bool = True) -> Program:
    """layer_norm(x w + b + r), as fusion leaves it. both: what is normalised is a result as well."""
    x, w, b, r, g = (Buffer(name, F32, s) for name, s in (("x", (m, k)), ("w", (k, n)), ("b", (n,)), ("r", (m, n)), ("g", (n,))))
    product = compute("t", F32, (m, n), lambda i, j: reduce("sum", (k,), lambda q: x[i, q] * w[q, j]))
    t = replace(product, body=product.body + b[Var(product.axes[1])] + r[Var(product.axes[0]), Var(product.axes[1])])
    total = compute("mean", F32, (m,), lambda i: reduce("sum", (n,), lambda q: t.buffer[i, q]))
    mean = replace(total, body=total.body * (1 / n))
    square = compute("inv", F32, (m,), lambda i: reduce(
        "sum", (n,), lambda q: (t.buffer[i, q] - mean.buffer[i]) * (t.buffer[i, q] - mean.buffer[i])))
    inv = replace(square, body=call("div", 1.0, call("sqrt", square.body * (1 / n) + 1e-5)))
    y = compute("y", F32, (m, n), lambda i, j: (t.buffer[i, j] - mean.buffer[i]) * inv.buffer[i] * g[j])
    return Program("product_norm", (x, w, b, r, g), (t.buffer, y.buffer) if both else (y.buffer,), (t, mean, inv, y))


def softmax(rows: int = 7, n: int = 37) -> Program:
    x = Buffer("x", F32, (rows, n))
    m = compute("m", F32, (rows,), lambda i: reduce("max", (n,), lambda k: x[i, k]))
    e = compute("e", F32, (rows, n), lambda i, j: call("exp", x[i, j] - m.buffer[i]))
    s = compute("s", F32, (rows,), lambda i: reduce("sum", (n,), lambda k: e.buffer[i, k]))
    y = compute("y", F32, (rows, n), lambda i, j: e.buffer[i, j] / s.buffer[i])
    return Program("softmax", (x,), (y.buffer,), (m, e, s, y))


def attention(heads: int = 2, queries: int = 21, keys: int = 13, size: int = 5, width: int = 19, causal: bool = False) -> Program:
    """softmax(q k' / 2 + mask) v, as fusion leaves it, queries and keys by rows of all heads."""
    q, k = Buffer("q", F32, (queries, heads, size)), Buffer("k", F32, (keys, heads, size))
    v = Buffer("v", F32, (heads, keys, width))
    mask = Buffer("mask", F32, (keys,))

    def score(h: Expr, i: Expr, j: Expr) -> Expr:
        x = reduce("sum", (size,), lambda r: q[i, h, r] * k[j, h, r]) * 0.5 + mask[j]
        return select(j <= i, x, -math.inf) if causal else x
    s = compute("s", F32, (heads, queries, keys), score)
    m = compute("m", F32, (heads, queries), lambda h, i: reduce("max", (keys,), lambda r: s.buffer[h, i, r]))
    e = compute("e", F32, (heads, queries, keys), lambda h, i, j: call("exp", s.buffer[h, i, j] - m.buffer[h, i]))
    t = compute("t", F32, (heads, queries), lambda h, i: 1.0 / reduce("sum", (keys,), lambda r: e.buffer[h, i, r]))
    y = compute("y", F32, (heads, queries, width),
                lambda h, i, j: reduce("sum", (keys,), lambda r: e.buffer[h, i, r] * t.buffer[h, i] * v[h, r, j]))
    return Program("attention", (q, k, mask, v), (y.buffer,), (s, m, e, t, y))


def convolution() -> Program:
    x, w = Buffer("x", F32, (5, 11, 9)), Buffer("w", F32, (13, 5, 3, 3))
    y = compute("y", F32, (13, 11, 9), lambda o, p, q: reduce("sum", (5, 3, 3), lambda c, r, t: x.at(
        (c, p + r - 1, q + t - 1), (p + r >= 1) & (p + r < 12) & (q + t >= 1) & (q + t < 10), 0.0) * w[o, c, r, t]))
    return Program("convolution", (x, w), (y.buffer,), (y,))


def transpose() -> Program:
    x = Buffer("x", F16, (7, 37))
    y = compute("y", F16, (37, 7), lambda i, j: call("tanh", x[j, i]) * 2.0)
    return Program("transpose", (x,), (y.buffer,), (y,))


def column_sums() -> Program:
    x = Buffer("x", I32, (6, 50))
    y = compute("y", I32, (50,), lambda j: reduce("sum", (6,), lambda k: x[k, j]))
    return Program("column_sums", (x,), (y.buffer,), (y,))


def total() -> Program:
    x = Buffer("x", F64, (7, 37))
    y = compute("y", F64, (), lambda: reduce("sum", (7, 37), lambda i, k: x[i, k]))
    return Program("total", (x,), (y.buffer,), (y,))


def shifted() -> Program:
    """y reads its neighbour's t: rows cannot be shared."""
    x = Buffer("x", F32, (9, 5))
    t = compute("t", F32, (9, 5), lambda i, j: call("exp", x[i, j]))
    y = compute("y", F32, (9, 5), lambda i, j: t.buffer[8 - i, j] + t.buffer[i, j])
    return Program("shifted", (x,), (y.buffer,), (t, y))


PROGRAMS = {"matmul_relu": (matmul_relu(), frozenset({"w"})), "softmax": (softmax(), frozenset()),
            "matmul_gelu": (matmul_gelu(), frozenset({"w"})),
            "product_norm": (product_norm(), frozenset({"w"})), "product_norm_alone": (product_norm(130, 40, 33, False), frozenset({"w"})),
            "one_row_norm": (product_norm(1, 20, 70), frozenset({"w"})),
            "attention": (attention(), frozenset()), "causal_attention": (attention(1, 70, 70, 8, 16, True), frozenset()),
            "convolution": (convolution(), frozenset({"w"})), "transpose": (transpose(), frozenset()),
            "column_sums": (column_sums(), frozenset()), "total": (total(), frozenset()), "shifted": (shifted(), frozenset()),
            "matvec": (matmul_relu(1, 100, 3), frozenset({"w"}))}


def random_inputs(p: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {b.name: (rng.standard_normal(b.shape) if b.dtype.is_float else rng.integers(-9, 9, b.shape)).astype(b.dtype.numpy)
            for b in p.inputs}


def packed(a: np.ndarray, pack: Pack) -> np.ndarray:
    a = np.pad(a, [(0, n - m) for n, m in zip(pack.padded, a.shape, strict=True)])
    return np.ascontiguousarray(a.reshape(pack.split).transpose(pack.perm).reshape(pack.shape))


def program_inputs(s: Scheduled, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs as the scheduled program names and lays them out."""
    by_name = {f"{p.buffer}_packed": packed(inputs[p.buffer], p) for p in s.packs} | inputs
    return {b.name: np.ascontiguousarray(by_name[b.name]) for b in s.program.inputs}


def run_native(s: Scheduled, target: Target, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the compiled kernel; the parallel range is run in two parts."""
    module = llvm.parse_assembly(emit_kernel(s, target, "kernel"))
    module.triple = target.triple
    module.verify()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(cpu=target.cpu, features=target.features, opt=1, reloc="pic")
    llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(1)).getModulePassManager().run(
        module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(1)))
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    outs = {b.name: np.full(b.shape, 77, b.dtype.numpy) for b in s.program.outputs}
    arrays = [*program_inputs(s, inputs).values(), *outs.values(), np.zeros(workspace_bytes(s) + 64, np.uint8)]
    flag = np.zeros(8, np.int64)
    f = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(arrays), ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(
        engine.get_function_address("kernel"))
    trips = parallel_extent(s)
    for begin, end in ((trips // 3, trips), (0, trips // 3)):
        if begin < end:
            f(*[a.ctypes.data for a in arrays], begin, end, flag.ctypes.data)
    return outs

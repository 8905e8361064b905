"""Small random graphs of the shapes that passes look for: chains, shared values, weights beside literals."""
from __future__ import annotations

import numpy as np

from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.ops.shape import reshape
from tilewright.ir.ops.slices import slice_axis
from tilewright.ir.types import F32, F64, TensorType

NICE = (0.0, 1.0, 2.0, 0.5, -1.0, 3.0)


def random_graph(seed: int, steps: int = 14) -> Graph:
    """A verified-by-construction graph of f32 values in a tame range, with one to three outputs."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder(f"random{seed}")
    pool = [b.input("x", TensorType(F32, (1, 4, 3, 3))), b.input("y", TensorType(F32, (2, 6)))]
    for _ in range(steps):
        x = pool[-1] if rng.random() < 0.5 else pool[rng.integers(len(pool))]
        pool.append(_step(b, rng, x, pool))
    count = int(rng.integers(1, 4))
    return b.graph(tuple(pool[-count:]))


def _constant(b: GraphBuilder, rng: np.random.Generator, shape: tuple[int, ...]) -> Value:
    """A weight or a literal, often of neutral values."""
    a = np.full(shape, rng.choice(NICE), "f4") if rng.random() < 0.5 else rng.uniform(0.5, 1.5, shape).astype("f4")
    return b.weight("w", a) if rng.random() < 0.5 else b.constant(a)


def _operand_shape(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `shape`: scalar, one dimension, or all of it."""
    kind = rng.integers(4)
    if kind == 0:
        return ()
    if kind == 1 and shape:
        keep = int(rng.integers(len(shape)))
        return tuple(n if k == keep else 1 for k, n in enumerate(shape))
    return shape[-1:] if kind == 2 else shape


def _step(b: GraphBuilder, rng: np.random.Generator, x: Value, pool: list[Value]) -> Value:
    shape, rank = x.type.shape, x.type.rank
    match rng.integers(12):
        case 0 | 1 | 2:
            op = str(rng.choice(["add", "sub", "mul", "max", "min"]))
            same = [v for v in pool if v.type == x.type]
            other = same[rng.integers(len(same))] if rng.random() < 0.3 else _constant(b, rng, _operand_shape(rng, shape))
            return b.op(op, x, other) if rng.random() < 0.7 else b.op(op, other, x)
        case 3:
            return b.op("div", x, b.constant(np.asarray(rng.choice([1.0, 2.0, 3.0, 8.0]), "f4")))
        case 4:
            return b.op(str(rng.choice(["relu", "neg", "abs", "sigmoid", "tanh"])), x)
        case 5 if rank:
            return b.op("transpose", x, perm=tuple(int(p) for p in rng.permutation(rank)))
        case 6:
            dims = [n for n in shape if n != 1] + [1] * int(rng.integers(2))
            return reshape(b, x, dims if rng.random() < 0.5 else [x.type.size])
        case 7 if rank:
            axis = int(rng.integers(rank))
            size = int(rng.integers(1, shape[axis] + 1))
            return slice_axis(b, x, axis, int(rng.integers(shape[axis] - size + 1)), size)
        case 8 if rank:
            axis = int(rng.integers(rank))
            return b.op("concat", x, slice_axis(b, x, axis, 0, 1), axis=axis)
        case 9 if rank >= 2:
            y = [b.op("matmul", x, b.weight("m", rng.uniform(-0.5, 0.5, (shape[-1], n)).astype("f4"))) for n in (4, 2)]
            return b.op("concat", *y, axis=rank - 1)
        case 10 if rank == 4:
            w = b.weight("k", rng.uniform(-0.3, 0.3, (16, shape[1], 1, 1)).astype("f4"))
            bias = b.weight("b", rng.uniform(-1, 1, 16).astype("f4")) if rng.random() < 0.5 else None
            return b.op("conv", x, w, bias, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), groups=1)
        case 11 if rank:
            mean = b.op("reduce", x, kind="mean", axes=(rank - 1,), keepdims=1)
            return b.op("sub", x, mean)
    return b.op("cast", b.op("cast", x, dtype=F64), dtype=F32)

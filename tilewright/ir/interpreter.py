"""Runs graphs and tensor programs with NumPy: the meaning that native code is tested against.

`run_graph` calls each op's reference. `run_program` evaluates the index notation itself, vectorised: every axis is an
`arange` along a dimension of its own, expressions broadcast, loads are gathers. Both also serve the compiler: the
preparation graph (everything derived from weights alone) is evaluated with `run_graph` at load.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from ..errors import InputError
from .expr import Axis, Call, Cast, Checked, Const, Expr, Load, Reduce, Rescue, Table, Var, children, identity, walk
from .functions import FUNCTIONS
from .graph import Graph
from .op import OPS
from .program import Compute, Program
from .types import DType

CHUNK_POINTS = 1 << 18  # points of the iteration space evaluated at once: temporaries of a few MB each
Ranges = dict[Axis, tuple[int, int]]


# -- graphs ----------------------------------------------------------------------------------------------------------
def run_graph(graph: Graph, inputs: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Output name -> array. `weights` overrides constants by name. Intermediates are freed after their last use; the
    results may share memory with inputs and constants. Raises InputError where an input is missing or of another type."""
    env: dict[str, np.ndarray] = {k: c.array for k, c in graph.constants.items()}
    env.update(weights or {})
    for v in graph.inputs:
        if v.name not in inputs:
            raise InputError(f"graph {graph.name}: input {v} is missing; given are {', '.join(inputs) or 'none'}")
        a = np.asarray(inputs[v.name])
        if a.shape != v.type.shape or a.dtype != v.type.dtype.numpy:
            raise InputError(f"graph {graph.name}: input {v} was given {a.dtype}{list(a.shape)}")
        env[v.name] = a
    keep = {v.name for v in graph.outputs}
    last = {v.name: k for k, n in enumerate(graph.nodes) for v in (*n.operands, *n.outputs)}
    for k, n in enumerate(graph.nodes):
        with np.errstate(all="ignore"):
            results = OPS[n.op].reference(n.attrs, *(None if v is None else env[v.name] for v in n.inputs))
        for v, r in zip(n.outputs, results, strict=True):
            a = np.asarray(r)
            assert a.shape == v.type.shape and a.dtype == v.type.dtype.numpy, f"{n.op}: reference gives {a.dtype}{a.shape}, not {v.type}"
            env[v.name] = a
        for v in (*n.operands, *n.outputs):
            if last[v.name] == k and v.name not in keep:
                env.pop(v.name, None)
    return {v.name: env[v.name] for v in graph.outputs}


# -- tensor programs -------------------------------------------------------------------------------------------------
def run_program(program: Program, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Output buffer name -> array, from arrays for the input buffers. Arrays are logical: a buffer's strides do not
    matter here. Raises InputError where an index computed from data is out of range."""
    env: dict[str, np.ndarray] = {}
    for b in program.inputs:
        a = np.asarray(inputs[b.name])
        assert a.shape == b.shape and a.dtype == b.dtype.numpy, f"{program.name}: {b.name} is {b.dtype}{b.shape}, given {a.dtype}{a.shape}"
        env[b.name] = a
    for c in program.computes:
        env[c.buffer.name] = run_compute(c, env)
    return {b.name: env[b.name] for b in program.outputs}


def run_compute(c: Compute, env: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array that `c` defines, given those it reads."""
    out = np.empty(c.buffer.shape, c.buffer.dtype.numpy)
    if out.size == 0:
        return out
    rare = tuple(dict.fromkeys(a for n in walk(c.body) if isinstance(n, Rescue) for a in n.axes))
    dims = {a: k for k, a in enumerate((*c.axes, *c.reduce_axes, *rare))}
    reduced = math.prod(a.extent for a in c.reduce_axes)
    with np.errstate(all="ignore"):
        for ranges in _blocks(c.axes, max(1, CHUNK_POINTS // max(reduced, 1))):
            block = _Block(dims, ranges, env)
            value = block.value(c.body)
            where = tuple(slice(*ranges[a]) for a in c.axes)
            shape = out[where].shape
            out[where] = np.broadcast_to(value, shape + (1,) * (len(dims) - len(shape))).reshape(shape)
    return out


def _blocks(axes: tuple[Axis, ...], limit: int) -> Iterator[Ranges]:
    """Covers the points of `axes` by boxes of about `limit` points at most, inner axes kept whole as long as possible."""
    sizes: list[int] = []
    for a in reversed(axes):
        sizes.append(max(1, min(a.extent, limit)))
        limit //= sizes[-1]
    steps = sizes[::-1]
    for starts in product(*(range(0, a.extent, s) for a, s in zip(axes, steps, strict=True))):
        yield {a: (b, min(b + s, a.extent)) for a, b, s in zip(axes, starts, steps, strict=True)}


class _Block:
    """Evaluates expressions over one box of iteration points. Every array has one dimension per axis (own axes, reduce axes,
    then those of rescues), of length 1 where the expression does not depend on it."""

    def __init__(self, dims: dict[Axis, int], ranges: Ranges, env: Mapping[str, np.ndarray]):
        self.dims = dims
        self.ranges = ranges
        self.env = env

    def value(self, e: Expr) -> np.ndarray:
        memo: dict[int, np.ndarray] = {}
        for n in _outside_reductions(e):
            memo[id(n)] = self._node(n, memo)
        return memo[id(e)]

    def _node(self, n: Expr, memo: dict[int, np.ndarray]) -> np.ndarray:
        rank = len(self.dims)
        match n:
            case Const(value, dtype):
                return np.full((1,) * rank, value, dtype.numpy)  # (a full array: its dtype is never promoted away)
            case Var(axis, dtype):
                lo, hi = self.ranges[axis]
                return np.arange(lo, hi, dtype=dtype.numpy).reshape([hi - lo if k == self.dims[axis] else 1 for k in range(rank)])
            case Load():
                return self._load(n, memo)
            case Call(fn, args, dtype):
                return _apply(fn, [memo[id(a)] for a in args], dtype)
            case Cast(arg, dtype):
                return convert(memo[id(arg)], dtype)
            case Checked(arg, extent, _):
                return _checked(memo[id(arg)], extent)
            case Table(values, index, dtype):
                return np.asarray(values, dtype.numpy)[memo[id(index)]]
            case Reduce():
                return self._reduce(n)
            case Rescue(value, _, _):
                return self._rescue(n, memo[id(value)])
        raise AssertionError(type(n))

    def _load(self, n: Load, memo: dict[int, np.ndarray]) -> np.ndarray:
        a = self.env[n.buffer.name]
        if n.where is None and (view := self._plain(n, a)) is not None:
            return view
        index = [memo[id(i)] for i in n.index]
        where = np.ones((1,) * len(self.dims), bool) if n.where is None else memo[id(n.where)]
        if n.other is not None:
            shape = np.broadcast_shapes(where.shape, *(i.shape for i in index))
            if a.size == 0 or not where.any():
                assert not where.any(), f"load from the empty buffer {n.buffer.name}"
                return np.broadcast_to(memo[id(n.other)], np.broadcast_shapes(shape, memo[id(n.other)].shape))
        for i, size in zip(index, a.shape, strict=True):
            bad = where & ((i < 0) | (i >= size))
            assert not bad.any(), f"load from {n.buffer.name}{list(a.shape)} out of range"
        if n.other is None:
            return a[tuple(index)] if index else np.broadcast_to(a, (1,) * len(self.dims))
        got = a[tuple(np.where(where, i, 0) for i in index)] if index else a
        return np.where(where, got, memo[id(n.other)])

    def _plain(self, n: Load, a: np.ndarray) -> np.ndarray | None:
        """A view instead of a gather, where every index is a constant or an axis of its own."""
        used: list[Axis] = []
        key: list[slice | int] = []
        for i, size in zip(n.index, a.shape, strict=True):
            if isinstance(i, Var) and i.axis.extent <= size and i.axis not in used:
                used.append(i.axis)
                key.append(slice(*self.ranges[i.axis]))
            elif isinstance(i, Const) and 0 <= int(i.value) < size:
                key.append(int(i.value))
            else:
                return None
        view = a[tuple(key)]
        order = sorted(range(len(used)), key=lambda k: self.dims[used[k]])
        shape = [1] * len(self.dims)
        for x in used:
            shape[self.dims[x]] = self.ranges[x][1] - self.ranges[x][0]
        return np.reshape(np.transpose(view, order), shape)

    def _reduce(self, n: Reduce) -> np.ndarray:
        """Over blocks of the reduction's domain; f32 sums are carried in f64, half floats rounded once at the end."""
        outer = math.prod(hi - lo for lo, hi in self.ranges.values())
        dims = tuple(self.dims[a] for a in n.axes)
        total: np.ndarray | None = None
        for ranges in _blocks(n.axes, max(1, CHUNK_POINTS // max(outer, 1))):
            body = _Block(self.dims, {**self.ranges, **ranges}, self.env).value(n.body)
            full = tuple(ranges[a][1] - ranges[a][0] if (a := _axis_at(n.axes, self.dims, k)) else s for k, s in enumerate(body.shape))
            part = _reduce_array(n.kind, np.broadcast_to(body, full), dims, n.dtype)
            total = part if total is None else _combine(n.kind, total, part)
        if total is None:
            return np.full((1,) * len(self.dims), identity(n.kind, n.dtype), n.dtype.numpy)
        return total.astype(n.dtype.numpy, copy=False)


    def _rescue(self, n: Rescue, value: np.ndarray) -> np.ndarray:
        """`value`, with the plain sum in the box that holds all its values that are not finite."""
        bad = ~np.isfinite(value)
        if not bad.any():
            return value
        full = np.broadcast_shapes(bad.shape, tuple(hi - lo for lo, hi in (self.ranges.get(a, (0, 1)) for a in self.dims)))
        value = np.broadcast_to(value, full).copy()  # the sum may differ where the value does not
        bad = np.broadcast_to(bad, full)
        box = [(int(i.min()), int(i.max()) + 1) for i in np.nonzero(bad)]
        ranges = {a: (lo + box[self.dims[a]][0], lo + box[self.dims[a]][1]) for a, (lo, _) in self.ranges.items()}
        plain = _Block(self.dims, ranges, self.env)._reduce(Reduce("sum", n.axes, n.body)).astype(value.dtype)
        where = tuple(slice(*b) for b in box)
        value[where] = np.where(bad[where], plain, value[where])
        return value


def _axis_at(axes: tuple[Axis, ...], dims: Mapping[Axis, int], k: int) -> Axis | None:
    return next((a for a in axes if dims[a] == k), None)


def _outside_reductions(e: Expr) -> Iterator[Expr]:
    """Children first, each node once; reductions and rescues evaluate their bodies themselves."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(e, False)]
    while stack:
        n, done = stack.pop()
        if done:
            yield n
        elif id(n) not in seen:
            seen.add(id(n))
            stack.append((n, True))
            if not isinstance(n, Reduce):
                stack.extend((c, False) for c in ((n.value,) if isinstance(n, Rescue) else children(n)))


def _apply(fn: str, args: list[np.ndarray], dtype: DType) -> np.ndarray:
    """One scalar function; half floats compute in f32 and round, as native code does."""
    if fn != "select" and args[0].dtype.itemsize == 2 and args[0].dtype.kind not in "iu":
        args = [a.astype(np.float32) for a in args]
    return np.asarray(FUNCTIONS[fn].numpy(*args)).astype(dtype.numpy, copy=False)


def convert(a: np.ndarray, dtype: DType) -> np.ndarray:
    """Value conversion as `Cast` defines it; floats that do not fit an integer type wrap through i64, as on x86."""
    if dtype.kind == "b":
        return np.not_equal(a, 0)
    if dtype.is_int and a.dtype.kind not in "iub":
        a = a.astype(np.int64)
    return a.astype(dtype.numpy, copy=False)


def _checked(i: np.ndarray, extent: int) -> np.ndarray:
    if ((i < -extent) | (i >= extent)).any():
        raise InputError(f"index {int(i[(i < -extent) | (i >= extent)].flat[0])} is out of range for a dimension of size {extent}")
    return np.where(i < 0, i + extent, i)


def _carry(dtype: DType) -> np.dtype:
    return np.dtype(np.float64) if dtype.is_float else dtype.numpy


def _reduce_array(kind: str, a: np.ndarray, dims: tuple[int, ...], dtype: DType) -> np.ndarray:
    match kind:
        case "sum":
            return np.sum(a, axis=dims, keepdims=True, dtype=_carry(dtype))
        case "prod":
            return np.prod(a, axis=dims, keepdims=True, dtype=_carry(dtype))
        case "max":
            return np.max(a, axis=dims, keepdims=True)
        case "min":
            return np.min(a, axis=dims, keepdims=True)
        case "any":
            return np.any(a, axis=dims, keepdims=True)
        case "all":
            return np.all(a, axis=dims, keepdims=True)
    raise AssertionError(f"unknown reduction {kind!r}")


def _combine(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    f = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum, "any": np.logical_or, "all": np.logical_and}[kind]
    return np.asarray(f(a, b))

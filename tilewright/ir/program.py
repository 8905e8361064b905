"""Tensor programs: a small DAG of computations over named buffers.

    program @matmul_relu(x: f32[8,64], w: f32[64,10]) -> (y: f32[8,10]) {
      y[i0,i1] = relu(sum(r0<64: x[i0,r0] * w[r0,i1]))
    }

A `Compute` defines every element of one buffer. Its body may hold `Reduce` nodes; all reductions of one body range
over the same axes. Programs hold no weights and no names of the model: equal text means equal code.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .expr import Axis, Buffer, Call, Cast, Checked, Const, Expr, Load, Reduce, Rescue, Table, Var, children, loads, reduces, walk, wrap


@dataclass(frozen=True, slots=True)
class Compute:
    """buffer[axes] = body, for every point of `axes` (one axis a dimension, in order)."""

    buffer: Buffer
    axes: tuple[Axis, ...]
    body: Expr

    @property
    def reduce_axes(self) -> tuple[Axis, ...]:
        found = reduces(self.body)
        return found[0].axes if found else ()

    @property
    def reads(self) -> tuple[Buffer, ...]:
        return tuple(dict.fromkeys(x.buffer for x in loads(self.body)))


@dataclass(frozen=True, slots=True)
class Program:
    """`computes` in order of evaluation; every buffer is an input or defined by exactly one compute before its use.
    Buffers that are neither inputs nor outputs are local to the program."""

    name: str
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    computes: tuple[Compute, ...]

    def __post_init__(self) -> None:
        known = {b.name: b for b in self.inputs}
        for c in self.computes:
            assert tuple(a.extent for a in c.axes) == c.buffer.shape, f"{self.name}: axes of {c.buffer.name}"
            for b in c.reads:
                assert known.get(b.name) == b, f"{self.name}: {c.buffer.name} reads {b.name} before it is defined"
            assert len({r.axes for r in reduces(c.body)}) <= 1, f"{self.name}: {c.buffer.name} reduces over two domains"
            assert c.buffer.name not in known, f"{self.name}: {c.buffer.name} defined twice"
            known[c.buffer.name] = c.buffer
        assert all(known.get(b.name) == b for b in self.outputs), f"{self.name}: an output is not defined"

    @property
    def locals(self) -> tuple[Buffer, ...]:
        return tuple(c.buffer for c in self.computes if c.buffer not in self.outputs)

    def __str__(self) -> str:
        return program_text(self)

    def key(self) -> str:
        """Stable hash of the program's canonical text (names replaced by position)."""
        return hashlib.sha256(program_text(self, canonical=True).encode()).hexdigest()[:20]


def compute(name: str, dtype, shape: Sequence[int], body: Callable[..., object]) -> Compute:  # noqa: ANN001
    """A Compute in index notation: `compute("y", F32, (8, 10), lambda i, j: x[i, 0] + b[j])`."""
    axes = tuple(Axis(f"i{k}", n) for k, n in enumerate(shape))
    return Compute(Buffer(name, dtype, tuple(shape)), axes, wrap(body(*map(Var, axes)), dtype))


def reduce(kind: str, extents: Sequence[int], body: Callable[..., Expr]) -> Reduce:
    """`reduce("sum", (64,), lambda k: x[i, k] * w[k, j])`; its axes are named r0, r1, …"""
    axes = tuple(Axis(f"r{k}", n) for k, n in enumerate(extents))
    return Reduce(kind, axes, body(*map(Var, axes)))


def rescue(value: Expr, extents: Sequence[int], body: Callable[..., Expr]) -> Rescue:
    """`rescue(y, (64,), lambda k: x[i, k] * w[k, j])`: y, or the plain sum where y is not finite; its axes are named z0, z1, …"""
    axes = tuple(Axis(f"z{k}", n) for k, n in enumerate(extents))
    return Rescue(value, axes, body(*map(Var, axes)))


INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "lt": "<", "le": "<=",
          "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "and": "&", "or": "|", "xor": "^"}


def expr_text(e: Expr, name: Callable[[str], str] = str) -> str:
    """One line of text; a sub-expression used more than once is written once as `let t = … in`."""
    uses: dict[int, int] = {}
    for n in walk(e):
        for c in children(n):
            uses[id(c)] = uses.get(id(c), 0) + 1
    text: dict[int, str] = {}
    lets: list[str] = []
    bound = {id(n) for r in walk(e) if isinstance(r, (Reduce, Rescue)) for n in walk(r.body)}
    for n in walk(e):
        t = _node_text(n, text, name)
        if uses.get(id(n), 0) > 1 and children(n) and id(n) not in bound:
            lets.append(f"let t{len(lets)} = {t} in ")
            t = f"t{len(lets) - 1}"
        text[id(n)] = t
    return "".join(lets) + text[id(e)]


def _node_text(n: Expr, text: dict[int, str], name: Callable[[str], str]) -> str:
    def t(x: Expr) -> str:
        return text[id(x)]
    match n:
        case Const(value, dtype):
            return str(value) if dtype.name in ("i64", "bool") else f"{value!r}:{dtype}"
        case Var(axis, _):
            return name(axis.name)
        case Load(buffer, index, where, other):
            guard = f" if {t(where)} else {t(other)}" if where is not None and other is not None else ""
            body = f"{name(buffer.name)}[{','.join(map(t, index))}]{guard}"
            return f"({body})" if guard else body
        case Call(fn, args, _) if fn in INFIX:
            return f"({t(args[0])} {INFIX[fn]} {t(args[1])})"
        case Call(fn, args, _):
            return f"{fn}({', '.join(map(t, args))})"
        case Cast(arg, dtype):
            return f"{dtype}({t(arg)})"
        case Checked(arg, extent, _):
            return f"checked({t(arg)}, {extent})"
        case Table(values, index, dtype):
            return f"{dtype}{{{','.join(map(repr, values))}}}[{t(index)}]"
        case Reduce(kind, axes, body):
            return f"{kind}({', '.join(f'{name(a.name)}<{a.extent}' for a in axes)}: {t(body)})"
        case Rescue(value, axes, body):
            return f"rescue({t(value)}, sum({', '.join(f'{name(a.name)}<{a.extent}' for a in axes)}: {t(body)}))"
    raise AssertionError(type(n))


def _buffer_text(b: Buffer, name: Callable[[str], str]) -> str:
    from .types import contiguous_strides
    strides = "" if b.strides == contiguous_strides(b.shape) else f"@{','.join(map(str, b.strides))}"
    return f"{name(b.name)}: {b.dtype}[{','.join(map(str, b.shape))}]{strides}"


def program_text(p: Program, canonical: bool = False) -> str:
    names: dict[str, str] = {}
    if canonical:
        for b in (*p.inputs, *(c.buffer for c in p.computes)):
            names[b.name] = f"b{len(names)}"

    def name(x: str) -> str:
        return names.get(x, x)
    ins = ", ".join(_buffer_text(b, name) for b in p.inputs)
    outs = ", ".join(_buffer_text(b, name) for b in p.outputs)
    lines = [f"program @{'p' if canonical else p.name}({ins}) -> ({outs}) {{"]
    for c in p.computes:
        local = "" if c.buffer in p.outputs else f"local {_buffer_text(c.buffer, name)}; "
        index = ",".join(f"{name(a.name)}<{a.extent}" for a in c.axes)
        lines.append(f"  {local}{name(c.buffer.name)}[{index}] = {expr_text(c.body, name)}")
    return "\n".join([*lines, "}"])

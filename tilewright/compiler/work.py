"""How much a tensor program does: what `profile` divides by the time.

    y[i,j] = relu(sum(k<64: x[i,k] * w[k,j]))   over i<8, j<10:  2*8*10*64 operations; x, w and y are 4*(512 + 640 + 80) bytes
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..ir.expr import COMPARISONS, PREDICATES, Buffer, Call, Expr, Load, Reduce, Rescue, children
from ..ir.program import Program

_FREE = COMPARISONS | PREDICATES | {"select", "and", "or", "xor", "not"}  # decisions, as is usual, do not count as arithmetic


@dataclass(frozen=True, slots=True)
class Work:
    """flops: arithmetic operations on values; a function such as exp counts one, a multiply-add two, index arithmetic nothing.
    bytes: what must be read and written at least if every element is touched once: inputs and outputs, not locals."""

    flops: int
    bytes: int


def work(p: Program) -> Work:
    """The work of one run of `p`. Padding counts as if it were data, as in the usual counts of convolutions."""
    flops = 0
    touched: dict[str, int] = {}
    outside = {b.name: b for b in p.inputs}
    for c in p.computes:
        points = math.prod(a.extent for a in c.axes)
        for node, times in _values(c.body, points):
            if isinstance(node, Reduce) or (isinstance(node, Call) and node.fn not in _FREE):
                inner = math.prod(a.extent for a in node.axes) if isinstance(node, Reduce) else 1
                flops += times * inner * (2 if isinstance(node, Call) and node.fn == "fma" else 1)
            elif isinstance(node, Load) and node.buffer.name in outside:
                touched[node.buffer.name] = touched.get(node.buffer.name, 0) + times
    read = sum(min(n, _elements(outside[name])) * outside[name].dtype.bytes for name, n in touched.items())
    return Work(flops, read + sum(_elements(b) * b.dtype.bytes for b in p.outputs))


def _elements(b: Buffer) -> int:
    """The number of different elements: a stride of 0 repeats one."""
    return math.prod(n for n, stride in zip(b.shape, b.strides, strict=True) if stride or n == 0)


def _values(e: Expr, times: int) -> Iterator[tuple[Expr, int]]:
    """Every distinct node that is computed as a value, and how often: conditions of loads are left out, and so is the
    arithmetic of their indices, but not the loads in it (indices that are data), and the plain sums of rescues."""
    stack, seen = [(e, times, True)], set()
    while stack:
        node, n, value = stack.pop()
        if (id(node), n) in seen:
            continue
        seen.add((id(node), n))
        if value or isinstance(node, Load):
            yield node, n
        if isinstance(node, Load):
            stack += [(i, n, False) for i in node.index]
            if node.other is not None:
                stack.append((node.other, n, value))
        else:
            inner = n * math.prod(a.extent for a in node.axes) if isinstance(node, Reduce) else n
            stack += [(c, inner, value) for c in ((node.value,) if isinstance(node, Rescue) else children(node))]

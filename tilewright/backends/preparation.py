"""How a plan's weights follow from the model's: a graph, evaluated with NumPy when code is loaded or weights change.

Weights are large, so each of the plan's is written once, straight into the memory it stays in (`weights.py`): reshapes and
transposes on the way are views, the padding of a packed layout is left out of the copy (pages of fresh memory are zero), and
subnormal numbers are looked for where the copy lies.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.op import OPS
from ..ir.ops.shape import TransposeAttrs
from ..ir.ops.slices import PadAttrs
from ..ir.ops.subnormal import flush_in_place
from ..ir.types import TensorType, dtype_of
from .mapped import MappedFile, check, file_of, release, release_file
from .weights import Placement

_RELEASE = 4 << 20  # bytes read from files after which all of their pages are given back


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """How the plan's weights follow from the model's.

    graph: its outputs are the plan's weights in order; it reads weights (as inputs or constants) and literals.
    arrays: the model's weights, by their names in the graph. names: the model's name -> the graph's, where they differ.
    literals: names of the model's constants whose values are part of the code.
    """

    graph: Graph
    arrays: Mapping[str, np.ndarray]
    names: Mapping[str, str] = field(default_factory=dict)
    literals: frozenset[str] = frozenset()

    def spec(self, name: str) -> np.ndarray | None:
        """The present value of the model's weight `name`, None where there is no such weight."""
        return self.arrays.get(self.names.get(name, name))

    def updated(self, new: Mapping[str, np.ndarray]) -> Preparation:
        """With other values for some of the weights (by the model's names); others than its own are left out."""
        own = {self.names.get(k, k): v for k, v in new.items() if self.spec(k) is not None}
        return Preparation(self.graph, {**self.arrays, **own}, self.names, self.literals)

    def evaluate(self) -> tuple[Preparation, list[np.ndarray]]:
        """The plan's weights, in order, each 64-byte aligned and read-only, and this preparation with those of the model's
        weights that are the plan's as well replaced by them: they are kept once."""
        for v in self.graph.inputs:
            a = self.arrays[v.name]
            assert (a.shape, a.dtype) == (v.type.shape, v.type.dtype.numpy), f"weight {v} is {a.dtype}{a.shape}"
        check(self.arrays[v.name] for v in self.graph.inputs)
        arrays = _evaluate(self.graph, self.arrays)
        kept = {k: arrays.get(k, a) for k, a in self.arrays.items()}
        return Preparation(self.graph, kept, self.names, self.literals), [arrays[v.name] for v in self.graph.outputs]


def _evaluate(graph: Graph, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Output name -> array, 64-byte aligned. Intermediate results are freed after their last use, and so are pages of the
    model's file."""
    env = {k: c.array for k, c in graph.constants.items()} | dict(weights)
    types = {v.name: v.type for v in graph.outputs}
    nodes = _largest_first(graph)
    last = {v.name: k for k, n in enumerate(nodes) for v in (*n.operands, *n.outputs)}
    packings, inside = _packings(graph)
    last |= {p.source: k for k, n in enumerate(nodes) if (p := packings.get(n.outputs[0].name)) and last[p.source] < k}
    out: dict[str, np.ndarray] = {}
    place, files = Placement(types.values()), _Files(env.values())
    for k, n in enumerate(nodes):
        name = n.outputs[0].name
        if name in packings:
            a = place.zeros(types[name])
            lay_out(env[packings[name].source], packings[name].digits, a.transpose(np.argsort(packings[name].perm)))
            if packings[name].flush:
                flush_in_place(a)
            out[name] = env[name] = place.settled(a)
            del a
        elif n.op == "flush_subnormal" and name in types:
            out[name] = env[name] = placed(env[n.operands[0].name], place, flush=True)
        elif name not in inside:
            for v, a in zip(n.outputs, _run(n, env), strict=True):
                assert (a.shape, a.dtype) == (v.type.shape, v.type.dtype.numpy), f"{n.op}: reference gives {a.dtype}{a.shape}, not {v.type}"
                env[v.name] = a
                if v.name in types:
                    env[v.name] = out[v.name] = placed(a, place)
        for v in (packings[name].source,) if name in packings else (v.name for v in (*n.operands, *n.outputs)):
            if last[v] == k and (v in out or v not in types):  # a weight may be a result as it is
                a = env.pop(v, None)
                if a is not None:
                    files.release(a)
    for k in types:
        if k not in out:
            out[k] = placed(env[k], place)
            files.release(env[k])
    files.release_all()
    return place.finished({k: out[k] for k in types})


def _largest_first(graph: Graph) -> list[Node]:
    """The graph's nodes in an order that makes large results first: what is needed on the way to them comes and goes before
    most of the memory is taken."""
    makers, done, order = graph.producers(), set[int](), list[Node]()
    for v in sorted(graph.outputs, key=lambda v: -v.type.bytes):
        stack = [v]
        while stack:
            n = makers.get(stack[-1].name)
            if n is None or id(n) in done:
                stack.pop()
            elif missing := [x for x in n.operands if x.name in makers and id(makers[x.name]) not in done]:
                stack += missing
            else:
                done.add(id(n))
                order.append(n)
    return order


def _run(n: Node, env: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The node's results; those of reshapes and transposes are views where possible."""
    ins = [None if v is None else env[v.name] for v in n.inputs]
    if isinstance(n.attrs, TransposeAttrs) and ins[0] is not None:
        return [ins[0].transpose(n.attrs.perm)]
    with np.errstate(all="ignore"):
        return [np.asarray(r) for r in OPS[n.op].reference(n.attrs, *ins)]


def placed(a: np.ndarray, place: Placement, flush: bool = False) -> np.ndarray:
    """A copy of `a` in the memory of the plan's weights; flush: its subnormal numbers become 0."""
    out = place.zeros(TensorType(dtype_of(a.dtype), a.shape))
    rows = max(1, _RELEASE * len(a) // a.nbytes) if a.nbytes > _RELEASE and file_of(a) is not None and a.flags.c_contiguous else 0
    if rows:  # its pages in the file would be as much memory again
        for at in range(0, len(a), rows):
            out[at:at + rows] = a[at:at + rows]
            release(a[at:at + rows])
    else:
        out[...] = a
    if flush:
        flush_in_place(out)
    return place.settled(out)


class _Files:
    """The files that weights are read from. Reading one weight brings pages of its neighbours into memory: those of weights that
    were read before have to go again."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        self._files: dict[int, MappedFile] = {id(f): f for a in arrays if (f := file_of(a)) is not None}
        self._read = 0
        self.release_all()

    def release(self, a: np.ndarray) -> None:
        """The array was read for the last time."""
        if file_of(a) is None:
            return
        release(a)
        self._read += a.nbytes
        if self._read >= _RELEASE:
            self.release_all()

    def release_all(self) -> None:
        self._read = 0
        for f in self._files.values():
            release_file(f)


# -- packed layouts ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Packing:
    """transpose(reshape(pad(source)), perm), where the reshape takes each dimension apart into `digits`. flush: and subnormal
    numbers are 0."""

    source: str
    digits: tuple[tuple[int, ...], ...]
    perm: tuple[int, ...]
    flush: bool


def _packings(graph: Graph) -> tuple[dict[str, _Packing], set[str]]:
    """The graph's outputs that are packings, and the values inside of them, which nobody else reads."""
    makers, users = graph.producers(), graph.users()
    results = {v.name for v in graph.outputs}
    found: dict[str, _Packing] = {}
    inside: set[str] = set()
    for v in graph.outputs:
        flush = _chain(v, ("flush_subnormal",), makers)[0]
        last, split, pad = chain = _chain(flush.operands[0] if flush else v, ("transpose", "reshape", "pad"), makers)
        if last is None or split is None or pad is None or any(
                len(users[n.outputs[0].name]) != 1 or n.outputs[0].name in results for n in (chain if flush else chain[1:]) if n):
            continue
        assert isinstance(last.attrs, TransposeAttrs) and isinstance(pad.attrs, PadAttrs)
        digits = _digits(pad.outputs[0].type.shape, split.outputs[0].type.shape)
        if digits and pad.attrs.mode == "constant" and not pad.attrs.value and not any(pad.attrs.before):
            found[v.name] = _Packing(pad.operands[0].name, digits, last.attrs.perm, flush is not None)
            inside |= {split.outputs[0].name, pad.outputs[0].name} | ({last.outputs[0].name} if flush else set())
    return found, inside


def _chain(v: Value, ops: Sequence[str], makers: Mapping[str, Node]) -> list[Node | None]:
    """The node of ops[0] that makes v, the node of ops[1] that makes its first operand, …; None from where it is another."""
    out: list[Node | None] = []
    at: Value | None = v
    for op in ops:
        n = makers.get(at.name) if at is not None else None
        out.append(n if n is not None and n.op == op else None)
        at = n.operands[0] if n is not None and n.op == op else None
    return out


def _digits(shape: tuple[int, ...], split: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """The dimensions of `split` that make up each of `shape`; None where they do not."""
    out, at = [], 0
    for n in shape:
        first = at
        while at < len(split) and (at == first or math.prod(split[first:at]) < n):
            at += 1
        if math.prod(split[first:at]) != n:
            return None
        out.append(split[first:at])
    return tuple(out) if math.prod(split[at:]) == 1 and at == len(split) else None


def lay_out(x: np.ndarray, digits: tuple[tuple[int, ...], ...], out: np.ndarray) -> None:
    """Writes x into `out`, whose dimensions are the digits of x's: x[i] is out[i // n, i % n] for digits (m, n). Elements
    of `out` beyond the end of x are left alone. The full blocks of a ragged dimension and its last one are copied apart."""
    _lay_out(x, digits, out, 0)


def _lay_out(x: np.ndarray, digits: tuple[tuple[int, ...], ...], out: np.ndarray, at: int) -> None:
    """x and `out` agree in the dimensions before `at`; `digits` are of the others."""
    if not digits:
        out[...] = x
        return
    own, rest = digits[0], digits[1:]
    if not own:  # a dimension of one element has no place of its own in `out`
        _lay_out(x.reshape(*x.shape[:at], *x.shape[at + 1:]), rest, out, at)
        return
    n, inner, before = x.shape[at], math.prod(own[1:]), (slice(None),) * at
    full = n // inner
    if full:
        part = x[(*before, slice(0, full * inner))]
        _lay_out(part.reshape(*x.shape[:at], full, *own[1:], *x.shape[at + 1:]), rest, out[(*before, slice(0, full))], at + len(own))
    if n > full * inner:
        _lay_out(x[(*before, slice(full * inner, None))], (own[1:], *rest), out[(*before, full)], at)

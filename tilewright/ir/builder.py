"""Builds graphs node by node: infers types, folds what is known, names what is new."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ..errors import ModelError
from .graph import Attrs, Constant, Graph, Node, Value
from .op import OPS, Op
from .types import DType, TensorType, dtype_of

MAX_TENSOR_BYTES = 1 << 38  # refuse single tensors of 256 GiB: no machine this runs on holds one
FOLD_ELEMENTS = 1 << 20     # literals up to this size are computed while the graph is built


class GraphBuilder:
    """Appends nodes in order. A node whose inputs are all literals is evaluated at once, so shape arithmetic vanishes
    while a model is imported and `value_of` knows every shape-like tensor."""

    def __init__(self, name: str = "main"):
        self.name = name
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}
        self.source = ""          # the model's node under import, recorded on each new node
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}  # where to go on counting for a hint: naming n values takes O(n)

    # -- values ------------------------------------------------------------------------------------------------------
    def fresh(self, hint: str = "v") -> str:
        """A name no value has yet, `hint` itself where free."""
        hint = "".join(c if c.isalnum() or c in "_.-/:" else "_" for c in hint) or "v"
        name, k = hint, self._next.get(hint, 0)
        while name in self._taken:
            k += 1
            name = f"{hint}.{k}"
        self._next[hint] = k
        self._taken.add(name)
        return name

    def input(self, name: str, type: TensorType) -> Value:
        self.inputs.append(Value(self.fresh(name), type))
        return self.inputs[-1]

    def constant(self, array: np.ndarray | np.generic | int | float | Sequence[int], dtype: DType | None = None, name: str = "c") -> Value:
        """A literal. Python ints become i64 and floats f32 unless `dtype` says otherwise."""
        a = np.asarray(array)
        if not isinstance(array, (np.ndarray, np.generic)):
            a = a.astype((dtype or dtype_of(np.float32 if a.dtype.kind == "f" else np.int64)).numpy)
        elif dtype is not None:
            a = a.astype(dtype.numpy)
        return self._constant(name, a, updatable=False)

    def weight(self, name: str, array: np.ndarray) -> Value:
        """A constant whose value may change after compilation; nothing is folded from it."""
        return self._constant(name, array, updatable=True)

    def _constant(self, name: str, array: np.ndarray, updatable: bool) -> Value:
        a = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        v = Value(self.fresh(name), TensorType(dtype_of(a.dtype), a.shape))
        self.constants[v.name] = Constant(v, a, updatable)
        return v

    def adopt(self, c: Constant) -> Value:
        """Takes over a constant of another graph, under its own name (once)."""
        if c.value.name not in self.constants:
            assert c.value.name not in self._taken, f"name {c.value.name} is taken"
            self._taken.add(c.value.name)
            self.constants[c.value.name] = c
        return c.value

    def value_of(self, v: Value) -> np.ndarray | None:
        """The array behind a literal, None for anything else (weights included)."""
        c = self.constants.get(v.name)
        return c.array if c is not None and not c.updatable else None

    # -- nodes -------------------------------------------------------------------------------------------------------
    def op(self, name: str, *inputs: Value | None, **attrs: object) -> Value:
        """Appends one node and returns its only (or first) output."""
        return self.emit(name, inputs, make_attrs(OPS[name], attrs))[0]

    def emit(self, name: str, inputs: Sequence[Value | None], attrs_: Attrs | None = None, hint: str = "v",
             names: Sequence[str] = (), **attrs: object) -> tuple[Value, ...]:
        """Appends one node and returns all its outputs. `names` are wished-for names of the outputs."""
        op = OPS[name]
        a = attrs_ if attrs_ is not None else make_attrs(op, attrs)
        types = op.infer(a, *(None if v is None else v.type for v in inputs))
        for t in types:
            if t.bytes > MAX_TENSOR_BYTES:
                raise ModelError(f"{self.source or name}: a tensor of type {t} would take {t.bytes / 2**30:,.0f} GiB; "
                                 "the model or its input shapes are damaged")
        known = [None if v is None else self.value_of(v) for v in inputs]
        if all(k is not None or v is None for k, v in zip(known, inputs, strict=True)) and sum(t.size for t in types) <= FOLD_ELEMENTS \
                and (any(v is not None for v in inputs) or sum(t.size for t in types) <= FOLD_ELEMENTS):
            with np.errstate(all="ignore"):
                arrays = op.reference(a, *known)
            for got, t in zip(arrays, types, strict=True):
                assert got.shape == t.shape and got.dtype == t.dtype.numpy, f"{name}: reference {got.dtype}{got.shape}, inferred {t}"
            return tuple(self.constant(np.asarray(x), name=names[i] if i < len(names) else hint) for i, x in enumerate(arrays))
        outs = tuple(Value(self.fresh(names[i] if i < len(names) else hint), t) for i, t in enumerate(types))
        self.nodes.append(Node(name, tuple(inputs), a, outs, self.source))
        return outs

    def graph(self, outputs: Sequence[Value]) -> Graph:
        g = Graph(self.name, tuple(self.inputs), tuple(outputs), tuple(self.nodes), MappingProxyType(dict(self.constants)))
        return g.replace()


def make_attrs(op: Op, given: Mapping[str, object]) -> Attrs:
    """The op's attributes from values as models write them."""
    return op.Attrs(**{k: _plain(v) for k, v in given.items()})


def _plain(v: object) -> object:
    """Attributes are hashable: lists become tuples, NumPy scalars Python numbers, small arrays tuples."""
    if isinstance(v, np.ndarray):
        return tuple(_plain(x) for x in v.tolist()) if v.ndim else v.item()
    if isinstance(v, (list, tuple)):
        return tuple(_plain(x) for x in v)
    return v.item() if isinstance(v, np.generic) else v


Rewrite = Callable[[Node, tuple[Value | None, ...], GraphBuilder], "Sequence[Value] | None"]


def rebuild(g: Graph, visit: Rewrite, outputs: tuple[Value, ...] | None = None,
            finish: Callable[[GraphBuilder, Sequence[Value]], Sequence[Value]] | None = None) -> Graph:
    """A new graph made by replaying `g` through a builder. `visit(node, its new inputs, builder)` returns replacements
    for the node's outputs (same count), or None to copy the node. Names of copied values are kept. `finish(builder,
    outputs)` may exchange the graph's outputs at the end."""
    b = GraphBuilder(g.name)
    b._taken.update(v.name for n in g.nodes for v in n.outputs)
    env: dict[str, Value] = {}
    for v in g.inputs:
        b._taken.add(v.name)
        b.inputs.append(v)
        env[v.name] = v
    for k, c in g.constants.items():
        env[k] = b.adopt(c)
    for n in g.nodes:
        ins = tuple(None if v is None else env[v.name] for v in n.inputs)
        b.source = n.source
        new = visit(n, ins, b)
        if new is None:
            b.nodes.append(n if ins == n.inputs else Node(n.op, ins, n.attrs, n.outputs, n.source))
            new = n.outputs
        assert len(new) == len(n.outputs), f"{n.op}: {len(new)} replacements for {len(n.outputs)} outputs"
        env.update({o.name: v for o, v in zip(n.outputs, new, strict=True)})
    results = tuple(env[v.name] for v in (outputs or g.outputs))
    return b.graph(tuple(finish(b, results)) if finish else results)

"""Checks a graph's invariants: single assignment, definition before use, types as inferred, constants as declared."""
from __future__ import annotations

from ..errors import ShapeError, VerifyError
from .graph import Graph, Node, Value
from .op import OPS
from .text import node_text


def verify(g: Graph) -> Graph:
    """Returns `g`. Raises VerifyError with the first invariant that is broken and the node that breaks it."""
    defined: dict[str, Value] = {}

    def define(v: Value, where: str) -> None:
        if v.name in defined:
            raise VerifyError(f"graph {g.name}: {v} is defined twice, the second time by {where}")
        defined[v.name] = v

    def use(v: Value, where: str) -> None:
        known = defined.get(v.name)
        if known is None:
            raise VerifyError(f"graph {g.name}: {v} is used by {where}, but is not defined before it")
        if known.type != v.type:
            raise VerifyError(f"graph {g.name}: {v} is used by {where}, but was defined as {known.type}")

    for v in g.inputs:
        define(v, "the graph's inputs")
    for key, c in g.constants.items():
        define(c.value, f"the constant {key}")
        t = c.value.type
        if key != c.value.name:
            raise VerifyError(f"graph {g.name}: the constant {c.value} is filed under {key!r}")
        if c.array.shape != t.shape or c.array.dtype != t.dtype.numpy or not c.array.flags.c_contiguous:
            layout = "" if c.array.flags.c_contiguous else " (not contiguous)"
            raise VerifyError(f"graph {g.name}: the constant {c.value} holds {c.array.dtype}{list(c.array.shape)}{layout}")
    for n in g.nodes:
        where = f"`{node_text(n, g)}`"
        for v in n.operands:
            use(v, where)
        _check_types(g, n, where)
        for v in n.outputs:
            define(v, where)
    for v in g.outputs:
        use(v, "the graph's outputs")
    return g


def _check_types(g: Graph, n: Node, where: str) -> None:
    op = OPS.get(n.op)
    if op is None:
        raise VerifyError(f"graph {g.name}: unknown operator {n.op!r} in {where}")
    if type(n.attrs) is not op.Attrs:
        raise VerifyError(f"graph {g.name}: attributes of class {type(n.attrs).__name__} in {where}")
    try:
        types = op.infer(n.attrs, *(None if v is None else v.type for v in n.inputs))
    except ShapeError as e:
        raise VerifyError(f"graph {g.name}: {where} has inputs that do not fit: {e}") from e
    if types != tuple(v.type for v in n.outputs):
        raise VerifyError(f"graph {g.name}: {where} should give {', '.join(map(repr, types))}")

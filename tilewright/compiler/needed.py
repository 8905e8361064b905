"""Which columns of a table a graph reads in the end: forests compare few of them, and what is made of the others is never looked at."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..ir.forest import Field
from ..ir.graph import Graph, Node, Value
from ..ir.op import OPS
from ..ir.ops.elementwise import Map


def used_columns(g: Graph, x: Value) -> np.ndarray:
    """bool[n]: the columns of the input x[rows, n] on which outputs depend. Steps that are not known to treat columns apart
    count as reading all of them."""
    asked = {v.name: np.ones(_width(v), bool) for v in g.outputs}
    literal = {name: c.array for name, c in g.constants.items() if not c.updatable}
    for n in reversed(g.nodes):
        masks = [asked[o.name] for o in n.outputs if o.name in asked]
        if not masks:
            continue
        for k, v in enumerate(n.operands):
            mask = _asks(literal, n, k, v, masks[0]) if len(n.outputs) == 1 else np.ones(_width(v), bool)
            asked[v.name] = asked.get(v.name, False) | mask
    return asked.get(x.name, np.zeros(_width(x), bool))


def _width(v: Value) -> int:
    return v.type.shape[-1] if v.type.rank else 1


def _asks(literal: Mapping[str, np.ndarray], n: Node, k: int, v: Value, mask: np.ndarray) -> np.ndarray:
    """What operand number k has to give where the columns of `mask` of the result are asked for. `literal`: constants that stay."""
    whole = np.ones(_width(v), bool)
    if n.op == "tree_ensemble" and k == 0 and n.operands[1].name in literal:
        out = ~whole
        out[literal[n.operands[1].name][:, Field.FEATURE]] = True
        return out
    if v.type.rank != 2 or n.outputs[0].type.rank != 2:
        return whole
    if isinstance(OPS[n.op], Map):
        return mask if len(whole) == len(mask) else np.array([mask.any()]) if len(whole) == 1 else whole
    if n.op == "concat" and n.attrs.axis in (1, -1):  # type: ignore[attr-defined]
        first = sum(p.type.shape[1] for p in n.operands[:k])
        return mask[first:first + len(whole)]
    if n.op == "slice" and n.attrs.steps[0] == 1 and n.outputs[0].type.shape[0] == v.type.shape[0]:  # type: ignore[attr-defined]
        return _at(len(whole), n.attrs.starts[1] + n.attrs.steps[1] * np.arange(len(mask)), mask)  # type: ignore[attr-defined]
    if n.op == "gather" and k == 0 and n.attrs.axis == 1 and n.operands[1].name in literal:  # type: ignore[attr-defined]
        return _at(len(whole), literal[n.operands[1].name], mask)
    return whole


def _at(width: int, places: np.ndarray, mask: np.ndarray) -> np.ndarray:
    out = np.zeros(width, bool)
    out[places[mask]] = True
    return out

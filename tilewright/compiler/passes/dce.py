"""Requires: nothing. Ensures: every node contributes to an output; constants nobody reads are gone. Inputs stay.

    %a = relu(%x) : f32[2]
    %b = exp(%x) : f32[2]       ->    %a = relu(%x) : f32[2]
    return %a                         return %a
"""
from __future__ import annotations

from ...ir.graph import Graph, Node


def dce(g: Graph) -> Graph:
    live = {v.name for v in g.outputs}
    kept: list[Node] = []
    for n in reversed(g.nodes):
        if any(v.name in live for v in n.outputs):
            kept.append(n)
            live.update(v.name for v in n.operands)
    return g.replace(nodes=reversed(kept))

"""Irregular ops: their code does not come from a tensor program, but from an emitter of their own or from numba (`irregular.py`).
Their kernels have the same signature, `void symbol(inputs…, outputs…, workspace, i64 begin, i64 end, ctx)`."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...ir.graph import Attrs, Node
from ...ir.ops import tree_engines as trees
from ...ir.ops.irregular import TopKAttrs
from ...ir.ops.nearest import NearestAttrs
from ...ir.types import TensorType
from ..target import Target
from . import irregular, nearest, topk, tree_ranks, tree_row, tree_slices, tree_walk

Types = tuple[TensorType, ...]


@dataclass(frozen=True, slots=True)
class NativeCode:
    """trips: iterations of the parallel loop. workspace: bytes for each thread. seconds: a rough time of all trips. bytes: read
    and written, 0 where the time of a call does not follow from them."""

    key: str
    trips: int
    workspace: int
    seconds: float
    bytes: int
    text: Callable[[str], str]


def native_code(node: Node, target: Target) -> NativeCode:
    """The code for a node of an irregular op; `text(symbol)` is LLVM IR."""
    ins = tuple(v.type for v in node.operands)
    size = sum(v.type.bytes for v in (*node.operands, *node.outputs))
    if isinstance(a := node.attrs, TopKAttrs) and topk.fits(a, ins[0]):
        rows = ins[0].size // ins[0].shape[-1]
        return NativeCode(f"topk rows|{a}|{ins[0]}", rows, 0, topk.seconds(a, ins[0]), size,
                          lambda symbol: topk.emit_topk(symbol, a, ins[0], target))
    if node.op not in _MAKERS:
        return NativeCode(f"{node.op}|{irregular.key(node)}", 1, irregular.workspace_bytes(node), irregular.seconds(node), 0,
                          lambda symbol: irregular.emit_irregular(symbol, node, target))
    key = f"{node.op}|{_code_shape(node.op, node.attrs, ins)}"  # the target is part of every object's key
    trips, workspace, seconds, text = _MAKERS[node.op](node.attrs, ins, target)
    return NativeCode(key, trips, workspace, seconds or trees.cycles(node.op, node.attrs, ins) / 2.5e9, size, text)


def _code_shape(op: str, attrs: Attrs, ins: Types) -> object:
    """What the code depends on: types, rows and results, but no sizes of tables."""
    if op == "tree_ranks":
        assert isinstance(attrs, trees.RanksAttrs)
        return ins[0], attrs.slices
    if op == "nearest":
        return ins, attrs
    of_values = ins[-2].dtype, ins[-2].shape[1], ins[-1].shape
    if op == "tree_slices":
        assert isinstance(attrs, trees.SlicesAttrs)
        return attrs.rows, attrs.planes, of_values
    return (ins[0].shape[0], of_values) if op == "tree_walk" else (-(-ins[0].shape[1] // 64), ins[3].shape[2], of_values)


_Made = tuple[int, int, float, Callable[[str], str]]  # seconds 0: as `tree_engines.cycles` says


def _ranks(a: Attrs, ins: Types, target: Target) -> _Made:
    assert isinstance(a, trees.RanksAttrs)
    return tree_ranks.trips(ins[0], a), 0, 0.0, lambda symbol: tree_ranks.emit_ranks(symbol, a, ins, target)


def _walk(a: Attrs, ins: Types, target: Target) -> _Made:
    return tree_walk.trips(ins[0].shape[0]), 0, 0.0, lambda symbol: tree_walk.emit_walk(symbol, ins)


def _slices(a: Attrs, ins: Types, target: Target) -> _Made:
    assert isinstance(a, trees.SlicesAttrs)
    return tree_slices.trips(a), tree_slices.workspace_bytes(a, ins), 0.0, lambda symbol: tree_slices.emit_slices(symbol, a, ins, target)


def _row(a: Attrs, ins: Types, target: Target) -> _Made:
    return 1, tree_row.workspace_bytes(ins), 0.0, lambda symbol: tree_row.emit_row(symbol, ins, target)


def _nearest(a: Attrs, ins: Types, target: Target) -> _Made:
    assert isinstance(a, NearestAttrs)
    return (nearest.trips(ins[0]), nearest.workspace_bytes(), nearest.seconds(ins[0], ins[2], target),
            lambda symbol: nearest.emit_nearest(symbol, ins, a.k, target))


_MAKERS: dict[str, Callable[[Attrs, Types, Target], _Made]] = {
    "nearest": _nearest, "tree_ranks": _ranks, "tree_walk": _walk, "tree_slices": _slices, "tree_row": _row}

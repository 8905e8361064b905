"""Runs lowered kernels in NumPy on flat storages, so that placements, offsets and strides are put to the test."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.lib.stride_tricks import as_strided

from tilewright.compiler.fuse import fuse
from tilewright.compiler.kernel import Kernel, Ref, with_loops
from tilewright.compiler.lower import lower
from tilewright.compiler.memory import ArenaPlan, plan_arena
from tilewright.compiler.views import Storage, Views, plan_views
from tilewright.ir.expr import Buffer
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import run_program
from tilewright.ir.op import OPS
from tilewright.ir.types import TensorType


class Memory:
    """Storages as flat arrays: arena ones inside one block of bytes at their planned offsets, filled with garbage."""

    def __init__(self, graph: Graph, views: Views, arena: ArenaPlan, inputs: Mapping[str, np.ndarray]):
        self.block = np.full(arena.bytes, 0xA5, np.uint8)
        self.flat: dict[str, np.ndarray] = {}
        for s in views.storages.values():
            self.flat[s.id] = self._make(s, arena, graph, inputs)

    def _make(self, s: Storage, arena: ArenaPlan, graph: Graph, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        if s.kind == "input":
            return inputs[graph.inputs[s.index].name].reshape(-1).copy()
        if s.kind == "weight":
            return list(graph.constants.values())[s.index].array.reshape(-1)
        if s.kind == "arena":
            at = arena.offsets.get(s.id, 0)
            return self.block[at:at + s.bytes].view(s.dtype.numpy) if s.id in arena.offsets else np.empty(0, s.dtype.numpy)
        return np.full(s.bytes, 0xA5, np.uint8).view(s.dtype.numpy)

    def view(self, ref: Ref, b: Buffer | TensorType, step: int = 0) -> np.ndarray:
        """The argument's memory, in step number `step` of a loop."""
        ref = Ref(ref.storage, ref.offset + step * ref.step)
        strides = b.strides if isinstance(b, Buffer) else Buffer("", b.dtype, b.shape).strides
        flat = self.flat[ref.storage]
        if 0 in b.shape:
            return np.empty(b.shape, flat.dtype)
        last = ref.offset + sum((n - 1) * s for n, s in zip(b.shape, strides, strict=True))
        assert 0 <= ref.offset <= last < flat.size, f"{ref} {b} leaves its storage of {flat.size}"
        return as_strided(flat[ref.offset:], b.shape, [s * flat.itemsize for s in strides])


def run_kernel(k: Kernel, memory: Memory, step: int = 0) -> None:
    if k.program is None:
        assert k.node is not None
        ins = [memory.view(r, v.type, step) for r, v in zip(k.inputs, k.node.operands, strict=True)]
        for r, v, a in zip(k.outputs, k.node.outputs, OPS[k.node.op].reference(k.node.attrs, *ins), strict=True):
            memory.view(r, v.type, step)[...] = a
        return
    ins = {b.name: memory.view(r, b, step) for b, r in zip(k.program.inputs, k.inputs, strict=True)}
    got = run_program(k.program, ins)
    for b, r in zip(k.program.outputs, k.outputs, strict=True):
        memory.view(r, b, step)[...] = got[b.name]


def compile_plan(graph: Graph) -> tuple[tuple[Kernel, ...], Views, ArenaPlan]:
    partition = fuse(graph)
    views = plan_views(graph, partition)
    kernels = lower(graph, partition, views)
    views = with_loops(views, kernels)
    return kernels, views, plan_arena(kernels, views.storages)


def run_plan(graph: Graph, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
    """The graph's outputs in order, through fusion, views, lowering and the memory plan."""
    kernels, views, arena = compile_plan(graph)
    memory = Memory(graph, views, arena, inputs)
    weights = {s.id: memory.flat[s.id].copy() for s in views.storages.values() if s.kind in ("input", "weight")}
    for loop, group in groupby(kernels, key=lambda k: k.loop):
        inside = list(group)
        for t in range(loop.trips if loop else 1):
            for k in inside:
                run_kernel(k, memory, t)
    for name, before in weights.items():
        assert np.array_equal(before.view(np.uint8), memory.flat[name].view(np.uint8)), f"input {name} was written"
    outs = {s.index: memory.flat[s.id] for s in views.storages.values() if s.kind == "output"}
    return [outs[k].reshape(v.type.shape) for k, v in enumerate(graph.outputs)]

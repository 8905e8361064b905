"""Borders of zeros that need no kernel: they are zero when the arena is made, and nothing ever writes there.

    pad(conv(x)), arena bytes 0..4000      the convolution writes the interior in every call; the border stays as it was

For that the padded storage keeps its bytes through the whole plan, shared only with padded storages whose borders are the same
bytes. That may take a larger arena, so the borders kept are those that save most for what they take. Where the arena comes
from others (exported code), the fills run at the start of each call.

Requires what views promise: each element of a storage has one writer. So a border that a fill writes is written by it alone.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence

from ..ir.expr import Const
from .kernel import Kernel
from .memory import plan_arena
from .views import Storage

GROWTH = 2 << 20  # bytes by which the arena may grow: models of larger values spend little on borders
MOST = 50         # kinds of borders that are tried one by one, each with a plan of the arena


def kept_borders(kernels: Sequence[Kernel], storages: Mapping[str, Storage]) -> Mapping[str, Hashable]:
    """The storages whose borders are filled once for all, with what tells their borders apart: storages of equal values
    may share memory."""
    shapes = _geometries(kernels, storages)
    if not shapes:
        return {}
    limit = plan_arena(kernels, storages).bytes + GROWTH

    def needed(kept: Collection[Hashable]) -> int:
        chosen = {s: g for s, g in shapes.items() if g in kept}
        return plan_arena([k for k in kernels if not only_borders(k, chosen)], storages, kept=chosen).bytes
    saved = _saved(kernels, shapes)
    size = {g: storages[s].bytes for s, g in shapes.items()}
    best = sorted(saved, key=lambda g: -saved[g] / size[g])
    if needed(best) <= limit:
        return shapes
    chosen: list[Hashable] = []
    for g in best[:MOST]:
        if needed([*chosen, g]) <= limit:
            chosen.append(g)
    return {s: g for s, g in shapes.items() if g in chosen}


def only_borders(kernel: Kernel, kept: Collection[str]) -> bool:
    """Whether the kernel does nothing but fill borders that are kept."""
    return kernel.border and all(r.storage in kept for r in kernel.outputs) and _zeros(kernel)


def _geometries(kernels: Sequence[Kernel], storages: Mapping[str, Storage]) -> dict[str, Hashable]:
    """Storage -> its size and where its zeros are, for storages in the arena that other kernels outside of loops use."""
    found: dict[str, list[tuple[object, ...]]] = {}
    used: set[str] = set()
    for k in kernels:
        if not (k.border and k.loop is None and _zeros(k)):
            used.update(r.storage for r in (*k.inputs, *k.outputs))
            continue
        assert k.program is not None
        for r, b in zip(k.outputs, k.program.outputs, strict=True):
            if storages[r.storage].kind == "arena":
                found.setdefault(r.storage, []).append((r.offset, b.shape, b.strides))
    return {s: (storages[s].bytes, storages[s].dtype.bytes, tuple(sorted(places, key=repr))) for s, places in found.items() if s in used}


def _zeros(kernel: Kernel) -> bool:
    """Whether every byte that the kernel writes is 0; that of -0.0 is not."""
    return kernel.program is not None and all(
        isinstance(c.body, Const) and c.body.value == 0 and math.copysign(1, c.body.value) > 0 for c in kernel.program.computes)


def _saved(kernels: Sequence[Kernel], shapes: Mapping[str, Hashable]) -> dict[Hashable, int]:
    """Bytes of borders, by geometry, over all its storages."""
    saved: dict[Hashable, int] = {}
    for k in kernels:
        if only_borders(k, shapes) and k.program is not None:
            for r, b in zip(k.outputs, k.program.outputs, strict=True):
                saved[shapes[r.storage]] = saved.get(shapes[r.storage], 0) + math.prod(b.shape) * b.dtype.bytes
    return saved

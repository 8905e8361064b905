"""A loop to kernels: those of its body, over memory that moves on by a row with every step.

    %s, %y = scan(%s0, %x, %w) {body, steps=T}       copy   s = s0
                                                     T times:
                                                       the body's kernels: x + t rows, w, s -> y + t rows, s

A carried value lives where the loop's result is. The body writes its next value over it where nothing needs the old one
any more; else into memory of its own, copied at the end of the step.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..ir.graph import Graph, Node
from ..ir.ops.loop import ScanAttrs, body_of, row
from .fuse import fuse
from .kernel import Kernel, LoopRun, Ref
from .lower import copy_kernel, lower
from .memory import overwrites_safely
from .views import Borders, Placement, Storage, Views, plan_views


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a storage of the body is in the whole: element `offset` of `storage`, `step` elements further in each step."""

    storage: str
    offset: int
    step: int = 0


def lower_loop(graph: Graph, node: Node, views: Views, index: int) -> tuple[Kernel, ...]:
    """The kernels of the loop `node`, which is group `index` of `graph`."""
    attrs = node.attrs
    assert isinstance(attrs, ScanAttrs)
    body, n, changing = body_of(attrs.body), attrs.carried, attrs.carried + attrs.scanned
    given = [views.placements[v.name] for v in node.operands]
    made = [views.placements[v.name] for v in node.outputs]
    ins = [*made[:n], *(_rows(p) for p in given[n:changing]), *given[changing:]]
    outs = [*made[:n], *(_rows(p) for p in made[n:])]
    partition = fuse(body)
    inner = plan_views(body, partition, 0, Borders(tuple(p.strides for p in ins), tuple(p.strides for p in outs)))
    kernels = lower(body, partition, inner)
    homes: dict[str, _Home] = {}
    for k, (v, p) in enumerate(zip(body.inputs, ins, strict=True)):
        start, step = _walk(given[k], attrs, attrs.backward[k - n]) if n <= k < changing else (0, 0)
        homes[inner.placements[v.name].storage] = _Home(p.storage, p.offset + start, step)
    own: dict[str, Storage] = {}

    def keep(s: Storage) -> _Home:
        name = f"loop{index}.{s.id}"
        own[name] = replace(s, id=name, kind="arena", index=0)
        return _Home(name, 0)
    after: list[Kernel] = []
    for s in inner.storages.values():
        if s.kind == "arena":
            homes[s.id] = keep(s)
        elif s.kind == "output" and s.index >= n:
            start, step = _walk(made[s.index], attrs, attrs.filled_backward[s.index - n])
            homes[s.id] = _Home(made[s.index].storage, made[s.index].offset + start, step)
        elif s.kind == "output":
            v, state = body.inputs[s.index], made[s.index]
            if _over_itself(kernels, inner.placements[v.name].storage, s.id):
                homes[s.id] = _Home(state.storage, state.offset)
            else:
                size = 1 + sum((m - 1) * d for m, d in zip(v.type.shape, state.strides, strict=True)) if v.type.size else 0
                homes[s.id] = keep(replace(s, elements=size))
                after.append(copy_kernel(body, v, Placement(homes[s.id].storage, 0, state.strides), state, "carry", index))
    run = LoopRun(index, attrs.steps, tuple(own.values()), str(partition))
    first = [copy_kernel(graph, v, p, q, "first state", index)
             for v, p, q in zip(node.operands[:n], given, made, strict=False) if v.type.size]
    at = _translation(homes)
    inside = [replace(k, inputs=tuple(map(at, k.inputs)), outputs=tuple(map(at, k.outputs)), group=index) for k in kernels]
    return (*first, *(replace(k, loop=run) for k in (*inside, *after)))


def _translation(homes: dict[str, _Home]) -> Callable[[Ref], Ref]:
    def at(r: Ref) -> Ref:
        h = homes[r.storage]
        return Ref(h.storage, h.offset + r.offset, h.step)
    return at


def _rows(p: Placement) -> Placement:
    return Placement(p.storage, p.offset, p.strides[1:])


def _walk(p: Placement, attrs: ScanAttrs, backward: bool) -> tuple[int, int]:
    """Elements from the start of a tensor of rows to the row of step 0, and from one step's to the next one's."""
    return row(attrs, 0, backward) * p.strides[0], -p.strides[0] if backward else p.strides[0]


def _over_itself(kernels: Sequence[Kernel], old: str, new: str) -> bool:
    """Whether the body may write storage `new` over `old`: every kernel that reads the old value has run, or is the one
    that writes the new value and reads each element where it writes."""
    writers = [k for k, x in enumerate(kernels) if any(r.storage == new for r in x.outputs)]
    readers = [k for k, x in enumerate(kernels) if any(r.storage == old for r in x.inputs)]
    first = min(writers, default=len(kernels))
    if all(k < first for k in readers):
        return True
    x = kernels[first]
    i, j = [k for k, r in enumerate(x.inputs) if r.storage == old], [k for k, r in enumerate(x.outputs) if r.storage == new]
    return (max(readers) == first and len(writers) == 1 and len(i) == len(j) == 1 and x.program is not None
            and x.inputs[i[0]].offset == x.outputs[j[0]].offset and overwrites_safely(x.program, i[0], j[0]))

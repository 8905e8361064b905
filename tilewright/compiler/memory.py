"""One arena for all intermediate tensors: who may share which bytes.

Each storage lives from the kernel that writes it first to the kernel that uses it last; what a loop reads or writes of
the outside lives through all of it. Storages are placed largest first, each at the lowest offset where it overlaps no
placed one that lives at the same time. A kernel of maps whose result walks memory exactly as one of its dying inputs does
writes over that input. Storages whose borders are kept (`borders.py`) have their bytes through all kernels, and share them
only with each other.
"""
from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..ir.affine import Linear, address, flat_address, linear
from ..ir.expr import Axis, Buffer, Var, loads, reduces
from ..ir.program import Compute, Program
from ..ir.types import contiguous_strides
from .kernel import Kernel
from .views import Storage

ALIGN = 64
PAGE = 4096  # equal addresses modulo 4 KiB make loads wait for unrelated stores


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Byte offsets in the arena by storage id, of each kernel's workspace by its position, and the arena's size.
    `reused` says which storage was written over: new -> old."""

    offsets: Mapping[str, int]
    workspaces: Mapping[int, int]
    bytes: int
    reused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Block:
    """Bytes that live through kernels first..last, for one storage or for several that overwrite one another."""

    owners: tuple[str, ...]
    size: int
    first: int
    last: int


def plan_arena(kernels: Sequence[Kernel], storages: Mapping[str, Storage], workspaces: Sequence[int] = (),
               kept: Mapping[str, Hashable] = MappingProxyType({})) -> ArenaPlan:
    """Offsets for all arena storages that kernels use. `workspaces`: bytes each kernel needs while it runs. `kept`: storages
    whose borders outlive a call; those of equal values have equal borders."""
    spans = _spans(kernels, storages)
    free = {s: span for s, span in spans.items() if s not in kept}
    reused = _reuse(kernels, storages, free)
    blocks = _blocks(free, storages, reused) + _kept_blocks(spans, storages, kept, len(kernels))
    blocks += [_Block((f"workspace {k}",), n, k, k) for k, n in enumerate(workspaces) if n]
    offsets, total = _place(blocks)
    prefix = "workspace "
    return ArenaPlan({s: o for s, o in offsets.items() if not s.startswith(prefix)},
                     {int(s[len(prefix):]): o for s, o in offsets.items() if s.startswith(prefix)}, total, reused)


def _spans(kernels: Sequence[Kernel], storages: Mapping[str, Storage]) -> dict[str, tuple[int, int]]:
    spans: dict[str, tuple[int, int]] = {}
    whole = _loops(kernels)
    for k, kernel in enumerate(kernels):
        for r in (*kernel.inputs, *kernel.outputs):
            s = storages[r.storage]
            if s.kind == "arena" and s.bytes:
                first, last = (k, k) if kernel.loop is None or _within_step(kernel, s.id) else whole[kernel.loop.id]
                spans[s.id] = (min(first, spans.get(s.id, (k, k))[0]), max(last, spans.get(s.id, (k, k))[1]))
    return spans


def _loops(kernels: Sequence[Kernel]) -> dict[int, tuple[int, int]]:
    """The first and the last kernel of each loop."""
    out: dict[int, tuple[int, int]] = {}
    for k, kernel in enumerate(kernels):
        if kernel.loop:
            out[kernel.loop.id] = (out.get(kernel.loop.id, (k, k))[0], k)
    return out


def _within_step(kernel: Kernel, storage: str) -> bool:
    """Whether a storage holds nothing from one step of the kernel's loop to the next."""
    return kernel.loop is not None and any(s.id == storage for s in kernel.loop.storages)


# -- writing over a dying input ----------------------------------------------------------------------------------------
def _reuse(kernels: Sequence[Kernel], storages: Mapping[str, Storage], spans: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """new storage -> old storage whose bytes it takes over."""
    out: dict[str, str] = {}
    taken: set[str] = set()
    for k, kernel in enumerate(kernels):
        if kernel.program is None:
            continue
        for j, o in enumerate(kernel.outputs):
            new = storages[o.storage]
            if new.id not in spans or spans[new.id][0] != k or new.id in out or [r.storage for r in kernel.outputs].count(new.id) > 1:
                continue
            for i, r in enumerate(kernel.inputs):
                old = storages[r.storage]
                if (old.id in spans and old.id not in taken and old.id != new.id and spans[old.id][1] == k and spans[old.id][0] < k
                        and old.bytes == new.bytes and old.dtype.bytes == new.dtype.bytes and r.offset == o.offset
                        and [x.storage for x in kernel.inputs].count(old.id) == 1 and overwrites_safely(kernel.program, i, j)
                        and (kernel.loop is None or _within_step(kernel, old.id) and _within_step(kernel, new.id))):
                    out[new.id] = old.id
                    taken.add(old.id)
                    break
    return out


def overwrites_safely(p: Program, i: int, j: int) -> bool:
    """Whether output j may share input i's memory: the compute of output j has no reduction and reads the input only
    where it writes; the others before it read it only along rows that it has yet to write; none after it reads it."""
    x, y = p.inputs[i], p.outputs[j]
    at = next(k for k, c in enumerate(p.computes) if c.buffer.name == y.name)
    own = p.computes[at]
    if reduces(own.body) or any(c.buffer.name != y.name and c.buffer in p.outputs for c in p.computes[:at]):
        return False
    store = _store(own)
    if any(r.where is not None or address(r) != store for r in loads(own.body) if r.buffer.name == x.name):
        return False
    if any(x.name == b.name for c in p.computes[at + 1:] for b in c.reads):
        return False
    return all(_along_rows(c, x.name, own) for c in p.computes[:at])


def _store(c: Compute) -> Linear:
    return flat_address(tuple(map(Var, c.axes)), c.buffer.strides)


def _along_rows(c: Compute, name: str, own: Compute) -> bool:
    """c, whose loops may be shared with those of `own`, reads the buffer at its own axes (the same as own's leading ones)
    and reduces over whole dimensions after them; its rows lie where `own` stores its rows."""
    for r in loads(c.body):
        if r.buffer.name != name:
            continue
        if r.where is not None or c.axes != own.axes[:len(c.axes)] or not _same_rows(r.buffer, own.buffer, len(c.axes)):
            return False
        index = [linear(i) for i in r.index]
        for k, i in enumerate(index):
            axis = i.terms[0][0] if len(i.terms) == 1 and i.terms[0][1] == 1 and i.const == 0 else None
            if not isinstance(axis, Axis) or not (k < len(c.axes) and axis == c.axes[k] or k >= len(c.axes) and axis in c.reduce_axes):
                return False
    return True


def _same_rows(x: Buffer, y: Buffer, n: int) -> bool:
    """Whether the rows behind the first n dimensions are runs of memory of equal length, at equal places."""
    def places(b: Buffer) -> tuple[list[tuple[int, int]], int]:
        return [(size, step) for size, step in zip(b.shape[:n], b.strides[:n], strict=True) if size > 1], math.prod(b.shape[n:])
    dense = all(size == 1 or step == run for b in (x, y)
                for size, step, run in zip(b.shape[n:], b.strides[n:], contiguous_strides(b.shape[n:]), strict=True))
    return dense and places(x) == places(y)


# -- offsets -----------------------------------------------------------------------------------------------------------
def _blocks(spans: Mapping[str, tuple[int, int]], storages: Mapping[str, Storage], reused: Mapping[str, str]) -> list[_Block]:
    root: dict[str, str] = {}
    for s in sorted(spans, key=lambda s: spans[s]):
        root[s] = root[reused[s]] if s in reused else s
    members: dict[str, list[str]] = {}
    for s, r in root.items():
        members.setdefault(r, []).append(s)
    return [_Block(tuple(m), storages[r].bytes, min(spans[s][0] for s in m), max(spans[s][1] for s in m)) for r, m in members.items()]


def _kept_blocks(spans: Mapping[str, tuple[int, int]], storages: Mapping[str, Storage], kept: Mapping[str, Hashable],
                 n: int) -> list[_Block]:
    """Blocks for all of the n kernels, each for storages of equal borders that live one after the other."""
    lines: dict[Hashable, list[list[str]]] = {}
    for s in sorted((s for s in kept if s in spans), key=lambda s: (spans[s], s)):
        own = lines.setdefault(kept[s], [])
        line = next((x for x in own if spans[x[-1]][1] < spans[s][0]), None)
        if line is None:
            own.append([s])
        else:
            line.append(s)
    return [_Block(tuple(x), storages[x[0]].bytes, 0, n - 1) for own in lines.values() for x in own]


def _place(blocks: Sequence[_Block]) -> tuple[dict[str, int], int]:
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, _Block]] = []  # (begin, end, block), sorted by begin
    total = 0
    for b in sorted(blocks, key=lambda b: (-b.size, b.first, b.owners)):
        size = _padded(b.size)
        at = 0
        for begin, end, other in placed:
            if other.first > b.last or other.last < b.first:
                continue
            if begin - at >= size:
                break
            at = max(at, end)
        placed.append((at, at + size, b))
        placed.sort(key=lambda t: t[0])
        total = max(total, at + size)
        offsets.update(dict.fromkeys(b.owners, at))
    return offsets, total


def _padded(size: int) -> int:
    """Rounded up to whole lines; one line more for multiples of a page, so that neighbours do not alias."""
    size = -(-size // ALIGN) * ALIGN
    return size + ALIGN if size % PAGE == 0 and size else size

"""Where the local buffers of a scheduled program live: on the stack, in the workspace that the caller provides, or in an output."""
from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...ir.affine import address, flat_address, linear
from ...ir.expr import Axis, Buffer, Var, loads, reduces
from ...ir.loops import Fuse, Scheduled, Split, Stage
from ...ir.program import Compute
from ...ir.types import contiguous_strides
from .emit_expr import LocalStorage

ALLOCA_BYTES = 4096   # local buffers up to this size live on the stack, larger ones in the caller's workspace


@dataclass(slots=True)
class LocalLayout:
    """storage: of each local buffer. offsets: into the workspace, or minus the size on the stack. outputs: the output whose memory a
    buffer has. bytes: of the workspace."""

    storage: dict[str, LocalStorage] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


def local_layout(s: Scheduled) -> LocalLayout:
    out = LocalLayout()
    for p, st in enumerate(s.stages):
        buf = st.compute.buffer
        if buf in s.program.outputs:
            continue
        readers = [k for k in range(p + 1, len(s.stages)) if buf in s.stages[k].compute.reads]
        depth = min((s.stages[k].shared for k in range(p + 1, readers[-1] + 1)), default=0) if readers else 0
        shared = frozenset(x.axis for x in st.loops[:depth])
        sizes = tuple(_unshared(a, st, shared) for a in st.compute.axes)
        strides = tuple(0 if n == 1 else k for n, k in zip(sizes, contiguous_strides(sizes), strict=True))
        nbytes = buf.dtype.bytes * math.prod(sizes)
        y = _becomes(s, p) if nbytes > ALLOCA_BYTES else None
        if y is not None and y.name not in out.outputs.values():
            out.storage[buf.name] = LocalStorage(y.strides, frozenset())
            out.outputs[buf.name] = y.name
            continue
        out.storage[buf.name] = LocalStorage(strides, shared)
        if nbytes > ALLOCA_BYTES:
            over = _overwritten(s, p, out.storage, out.offsets)
            out.offsets[buf.name] = out.bytes if over is None else out.offsets[over]
            out.bytes += -(-nbytes // 64) * 64 if over is None else 0
        else:  # LLVM may keep it in registers
            out.offsets[buf.name] = -max(nbytes, 1)
    return out


def _becomes(s: Scheduled, p: int) -> Buffer | None:
    """The output that stage p's result becomes, element by element (powers, divided by their sum): they can share its memory. An
    input may have that memory too: stage p may read inputs only where it writes, and no stage between the two may read any."""
    st, local = s.stages[p], {x.compute.buffer.name for x in s.stages} - {b.name for b in s.program.outputs}
    buf = st.compute.buffer
    last = next((k for k in reversed(range(p + 1, len(s.stages))) if buf in s.stages[k].compute.reads), p)
    y = s.stages[last].compute.buffer
    if last == p or y not in s.program.outputs or (y.dtype, y.shape) != (buf.dtype, buf.shape) or reduces(st.compute.body) \
            or reduces(s.stages[last].compute.body) or any(x.inside is not None or x.tensorize is not None for x in s.stages[p:last + 1]):
        return None
    if any(x.compute.buffer in s.program.outputs for x in s.stages[p:last]) or any(
            b.name not in local for x in s.stages[p + 1:last + 1] for b in x.compute.reads):
        return None
    return y if _in_place(st.compute, {b.name for b in st.compute.reads} - local, y.strides) \
        and _in_place(s.stages[last].compute, {buf.name}, buf.strides) else None


def _in_place(c: Compute, names: set[str], strides: tuple[int, ...]) -> bool:
    """Whether c reads these buffers only where it would write, had its result these strides."""
    own = flat_address(tuple(map(Var, c.axes)), strides)
    return all(x.where is None and address(x) == own for x in loads(c.body) if x.buffer.name in names)


def _overwritten(s: Scheduled, p: int, storage: dict[str, LocalStorage], offsets: dict[str, int]) -> str | None:
    """An earlier buffer whose memory stage p's result can take, element by element: p is the last to read it, and reads it
    only where it writes (exp(scores - maximum) in place of the scores), when what it sums up is complete."""
    c = s.stages[p].compute
    own = tuple(linear(Var(a)) for a in c.axes)
    found = loads(c.body)
    summed = {x.buffer.name for r in reduces(c.body) for x in loads(r.body)}
    for name in dict.fromkeys(x.buffer.name for x in found):
        if offsets.get(name, -1) < 0 or storage[name] != storage[c.buffer.name] or name in summed:
            continue
        mine = [x for x in found if x.buffer.name == name]
        last = not any(name in {b.name for b in st.compute.reads} for st in s.stages[p + 1:])
        same = all(x.where is None and x.dtype == c.buffer.dtype and tuple(map(linear, x.index)) == own for x in mine)
        if last and same and mine[0].buffer.shape == c.buffer.shape:
            return name
    return None


def _unshared(a: Axis, st: Stage, shared: frozenset[Axis]) -> int:
    """How many values of axis `a` one iteration of the shared loops covers."""
    if a in shared:
        return 1
    for r in st.relations:
        if isinstance(r, Split) and r.parent == a:
            return _unshared(r.inner, st, shared) if r.outer in shared else a.extent
        if isinstance(r, Fuse) and a in (r.outer, r.inner) and r.fused in shared:
            return 1
    return a.extent

"""Where the local buffers of a scheduled program live: on the stack, or in the workspace that the caller provides."""
from __future__ import annotations

from ...ir.affine import linear
from ...ir.expr import Axis, Var, loads, reduces
from ...ir.loops import Fuse, Scheduled, Split, Stage
from ...ir.types import contiguous_strides
from .emit_expr import LocalStorage

ALLOCA_BYTES = 4096   # local buffers up to this size live on the stack, larger ones in the caller's workspace


def local_layout(s: Scheduled) -> tuple[dict[str, LocalStorage], dict[str, int], int]:
    """(storage of each local buffer, its offset in the workspace or minus its size on the stack, workspace bytes)."""
    storage: dict[str, LocalStorage] = {}
    offsets: dict[str, int] = {}
    total = 0
    for p, st in enumerate(s.stages):
        buf = st.compute.buffer
        if buf in s.program.outputs:
            continue
        readers = [k for k in range(p + 1, len(s.stages)) if buf in s.stages[k].compute.reads]
        depth = min((s.stages[k].shared for k in range(p + 1, readers[-1] + 1)), default=0) if readers else 0
        shared = frozenset(x.axis for x in st.loops[:depth])
        sizes = tuple(_unshared(a, st, shared) for a in st.compute.axes)
        strides = tuple(0 if n == 1 else k for n, k in zip(sizes, contiguous_strides(sizes), strict=True))
        storage[buf.name] = LocalStorage(strides, shared)
        nbytes = buf.dtype.bytes
        for n in sizes:
            nbytes *= n
        if nbytes > ALLOCA_BYTES:
            over = _overwritten(s, p, storage, offsets)
            offsets[buf.name] = total if over is None else offsets[over]
            total += -(-nbytes // 64) * 64 if over is None else 0
        else:
            offsets[buf.name] = -max(nbytes, 1)
    return storage, offsets, total


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

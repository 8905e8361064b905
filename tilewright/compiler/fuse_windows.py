"""A depthwise convolution as one group with the convolution that makes its image, where that would be a large tensor.

    %e = conv_direct(%x, @w)      group 0  contraction  conv_direct + relu
    %r = relu(%e)
    %p = pad(%r)                  group 1  layout       pad                   ->    group 0  strips
    %d = conv_depthwise(%p, @f)   group 2  contraction  conv_depthwise + relu       conv_direct + relu + pad + conv_depthwise + relu
    %y = relu(%d)

The wide image then exists for a strip of rows only, in a thread's own cache (schedule/windows.py).
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..backends.target import Target
from ..ir.graph import Node, Value
from ..ir.ops.blocked import DirectConvAttrs
from ..ir.ops.slices import PadAttrs
from ..ir.types import F32
from .schedule.windows import Image, Window, choose_strips

if TYPE_CHECKING:
    from .fuse import _Cluster, _Fuser

LARGE = 0.75      # of the second-level cache: images that are smaller are still there when they are read again
TRAVEL = 0.21     # cycles to write a byte beyond that cache and to read it again
HIDDEN = 1 / 3    # of the cycles that the image takes to be made, in which its bytes travel meanwhile
CERTAIN = 1.25    # estimates of what is made twice are no better than that,
DOUBT = 0.14      # nor those of the whole


def join_windows(f: _Fuser, target: Target) -> None:
    """Joins depthwise convolutions with what makes their images, where nothing else reads those."""
    for k, n in enumerate(f.nodes):
        if n.op == "conv_depthwise":
            _join(f, k, target)


def _join(f: _Fuser, k: int, target: Target) -> None:
    after, x = f.of[k], f.nodes[k].operands[0]
    if after.kind not in ("contraction", "reduce") or after.anchor != k or x.type.dtype != F32:
        return
    pad = f.of[f.made[x.name]] if x.name in f.made and _only_rows_and_columns(f.nodes[f.made[x.name]]) else None
    image = x if pad is None else f.nodes[pad.anchor].operands[0]
    before = f.of[f.made[image.name]] if image.name in f.made else None
    if before is None or before.kind != "contraction" or f.nodes[before.anchor].op != "conv_direct" or before is after:
        return
    if not _alone(f, image, before, k if pad is None else pad.anchor):
        return
    if pad is not None and (len(pad.nodes) > 1 or not _alone(f, x, pad, k)):
        return
    if f.nodes[before.anchor].operands[1].name not in f.static:
        return  # strips read packed filters
    parts = [before, *([pad] if pad is not None else []), after]
    if not f.fits(*parts) or image.type.size * image.type.dtype.bytes <= LARGE * target.l2:
        return
    usual, other = ("joined", "apart") if _pays(f, image, before, k, target) else ("apart", "joined")
    as_usual = f.chosen("depthwise", usual, other, [m for c in parts for m in c.nodes])
    if (usual if as_usual else other) == "joined":
        for c in parts[:-1]:
            f.merge(after, c, f"{f.text(c.anchor)} joins {f.nodes[k].op}: rows of its result are read where they are made")
        after.kind = "strips"


def _pays(f: _Fuser, image: Value, before: _Cluster, k: int, target: Target) -> bool:
    """Whether the image, were it a whole tensor, would travel longer than rows that two strips read take to be made twice.

    Fitted to 17 pairs of convolutions, alone and on two threads (docs/architecture.md): images that take longer to be made
    travel while they are, so little is saved where the first convolution has many channels or a costly activation."""
    whole, down, results = _shapes(f, image, before, k, target)
    made = whole.cycles(whole.blocks, whole.height, target)
    more = choose_strips(whole, down, results, target)[1] - made
    saved = TRAVEL * image.type.size * image.type.dtype.bytes - HIDDEN * made
    return saved > CERTAIN * more + DOUBT * made


def _shapes(f: _Fuser, image: Value, before: _Cluster, k: int, target: Target) -> tuple[Image, Window, int]:
    """(what the first convolution makes, how node k reads its rows, rows of results)."""
    a, w, filters = f.nodes[k].attrs, f.nodes[before.anchor].operands[1].type.shape, f.nodes[k].operands[1].type.shape
    assert isinstance(a, DirectConvAttrs)
    images, blocks, height, width, lanes = image.type.shape
    results = f.nodes[k].outputs[0].type.shape[2]
    missing = (results - 1) * a.strides[0] + (filters[1] - 1) * a.dilations[0] + 1 - height
    down = Window(a.strides[0], a.dilations[0], filters[1], max(0, missing // 2), height)
    column = lanes * image.type.dtype.bytes
    after = sum(f.info[m].cost for m in before.nodes if m != before.anchor)
    whole = Image(images, blocks, height, width, -(-column // target.vector_bytes), column, math.prod(w[2:]), float(after))
    return whole, down, results


def _only_rows_and_columns(n: Node) -> bool:
    """Whether `n` puts zeros around rows and columns of an image in blocks of channels."""
    a = n.attrs
    return n.op == "pad" and isinstance(a, PadAttrs) and (a.mode, a.value) == ("constant", 0) and len(a.before) == 5 \
        and not any(a.before[i] or a.after[i] for i in (0, 1, 4)) and min(*a.before, *a.after) >= 0


def _alone(f: _Fuser, v: Value, maker: _Cluster, reader: int) -> bool:
    """Whether `v` is all that leaves its maker, and goes to one node."""
    return f.escapes(maker) == [v] and v.name not in f.results and set(f.users[v.name]) == {reader}

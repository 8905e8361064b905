"""Schedule of a convolution together with the depthwise one that reads it: in strips of rows, block of channels by block.

    parallel image { parallel strip { parallel block {
      for row of the strip:  t[row] = inside the image ? microkernel : zeros      a row of the convolution (contraction.py)
      for row, columns:      y = window's taps in straight-line code               the depthwise one, as in rows.py
    } } }

What the first makes for a strip lives in memory of the thread: rows by columns by a block of channels that stay in a core's own
cache and are never a whole tensor. What windows reach around the image is zeros in that memory. Neighbouring strips compute the
rows that both read twice, so strips are many rows high.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ...backends.target import Target
from ...ir.affine import linear
from ...ir.expr import Axis, Buffer, Const, Expr, Load, Var, eq, loads, reduces, rewrite, substitute
from ...ir.kinds import is_contraction
from ...ir.loops import Loop, Pack, Scheduled, Split, Stage
from ...ir.program import Compute, Program
from .contraction import choose_tile, default_contraction, find_roles, product_cycles
from .contraction_nest import Choice, schedule_nest
from .packing import packed_inputs
from .parallel import undivided
from .rows import lanes_of
from .rows_nest import STRAIGHT

SHARE = 2     # the part of the second-level cache that a strip's rows may take
FETCH = 0.15  # cycles to bring an element of what is convolved from there: once for the blocks of channels that go together


@dataclass(frozen=True, slots=True)
class Window:
    """How the depthwise convolution reads rows or columns: at `step` * h + `dilation` * r - `before`, of `size` there are."""

    step: int
    dilation: int
    taps: int
    before: int
    size: int

    @property
    def overlap(self) -> int:
        """Rows that two neighbouring strips read."""
        return max(0, (self.taps - 1) * self.dilation + 1 - self.step)

    def rows(self, n: int) -> int:
        """Rows that `n` neighbouring results read."""
        return (n - 1) * self.step + (self.taps - 1) * self.dilation + 1


@dataclass(frozen=True, slots=True)
class Strips:
    """rows: results of a strip. blocks: of channels that go together."""

    rows: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Image:
    """What the first convolution makes: `images` of `blocks` blocks of channels, `height` rows of `width` columns of `vectors`
    vectors (`column` bytes) of channels; `products` for each element, then `after` more operations."""

    images: int
    blocks: int
    height: int
    width: int
    vectors: int
    column: int
    products: int
    after: float = 0.0

    def cycles(self, blocks: int, rows: int, target: Target) -> float:
        """Estimated cycles to make so many rows of every image, so many blocks at a time."""
        vectors = blocks * self.vectors
        once = product_cycles(self.width, vectors, self.products, target) + self.width * (vectors * self.after + self.products * FETCH)
        return once * self.images * rows * self.blocks / blocks


def schedule_windows(p: Program, target: Target, packable: frozenset[str], cut: Strips | None = None) -> Scheduled | None:
    """The schedule of a program of two computes, a contraction and a sum over windows of its result, both images in blocks of
    channels; None for any other program. `cut` takes the place of the strips that would be chosen."""
    found = _windows(p)
    if found is None:
        return None
    first, second = (_renamed(c, f"_{k}") for k, c in enumerate(p.computes))
    down, across = found
    if first.axes[-1].extent > 4 * lanes_of(second, target):
        return None
    cut = cut or choose_strips(_image(first, lanes_of(first, target)), down, second.axes[2].extent, target)[0]
    part = find_roles(_row(_renamed(first, "", {first.axes[1]: cut.blocks}), p).computes[0], packable)
    if part is None:
        return None
    tile = choose_tile(part, lanes_of(first, target), target, even=True)
    chosen = default_contraction(_row(first, p), target, packable, tile)
    if chosen is None:
        return None
    choice = chosen[0]
    return _Strips(p, first, second, down, across, cut).schedule(target, packable, choice)


def window_strips(p: Program, target: Target, packable: frozenset[str]) -> tuple[Strips, int, list[int]] | None:
    """(the strips of the default schedule, the rows and the numbers of blocks that may be chosen in their place); None for a
    program that `schedule_windows` does not take."""
    found = _windows(p)
    if found is None or schedule_windows(p, target, packable) is None:
        return None
    first, second = p.computes
    results, blocks = second.axes[2].extent, first.axes[1].extent
    cut = choose_strips(_image(first, lanes_of(first, target)), found[0], results, target)[0]
    return cut, results, [n for n in range(1, blocks + 1) if blocks % n == 0]


def choose_strips(image: Image, down: Window, results: int, target: Target) -> tuple[Strips, float]:
    """(the strips that take the fewest estimated cycles, those cycles): rows that two strips read are made twice, few blocks at a
    time load more for each product, and few strips are hard to share evenly. `results`: rows of an image of results."""
    best, least = (Strips(1, 1), math.inf), math.inf
    for blocks in range(1, image.blocks + 1):
        if image.blocks % blocks:
            continue
        most = target.l2 // SHARE // ((image.width + 2 * down.before) * image.column * blocks)  # rows in the cache's share
        for strips in range(1, results + 1):
            rows = -(-results // strips)
            if down.rows(rows) > most and rows > 1:
                continue
            shares = image.images * strips * (image.blocks // blocks)
            cycles = image.cycles(blocks, min(strips * down.rows(rows), image.height + (strips - 1) * down.overlap), target)
            if (judged := cycles * (1 + 1 / shares)) < least:
                best, least = (Strips(rows, blocks), cycles), judged
            if down.rows(rows) * 4 < most:
                break
    return best


def _image(c: Compute, lanes: int) -> Image:
    n, blocks, height, width, lane = (a.extent for a in c.axes)
    return Image(n, blocks, height, width, -(-lane // lanes), lane * c.buffer.dtype.bytes, math.prod(a.extent for a in c.reduce_axes))


def _windows(p: Program) -> tuple[Window, Window] | None:
    """(windows of rows, of columns) where the second compute sums over windows of the first one's result."""
    if len(p.computes) != 2 or len(p.outputs) != 1 or not is_contraction(p.computes[0]):
        return None
    first, second = p.computes
    found = [x for x in loads(second.body) if x.buffer.name == first.buffer.name]
    sums = reduces(second.body)
    around = rewrite(second.body, lambda e: Const(0.0, e.dtype) if e in sums else None)
    if len(sums) != 1 or any(x.buffer.name == first.buffer.name for x in loads(around)):
        return None  # what follows the sum reads the image, too
    if len(found) != 1 or len(first.axes) != 5 or len(second.axes) != 5 or len(second.reduce_axes) != 2:
        return None
    read = found[0]
    n, cb, h, w, lane = second.axes
    r, s = second.reduce_axes
    same = all(linear(e) == linear(Var(a)) for e, a in zip((*read.index[:2], read.index[4]), (n, cb, lane), strict=True))
    down, across = _window(read.index[2], h, r, first.axes[2].extent), _window(read.index[3], w, s, first.axes[3].extent)
    if not same or down is None or across is None or first.buffer.shape != tuple(a.extent for a in first.axes):
        return None
    return down, across


def _window(e: Expr, out: Axis, tap: Axis, size: int) -> Window | None:
    form = linear(e)
    terms = dict(form.terms)
    step, dilation = terms.pop(out, 1 if out.extent == 1 else 0), terms.pop(tap, 1 if tap.extent == 1 else 0)
    return None if terms or step < 1 or dilation < 1 or form.const > 0 else Window(step, dilation, tap.extent, -form.const, size)


def _row(c: Compute, p: Program) -> Program:
    """One row of the convolution as a program of its own; which image and which row stays open."""
    _, cb, _, w, lane = c.axes
    own = Compute(Buffer(c.buffer.name, c.buffer.dtype, (cb.extent, w.extent, lane.extent)), (cb, w, lane), c.body)
    return Program("row", tuple(b for b in p.inputs if b in c.reads), (own.buffer,), (own,))


def _renamed(c: Compute, mark: str, sizes: Mapping[Axis, int] = MappingProxyType({})) -> Compute:
    """`c` with `mark` behind the names of its axes. `sizes`: extents that some of them get."""
    names = {a: Axis(f"{a.name}{mark}", sizes.get(a, a.extent)) for a in c.axes}
    return Compute(c.buffer, tuple(names.values()), substitute(c.body, {a: Var(b) for a, b in names.items()}))


class _Strips:
    """One schedule as it grows."""

    def __init__(self, p: Program, first: Compute, second: Compute, down: Window, across: Window, cut: Strips) -> None:
        self.p, self.first, self.second, self.down, self.across, self.cut = p, first, second, down, across, cut
        n, _, h, _, _ = second.axes
        self.image, self.strip = Axis("image", n.extent), Axis("strip", -(-h.extent // cut.rows))
        self.row = Axis("row", down.rows(min(cut.rows, h.extent)))
        self.wide = Axis("column", max(across.rows(second.axes[3].extent), across.before + across.size))  # zeros at both ends included

    def schedule(self, target: Target, packable: frozenset[str], choice: Choice) -> Scheduled:
        made, packs, inputs, block = self._rows(target, packable, choice)
        summed = self._sums(made.compute.buffer, block, target)
        return Scheduled(Program(self.p.name, inputs, self.p.outputs, (made.compute, summed.compute)), (made, summed), packs)

    def _shared(self, block: Axis | None) -> tuple[Loop, ...]:
        return tuple(Loop(a, "parallel") for a in (self.image, self.strip, block) if a is not None)

    def _rows(self, target: Target, packable: frozenset[str],
              choice: Choice) -> tuple[Stage, tuple[Pack, ...], tuple[Buffer, ...], Axis | None]:
        """The stage that makes the rows of a strip."""
        n, cb, h, w, lane = self.first.axes
        edges = Split(self.wide, Axis(f"{w.name}.e", 3), w, edges=(self.across.before, self.wide.extent - self.across.before - w.extent))
        step = self.cut.rows * self.down.step
        at = Var(self.strip) * step + Var(self.row) - self.down.before
        body = substitute(self.first.body, {n: Var(self.image), h: at})
        blocks = self.cut.blocks // choice.vectors if self.cut.blocks < cb.extent else 0
        choice = replace(choice, n_block=blocks, m_block=0, outer="n", order="n", keep=False, fetch_wide=False, fetch_narrow=False,
                         passes=1)
        own = _row(Compute(self.first.buffer, self.first.axes, body), self.p)
        s = schedule_nest(own, target, packable, choice)
        st = s.stages[0]
        assert st.tensorize is not None
        block = next((r.outer for r in st.relations if isinstance(r, Split) and r.parent == cb), None) if blocks else None
        inner = undivided(x for x in st.loops if x.axis != block)
        shared = self._shared(block)
        local = Buffer(self.first.buffer.name, self.first.buffer.dtype,
                       (n.extent, self.strip.extent, cb.extent, self.row.extent, self.wide.extent, lane.extent))
        made = Compute(local, (self.image, self.strip, cb, self.row, self.wide, lane),
                       substitute(st.compute.body, {w: Var(self.wide) - self.across.before}))
        inside = (at >= 0) & (at < h.extent) & eq(Var(edges.outer), 1)
        outer = (*shared, Loop(self.row), Loop(edges.outer))
        stage = replace(st, compute=made, loops=(*outer, *inner), relations=(edges, *st.relations), inside=(len(outer), inside),
                        tensorize=st.tensorize + len(outer) - (block is not None))
        return stage, s.packs, packed_inputs(self.p, own, s), block

    def _sums(self, local: Buffer, block: Axis | None, target: Target) -> Stage:
        """The stage that sums over windows."""
        n, cb, h, w, lane = self.second.axes
        r, s = self.second.reduce_axes
        column = Var(w) * self.across.step + Var(s) * self.across.dilation
        row = (Var(h) % self.cut.rows) * self.down.step + Var(r) * self.down.dilation
        index = (Var(n), Var(h) // self.cut.rows, Var(cb), row, column, Var(lane))

        def local_read(e: Expr) -> Expr | None:
            return Load(local, index) if isinstance(e, Load) and e.buffer.name == local.name else None
        body = substitute(rewrite(self.second.body, local_read), {n: Var(self.image)})
        c = Compute(self.second.buffer, (self.image, cb, h, w, lane), body)
        points = min(8, (8 if target.vector_registers < 32 else 16) // -(-lane.extent // lanes_of(c, target)), w.extent)
        cuts = [Split(h, self.strip, Axis(f"{h.name}.i", min(self.cut.rows, h.extent)))]
        if block is not None:
            cuts.append(Split(cb, block, Axis(f"{cb.name}.i", self.cut.blocks)))
        cuts.append(Split(w, Axis(f"{w.name}.o", -(-w.extent // points)), Axis(f"{w.name}.i", points), "balance"))
        short = self.down.taps * self.across.taps <= STRAIGHT
        window = (Loop(r, "unroll" if short else "serial", reduce=True), Loop(s, "unroll", reduce=True))
        shared = self._shared(block)
        loops = (*shared, Loop(cuts[1].inner if block is not None else cb), Loop(cuts[0].inner), Loop(cuts[-1].outer), *window,
                 Loop(cuts[-1].inner, "unroll"), Loop(lane, "vector"))
        return Stage(c, loops, tuple(cuts), len(shared))

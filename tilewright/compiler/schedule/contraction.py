"""Default schedule of contractions: matmul and convolution as register tiles of a microkernel.

Of the two operands, one is read as vectors along an output axis (`wide`: the packed weights, a row-major matrix), the
other one scalar at a time and broadcast (`narrow`: activations). A tile of MR points of narrow axes by NR vectors lives in
registers while the reduction runs:

    for n-tiles, for m-tiles:  microkernel { for k: MR broadcasts, NR vector loads, MR*NR multiply-adds }

Here the decisions are made, by closed-form estimates (`default_contraction`); contraction_nest.py makes loops of them.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ...backends.target import Target
from ...errors import ScheduleError
from ...ir.expr import Load, axes_of
from ...ir.loops import Scheduled
from ...ir.program import Compute, Program
from .contraction_nest import Choice, Roles, Tile, all_roles, layout_block, operand_bytes, schedule_nest
from .rows import access, lanes_of

UNROLLED_FMAS = 64   # multiply-adds of straight-line code in a microkernel: hides loop overhead; 128 is no faster, and slow to compile
REMOTE = 2            # cost of a byte that another thread wrote, in bytes of weights: threads keep their rows of activations
FEW_TIMES = 8         # that the image is gone through
FAR = 4096            # bytes between blocks of channels from which on no hardware prefetcher goes from one to the next
NEAR_BLOCKS = 16      # of channels in one pass over a sum: the ways of a cache, where the blocks' places differ by a power of two
PASS_TILES = 8        # of the narrow side that a pass goes over before the next one
PASS_SHARES = 24      # blocks of tiles, at least, for threads to divide among themselves
TILE_OVERHEAD = 40.0  # cycles to enter and leave a microkernel


def find_roles(c: Compute, packable: frozenset[str]) -> Roles | None:
    """The usual roles of a contraction's axes, None if it has no axis that can be lanes of one operand alone."""
    return next(iter(all_roles(c, packable)), None)


def schedule_contraction(p: Program, target: Target, packable: frozenset[str], tile: Tile | None = None) -> Scheduled | None:
    """The schedule of a program that is one contraction with its epilogue; None where it does not fit the scheme. `tile`
    takes the place of the tile that would be chosen."""
    found = default_contraction(p, target, packable, tile)
    return None if found is None else found[1]


def default_contraction(p: Program, target: Target, packable: frozenset[str], tile: Tile | None = None) -> tuple[Choice, Scheduled] | None:
    """The decisions of the default schedule, with that schedule; None where the program is no contraction that fits the scheme."""
    c = p.computes[0]
    r = find_roles(c, packable)
    if r is None or len(p.computes) != 1:
        return None
    d = _choose(r, tile or choose_tile(r, lanes_of(c, target), target), lanes_of(c, target), target)
    for pack in (True, False):
        try:
            return replace(d, pack=pack), schedule_nest(p, target, packable, replace(d, pack=pack))
        except ScheduleError:
            continue
    return None


def _choose(r: Roles, t: Tile, lanes: int, target: Target) -> Choice:
    last, chunk = _innermost(r)
    n_trips, m_trips = _trips(r, t, lanes)
    keep = REMOTE * _bytes(r.narrow, r) > _bytes(r.wide, r)
    d = Choice(
        roles=0, rows=t.rows, columns=t.columns, vectors=t.vectors, last=last, chunk=chunk, unroll=_unroll(t, min(chunk, r.k[last].extent)),
        order=_order(r, n_trips, m_trips, target), n_block=0, m_block=0, outer="n", keep=keep,
        fetch_wide=operand_bytes(r.wide) >= target.l2 // 8,
        fetch_narrow=_fetches(r, keep, math.prod(n_trips), target), pack=True)
    if passes := _passes(r, last, target):
        tiles, blocks = math.prod(n_trips), -(-math.prod(m_trips) // PASS_TILES) * math.prod(a.extent for a in r.batch)
        most = target.l2 // 4 // (PASS_TILES * t.rows * t.columns * t.vectors * lanes * 4)  # of partial sums
        return replace(d, order="n", n_block=max(2, min(most, tiles // -(-PASS_SHARES // blocks))), m_block=PASS_TILES, outer="m",
                       keep=True, fetch_wide=True, fetch_narrow=False, passes=passes)
    return d


def _fetches(r: Roles, keep: bool, times: int, target: Target) -> bool:
    """Whether the next pixels of every block of channels are fetched ahead: of images that all threads read, as another one has
    just written a part of them, and of those under a window that lie beyond the second-level cache. It helps when an image is
    read first and costs a little each of the `times` that it is read."""
    several = sum(a.extent > 1 for a in r.k)
    if keep:
        return several > 2 and operand_bytes(r.narrow) > target.l2
    return several > 1 and bool(r.m) and _bytes(r.narrow, r) >= target.l2 // (32 if times <= FEW_TIMES else 8)


# -- tile choice -----------------------------------------------------------------------------------------------------------
def _tiles(roles: Roles, lanes: int, target: Target) -> Iterator[Tile]:
    columns = roles.m[-1].extent if roles.m else 1
    rows = roles.m[-2].extent if len(roles.m) > 1 else 1
    spare = _spare(roles, lanes, target)
    n_vectors = _n_vectors(roles, lanes)
    for vectors in range(1, min(6, n_vectors) + 1):
        most = (target.vector_registers - spare - vectors) // vectors
        for w in range(1, min(most, columns) + 1):
            for h in range(1, min(most // w, rows) + 1 if w == columns else 2):
                yield Tile(h, w, vectors)


def _spare(roles: Roles, lanes: int, target: Target) -> int:
    """Registers beside the accumulators and the wide operand's vectors, pieces of a ragged vector included where there are no
    masks."""
    own = _own_registers(target)
    if target.has_masks or roles.vector.extent % lanes == 0:
        return own
    # vectors that hold nothing but the odd piece are taken apart by LLVM
    return own + (2 if roles.vector.extent > lanes else target.vector_registers // 2 - own)


def _own_registers(target: Target) -> int:
    """Registers for broadcasts, and for products that are not fused. NEON multiplies by a lane of a register, which takes loads
    of several rows in flight."""
    return 4 if target.arch == "aarch64" else 1 if target.has_fma else 2


def _n_vectors(roles: Roles, lanes: int) -> int:
    """Vectors on the n side that can stand in one tile."""
    if roles.vector.extent > lanes or not roles.n:
        return -(-roles.vector.extent // lanes)
    return roles.n[-1].extent


def choose_tile(roles: Roles, lanes: int, target: Target, even: bool = False) -> Tile:
    """The tile with the fewest estimated cycles over the whole contraction, ragged edges included. even: its vectors divide
    those of the n side."""
    found = (t for t in _tiles(roles, lanes, target) if not even or _n_vectors(roles, lanes) % t.vectors == 0)
    return min(found, key=lambda t: (_cycles(roles, t, lanes, target), -t.rows * t.columns * t.vectors))


def _cycles(roles: Roles, t: Tile, lanes: int, target: Target) -> float:
    columns = roles.m[-1].extent if roles.m else 1
    rows = roles.m[-2].extent if len(roles.m) > 1 else 1
    k = math.prod(a.extent for a in roles.k)
    streamed = k * t.vectors * lanes * 4 > target.l1d // 2
    total = 0.0
    for h, hn in _balanced(rows, t.rows):
        for w, wn in _balanced(columns, t.columns):
            n = _n_vectors(roles, lanes)
            full, rest = divmod(n, t.vectors)
            for v, vn in ((t.vectors, full), (rest, 1 if rest else 0)):
                total += hn * wn * vn * (_step(h * w, v, target, streamed) * k + TILE_OVERHEAD + h * w * v)
    return total


def _step(points: int, vectors: int, target: Target, streamed: bool = True) -> float:
    """Cycles of one k step: multiply-add ports, load ports, or the latency of the accumulators' chains. Loads are never quite
    free (the other hyperthread of a core takes its part of the ports), the wide operand's dear where its panel is `streamed`
    from the second-level cache: the small terms. Without fused multiply-adds (SSE) a broadcast is a shuffle, which shares
    three ports with the multiplications and additions."""
    if not target.has_fma:
        return max((2 * points * vectors + points) / 3, 4.0) + 0.08 * vectors + 0.05 * points
    return max(points * vectors / 2, (points + vectors) / 2, 4.0) + (0.3 if streamed else 0.15) * vectors + 0.15 * points


def product_cycles(points: int, vectors: int, k: int, target: Target) -> float:
    """The fewest estimated cycles of a matrix product: `points` rows by `vectors` vectors of columns over `k` steps."""
    best = math.inf
    for v in range(1, min(6, vectors) + 1):
        most = (target.vector_registers - _own_registers(target) - v) // v
        if most < 1:
            break
        full, rest = divmod(vectors, v)
        best = min(best, sum(n * count * (_step(size, width, target) * k + TILE_OVERHEAD + size * width)
                             for size, n in _balanced(points, most) for width, count in ((v, full), (rest, int(rest > 0)))))
    return best


def _balanced(extent: int, size: int) -> list[tuple[int, int]]:
    """(block size, count) of a balanced split."""
    t = -(-extent // size)
    base, rem = divmod(extent, t)
    return [(s, n) for s, n in ((base + 1, rem), (base, t - rem)) if n and s]


# -- other choices ---------------------------------------------------------------------------------------------------------
def _innermost(r: Roles) -> tuple[int, int]:
    """(position of the innermost reduction axis, its chunk): blocks of channels outermost, then the window, then the channels
    of a block; a contiguous axis last."""
    if block := layout_block(r):
        at = r.k.index(block[0])
        return at, max(1, min(block[1], block[0].extent))
    contiguous = [k for k, a in enumerate(r.k) if access(r.narrow).step(a) == 1]
    at = contiguous[-1] if contiguous else len(r.k) - 1
    return at, max(1, r.k[at].extent)


def _unroll(t: Tile, extent: int) -> int:
    """Steps of straight-line code: a divisor of the loop's extent where there is one near."""
    unroll = max(1, min(16, UNROLLED_FMAS // (t.rows * t.columns * t.vectors)))
    if extent <= unroll:
        return max(extent, 1)
    even = [u for u in range(unroll, unroll // 2, -1) if extent % u == 0]
    return even[0] if even else unroll


def _bytes(x: Load, r: Roles) -> int:
    """Bytes of an operand that one step of the batch axes reads."""
    used = set().union(*(axes_of(i) for i in x.index)) if x.index else set()
    return operand_bytes(x) // max(1, math.prod(a.extent for a in r.batch if a in used))


def _passes(r: Roles, last: int, target: Target) -> int:
    """In how many passes to go over the sum; 0: in one. Many blocks of channels far apart, as in large images, keep each other out
    of the caches and cost a wait each; what few of them hold for some tiles stays there while all weights go by."""
    head = next((a for k, a in enumerate(r.k) if k != last and a.extent > 1), None)
    if head is None or head.extent <= NEAR_BLOCKS or operand_bytes(r.narrow) <= target.l2 // 2:
        return 0
    step = access(r.narrow).step(head)
    return -(-head.extent // NEAR_BLOCKS) if step is not None and step * r.narrow.buffer.dtype.bytes >= FAR else 0


def _trips(r: Roles, t: Tile, lanes: int) -> tuple[list[int], list[int]]:
    """Trips of the loops over tiles: of the n side, of the m side."""
    n, m = [a.extent for a in r.n], [a.extent for a in r.m]
    if r.vector.extent > lanes or not r.n:
        n.append(-(-r.vector.extent // (t.vectors * lanes)))
    else:
        n[-1] = -(-n[-1] // t.vectors)
    for at, size in ((-1, t.columns), (-2, t.rows)):
        if len(m) >= -at:
            m[at] = -(-m[at] // size)
    return n, m


def _order(r: Roles, n: list[int], m: list[int], target: Target) -> str:
    """Order of the loops over tiles: what does not fit the second-level cache is streamed once."""
    room = target.l2 // 2
    wide, narrow = _bytes(r.wide, r), _bytes(r.narrow, r)
    n_first = wide + narrow * (math.prod(n) if narrow > room else 1)
    passes = math.prod(m[:-1]) if len(m) > 1 else math.prod(m)
    m_first = narrow + wide * (passes if wide > room else 1)
    if m_first >= n_first:
        return "n"
    return "rows" if len(m) > 1 else "m"

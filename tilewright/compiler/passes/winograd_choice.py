"""How a 3x3 convolution of stride 1 is computed: the direct sum, or Winograd with tiles of 2 or 4 results each way, its steps
apart or together in strips of tile rows. Closed-form estimates in cycles of one core; no measurements at compile time.

    direct   9 I products a result, from the image itself
    apart    V and M whole: weights are read once, V and M travel through outer caches where they outgrow the second level
    strips   V and M of a strip at a time: weights are read once a strip

Weights come from beyond the second-level cache at least once a call: between two calls a net has read all its others.
The algorithm (direct or Winograd, and its tile) does not depend on the number of threads, because results do on it; how it
is cut into strips does.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...backends.target import Target
from ...ir.ops.winograd_tiles import TILES, transform
from ..schedule.contraction import product_cycles

ROOM = 0.75          # of the second-level cache, for what one pass keeps there
FAR = 6.0            # bytes a cycle of one core from beyond the second-level cache, prefetched while multiplications run
OVERLAP = 0.25       # of the shorter of multiplication and transport that the longer one does not hide
GAIN = 0.92          # of the next simpler algorithm's cycles: an estimate above that is within the model's error, no gain
MEETING = 3000.0     # cycles that threads wait for each other and for shared lines between two steps
IN_CYCLES = {2: 100.0, 4: 215.0}   # to transform the inputs of one tile and vector of channels,
OUT_CYCLES = {2: 85.0, 4: 160.0}   # and its results (measured on AVX-512; FMA ports and stores bind, so other widths are near)


@dataclass(frozen=True, slots=True)
class Form:
    """tile: results of a tile each way. rows: tile rows of a strip; 0: the steps apart."""

    tile: int
    rows: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A 3x3 convolution of stride 1: images, channels read and made, size of the result."""

    n: int
    i: int
    o: int
    height: int
    width: int

    def blocks(self, target: Target) -> tuple[int, int]:
        """Vectors of channels read and made."""
        lanes = max(4, target.vector_bytes // 4)
        return -(-self.i // lanes), -(-self.o // lanes)


def best_form(layer: Layer, target: Target, threads: int = 1, direct: Layer | None = None, more: float = 0.0) -> Form | None:
    """The fastest way by estimate; None: the direct sum. Of what is equal within the model's error, the more accurate.
    direct: what the direct sum runs over, if not the same; more: cycles that Winograd takes beside its own."""
    best, cycles = None, direct_cycles(direct or layer, target)
    for tile in TILES:
        least, form = min(((more + form_cycles(layer, f, target), f) for f in forms(layer, tile)), key=lambda t: t[0])
        if least < GAIN * cycles:
            best, cycles = form, least
    if best is None or threads == 1:
        return best
    return min(forms(layer, best.tile), key=lambda f: form_cycles(layer, f, target, threads))


def ways(layer: Layer, target: Target, threads: int = 1) -> tuple[str, ...]:
    """All ways by name, the fastest by estimate first."""
    found = [(direct_cycles(layer, target), name_of(None))]
    found += [(form_cycles(layer, f, target, threads), name_of(f)) for tile in TILES for f in forms(layer, tile)]
    return tuple(name for _, name in sorted(found))


def name_of(form: Form | None) -> str:
    """"direct", "F4 apart", "F2 strips of 3"."""
    if form is None:
        return "direct"
    return f"F{form.tile} strips of {form.rows}" if form.rows else f"F{form.tile} apart"


def form_of(name: str) -> Form | None:
    """Inverse of `name_of`."""
    if name == "direct":
        return None
    tile, *rest = name.split()
    return Form(int(tile[1:]), int(rest[-1]) if len(rest) > 1 else 0)


def forms(layer: Layer, tile: int) -> Iterator[Form]:
    """The ways to cut the images for one tile size: the strips of each number have the fewest rows that will do."""
    yield Form(tile, 0)
    down = transform(tile).count(layer.height)
    yield from (Form(tile, rows) for rows in dict.fromkeys(-(-down // s) for s in range(down, 0, -1)))


def direct_cycles(layer: Layer, target: Target) -> float:
    """Of the direct sum on one core."""
    wide = layer.width >= 14
    points, times = (layer.width, layer.height) if wide else (layer.height * layer.width, 1)
    compute = layer.n * times * product_cycles(points, layer.blocks(target)[1], 9 * layer.i, target)
    return _joined(compute, 4 * 9 * layer.i * layer.o / FAR)


def form_cycles(layer: Layer, form: Form, target: Target, threads: int = 1) -> float:
    """Of Winograd in one form, on the busiest of `threads` cores."""
    f = transform(form.tile)
    ins, outs = layer.blocks(target)
    down, across = f.count(layer.height), f.count(layer.width)
    rows = form.rows or down * layer.n
    strips = -(-down // rows) * layer.n if form.rows else 1
    count = rows * across
    weights = 4 * f.points * layer.i * outs * (target.vector_bytes // 4)
    tiles = target.vector_bytes * f.points * count * (ins + outs)
    room = ROOM * target.l2
    passes = strips if weights + tiles > room else 1
    spilled = 2 * tiles * strips * max(0.0, 1 - room / tiles)
    compute = strips * f.points * product_cycles(count, outs, layer.i, target)
    moved = (weights * passes + spilled) / FAR
    changed = strips * count * (ins * IN_CYCLES[form.tile] + outs * OUT_CYCLES[form.tile])
    busy = -(-strips // threads) / strips if form.rows else 1 / threads
    return (_joined(compute, moved) + changed) * busy + (0 if form.rows or threads == 1 else 3 * MEETING)


def _joined(compute: float, moved: float) -> float:
    return max(compute, moved) + OVERLAP * min(compute, moved)

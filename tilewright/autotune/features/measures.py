"""What a loop nest costs, by counting: arithmetic, register use, and the cache lines that each level must bring in.

Loops of kind 0 run one trip after the other, 1 are straight-line code, 2 lanes, 3 passes over a part of a sum (nests.py names them).
`measure` is compiled by numba and works on arrays alone (see nests.py); some microseconds a nest. The model of a cache is the usual
one: the loops whose lines together fit a level bring each line in once; every trip of a loop around them brings all in again.
"""
from __future__ import annotations

import numba
import numpy as np

NAMES = (
    "cycles", "traffic1", "traffic2", "traffic3", "vector_ops", "memory_ops", "tiles", "stage_time",                # of all computes
    "top1", "top2", "top3", "overcount", "lane_use", "accumulators", "vectors", "tile_points", "pressure", "straight", "serial_reduce",
    "loads_per_op", "gathers", "contiguous", "broadcasts", "tile_bytes", "outer1_bytes", "outer2_bytes", "outer3_bytes", "outer1_trips",
    "outer2_trips", "conflicts", "parallel", "imbalance", "issue_bound", "load_bound", "chain_bound", "outside_share", "store_run",
    "tile_lines", "intensity")
EXTENSIVE = 8     # the first so many add up over computes; the others are taken from the one that takes the longest
LINE = 64.0
L2_CYCLES, L3_CYCLES, MEMORY_CYCLES = 1.5, 7.0, 14.0   # a line from each level, where requests overlap
ENTER_TILE, ENTER_BODY = 40.0, 2.0                      # cycles to start a tile of accumulators, a body without one
GATHER = 1.5                                            # load slots of one lane that is fetched alone
ENOUGH = 256                                            # iterations at which no more loops are made parallel


@numba.njit(cache=True, error_model="numpy")
def _lines(stride: np.ndarray, trips: np.ndarray, count: int, size: float, whole: float) -> float:
    """Distinct cache lines that an access touches under `count` loops (stride in elements, trips)."""
    for i in range(1, count):  # by stride, smallest first
        s, t, j = stride[i], trips[i], i - 1
        while j >= 0 and stride[j] > s:
            stride[j + 1], trips[j + 1] = stride[j], trips[j]
            j -= 1
        stride[j + 1], trips[j + 1] = s, t
    lines, span, unit, number = 1.0, size, 0.0, 1.0  # a run of `number` steps of `unit` bytes, `span` bytes long
    for i in range(count):
        if stride[i] < 0:
            lines *= trips[i]
            continue
        step = stride[i] * size
        if step <= span + LINE - size or (unit > 0 and step < unit * number):  # goes on where the run ends, or overlaps it
            span += step * (trips[i] - 1)
            number = number if unit == 0 else span / unit
            if unit == 0:
                unit, number = step, trips[i]
        else:
            lines *= max(1.0, span / LINE + 0.5) if unit <= LINE else number
            span, unit, number = size, step, trips[i]
            span += step * (trips[i] - 1)
    lines *= max(1.0, span / LINE + 0.5) if unit <= LINE else number
    return min(lines, whole / LINE + 1.0)


@numba.njit(cache=True, error_model="numpy")
def _one(trips: np.ndarray, kind: np.ndarray, reduce: np.ndarray, stride: np.ndarray, size: np.ndarray, whole: np.ndarray,
         inside: np.ndarray, arithmetic_in: float, arithmetic_out: float, points: float, reduced: float, lanes: float, registers: float,
         caches: np.ndarray, ports: float, threads: float, out: np.ndarray) -> None:
    loops, accesses = trips.shape[0], size.shape[0]
    vector, vector_at, straight, tile, red_unroll, serial, outer, total = 1.0, -1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0
    first = loops
    for k in range(loops):
        t = trips[k]
        total *= t
        if reduce[k] and t > 1 and first == loops:
            first = k
        if kind[k] == 2:
            if t > 1:
                vector, vector_at = t, k
        elif kind[k] == 1:
            straight *= t
            if reduce[k]:
                red_unroll *= t
            else:
                tile *= t
        elif reduce[k]:
            serial *= t
        else:
            outer *= t
    vectors = np.ceil(vector / lanes)
    use = vector / (vectors * lanes) if vector_at >= 0 else 1.0 / lanes
    reducing = reduced > 1

    # -- issue: what one pass through the innermost straight-line code takes
    load_in, load_out, gathers, contiguous, broadcasts, conflicts = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for a in range(accesses):
        many = 1.0
        for k in range(loops):
            if kind[k] == 1 and stride[a, k] != 0 and trips[k] > 1:
                many *= trips[k]
                if stride[a, k] > 0 and (stride[a, k] * size[a]) % 4096 == 0:
                    conflicts += 1
        along = stride[a, vector_at] if vector_at >= 0 else 0
        if along == 0:
            broadcasts += 1
        elif along == 1:
            many *= vectors
            contiguous += 1
        else:
            many *= vector * GATHER
            gathers += vector
        if inside[a]:
            load_in += many
        else:
            load_out += many
    issue = straight * vectors * arithmetic_in / ports
    loading = load_in / 2
    chain = 4.0 * red_unroll if reducing else 0.0
    body = max(issue, loading, chain)
    around = tile * vectors * arithmetic_out / ports + load_out / 2 + (ENTER_TILE if reducing else ENTER_BODY)
    cycles = outer * (serial * body + around)

    # -- memory: lines under the loops from k on, for each k
    lines = np.empty((loops + 1, accesses))
    s, t = np.empty(loops), np.empty(loops)
    for a in range(accesses):
        for k in range(loops, -1, -1):
            count = 0
            for j in range(k, loops):
                if stride[a, j] != 0 and trips[j] > 1 and (inside[a] or not reduce[j]):
                    s[count], t[count] = stride[a, j], trips[j]
                    count += 1
            lines[k, a] = _lines(s, t, count, float(size[a]), float(whole[a]))
    traffic = np.zeros(3)
    top = np.zeros(3)
    for level in range(3):
        fits = loops
        while fits > 0 and lines[fits - 1].sum() * LINE <= caches[level] * 0.8:
            fits -= 1
        for a in range(accesses):
            again = 1.0
            for k in range(fits):
                if inside[a] or not reduce[k]:
                    again *= trips[k]
            moved = max(lines[fits, a] * again, lines[0, a])
            traffic[level] += moved
            top[level] = max(top[level], moved)

    # -- threads: the outermost loops that share out, until there is enough
    shares = 1.0
    for k in range(loops):
        if trips[k] > 1:
            if reduce[k] or kind[k] != 0 or shares >= ENOUGH:
                break
            shares *= np.ceil(trips[k])
    imbalance = np.ceil(shares / threads) * threads / shares
    memory = max(traffic[0] * L2_CYCLES, traffic[1] * L3_CYCLES, traffic[2] * MEMORY_CYCLES)
    out[0], out[1], out[2], out[3] = cycles, traffic[0], traffic[1], traffic[2]
    out[4] = outer * serial * straight * vectors * arithmetic_in
    out[5], out[6], out[7] = outer * serial * load_in + outer * load_out, outer, max(cycles, memory) + 0.3 * min(cycles, memory)
    out[8], out[9], out[10] = top[0], top[1], top[2]
    out[11], out[12], out[13], out[14], out[15] = total / (points * reduced), use, tile * vectors, vectors, tile
    out[16] = (tile * vectors + vectors + 1) / registers
    out[17], out[18] = straight * vectors, serial
    out[19] = load_in / max(straight * vectors * arithmetic_in, 1.0)
    out[20], out[21], out[22] = gathers, contiguous, broadcasts
    at, given, seen = first, 0, np.zeros(3)
    out[23] = lines[min(at, loops)].sum() * LINE
    for k in range(min(at, loops) - 1, -1, -1):
        if trips[k] > 1 and kind[k] == 0 and given < 3:
            out[24 + given] = lines[k].sum() * LINE
            seen[given] = trips[k]
            given += 1
    while given < 3:
        out[24 + given] = lines[0].sum() * LINE
        seen[given] = 1.0
        given += 1
    out[27], out[28], out[29], out[30], out[31] = seen[0], seen[1], conflicts, shares, imbalance
    out[32], out[33], out[34] = issue / max(body, 1e-9), loading / max(body, 1e-9), chain / max(body, 1e-9)
    out[35] = around / (serial * body + around)
    run = 1.0
    for k in range(loops - 1, -1, -1):
        if stride[accesses - 1, k] > 0 and stride[accesses - 1, k] <= run and trips[k] > 1:
            run = max(run, stride[accesses - 1, k] * trips[k])
    out[36] = run * size[accesses - 1]
    out[37] = lines[min(at, loops)].sum()
    out[38] = points * reduced / max(lines[0].sum(), 1.0)


@numba.njit(cache=True, error_model="numpy")
def measure(trips: np.ndarray, kind: np.ndarray, reduce: np.ndarray, stride: np.ndarray, size: np.ndarray, whole: np.ndarray,
            inside: np.ndarray, arithmetic_in: float, arithmetic_out: float, points: float, reduced: float, lanes: float,
            registers: float, caches: np.ndarray, ports: float, threads: float, out: np.ndarray) -> None:
    """Fills out[n, len(NAMES)] for n nests. caches: bytes of the three levels. ports: simple vector operations a cycle."""
    for i in range(trips.shape[0]):
        _one(trips[i], kind[i], reduce[i], stride[i], size, whole, inside, arithmetic_in, arithmetic_out, points, reduced, lanes,
             registers, caches, ports, threads, out[i])

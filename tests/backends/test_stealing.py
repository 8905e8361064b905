"""Which parts of a call a thread takes: each part is given once, whatever the order in which threads come."""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

from tilewright.backends.llvm.jit import compile_ir, load
from tilewright.backends.llvm.stealing import TAKE, emit_take, sequence
from tilewright.backends.llvm.team import DEAL_CALLS, THREAD_BYTES
from tilewright.backends.plan import MOST_PIECES
from tilewright.backends.target import Target

Take = Callable[..., tuple[int, int]]


@cache
def taker() -> Take:
    """take(deal, seq, round, me, team, pieces, cuts, trips) -> (begin, end)."""
    arguments = "ptr %deal, i32 %seq, i64 %round, i64 %me, i64 %team, i64 %pieces, ptr %cuts, i64 %trips"
    code = emit_take() + f"""
define void @take_for_test({arguments}, ptr %out) {{
  %r = call {{ i64, i64 }} @{TAKE}({arguments})
  store {{ i64, i64 }} %r, ptr %out
  ret void
}}
"""
    library = load([compile_ir(code, Target.host())], ["take_for_test"], Target.host())
    library.keep()
    kinds = [ctypes.c_void_p, ctypes.c_int32, *[ctypes.c_int64] * 4, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    function = ctypes.CFUNCTYPE(None, *kinds)(library.address("take_for_test"))

    def take(deal: int, seq: int, turn: int, me: int, team: int, pieces: int, cuts: int, trips: int) -> tuple[int, int]:
        out = (ctypes.c_int64 * 2)()
        function(deal, ctypes.c_int32(seq & 0xffffffff), turn, me, team, pieces, cuts, trips, ctypes.addressof(out))
        return out[0], out[1]
    return take


def words(threads: int) -> np.ndarray:
    return np.zeros(threads * THREAD_BYTES // 8, np.int64)


def covered(parts: list[tuple[int, int]], trips: int) -> None:
    assert all(b < e for b, e in parts)
    assert sorted(k for b, e in parts for k in range(b, e)) == list(range(trips))


@pytest.mark.parametrize("seed", range(60))
def test_every_part_is_given_once(seed: int) -> None:
    """Calls in a row, threads in any order, with shares that are even and uneven, small and empty; numbers wrap around."""
    rng = np.random.default_rng(seed)
    threads = int(rng.integers(1, 7))
    deal, take = words(threads), taker()
    number = int(rng.choice([0, 5, (1 << 27) - 2, (1 << 28) - 3, (1 << 28) - 1]))
    deal.reshape(threads, -1)[:, 0] = (number * DEAL_CALLS & 0xffffffff) << 32 if number < 1 << 27 else \
        ((number * DEAL_CALLS & 0xffffffff) - (1 << 32)) << 32
    for call in range(12):
        seq = (number + call // 3) * DEAL_CALLS + call % 3 + 1
        team, trips = int(rng.integers(1, threads + 1)), int(rng.integers(1, 400))
        pieces = int(rng.choice([1, 2, 7, 16, MOST_PIECES]))
        bounds = np.sort(rng.integers(0, trips + 1, team - 1)) if rng.random() < 0.5 else None
        cuts = None if bounds is None else np.array([0, *bounds, trips], np.int64)
        parts, busy, turns = [], list(range(team)), [0] * team
        while busy:
            me = int(rng.choice(busy, p=None if rng.random() < 0.5 else np.eye(len(busy))[0]))
            begin, end = take(deal.ctypes.data, seq, turns[me], me, team, pieces, cuts.ctypes.data if cuts is not None else 0, trips)
            turns[me] += 1
            if begin < 0:
                busy.remove(me)
            else:
                parts.append((begin, end))
        covered(parts, trips)


def test_own_share_first_then_from_the_back_of_another() -> None:
    deal, take = words(2), taker()
    first = [take(deal.ctypes.data, 1, k, 1, 2, 16, 0, 320) for k in range(3)]
    assert first == [(160, 280), (280, 310), (310, 320)]
    assert take(deal.ctypes.data, 1, 3, 1, 2, 16, 0, 320) == (80, 160), "half of what thread 0, which is not there yet, would take"
    assert take(deal.ctypes.data, 1, 0, 0, 2, 16, 0, 320) == (0, 60)


def test_nothing_of_a_call_that_others_have_left() -> None:
    """Thread 1 is still at call 1, which is done, when thread 0 begins with call 2: its share of that can be taken, call 1 not again."""
    deal, take = words(2), taker()
    parts = [take(deal.ctypes.data, 1, k, 0, 2, 1, 0, 8) for k in range(3)]
    assert parts == [(0, 4), (4, 8), (-1, -1)]
    assert take(deal.ctypes.data, 2, 0, 0, 2, 1, 0, 8) == (0, 4)
    assert take(deal.ctypes.data, 2, 1, 0, 2, 1, 0, 8) == (4, 8)
    assert take(deal.ctypes.data, 1, 0, 1, 2, 1, 0, 8) == (-1, -1)
    assert take(deal.ctypes.data, 2, 0, 1, 2, 1, 0, 8) == (-1, -1)


def test_fixed_shares_without_a_pool() -> None:
    take = taker()
    parts = [take(0, 0, 0, me, 3, 9, 0, 10) for me in range(3)]
    covered(parts, 10)
    assert [take(0, 0, 1, me, 3, 9, 0, 10) for me in range(3)] == [(-1, -1)] * 3


def test_threads_at_once() -> None:
    threads, calls, trips = 4, 400, 997
    deal, take = words(threads), taker()

    def run(me: int) -> list[list[tuple[int, int]]]:
        found: list[list[tuple[int, int]]] = []
        for call in range(calls):
            parts: list[tuple[int, int]] = []
            while (part := take(deal.ctypes.data, call + 1, len(parts), me, threads, 16, 0, trips))[0] >= 0:
                parts.append(part)
            found.append(parts)
        return found

    with ThreadPoolExecutor(threads) as pool:
        each = list(pool.map(run, range(threads)))
    for call in range(calls):
        covered([p for found in each for p in found[call]], trips)


def test_numbers_for_calls_run_out() -> None:
    assert sequence("%t", 0) == "or i32 %t, 1"
    assert sequence("%t", DEAL_CALLS - 1) is None

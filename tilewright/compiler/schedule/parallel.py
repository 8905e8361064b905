"""Which loops threads divide among themselves."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...ir.loops import Loop

ENOUGH = 256  # iterations: shares of 64 threads differ by a quarter at most, of two by less than a percent


def mark_parallel(loops: Sequence[Loop], limit: int) -> tuple[Loop, ...]:
    """Makes the outermost loops parallel until there are ENOUGH iterations, of the first `limit` at most; these must be
    serial and no reductions. It changes neither what is computed nor the order inside one thread."""
    out, trips = list(loops), 1
    for k in range(limit):
        if trips >= ENOUGH:
            break
        out[k] = replace(out[k], kind="parallel")
        trips *= out[k].axis.extent
    return tuple(out)


def undivided(loops: Iterable[Loop]) -> tuple[Loop, ...]:
    """The loops of a schedule as a part of another one runs them: inside loops that are divided already."""
    return tuple(replace(x, kind="serial" if x.kind == "parallel" else x.kind, major=0) for x in loops)

"""What a candidate is fed, and what it must answer.

Inputs are random but the same for the same seed, and valid: indices are in range. The right answer is the default schedule's,
which is itself held against the index notation evaluated in f64 where that is affordable. How far another order of summation
may lie from it is not guessed but measured, by Monte Carlo arithmetic (Parker 1997): the default kernel runs several times
on inputs with relative errors of K * eps, K the terms of its sums. That moves a sum by sqrt(K) * eps * sum|terms|, the
probabilistic bound for a sum in any order (Higham & Mary 2019), and shows what follows from it.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..ir.expr import Buffer, Checked, loads, walk
from ..ir.interpreter import run_program
from ..ir.program import Program
from ..ir.types import DType

DRAWS = 6
ULPS = 4.0     # of one scalar function
MARGIN = 4.0   # the largest of DRAWS deviations, times this, is what no honest result exceeds
MOST_POINTS = 1 << 23  # of the iteration spaces that the interpreter evaluates: about a second
_BLOCK = 1_048_573  # random numbers are made once and repeated: a prime, so that rows of powers of two do not coincide
_EPS = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-53}
Arrays = list[np.ndarray]


def make_inputs(p: Program, seed: int, positive: bool = False) -> Arrays:
    """One array for each input: floats normal with deviation 1/2, or with `positive` uniform in [0.5, 1.5), which
    logarithms and roots accept; integers that index something in its range, other integers 0 and 1, bytes of all values."""
    rng = np.random.default_rng(seed)
    limits = _index_limits(p)
    return [_random(b, rng, positive, limits.get(b.name)) for b in p.inputs]


def _random(b: Buffer, rng: np.random.Generator, positive: bool, limit: int | None) -> np.ndarray:
    size = math.prod(b.shape)
    n = min(size, _BLOCK)
    if b.dtype.is_float:
        block = rng.random(n, np.float32) + 0.5 if positive else rng.standard_normal(n, np.float32) * np.float32(0.5)
    elif limit is not None:
        block = rng.integers(0, max(limit, 1), n)
    elif b.dtype.bytes == 1 and b.dtype.kind != "b":
        info = np.iinfo(b.dtype.numpy)
        block = rng.integers(info.min, info.max + 1, n)
    else:
        block = rng.integers(0, 2, n)
    return np.resize(block.astype(b.dtype.numpy), b.shape) if size else np.zeros(b.shape, b.dtype.numpy)


def _index_limits(p: Program) -> dict[str, int]:
    """Inputs that indices are computed from -> the smallest dimension that they index."""
    out: dict[str, int] = {}
    sources = {b.name: frozenset([b.name]) for b in p.inputs}
    for c in p.computes:
        sources[c.buffer.name] = frozenset(n for x in loads(c.body) for n in sources[x.buffer.name])
        for node in walk(c.body):
            if isinstance(node, Checked):
                for name in {n for x in loads(node.arg) for n in sources[x.buffer.name]}:
                    out[name] = min(out.get(name, node.extent), node.extent)
    return out


def terms(p: Program) -> int:
    """How many terms the longest chain of sums has."""
    return sum(math.prod(a.extent for a in c.reduce_axes) for c in p.computes if c.reduce_axes) or 1


def jittered(arrays: Arrays, p: Program, rng: np.random.Generator) -> Arrays:
    """The inputs with relative errors of K * eps in their floats."""
    k = terms(p)
    out = []
    for a, b in zip(arrays, p.inputs, strict=True):
        if not b.dtype.is_float or not a.size:
            out.append(a)
            continue
        wide = np.float64 if b.dtype.name == "f64" else np.float32
        factors = 1 + rng.uniform(-1, 1, min(a.size, _BLOCK)).astype(wide) * wide(k * _EPS[b.dtype.name])
        flat, new = a.reshape(-1), np.empty(a.size, a.dtype)
        for at in range(0, a.size, len(factors)):  # in pieces that caches hold: weights may be large
            part = flat[at:at + len(factors)]
            new[at:at + len(part)] = part * factors[:len(part)]
        out.append(new.reshape(a.shape))
    return out


@dataclass(frozen=True, slots=True)
class Expected:
    """What one output may be: between `low` and `high`, elementwise; NaN where `nan` says so (None: nowhere)."""

    name: str
    low: np.ndarray
    high: np.ndarray
    nan: np.ndarray | None

    def wrong(self, got: np.ndarray) -> str | None:
        """What is wrong with an output, None where nothing is."""
        with np.errstate(all="ignore"):
            fine = (got >= self.low) & (got <= self.high)
            if self.nan is not None:
                fine = np.where(self.nan, np.isnan(got), fine)
        if fine.all():
            return None
        bad = np.argwhere(~fine)
        at = tuple(int(i) for i in bad[0])
        return (f"{len(bad)} of {got.size} elements of {self.name} are off; at {list(at)} {got[at]!s}, "
                f"expected {self.low[at]!s} to {self.high[at]!s}")


def expected(name: str, dtype: DType, reference: np.ndarray, draws: Sequence[np.ndarray]) -> Expected:
    """From the default's output and those of the runs with errors."""
    if not dtype.is_float:
        stack = np.stack([reference, *draws])
        return Expected(name, stack.min(axis=0), stack.max(axis=0), None)
    wide = np.float64 if dtype.name == "f64" else np.float32
    want = reference.astype(wide)
    with np.errstate(all="ignore"):
        spread = np.max([np.abs(d.astype(wide) - want) for d in draws], axis=0)
        finite = np.isfinite(want)
        spread = np.where(np.isfinite(spread), spread, 0)
        typical = np.sqrt(np.mean(np.square(spread, dtype=np.float64))) if spread.size else 0.0
        slack = (MARGIN * np.maximum(spread, typical) + ULPS * _EPS[dtype.name] * np.abs(want) + np.finfo(wide).tiny).astype(wide)
        low, high = np.where(finite, want - slack, want), np.where(finite, want + slack, want)
    nan = np.isnan(want)
    return Expected(name, low, high, nan if nan.any() else None)


def usable(outputs: Sequence[np.ndarray]) -> bool:
    """Whether outputs say anything: not mostly NaN and infinities."""
    floats = [a for a in outputs if a.dtype.kind not in "iub" and a.size]
    return all(np.isfinite(a.astype(np.float32)).mean() > 0.5 for a in floats)


def against_meaning(p: Program, inputs: Arrays, wanted: Sequence[Expected]) -> str | None:
    """What is wrong with the default's answer by the index notation itself, None where nothing is or it would take too long."""
    points = sum(math.prod(a.extent for a in (*c.axes, *c.reduce_axes)) for c in p.computes)
    if points > MOST_POINTS:
        return None
    try:
        meant = run_program(p, {b.name: a for b, a in zip(p.inputs, inputs, strict=True)})
    except InputError as e:
        return str(e)
    found = (e.wrong(meant[e.name].astype(e.low.dtype, copy=False)) for e in wanted)
    return next((f"the default schedule disagrees with the program's meaning: {x}" for x in found if x), None)

"""Native code of random small graphs means what the graph says, unoptimised: within bounds that its arithmetic allows,
and the same bits again for read-only, unaligned and strided inputs.

`make test` takes a seeded few hundred; `TILEWRIGHT_LONG=1` takes thousands, half of them under random schedules."""
from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewright as tw
from tests.fuzz.graphs import Fuzzer, random_case
from tests.ir.op_graphs import random_schedules
from tests.machines import LONG, targets
from tests.precision import bounds
from tilewright.backends.target import Target
from tilewright.ir.graph import Graph
from tilewright.ir.text import print_graph

BLOCKS, BLOCK = (100, 25) if LONG else (10, 20)


def inconvenient(a: np.ndarray) -> np.ndarray:
    """The same values, read-only, at an odd address where contiguous, else strided."""
    if a.ndim and a.size % 2:
        wide = np.repeat(a, 2, axis=-1)[..., ::2]
    else:
        block = np.zeros(a.nbytes + 1, np.uint8)
        wide = block[1:].view(a.dtype).reshape(a.shape)
        wide[...] = a
    wide.flags.writeable = False
    return wide


def check(g: Graph, inputs: dict[str, np.ndarray], target: Target, seed: int | None = None) -> None:
    wanted = bounds(g, inputs)
    if seed is None:
        exe = tw.compile(g, target=target, cache=False)
    else:
        with random_schedules(seed):
            exe = tw.compile(g, target=target, cache=False)
    got, again = ([np.asarray(r) for r in (y if isinstance(y, tuple) else (y,))] for y in (
        exe(*inputs.values()), exe(*map(inconvenient, inputs.values()))))
    for v, r, r2 in zip(g.outputs, got, again, strict=True):
        assert r.tobytes() == r2.tobytes(), f"{v.name} differs from run to run"
        try:
            wanted[v.name].check(np.asarray(r), v.name)
        except AssertionError as e:
            raise AssertionError(f"{target}, schedules {seed}: {e}\n{print_graph(g)}") from None


@pytest.mark.parametrize("block", range(BLOCKS))
def test_seeded(block: int) -> None:
    for seed in range(block * BLOCK, block * BLOCK + BLOCK):
        check(*random_case(seed), targets()[0] if seed % 4 else targets()[seed // 4 % len(targets())], seed if seed % 2 and LONG else None)


@pytest.mark.parametrize(("seed", "schedule"), [(140, None), (16, None), (104, None), (351, 351), (461, 461), (539, 539), (847, 847)])
def test_found_before(seed: int, schedule: int | None) -> None:
    """Empty tensors in parallel loops, weights with dimensions of one element, weights of rank 0 and weights
    that nobody reads, packed; a transposed tile that LLVM refuses."""
    check(*random_case(seed), targets()[0], schedule)


@settings(max_examples=1000 if LONG else 60, deadline=None, derandomize=not LONG,
          suppress_health_check=list(HealthCheck))  # type: ignore[arg-type]
@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_drawn(rng: random.Random, steps: int) -> None:
    check(*Fuzzer(rng).build(steps), targets()[0])

"""Every op's native code means what its reference says: all samples of an op compiled as one graph, by the default and by
random schedules, for this machine and the levels below it. `TILEWRIGHT_LONG=1` takes every combination."""
from __future__ import annotations

import zlib

import numpy as np
import pytest

import tilewright as tw
from tests.ir.op_graphs import COMPILED, check, has_kernel, op_graph, random_schedules
from tests.machines import LONG, targets
from tilewright.backends.target import Target
from tilewright.ir.op import OPS, Op, Sample

OPS_PARAM = [pytest.param(op, id=op.name) for op in COMPILED]
CONTRACTIONS = ["matmul", "conv", "conv_transpose", "matmul_integer", "batch_norm", "layer_norm"]
SEEDS = 6 if LONG else 1


def regular(op: Op) -> list[Sample]:
    """Samples that become tensor programs."""
    return [s for s in op.samples() if not has_kernel(op, s)]


def verify(op: Op, samples: list[Sample], target: Target, weights: bool = False, seed: int | None = None) -> None:
    g, arrays = op_graph(op, samples, weights)
    if seed is None:
        exe = tw.compile(g, target=target)
    else:
        with random_schedules(seed):
            exe = tw.compile(g, target=target)
    results = exe(*arrays.values())
    check(g, arrays, [np.asarray(r) for r in results] if isinstance(results, tuple) else [np.asarray(results)], f"{target} {seed}")


@pytest.mark.parametrize("op", OPS_PARAM)
def test_default_schedules(op: Op) -> None:
    verify(op, list(op.samples()), Target.host())


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_weights_are_packed(name: str) -> None:
    for target in targets() if LONG else targets()[:1]:
        verify(OPS[name], list(OPS[name].samples()), target, weights=True)


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in COMPILED if regular(op)])
def test_lower_levels_and_random_schedules(op: Op) -> None:
    """Short: one level by default and one at random, and of many samples a share that differs from op to op."""
    samples, start = regular(op), zlib.crc32(op.name.encode())
    if not LONG:
        step = max(1, len(samples) // 5)
        samples = samples[start % step::step]
    levels = targets() if LONG else (targets()[start % len(targets())],)
    for target in levels:
        verify(op, samples, target)
        for seed in range(SEEDS):
            verify(op, samples, target, seed=seed if LONG else start % 1000)

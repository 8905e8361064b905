"""Every op on AArch64: the samples of all ops compiled, exported and linked into one program, run under qemu.

Default schedules for all ops (of many samples a share, which `TILEWRIGHT_LONG=1` makes all of them), random ones and packed
weights for some."""
from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

import tilewright as tw
from tests.ir.op_graphs import COMPILED, check, has_kernel, op_graph, random_schedules
from tests.machines import LONG, need, run_models
from tilewright.backends.executable import Executable
from tilewright.backends.target import Target
from tilewright.ir.graph import Graph
from tilewright.ir.op import OPS, Op, Sample

TARGET = Target.parse("aarch64")
PACKED = ("matmul", "conv", "conv_transpose", "matmul_integer", "layer_norm")
Case = tuple[str, Graph, dict[str, np.ndarray], Executable]


def share(op: Op, most: int, irregular: int = 0) -> list[Sample]:
    """At most about `most` samples that are tensor programs, and `irregular` that numba takes its time for; a choice that differs
    from op to op."""
    kinds: tuple[list[Sample], list[Sample]] = [], []
    for s in op.samples():
        kinds[has_kernel(op, s)].append(s)
    start, chosen = zlib.crc32(op.name.encode()), []
    for found, n in zip(kinds, (most, irregular), strict=True):
        step = 1 if LONG else max(1, len(found) // max(n, 1))
        chosen += found[start % step::step] if n else []
    return chosen


def case(name: str, op: Op, samples: list[Sample], weights: bool = False) -> Case:
    g, arrays = op_graph(op, samples, weights)
    return name, g, arrays, tw.compile(g, target=TARGET)


def run(cases: list[Case], folder: Path) -> None:
    results = run_models([(name, exe, list(arrays.values())) for name, _, arrays, exe in cases], TARGET, folder)
    for (name, g, arrays, exe), got in zip(cases, results, strict=True):
        assert len(got) == len(exe.outputs)
        check(g, arrays, got, name)


def test_default_schedules(tmp_path: Path) -> None:
    need("qemu-aarch64")
    run([case(f"op_{op.name}", op, samples) for op in COMPILED if (samples := share(op, 6, 1))], tmp_path)


def test_packed_weights(tmp_path: Path) -> None:
    need("qemu-aarch64")
    run([case(f"op_{name}", OPS[name], share(OPS[name], 40), True) for name in PACKED], tmp_path)


def test_random_schedules(tmp_path: Path) -> None:
    need("qemu-aarch64")
    cases = []
    for seed in range(6 if LONG else 1):
        for k, op in enumerate(COMPILED):
            if (LONG or k % 3 == 0) and (samples := share(op, 3)):
                with random_schedules(100 * seed + k):
                    cases.append(case(f"op_{op.name}_{seed}", op, samples))
    run(cases, tmp_path)

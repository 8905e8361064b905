"""Microkernels that candidates share: what stands under one symbol is the same code, whichever schedule asked for it first."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from tests.autotune.programs import matmul, task
from tilewright.autotune.builder import KERNEL, Parts, build
from tilewright.autotune.schedules import space_of
from tilewright.backends.llvm.emit import emit_kernel
from tilewright.backends.llvm.jit import compile_ir
from tilewright.errors import ScheduleError


class Twice:
    """A library that says each time that it has nothing."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.again = 0

    def use(self, symbol: str) -> bool:
        return False

    def add(self, symbols: Sequence[str], text: str) -> None:
        for symbol in symbols:
            found = _plain(next(f for f in re.findall(r"^define .*?^}$", text, re.M | re.S) if f'@"{symbol}"' in f))
            self.again += symbol in self.texts
            assert self.texts.setdefault(symbol, found) == found


def _plain(function: str) -> str:
    """Values and blocks by numbers in the order of their first appearance."""
    names: dict[str, str] = {}
    labelled = re.sub(r'^"?([\w.\-]+)"?:', r'%"\1":', function, flags=re.M)
    return re.sub(r'%"?([\w.\-]+)"?', lambda m: names.setdefault(m[1], f"%v{len(names)}"), labelled)


@pytest.mark.parametrize("shape", [(37, 64, 96), (16, 128, 50)], ids=["ragged", "narrow"])
def test_one_symbol_is_one_microkernel(shape: tuple[int, int, int]) -> None:
    t = task(matmul(*shape))
    space, rng, library = space_of(t), Random(0), Twice()
    for _ in range(60):
        try:
            s = space.scheduled(space.sample(rng))
        except ScheduleError:
            continue
        emit_kernel(s, t.target, KERNEL, library)
    assert library.again > 10


def test_candidates_share_objects() -> None:
    t = task(matmul(37, 64, 96))
    parts = Parts()
    first = build(t, [], parts)
    assert build(t, [], parts).objects == first.objects
    assert parts.size == 0, "nothing was made anew"
    assert build(t, []).objects == first.objects


def test_finalists_are_the_code_that_a_model_runs() -> None:
    """The kernel is an object of its own, compiled by all passes; trials' is not, and both are kept apart."""
    t = replace(task(matmul(37, 64, 96)), final=True)
    built = build(t, [], Parts())
    kernel, drive = built.objects
    assert kernel == compile_ir(emit_kernel(t.default(), t.target, KERNEL), t.target)
    assert kernel not in build(replace(t, final=False), [], Parts()).objects and drive
    assert t.hash == replace(t, final=False).hash and t.code_key != replace(t, final=False).code_key

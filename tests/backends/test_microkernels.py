"""Microkernels, as the default schedule chooses them, in the assembly of each instruction set: one multiply-add for each
point and vector of the tile in each step of the reduction, nothing on the stack, no calls."""
from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from tilewright.backends.llvm.emit import emit_kernel
from tilewright.backends.llvm.emit_expr import vector_lanes
from tilewright.backends.llvm.jit import assembly
from tilewright.backends.llvm.spills import InnerLoop, functions, inner_loops
from tilewright.backends.target import Target
from tilewright.compiler.inspect import inspect, lowered
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.expr import Axis
from tilewright.ir.graph import Graph
from tilewright.ir.loops import Loop, Scheduled, Split, Stage
from tilewright.ir.types import F32, TensorType

ISAS = {"AVX-512": "x86-64-v4", "AVX2": "x86-64-v3", "SSE": "x86-64", "NEON": "aarch64"}


def gemm(m: int, k: int, n: int, batch: tuple[int, ...] = ()) -> Graph:
    """x @ w + b, w a weight; with `batch` x @ y of two inputs, as in attention."""
    b = GraphBuilder("gemm")
    x = b.input("x", TensorType(F32, (*batch, m, k)))
    if batch:
        return b.graph([b.op("matmul", x, b.input("y", TensorType(F32, (*batch, k, n))))])
    y = b.op("matmul", x, b.weight("w", np.zeros((k, n), "f4")))
    return b.graph([b.op("relu", b.op("add", y, b.weight("b", np.zeros(n, "f4"))))])


def conv(c: int, o: int, size: int, k: int, stride: int = 1) -> Graph:
    """Two convolutions, so that the layouts between them are blocked as in a network."""
    b = GraphBuilder("conv")
    x = b.input("x", TensorType(F32, (1, c, size, size)))
    for cin, cout, kk, s in ((c, o, k, stride), (o, o, 1, 1)):
        w = b.weight("w", np.zeros((cout, cin, kk, kk), "f4"))
        x = b.op("conv", x, w, b.weight("b", np.zeros(cout, "f4")), strides=(s, s), pads=(kk // 2,) * 4, dilations=(1, 1), groups=1)
        x = b.op("relu", x)
    return b.graph([x])


SHAPES = {
    "resnet conv1 7x7": lambda: conv(3, 64, 56, 7, 2), "resnet 64 3x3": lambda: conv(64, 64, 56, 3),
    "resnet 128 3x3": lambda: conv(128, 128, 28, 3), "resnet 256 3x3": lambda: conv(256, 256, 14, 3),
    "resnet 512 3x3": lambda: conv(512, 512, 7, 3), "resnet 256-64 1x1": lambda: conv(256, 64, 56, 1),
    "resnet 512-1024 1x1 /2": lambda: conv(512, 1024, 28, 1, 2), "resnet 2048-512 1x1": lambda: conv(2048, 512, 7, 1),
    "odd channels": lambda: conv(13, 29, 11, 3), "bert qkv": lambda: gemm(128, 384, 1152), "bert out": lambda: gemm(128, 384, 384),
    "bert up": lambda: gemm(128, 384, 1536), "bert down": lambda: gemm(128, 1536, 384), "scores": lambda: gemm(128, 32, 128, (12,)),
    "context": lambda: gemm(128, 128, 32, (12,)), "gemv": lambda: gemm(1, 2048, 1000), "prime": lambda: gemm(37, 41, 197),
    "tiny": lambda: gemm(3, 5, 2), "narrow": lambda: gemm(197, 64, 3), "two rows": lambda: gemm(2, 300, 70)}


def microkernels(g: Graph, target: Target) -> Iterator[tuple[Scheduled, Stage, list[InnerLoop]]]:
    for s in lowered(g, target).scheduled:
        stage = s.stages[0] if s is not None and s.stages[0].tensorize is not None else None
        if s is not None and stage is not None:
            yield s, stage, inner_loops(assembly(emit_kernel(s, target, "k"), target), "_micro")


def sizes(x: Loop, st: Stage, lanes: int) -> set[int]:
    """How often a loop's body may be repeated in straight-line code: its extents, in vectors where it is lanes."""
    extents = extents_of(x.axis, st)
    return {-(-n // lanes) for n in extents} if x.kind == "vector" else extents


def extents_of(a: Axis, st: Stage) -> set[int]:
    """Of an axis, in whole and in ragged blocks of all splits that it is inside of."""
    split = next((r for r in st.relations if isinstance(r, Split) and r.inner == a), None)
    return {n for e in extents_of(split.parent, st) for _, _, n, _ in split.segments(e)} if split else {a.extent}


def tiles(st: Stage, lanes: int) -> tuple[set[int], int]:
    """(multiply-adds that one step of the reduction may have: points times vectors of whole and ragged tiles, those of the
    full tile)."""
    assert st.tensorize is not None
    body = [sizes(x, st, lanes) for x in st.loops[st.tensorize:] if not x.reduce]
    counts = {int(np.prod(c)) for c in product(*body)}
    return counts, max(counts)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_inner_loops(shape: str, isa: str) -> None:
    target, seen = Target.parse(ISAS[isa]), 0
    for s, st, loops in microkernels(SHAPES[shape](), target):
        lanes = vector_lanes(st.compute.body, st.compute.buffer.dtype, target)
        counts, full = tiles(st, lanes)
        assert loops, f"{s}"
        for x in loops:
            what = f"{isa} {shape} {x.function}\n{s}\n" + "\n".join(x.instructions)
            # products that are not fused need registers of their own: on SSE one instruction in 32 may be a spill (a ragged tile of
            # Winograd's products has 4 in 158; whole tiles of matrices have none and run at 98% of the peak)
            allowed = 0 if target.has_fma else len(x.instructions) // 32
            assert len(x.spills) <= allowed, f"{len(x.spills)} spills: {what}"
            assert not x.calls, what
            steps = {x.multiply_adds // n for n in counts if x.multiply_adds % n == 0}
            assert steps, f"{x.multiply_adds} multiply-adds are no multiple of {sorted(counts)}: {what}"
        assert any(x.multiply_adds % full == 0 for x in loops), f"{isa} {shape}\n{s}"
        seen += 1
    assert seen or shape == "tiny", "no microkernel was chosen"


@pytest.mark.parametrize("shape", ["bert out", "resnet 64 3x3"])
def test_neon_multiplies_and_adds_in_vector_registers(shape: str) -> None:
    text = inspect(SHAPES[shape](), "asm", "aarch64")
    loops = [x for x in inner_loops(text, "_micro") if x.loop]
    assert loops
    for x in loops:
        fmla = [i for i in x.instructions if i.startswith("fmla v") and ".4s" in i]
        assert len(fmla) == x.multiply_adds >= 8


SPILLED = """
	.type	f,@function
f:
	subq	$64, %rsp
	vmovups	%zmm0, (%rsp)
.LBB0_1:
	movq	%r8, 16(%rsp)
.LBB0_2:
	vmovups	(%rsp), %zmm1           # 64-byte Reload
	vfmadd231ps	8(%rsi){1to16}, %zmm1, %zmm2
	callq	g
	jne	.LBB0_2
	jne	.LBB0_1
	retq
.Lfunc_end0:
	.type	g,@function
g:
	stp	d9, d8, [sp, #64]
	str	q0, [sp, #16]
	fmla	v1.4s, v2.4s, v3.s[0]
	ret
.Lfunc_end1:
"""


def test_spills_are_seen() -> None:
    assert list(functions(SPILLED)) == ["f", "g"]
    f, g = inner_loops(SPILLED)
    assert f.loop and f.spills == ("vmovups (%rsp), %zmm1",) and f.calls == ("callq g",) and f.multiply_adds == 1
    assert not g.loop and g.spills == ("str q0, [sp, #16]",) and not g.calls and g.multiply_adds == 1
    assert inner_loops(SPILLED, "absent") == []

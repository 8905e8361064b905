"""Long sums in passes: the same values, partial sums in one block's memory, and taken where blocks of channels lie far apart."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.compiler.programs import program_inputs, random_inputs, run_native
from tilewright.backends.llvm.emit import parallel_extent, workspace_bytes
from tilewright.backends.target import Target
from tilewright.compiler.schedule.contraction import default_contraction
from tilewright.compiler.schedule.contraction_nest import Choice, schedule_nest
from tilewright.compiler.schedule.legality import check_legal
from tilewright.compiler.schedule.passes import in_passes
from tilewright.errors import ScheduleError
from tilewright.ir.expr import Axis, Buffer, Expr, call
from tilewright.ir.loops import default_stages
from tilewright.ir.program import Program, compute, reduce
from tilewright.ir.types import F32

HOST = Target.host()
PACKED = frozenset({"w"})


def pointwise(blocks: int, height: int, width: int, out: int, window: int = 1) -> Program:
    """relu(conv(x, w) + z) of channels in blocks of 16, with a residual that the epilogue reads."""
    x = Buffer("x", F32, (blocks, height + window - 1, width + window - 1, 16))
    w = Buffer("w", F32, (out * 16, blocks * 16, window, window))
    z = Buffer("z", F32, (out, height, width, 16))

    def body(o: Expr, i: Expr, j: Expr, v: Expr) -> Expr:
        s = reduce("sum", (blocks, 16, window, window),
                   lambda r, q, p, t: x[r, i + p, j + t, q] * w[o * 16 + v, r * 16 + q, p, t])
        return call("max", s + z[o, i, j, v], 0.0)
    y = compute("y", F32, (out, height, width, 16), body)
    return Program("pointwise", (x, w, z), (y.buffer,), (y,))


def matmul(m: int, k: int, n: int) -> Program:
    x, w, b = Buffer("x", F32, (m, k)), Buffer("w", F32, (k, n)), Buffer("b", F32, (n,))
    y = compute("y", F32, (m, n), lambda i, j: call("tanh", reduce("sum", (k,), lambda r: x[i, r] * w[r, j]) + b[j]))
    return Program("matmul", (x, w, b), (y.buffer,), (y,))


def reference(p: Program, inputs: dict[str, np.ndarray]) -> np.ndarray:
    x, w = inputs["x"].astype(np.float64), inputs["w"].astype(np.float64)
    if p.name == "matmul":
        return np.tanh(x @ w + inputs["b"])
    out, height, width, _ = p.outputs[0].shape
    weights = w.reshape(out, 16, x.shape[0], 16, *w.shape[2:])
    total = inputs["z"].astype(np.float64)
    for p_ in range(w.shape[2]):
        for t in range(w.shape[3]):
            total = total + np.einsum("rijq,ovrq->oijv", x[:, p_:p_ + height, t:t + width], weights[..., p_, t])
    return np.maximum(total, 0)


def choice(p: Program, target: Target, **changes: object) -> Choice:
    found = default_contraction(p, target, PACKED)
    assert found is not None
    return replace(found[0], **changes)  # type: ignore[arg-type]


PROGRAMS = {"wide": pointwise(7, 6, 10, 3), "window": pointwise(5, 7, 6, 2, 3), "ragged": matmul(37, 131, 70), "one_row": matmul(1, 64, 48)}


@pytest.mark.parametrize("blocks", [(0, 2), (1, 0), (2, 3), (0, 13)])
@pytest.mark.parametrize("passes", [2, 3, 8])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_values(name: str, passes: int, blocks: tuple[int, int]) -> None:
    p = PROGRAMS[name]
    s = schedule_nest(p, HOST, PACKED, choice(p, HOST, passes=passes, n_block=blocks[0], m_block=blocks[1], outer="m", order="n"))
    check_legal(s)
    inputs = random_inputs(p)
    terms = p.computes[0].reduce_axes
    bound = 4 * 2.0**-24 * np.prod([a.extent for a in terms]) ** 0.5 * max(np.abs(inputs["x"]).max() * np.abs(inputs["w"]).max(), 1) * 8
    np.testing.assert_allclose(run_native(s, HOST, inputs)["y"], reference(p, inputs), rtol=1e-5, atol=bound)
    assert set(program_inputs(s, inputs)) == {b.name for b in s.program.inputs}


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])
def test_narrower_vectors(level: str) -> None:
    target, p = Target.parse(level), PROGRAMS["ragged"]
    s = schedule_nest(p, target, PACKED, choice(p, target, passes=3, n_block=1, m_block=2, order="n"))
    inputs = random_inputs(p)
    np.testing.assert_allclose(run_native(s, target, inputs)["y"], reference(p, inputs), rtol=1e-4, atol=1e-4)


def test_partial_sums_share_the_memory_of_one_block() -> None:
    p = pointwise(32, 16, 16, 4)
    d = choice(p, HOST, passes=8, m_block=16, n_block=0, outer="m", order="n")
    s = schedule_nest(p, HOST, PACKED, d)
    assert len(s.stages) == 8
    across = -(-16 // d.columns)
    rows = 16 // across if across <= 16 else 1
    assert 0 < workspace_bytes(s) <= rows * 16 * 64 * 4 + 64
    assert parallel_extent(s) == -(-16 // rows)


def test_taken_where_blocks_of_channels_lie_far_apart() -> None:
    def passes(p: Program) -> int:
        return choice(p, Target.parse("x86-64-v4")).passes
    assert passes(pointwise(128, 32, 32, 32)) == 8
    assert passes(pointwise(64, 32, 32, 16)) == 4
    assert passes(pointwise(128, 7, 7, 32)) == 1, "the image fits the second-level cache"
    assert passes(pointwise(4, 112, 112, 4)) == 1, "few blocks do not get in each other's way"
    assert passes(matmul(788, 3072, 768)) == 1, "rows are contiguous"


def test_what_is_no_sum_is_refused() -> None:
    p = PROGRAMS["ragged"]
    with pytest.raises(ScheduleError, match="no passes over k inside 1 loops"):
        in_passes(default_stages(p), Axis("k", 9), 2, 1)
    r = p.computes[0].reduce_axes[0]
    with pytest.raises(ScheduleError, match="inside 0 loops"):
        in_passes(default_stages(p), r, 2, 0)
    s = default_stages(p)
    assert in_passes(s, r, 1, 1) is s

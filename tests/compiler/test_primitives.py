"""Schedule primitives: what they make of a nest, what they refuse, and that they survive JSON."""
from __future__ import annotations

import json

import pytest

from tests.compiler.programs import convolution, matmul_relu, softmax
from tilewright.compiler.schedule.primitives import (
    CacheWrite,
    ComputeAt,
    Divide,
    Join,
    PackLayout,
    Parallel,
    Reorder,
    RFactor,
    Step,
    Tensorize,
    Unroll,
    Vectorize,
    apply,
    from_json,
    to_json,
    to_text,
)
from tilewright.errors import ScheduleError
from tilewright.ir.loops import loops_text

GEMM = (Divide("y", "i0", 3, "balance"), Divide("y", "i1", 16), Divide("y", "r0", 8),
        Reorder("y", ("i1.o", "i0.o", "r0.o", "r0.i", "i0.i", "i1.i")), Unroll("y", "i0.i"), Vectorize("y", "i1.i"),
        Tensorize("y", "r0.o"), Parallel("y", "i1.o"), PackLayout("w"))


def test_a_tiled_packed_matmul() -> None:
    assert loops_text(apply(matmul_relu(), GEMM)) == """\
loops @matmul_relu {
  pack w: pad [40, 48] split [5, 8, 3, 16] transpose [2, 0, 1, 3] -> [3, 5, 8, 16]
  parallel i1.o in 3  # blocks 2 x 16 + 1 x 13
    serial i0.o in 3  # blocks 1 x 3 + 2 x 2
      microkernel: serial reduce r0.o in 5  # blocks 4 x 8 + 1 x 5
        serial reduce r0.i in 8
          unroll i0.i in 3
            vector i1.i in 16
              y[i0,i1] = max((sum(r0<37: (x[i0,r0] * w_packed[(i1 // 16),(r0 // 8),(r0 % 8),(i1 % 16)])) + b[i1]), 0.0:f32)\
   where i0 = i0.o:i0.i, i1 = i1.o:i1.i, r0 = r0.o:r0.i
}"""


def test_rows_are_shared() -> None:
    steps = (ComputeAt("e", 1), ComputeAt("s", 1), ComputeAt("y", 1), Vectorize("m", "r0"), Vectorize("y", "i1_3"), Parallel("m", "i0"))
    s = apply(softmax(), steps)
    assert [st.shared for st in s.stages] == [0, 1, 1, 1]
    assert all(st.loops[0] == s.stages[0].loops[0] and st.loops[0].kind == "parallel" for st in s.stages)
    assert s.stages[0].loops[1].split_sum


def test_json_and_text() -> None:
    assert from_json(json.loads(json.dumps(to_json(GEMM)))) == GEMM
    assert to_text(GEMM[:3]) == "split(y, i0, 3, balance) split(y, i1, 16, peel) split(y, r0, 8, peel)"
    assert loops_text(apply(matmul_relu(), from_json(to_json(GEMM)))) == loops_text(apply(matmul_relu(), GEMM))


@pytest.mark.parametrize("data", [
    3, "split", [["split"]], [[["split"], {}]], [["burn", {}]], [["split", {"stage": "y"}]],
    [["split", {"stage": "y", "loop": "i0", "factor": "4"}]],
    [["split", {"stage": "y", "loop": "i0", "factor": True}]], [["reorder", {"stage": "y", "order": "i0"}]],
    [["parallel", {"stage": "y", "loop": "i0", "extra": 1}]], [["reorder", {"stage": "y", "order": [1, 2]}]]])
def test_foreign_json_is_refused(data: object) -> None:
    with pytest.raises(ScheduleError):
        from_json(data)


@pytest.mark.parametrize(("steps", "reason"), [
    ([Divide("z", "i0", 2)], "no stage 'z'"),
    ([Divide("y", "i7", 2)], "no loop 'i7'"),
    ([Divide("y", "i0", 0)], "must be in 1..7"),
    ([Divide("y", "i0", 8)], "must be in 1..7"),
    ([Divide("y", "i0", 2, "mask")], "peel or balance"),
    ([Divide("y", "i1", 8), Divide("y", "i1.o", 2)], "outer loop of a split"),
    ([Divide("y", "i1", 8), Reorder("y", ("i1.i", "i1.o"))], "stands before its outer loop"),
    ([Reorder("y", ("i0", "i0"))], "named twice"),
    ([Reorder("y", ("r0", "i1"))], "serial loop i1 inside a reduction"),
    ([Join("y", "i1", "r0")], "one is a reduction"),
    ([Join("y", "i0", "r0")], "not neighbours"),
    ([Divide("y", "i1", 8), Join("y", "i1.o", "i1.i")], "parts of a split"),
    ([Parallel("y", "i1")], "only the outermost"),
    ([Parallel("y", "i0"), Reorder("y", ("i1", "i0"))], "only the outermost"),
    ([Vectorize("y", "i1")], "vector loop i1 is not the innermost"),
    ([Vectorize("y", "i0"), Vectorize("y", "i1")], "a vector loop already"),
    ([Reorder("y", ("r0", "i0", "i1")), Unroll("y", "i0"), Unroll("y", "i1")], "do not fit registers"),
    ([RFactor("y", "i0")], "not a reduction"),
    ([Tensorize("y", "i1")], "serial loops i1 inside a microkernel"),
    ([ComputeAt("y", 1)], "no stage before the first"),
    ([Divide("y", "r0", 5, "balance"), Reorder("y", ("i0", "i1")), Join("y", "i0", "i1"), PackLayout("w")], "mixed-radix"),
    ([PackLayout("q")], "no such input"),
    ([Divide("y", "i0", 2), CacheWrite("y")], "before the stage's other steps"),
])
def test_illegal_steps_say_why(steps: list[Step], reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        apply(matmul_relu(), steps)


def test_sharing_needs_the_same_rows() -> None:
    with pytest.raises(ScheduleError, match="walk different extents"):
        apply(softmax(), [Reorder("e", ("i1_1", "i0_1")), ComputeAt("e", 1)])
    with pytest.raises(ScheduleError, match="split differently"):
        apply(softmax(), [Divide("m", "i0", 2), Divide("e", "i0_1", 3), ComputeAt("e", 1)])
    with pytest.raises(ScheduleError, match="do not have that many loops"):
        apply(softmax(), [ComputeAt("e", 3)])


def test_sharing_a_value_that_is_read_elsewhere_is_refused() -> None:
    from tests.compiler.programs import shifted
    with pytest.raises(ScheduleError, match="at other places of the shared axis"):
        apply(shifted(), [ComputeAt("y", 1)])


def test_fused_window_loops() -> None:
    s = apply(convolution(), [Join("y", "r1", "r2"), Unroll("y", "r1*r2")])
    assert s.stages[0].loops[-1].axis.extent == 9

"""Small programs of every kind that the search meets, as tasks."""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from tests.compiler.programs import PROGRAMS
from tilewright.backends.target import Target
from tilewright.compiler.work import Work, work
from tilewright.ir.expr import Buffer, call
from tilewright.ir.op import OPS
from tilewright.ir.ops.blocked import DirectConvAttrs
from tilewright.ir.program import Program, compute, reduce
from tilewright.ir.types import F32, TensorType


@dataclass(frozen=True)
class Problem:
    """A task as the search sees it. tolerance: relative and absolute, of f32 sums of some hundred terms of size 1."""

    program: Program
    packable: frozenset[str]
    target: Target
    threads: int = 1
    uses: int = 1
    tolerance: tuple[float, float] = (1e-5, 3e-5)

    @property
    def hash(self) -> str:
        return self.program.key()

    @property
    def work(self) -> Work:
        return work(self.program)


def _matmul(m: int, k: int, n: int) -> Program:
    x, w, b = Buffer("x", F32, (m, k)), Buffer("w", F32, (k, n)), Buffer("b", F32, (n,))
    y = compute("y", F32, (m, n), lambda i, j: call("tanh", reduce("sum", (k,), lambda r: x[i, r] * w[r, j]) + b[j]))
    return Program("matmul", (x, w, b), (y.buffer,), (y,))


def _batched() -> Program:
    x, w = Buffer("x", F32, (3, 10, 33)), Buffer("w", F32, (3, 33, 20))
    y = compute("y", F32, (3, 10, 20), lambda b, i, j: reduce("sum", (33,), lambda r: x[b, i, r] * w[b, r, j]))
    return Program("batched", (x, w), (y.buffer,), (y,))


def _op(name: str, attrs: object, out: tuple[int, ...], **inputs: tuple[int, ...]) -> Program:
    """The computation of one op."""
    buffers = tuple(Buffer(k, F32, s) for k, s in inputs.items())
    computes = OPS[name].compute(attrs, (TensorType(F32, out),), *buffers)  # type: ignore[arg-type]
    assert computes
    return Program(name, buffers, (computes[-1].buffer,), computes)


_W = frozenset({"w"})
_CASES: dict[str, tuple[Program, frozenset[str]]] = {
    **PROGRAMS,
    "matmul": (_matmul(37, 70, 100), _W),
    "one_row": (_matmul(1, 64, 80), _W),
    "long_sum": (_matmul(26, 520, 70), _W),
    "long_conv": (_op("conv_direct", DirectConvAttrs((1, 1), (0, 0), 16, 16), (1, 2, 5, 9, 16),
                      x=(1, 40, 5, 9, 16), w=(1, 32, 640, 1, 1)), _W),
    "batched": (_batched(), frozenset()),
    "conv_direct": (_op("conv_direct", DirectConvAttrs((1, 1), (1, 1), 16, 16), (1, 2, 7, 9, 16),
                        x=(1, 3, 9, 11, 16), w=(1, 32, 48, 3, 3), b=(1, 32)), _W),
    "conv_first": (_op("conv_direct", DirectConvAttrs((2, 2), (1, 1), 0, 16), (1, 1, 6, 7, 16), x=(1, 3, 14, 16), w=(1, 16, 3, 3, 3)), _W),
    "depthwise": (_op("conv_depthwise", DirectConvAttrs((1, 1), (1, 1), 16, 16), (1, 2, 6, 8, 16),
                      x=(1, 2, 8, 10, 16), w=(2, 3, 3, 16), b=(2, 16)), frozenset()),
    "winograd": (_op("winograd_multiply", OPS["winograd_multiply"].Attrs(), (36, 2, 9, 16), v=(36, 2, 9, 16), w=(36, 32, 32)), _W),
}
PROBLEMS = tuple(_CASES)


@cache
def problem(name: str, target: str = "native", threads: int = 1) -> Problem:
    p, packable = _CASES[name]
    found = Problem(p, packable, Target.parse(target), threads)
    return replace(found, tolerance=(4e-3, 1e-3)) if name == "transpose" else found  # computes in f16

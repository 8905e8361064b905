"""Every op keeps its contract on every one of its samples: the inferred types are the reference's, and what the op
compiles to (tensor computations, other ops or loops for numba) means what the reference says."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from tilewright.backends.llvm.irregular import with_helpers
from tilewright.ir import ops  # noqa: F401  (registers everything)
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.expr import Buffer
from tilewright.ir.interpreter import run_graph, run_program
from tilewright.ir.op import OPS, Op, Sample
from tilewright.ir.ops.elementwise import Map
from tilewright.ir.program import Program
from tilewright.ir.types import TensorType, dtype_of


def cases(chosen: Iterable[Op]) -> list[ParameterSet]:
    return [pytest.param(op, s, id=f"{op.name}-{k}") for op in chosen for k, s in enumerate(op.samples())]


def types_of(arrays: Sequence[np.ndarray | None]) -> list[TensorType | None]:
    return [None if a is None else TensorType(dtype_of(a.dtype), a.shape) for a in arrays]


def reference(op: Op, s: Sample) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return [np.asarray(r) for r in op.reference(s.attrs, *s.inputs)]


def output_types(op: Op, s: Sample, want: list[np.ndarray]) -> tuple[TensorType, ...]:
    """The inferred types; for ops whose output's shape depends on the data, those of the reference's results."""
    if op.data_dependent:
        return tuple(TensorType(dtype_of(w.dtype), w.shape) for w in want)
    return op.infer(s.attrs, *types_of(s.inputs))


def assert_close(op: Op, got: np.ndarray, want: np.ndarray, rtol: float) -> None:
    """Exact for integers; for floats `rtol` of the value or, since terms cancel, of the largest finite one. That is taken as
    0.01 at least; for maps, where only terms of one element cancel, as 1 at most."""
    assert got.shape == want.shape and got.dtype == want.dtype
    if dtype_of(want.dtype).is_float:
        w, g = want.astype(np.float64), got.astype(np.float64)
        largest = max(float(np.abs(w[np.isfinite(w)]).max(initial=0)), 0.01)
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * (min(largest, 1) if isinstance(op, Map) else largest))
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("op", "s"), cases(op for op in OPS.values() if not op.data_dependent))
def test_inferred_types_are_those_of_the_reference(op: Op, s: Sample) -> None:
    want = reference(op, s)
    assert list(op.infer(s.attrs, *types_of(s.inputs))) == types_of(want)


@pytest.mark.parametrize(("op", "s"), cases(OPS.values()))
def test_compiled_meaning_is_the_reference(op: Op, s: Sample) -> None:
    want = reference(op, s)
    got = evaluate(op, s, want)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert_close(op, np.asarray(g), w, s.rtol)


def evaluate(op: Op, s: Sample, want: list[np.ndarray]) -> list[np.ndarray]:
    outs = output_types(op, s, want)
    buffers = [None if t is None else Buffer(f"x{k}", t.dtype, t.shape) for k, t in enumerate(types_of(s.inputs))]
    computes = op.compute(s.attrs, outs, *buffers)
    if computes is not None:
        made = {c.buffer.name: c.buffer for c in computes}
        named = tuple(made[f"out{k}"] for k in range(len(outs)))
        assert [TensorType(b.dtype, b.shape) for b in named] == list(outs)
        p = Program(op.name, tuple(b for b in buffers if b is not None), named, computes)
        results = run_program(p, {b.name: a for b, a in zip(buffers, s.inputs, strict=True) if b is not None and a is not None})
        return [results[b.name] for b in named]
    b = GraphBuilder(op.name)
    ins = [None if t is None else b.input(f"x{k}", t) for k, t in enumerate(types_of(s.inputs))]
    made_of = op.decompose(s.attrs, b, *ins)
    if made_of is not None:
        g = b.graph(made_of)
        arrays = {v.name: a for v, a in zip(ins, s.inputs, strict=True) if v is not None and a is not None}
        results = run_graph(g, arrays)
        return [results[v.name] for v in g.outputs]
    if op.native or op.data_dependent and op.kernel(s.attrs, *types_of(s.inputs)) is None:
        return reference(op, s)  # code of native ops is compared with it in test_ops_native.py
    return run_kernel(op, s, want, jit=any(w.dtype.kind in "iu" and w.itemsize < 8 for w in want))  # Python's integers do not wrap


def as_memory(op: Op, a: np.ndarray) -> np.ndarray:
    """An array as kernels see it: half floats as uint16, a scalar as one element of rank 1, all flat for flat ops."""
    a = np.ascontiguousarray(a).reshape(-1 if op.flat else a.shape or (1,))
    return a.view(np.uint16) if dtype_of(a.dtype).is_float and a.itemsize == 2 else a


def run_kernel(op: Op, s: Sample, want: list[np.ndarray], jit: bool = False) -> list[np.ndarray]:
    """The kernel as plain Python, which is quick, or compiled by numba, which is what runs in the end."""
    kernel = op.kernel(s.attrs, *types_of(s.inputs))
    assert kernel is not None, f"{op.name} has neither compute, decompose nor kernel"
    if jit:
        import numba
        with_helpers(kernel)
        kernel = numba.njit(kernel)
    outs = [np.zeros(w.shape, w.dtype) for w in want]
    memory = [np.full(t.shape, 7, t.dtype.numpy) for t in op.memory(s.attrs, *types_of(s.inputs))]
    with np.errstate(all="ignore"):
        code = kernel(*(as_memory(op, a) for a in (*s.inputs, *outs) if a is not None), *memory)
    assert not code, "an index was out of range"
    return outs


KERNELS = [pytest.param(op, s, id=op.name) for op in OPS.values() if not op.data_dependent
           for s in list(op.samples())[:1] if op.kernel(s.attrs, *types_of(s.inputs)) is not None]


@pytest.mark.parametrize(("op", "s"), KERNELS)
def test_kernels_compile_in_nopython_mode(op: Op, s: Sample) -> None:
    want = reference(op, s)
    for g, w in zip(run_kernel(op, s, want, jit=True), want, strict=True):
        assert_close(op, g, w, s.rtol)


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in OPS.values()])
def test_every_op_has_samples(op: Op) -> None:
    assert list(op.samples())

"""Irregular ops as native functions: the numba kernels behind the C signature that plans call."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.backends.host_kernels import compile_host_kernel
from tilewright.ir import ops  # noqa: F401  (registers everything)
from tilewright.ir.op import OPS, Sample
from tilewright.ir.ops.irregular import ScatterAttrs, TopKAttrs
from tilewright.ir.types import TensorType, dtype_of


def run(op: str, s: Sample) -> tuple[int, list[np.ndarray]]:
    ins = [a for a in s.inputs if a is not None]
    types = [TensorType(dtype_of(a.dtype), a.shape) for a in ins]
    outs = [np.empty(t.shape, t.dtype.numpy) for t in OPS[op].infer(s.attrs, *types)]
    kernel = compile_host_kernel(op, s.attrs, types, [TensorType(dtype_of(o.dtype), o.shape) for o in outs])
    return kernel([*(np.ascontiguousarray(a).reshape(a.shape) for a in ins), *outs]), outs


@pytest.mark.parametrize("op", ["scatter_elements", "scatter_nd", "topk", "roi_align", "max_roi_pool"])
def test_the_native_kernel_means_the_reference(op: str) -> None:
    s = next(iter(OPS[op].samples()))
    code, got = run(op, s)
    assert code == 0
    for g, w in zip(got, OPS[op].reference(s.attrs, *s.inputs), strict=True):
        np.testing.assert_allclose(g, w, rtol=s.rtol, atol=1e-6)


def test_an_index_out_of_range_is_reported_and_its_update_dropped() -> None:
    x = np.zeros(4, "f4")
    s = Sample((x, np.array([1, 9, -5]), np.array([1, 2, 3], "f4")), ScatterAttrs(0))
    code, (got,) = run("scatter_elements", s)
    assert code == 1
    np.testing.assert_array_equal(got, [0, 1, 0, 0])


def test_half_floats_move_as_bits() -> None:
    x = np.array([1.5, -2, 65504, 0], "f2")
    code, (got,) = run("scatter_elements", Sample((x, np.array([3]), np.array([np.inf], "f2")), ScatterAttrs(0)))
    assert code == 0
    np.testing.assert_array_equal(got, np.array([1.5, -2, 65504, np.inf], "f2"))


def test_equal_requests_share_one_kernel() -> None:
    t, attrs = TensorType(dtype_of(np.float32), (7,)), TopKAttrs(0, 2)
    outs = OPS["topk"].infer(attrs, t)
    assert compile_host_kernel("topk", attrs, [t], outs) is compile_host_kernel("topk", attrs, [t], outs)

"""Every op's native code means what its reference says: all samples of an op compiled as one graph."""
from __future__ import annotations

import numpy as np
import pytest
from test_ops_contract import assert_close, reference, types_of

import tilewright as tw
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.op import OPS, Op

COMPILED = [pytest.param(op, id=op.name) for op in OPS.values() if not op.data_dependent and not op.random]


@pytest.mark.parametrize("op", COMPILED)
def test_native_code_agrees_with_the_reference(op: Op) -> None:
    samples = list(op.samples())
    b, outs, arrays = GraphBuilder(op.name), [], []
    for k, s in enumerate(samples):
        ins = [None if t is None else b.input(f"s{k}.x{i}", t) for i, t in enumerate(types_of(s.inputs))]
        arrays += [a for a in s.inputs if a is not None]
        outs.append(b.emit(op.name, ins, s.attrs))
    exe = tw.compile(b.graph([v for o in outs for v in o]))
    results = exe(*arrays)
    results = list(results) if isinstance(results, tuple) else [results]
    for k, (s, made) in enumerate(zip(samples, outs, strict=True)):
        for want in reference(op, s):
            got = np.asarray(results.pop(0))
            try:
                assert_close(op, got, want, s.rtol)
            except AssertionError as e:
                raise AssertionError(f"sample {k} {s.attrs} of {types_of(s.inputs)} -> {made}: {e}") from e

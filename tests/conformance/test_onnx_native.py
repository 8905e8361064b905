"""ONNX's own backend tests of single operators, compiled and run natively, in a process that may crash.

A sample of them, the same each time; with TILEWRIGHT_LONG set, all. What may be refused or differ is what
`tests/frontends/test_onnx_nodes.py` lists with its reasons, and nothing else.
"""
from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from onnx.backend.test import runner
from onnx.backend.test.case.test_case import TestCase

from tests.conformance.worker import Worker
from tests.frontends.test_onnx_nodes import DIFFERENT, TESTS, assert_close, explained
from tests.machines import LONG

SAMPLE = 250


def chosen() -> list[TestCase]:
    """All tests, or a sample: one of each operator that some test is about, and others at random."""
    if LONG:
        return TESTS
    shuffled = random.Random(1).sample(TESTS, len(TESTS))
    picked = {operator(t): t.name for t in reversed(shuffled)}.values()
    others = [t.name for t in shuffled if t.name not in picked]
    names = {*picked, *others[:max(0, SAMPLE - len(picked))]}
    return [t for t in TESTS if t.name in names]


def operator(t: TestCase) -> str:
    assert t.model is not None
    return t.model.graph.node[0].op_type if t.model.graph.node else ""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    w = Worker()
    yield w
    w.stop()


@pytest.mark.parametrize("t", chosen(), ids=lambda t: t.name)
def test_native(t: TestCase, worker: Worker) -> None:
    assert t.model is not None
    normalise = getattr(runner, "_normalize_tensor", lambda x: x)
    data = [([normalise(x) for x in ins], [normalise(x) for x in outs]) for ins, outs in t.data_sets or ()]
    kind, got = worker.run(t.model.SerializeToString(), [ins for ins, _ in data])
    if kind == "refused":
        assert explained(str(got)), got
        return
    assert kind == "ok", f"{kind}: {got}"
    assert isinstance(got, list)
    for outputs, (_, wanted) in zip(got, data, strict=True):
        if t.name in DIFFERENT:
            rtol, atol, _ = DIFFERENT[t.name]
            assert_close(outputs, wanted, rtol, atol)
        else:
            with np.errstate(all="ignore"):
                runner.Runner.assert_similar_outputs(ref_outputs=wanted, outputs=outputs, rtol=t.rtol, atol=t.atol)

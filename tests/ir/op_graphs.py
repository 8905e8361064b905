"""The samples of an op as one graph, and the same graph compiled under random schedules."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from tests.precision import bounds
from tilewright.backends.target import Target
from tilewright.compiler.passes.decompose import decompose
from tilewright.ir import ops as _ops  # noqa: F401  (registers everything)
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.loops import Scheduled
from tilewright.ir.op import OPS, Op, Sample
from tilewright.ir.program import Program
from tilewright.ir.types import TensorType, dtype_of

COMPILED = [op for op in OPS.values() if not op.data_dependent and not op.random]


def op_graph(op: Op, samples: Sequence[Sample], weights: bool = False) -> tuple[Graph, dict[str, np.ndarray]]:
    """One node for each sample, and the inputs. With `weights`, all inputs but a node's first are the model's weights, so
    that kernels read packed copies of them."""
    b, outs, arrays = GraphBuilder(op.name), [], {}
    for k, s in enumerate(samples):
        ins = []
        for i, a in enumerate(s.inputs):
            if a is None:
                ins.append(None)
            elif weights and i:
                ins.append(b.weight(f"s{k}.x{i}", a))
            else:
                ins.append(b.input(f"s{k}.x{i}", TensorType(dtype_of(a.dtype), a.shape)))
                arrays[ins[-1].name] = a
        outs += b.emit(op.name, ins, s.attrs)
    return b.graph(outs), arrays


def has_kernel(op: Op, s: Sample) -> bool:
    """Whether the sample runs code that numba lowers, its own or that of an op it decomposes into."""
    if op.kernel(s.attrs, *(None if a is None else TensorType(dtype_of(a.dtype), a.shape) for a in s.inputs)) is not None:
        return True
    if type(op).decompose is Op.decompose:
        return False
    nodes = decompose(op_graph(op, [s])[0]).nodes
    return any(OPS[n.op].kernel(n.attrs, *(None if v is None else v.type for v in n.inputs)) is not None for n in nodes)


@contextmanager
def random_schedules(seed: int) -> Iterator[None]:
    """Every program compiled inside gets a random legal schedule."""
    from tilewright.compiler.schedule import source
    from tilewright.compiler.schedule.random import random_schedule

    def choose(p: Program, target: Target, packable: frozenset[str] = frozenset()) -> Scheduled:
        return random_schedule(p, seed, packable)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(source, "default_schedule", choose)
        yield


def check(g: Graph, arrays: dict[str, np.ndarray], results: Sequence[np.ndarray], what: str = "") -> None:
    """Every result is within its bound."""
    wanted = bounds(g, arrays)
    for v, got in zip(g.outputs, results, strict=True):
        node = next((n for n in g.nodes if v in n.outputs), None)
        wanted[v.name].check(np.asarray(got), f"{what} {node}")

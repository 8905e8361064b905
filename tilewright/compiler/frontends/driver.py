"""Runs a source with NumPy, segment by segment: the specification of what the executable does natively."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...ir.interpreter import run_graph
from ...ir.op import OPS
from .source import Continuation, Data, NeedsValue, Ref, Segment, Source, assemble, pick, type_of


def specialise(source: Source, inputs: Mapping[str, Data]) -> tuple[Source, Segment]:
    """The segment for these arguments, and the source with the static inputs it turned out to need."""
    types = {name: type_of(x) for name, x in inputs.items()}
    while True:
        try:
            return source, source.import_graph(types, {n: inputs.get(n) for n in source.static_inputs})
        except NeedsValue as e:
            assert not e.names <= source.static_inputs, f"{e.names} are static already"
            source = source.with_static(e.names)


def run_source(source: Source, inputs: Mapping[str, Data]) -> dict[str, Data]:
    """Output name -> result, for arguments by name. Raises what import_graph raises."""
    names = [s.name for s in source.outputs]
    while True:
        _, segment = specialise(source, inputs)
        given = [pick(inputs, p) for p in segment.inputs]
        g = segment.graph
        by_name = run_graph(g, {v.name: a for v, a in zip(g.inputs, given, strict=True)})
        outs = [by_name[v.name] for v in g.outputs]
        if segment.next is None:
            return {n: assemble(t, outs) for n, t in zip(names, segment.results, strict=True)}
        source, inputs = segment.next.source, feed(segment.next, given, outs)


def feed(c: Continuation, given: list[np.ndarray], outs: list[np.ndarray]) -> dict[str, Data]:
    """The continuation's inputs, from the arrays at the border of the segment before it."""
    def at(r: Ref) -> np.ndarray:
        return (given if r.kind == "input" else outs)[r.index]
    data: dict[str, Data] = {name: at(r) for name, r in c.feeds}
    if c.step is not None:
        ins = [at(x) if isinstance(x, Ref) else x for x in c.step.inputs]
        with np.errstate(all="ignore"):
            data[c.step.result] = [np.asarray(a) for a in OPS[c.step.op].evaluate(c.step.attrs, *ins)]
    return data

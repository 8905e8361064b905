"""Tables: models that treat each row alone, for any number of rows, as one plan `by_rows`.

The model is imported twice, for a block of rows and for one row, and both are compiled into one instance: intermediate
results of a block stay in the cache, one row has code of its own, and no number of rows has to be compiled for. The entry
point (`backends/llvm/entry_rows.py`) divides a call.
"""
from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ..backends.cache import ObjectCache
from ..backends.instance import Instance, Preparation
from ..backends.llvm.entry import ENTRY, emit_entry
from ..backends.llvm.jit import Job, build
from ..backends.plan import ByRows, Plan, align_up
from ..ir.graph import Constant, Graph, Node, Value
from .build import Assembly, Options, decisions, lower_graph

CALL_SECONDS = 40e-9    # around the calls for one row
SHARE_SECONDS = 20e-6   # of a block that is worth another thread
RELEASE_SECONDS = 20e-6  # of a call that should let other threads have the interpreter


def build_by_rows(block: Graph, one: Graph, options: Options, names: Mapping[str, str]) -> Instance:
    """`block`, `one`: the model for a block of rows and for one, with the same names of inputs, outputs and weights."""
    start = time.perf_counter()
    alone = replace(options, threads=1)
    lows = lower_graph(block, alone), lower_graph(one, alone)
    many = Assembly(lows[0], alone)
    plan = many.plan([v.name for v in block.outputs])
    single = Assembly(lows[1], alone, "r", len(plan.weights))
    row = single.plan([v.name for v in one.outputs])
    assert not plan.loops and not row.loops, "rows are not steps of a loop"
    whole = _joined(plan, row, options.threads, many.seconds, single.seconds)
    entry = emit_entry(whole, ENTRY)
    cache = ObjectCache.default() if options.cache else ObjectCache(None)
    objects = build([*many.jobs(), *single.jobs(), Job.of(ENTRY, entry)], options.target, cache)
    weights = {**lows[0].prepared.weights, **lows[1].prepared.weights}
    literals = frozenset(k for k, c in block.constants.items() if not c.updatable)
    preparation = Preparation(merged(many.preparation(), single.preparation()), weights, dict(names), literals)
    assert whole.by_rows is not None
    notes = (f"compiled in {time.perf_counter() - start:.2f} s",
             f"any number of rows: in blocks of {whole.by_rows.block}, fewer than {whole.by_rows.turn} one by one; "
             f"{len(plan.calls)} calls for a block, {len(row.calls)} for a row",
             *(f"block: {d}" for d in decisions(lows[0])), *(f"row: {d}" for d in decisions(lows[1])))
    return Instance(whole, objects, options.target, preparation, notes,
                    lambda: [*(j.text() for j in (*many.jobs(), *single.jobs())), entry], threads=options.threads)


def _joined(plan: Plan, row: Plan, threads: int, block_seconds: float, row_seconds: float) -> Plan:
    size = plan.inputs[0][1].shape[0]
    scratch = align_up(max(plan.arena_bytes, row.arena_bytes))
    step = align_up(scratch + sum(t.bytes for _, t in (*plan.inputs, *plan.outputs)))
    each = row_seconds + CALL_SECONDS
    turn = max(2, min(size, int((block_seconds + CALL_SECONDS) / each)))
    team = threads if block_seconds >= SHARE_SECONDS else 1
    by_rows = ByRows(size, row.calls, turn, team, step, scratch, int(RELEASE_SECONDS / each) + 1)
    return replace(plan, weights=(*plan.weights, *row.weights), arena_bytes=step * team, phases=(0,) if team > 1 else (), by_rows=by_rows)


def merged(a: Graph, b: Graph) -> Graph:
    """One graph with the outputs of both. Inputs of equal names are the same; everything else of `b` gets new names."""
    shared = {v.name for v in b.inputs} | {k for k, c in b.constants.items() if c.updatable}

    def own(v: Value) -> Value:
        return v if v.name in shared else Value(f"row:{v.name}", v.type)
    nodes = [Node(n.op, tuple(None if v is None else own(v) for v in n.inputs), n.attrs, tuple(map(own, n.outputs)), n.source)
             for n in b.nodes]
    constants = {own(c.value).name: c if c.updatable else Constant(own(c.value), c.array) for c in b.constants.values()}
    inputs = tuple(dict.fromkeys((*a.inputs, *b.inputs)))
    return Graph(a.name, inputs, (*a.outputs, *map(own, b.outputs)), (*a.nodes, *nodes), MappingProxyType({**a.constants, **constants}))

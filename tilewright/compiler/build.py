"""One concrete graph to one `Instance`: the middle and the end of compilation, shared by every way into it."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from types import MappingProxyType

import numpy as np

from .. import config
from ..backends.cache import ObjectCache
from ..backends.instance import Instance
from ..backends.llvm.emit import emit_kernel, parallel_extent, parallel_loops, workspace_bytes
from ..backends.llvm.entry import ENTRY, emit_entry
from ..backends.llvm.jit import Job, build, object_key
from ..backends.llvm.native import NativeCode, native_code
from ..backends.memory import trim
from ..backends.plan import KernelCall, Loop, Plan, Slot, align_up
from ..backends.target import Target
from ..errors import InputError, UnsupportedError
from ..ir.builder import GraphBuilder
from ..ir.expr import Buffer
from ..ir.graph import Constant, Graph, Node, Value
from ..ir.kinds import is_contraction
from ..ir.loops import Pack, Scheduled
from ..ir.types import F32, contiguous_strides
from . import pipeline
from .borders import kept_borders, only_borders
from .fuse import Partition, fuse
from .kernel import Kernel, Ref, with_loops
from .lower import lower
from .memory import ArenaPlan, plan_arena
from .passes import default_passes
from .passes.cse import cse
from .passes.dce import dce
from .passes.enlarge_last import enlarge_last
from .passes.fold_thresholds import fold_thresholds
from .passes.layout import choose_layouts
from .passes.loop_bodies import loop_bodies
from .passes.preparation import Prepared, split_preparation
from .passes.skip_padding import skip_padding
from .passes.trees import choose_trees
from .plan_cache import WORTH_SECONDS, StoredPlan, load_plan, plan_key, preparation_of, store_plan
from .schedule.source import HEURISTIC, Choice, Decision, ScheduleSource, Wanted
from .shares import shares
from .sites import Site, Sites
from .threads import Touch, phases, pieces, seconds, teams
from .views import Storage, Views, plan_views
from .work import Work, work


@dataclass(frozen=True, slots=True)
class Options:
    """What a user chose. `threads`: how many may take part in a call. `schedules`: who chooses them."""

    target: Target
    threads: int = 1
    precision: str = "f32"
    cache: bool = True
    strict: bool = False
    schedules: ScheduleSource = HEURISTIC


def make_options(target: str | Target, threads: int | None, precision: str, schedules: ScheduleSource | None, cache: bool,
                 strict: bool = False) -> Options:
    """Checks what the user chose. Raises TargetError, InputError, UnsupportedError."""
    if precision != "f32":
        raise UnsupportedError(f"precision {precision!r} is not supported yet; expected 'f32'")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads must be a positive int, got {threads!r}")
    t = Target.parse(target) if isinstance(target, str) else target
    return Options(t, threads or config.read().threads or t.cores, precision, cache, strict, schedules or HEURISTIC)


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """A graph as scheduled kernels; everything `inspect` shows and `assemble` needs."""

    graph: Graph
    prepared: Prepared
    partition: Partition
    views: Views
    kernels: tuple[Kernel, ...]
    scheduled: tuple[Scheduled | None, ...]  # None: an irregular op
    trace: pipeline.Trace
    wanted: tuple[Wanted, ...] = ()  # the distinct programs among the kernels
    choices: tuple[Choice, ...] = ()  # the schedule of each
    sites: tuple[tuple[Site, Decision], ...] = ()  # parts that can be computed in several ways, and what was decided


def passes_for(target: Target, strict: bool = False, threads: int = 1, sites: Sites | None = None) -> tuple[pipeline.Pass, ...]:
    """All graph passes, layouts for `target` included. `strict`: no algorithm that trades accuracy for speed (Winograd), no product
    left out or done before an enlargement. `sites`: who chooses among several ways to compute a part (default: the heuristic, as
    inside loops)."""
    layouts, inside = _layout_passes(target, strict, threads, sites), (*default_passes(), *_layout_passes(target, strict, threads, None))
    bodies = pipeline.Pass("loop_bodies", lambda g: loop_bodies(g, lambda body: pipeline.run_inside(body, inside)))
    trees = pipeline.Pass("fold_thresholds", fold_thresholds), pipeline.Pass("choose_trees", lambda g: choose_trees(g, target))
    return (*trees, *default_passes(sites), bodies, *layouts)


def _layout_passes(target: Target, strict: bool, threads: int, sites: Sites | None) -> tuple[pipeline.Pass, ...]:
    layouts = (pipeline.Pass("choose_layouts", lambda g: choose_layouts(g, target, strict, threads, sites)),
               pipeline.Pass("cse", cse), pipeline.Pass("dce", dce))
    return layouts if strict else (pipeline.Pass("enlarge_last", enlarge_last), pipeline.Pass("skip_padding", skip_padding), *layouts)


def lower_graph(graph: Graph, options: Options) -> Lowered:
    """Passes, preparation, fusion, views, programs and schedules."""
    trace = pipeline.Trace()
    sites = Sites(options.schedules, options.target, options.threads)
    graph = pipeline.run(graph, passes_for(options.target, options.strict, options.threads, sites), trace=trace)
    prepared = split_preparation(graph)
    partition = fuse(prepared.main, sites, [v.name for v in prepared.parameters], options.target)
    views = plan_views(prepared.main, partition, len(prepared.parameters))
    kernels = lower(prepared.main, partition, views)
    views = with_loops(views, kernels)
    wanted, numbers = _wanted(kernels, views)
    choices = options.schedules.choose(wanted, options.target, options.threads)
    scheduled = tuple(None if n is None else choices[n].scheduled for n in numbers)
    return Lowered(graph, prepared, partition, views, kernels, scheduled, trace, tuple(wanted), tuple(choices), tuple(sites.asked))


def _wanted(kernels: Sequence[Kernel], views: Views) -> tuple[list[Wanted], list[int | None]]:
    """The distinct programs (buffers' names differ only by position), and for each kernel the number of its own; None: an
    irregular op. Programs are known by their text and, which is cheaper to ask, by identity."""
    found: dict[tuple[str | int, frozenset[int]], int] = {}
    numbers: list[int | None] = []
    firsts: list[tuple[Kernel, frozenset[str]]] = []
    for k in kernels:
        if k.program is None:
            numbers.append(None)
            continue
        packable = frozenset(i for i, (b, r) in enumerate(zip(k.program.inputs, k.inputs, strict=True))
                             if _whole_weight(b, views.storages[r.storage], r))
        same = (id(k.program), packable)
        if same not in found:
            found[same] = found.setdefault((k.program.key(), packable), len(firsts))
            if found[same] == len(firsts):
                firsts.append((k, frozenset(k.program.inputs[i].name for i in packable)))
        numbers.append(found[same])
    uses = [sum(k.times for k, m in zip(kernels, numbers, strict=True) if m == n) for n in range(len(firsts))]
    wanted = [Wanted(k.program, names, k.label, uses[n]) for n, (k, names) in enumerate(firsts) if k.program is not None]
    return wanted, numbers


def _whole_weight(b: Buffer, s: Storage, r: Ref) -> bool:
    """Whether a program's input is all of one weight, which may then be laid out beforehand."""
    return (s.kind == "weight" and r.offset == r.step == 0 and b.strides == contiguous_strides(b.shape)
            and int(np.prod(b.shape)) == s.elements)


def build_instance(graph: Graph, options: Options, names: Mapping[str, str] = MappingProxyType({})) -> Instance:
    """`graph` compiled. `names`: the model's names of its weights -> the graph's."""
    start = time.perf_counter()
    cache = ObjectCache.default() if options.cache else ObjectCache(None)
    key = None
    if options.cache:
        key = plan_key(graph, options.target, options.threads, options.precision, options.strict, options.schedules.key)
    known = load_plan(cache, key, graph) if key is not None else None
    if known is not None:
        stored, objects = known
        bare = _bare(graph)
        first, texts = f"plan and code found in the cache in {time.perf_counter() - start:.2f} s", lambda: _texts(_make(bare, options).jobs)
    else:
        made = _make(graph, options)
        objects = build(made.jobs, options.target, cache)
        stored, jobs = made.stored, made.jobs
        if key is not None and made.seconds > WORTH_SECONDS:
            store_plan(cache, key, graph, stored)
        first = f"compiled in {time.perf_counter() - start:.2f} s ({made.seconds:.2f} s of it passes, fusion and schedules)"
        texts = lambda: _texts(jobs)  # noqa: E731  (they hold programs, but not the model's arrays)
        trim()
    literals = frozenset(k for k, c in graph.constants.items() if not c.updatable)
    return Instance(stored.plan, objects, options.target, preparation_of(stored, graph, names, literals), (first, *stored.notes), texts)


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A graph that went through everything but LLVM. seconds: that passes, fusion and schedules took."""

    stored: StoredPlan
    jobs: list[Job]
    seconds: float


def _make(graph: Graph, options: Options) -> _Made:
    start = time.perf_counter()
    lowered = lower_graph(graph, options)
    took = time.perf_counter() - start
    low = Assembly(lowered, options, keep_borders=True)
    plan = low.plan([v.name for v in graph.outputs])
    jobs = [*low.jobs(), Job.of(ENTRY, emit_entry(plan, ENTRY))]
    notes = (f"{len(graph.nodes)} nodes of the model, {len(lowered.graph.nodes)} after passes, {len(lowered.partition.groups)} groups, "
             f"{len(plan.calls)} calls of {len(low.code)} kernels",
             *((f"borders of zeros written when the arena is made: {len(low.fills)}",) if low.fills else ()), *decisions(lowered))
    keys = tuple(object_key(j, options.target) for j in jobs)
    return _Made(StoredPlan(plan, low.preparation(), tuple(lowered.prepared.weights), notes, keys), jobs, took)


def _texts(jobs: Sequence[Job]) -> list[str]:
    return [j.text() for j in jobs]


def _bare(graph: Graph) -> Graph:
    """The graph without its weights' values, on which code does not depend."""
    empty = {k: Constant(c.value, np.broadcast_to(np.zeros((), c.array.dtype), c.array.shape), True) if c.updatable else c
             for k, c in graph.constants.items()}
    return graph.replace(constants=empty)


def _job_key(s: Scheduled, target: Target) -> str:
    packs = ";".join(map(repr, s.packs))
    stages = ";".join(f"{st.loops}{st.relations}{st.shared}{st.tensorize}{st.prefetch}{st.inside or ''}" for st in s.stages)
    return f"{s.program}|{stages}|{packs}|{target.vector_bytes}"


def _chosen(low: Lowered) -> list[str]:
    """What became of the source's schedules; nothing where the heuristic chose all."""
    asked = [(w, c) for w, c in zip(low.wanted, low.choices, strict=True) if c.status != "default"]
    if not asked:
        return []
    counts = [f"{n} {s}" for s in ("applied", "adapted", "rejected", "missing") if (n := sum(c.status == s for _, c in asked))]
    decided = [f"{site.kind} {d.status}: {d.option}" + (f": {d.reason}" if d.reason else "") for site, d in low.sites
               if d.status != "default"]
    return [f"schedules: {', '.join(counts)}", *decided,
            *(f"schedule {c.status}: {w.label}" + (f": {c.reason}" if c.reason else "") for w, c in asked)]


def decisions(low: Lowered) -> list[str]:
    """Lines for `explain`."""
    out = _chosen(low)
    for i, (g, r) in enumerate(zip(low.partition.groups, low.views.roles, strict=True)):
        why = "; ".join((*g.why, *((r.why,) if r.why else ())))
        out.append(f"group {i} {g.kind} {g.label}" + (f" [{r.kind}]" if r.kind != "kernel" else "") + (f": {why}" if why else ""))
        if run := next((k.loop for k in low.kernels if k.loop and k.loop.id == i), None):
            out += [f"  {run.trips} steps of", *(f"  {line}" for line in run.why.splitlines())]
    return out


class Assembly:
    """Numbers weights and kernels, and turns storages into slots. `prefix`: of the kernels' symbols. `first_weight`: number of
    the first weight, where others come before this graph's own. `keep_borders`: the arena is one plan's alone, which may keep
    zeros in it from one call to the next."""

    def __init__(self, low: Lowered, options: Options, prefix: str = "", first_weight: int = 0, keep_borders: bool = False):
        kept = kept_borders(low.kernels, low.views.storages) if keep_borders else {}
        pairs = list(zip(low.kernels, low.scheduled, strict=True))
        self.fills = [(k, s) for k, s in pairs if only_borders(k, kept) and s is not None]
        calls = [(k, s) for k, s in pairs if not only_borders(k, kept) or s is None]
        low = replace(low, kernels=tuple(k for k, _ in calls), scheduled=tuple(s for _, s in calls))
        self.low, self.options, self.prefix, self.first_weight = low, options, prefix, first_weight
        self.code: dict[str, Scheduled] = {}
        self.symbols: dict[int, str] = {}
        self.factors: frozenset[int] = frozenset()  # numbers of weights
        self.weights: dict[tuple[int, tuple[int, ...], Pack | None], int] = {}
        main = low.prepared.main
        self.parameters: tuple[Value, ...] = (*low.prepared.parameters, *(c.value for c in main.constants.values()))
        self.native = [None if k.node is None else native_code(k.node, options.target) for k in low.kernels]
        self.native_symbols: dict[str, tuple[NativeCode, str]] = {}  # by key
        self.work = [work(k.program) if k.program is not None else Work(0, 0) for k in low.kernels]
        self.trips = [max(1, parallel_extent(s)) if s else n.trips if n else 1 for s, n in zip(low.scheduled, self.native, strict=True)]
        costs = [seconds(w, options.target, any(st.compute.reduce_axes for st in s.stages)) if s else 0.0
                 for w, s in zip(self.work, low.scheduled, strict=True)]
        costs = [n.seconds if n else c for n, c in zip(self.native, costs, strict=True)]
        self.seconds = sum(costs)
        self.teams = teams(costs, self.trips, options.threads, [k.times for k in low.kernels])
        self.pieces = [pieces(c, n, t) for c, n, t in zip(costs, self.trips, self.teams, strict=True)]
        spaces = [workspace_bytes(s) if s else n.workspace if n else 0 for s, n in zip(low.scheduled, self.native, strict=True)]
        self.spaces = [align_up(n) for n in spaces]
        spaces = [n * t for n, t in zip(self.spaces, self.teams, strict=True)]
        self.arena: ArenaPlan = plan_arena(low.kernels, low.views.storages, spaces, kept)

    def jobs(self) -> list[Job]:
        """The kernels to compile; known after `plan`."""
        target = self.options.target
        jobs = [Job.lazy(symbol, _job_key(s, target), lambda s=s, symbol=symbol: emit_kernel(s, target, symbol))
                for symbol, s in self.code.items()]
        return jobs + [Job.lazy(symbol, n.key, lambda n=n, symbol=symbol: n.text(symbol)) for n, symbol in self.native_symbols.values()]

    def plan(self, outputs: Sequence[str]) -> Plan:
        """`outputs`: the outputs' names in the model; passes may have renamed them."""
        reads = _sources(self.low.kernels)
        calls = tuple(replace(self._call(k, i), reads=reads[i]) for i, k in enumerate(self.low.kernels))
        g = self.low.prepared.main
        weights = []
        for index, shape, pack in self.weights:
            t = self.parameters[index].type
            weights.append((self.parameters[index].name, type(t)(t.dtype, pack.shape if pack else shape)))
        results = tuple((n, v.type) for n, v in zip(outputs, g.outputs, strict=True))
        loops = _loops(self.low.kernels)
        meet = phases([self._touches(i) for i in range(len(calls))], self.teams, loops)
        self.factors = frozenset[int]() if self.options.strict else self._factors(calls)
        return Plan(tuple((v.name, v.type) for v in self.low.prepared.inputs), results,
                    tuple(weights), self.arena.bytes, calls, meet, loops, fills=tuple(dict.fromkeys(starmap(self._fill, self.fills))))

    def _call(self, k: Kernel, position: int) -> KernelCall:
        s, native = self.low.scheduled[position], self.native[position]
        if native is not None:
            return self._native(k, native, position)
        assert s is not None and k.program is not None
        packs = {p.buffer: p for p in s.packs}
        args = [self._slot(r, b, packs.get(sb.name.removesuffix("_packed")) if sb.name.endswith("_packed") else None)
                for r, b, sb in zip(k.inputs, k.program.inputs, s.program.inputs, strict=True)]
        args += [self._slot(r, b, None) for r, b in zip(k.outputs, k.program.outputs, strict=True)]
        space = self.arena.workspaces.get(position)
        done = self.work[position]
        return KernelCall(self._symbol(s), tuple(args), self.trips[position], None if space is None else Slot("arena", 0, space), k.label,
                          done.flops, done.bytes, team=self.teams[position], workspace_step=self.spaces[position],
                          cuts=shares(s, parallel_loops(s), self.teams[position]), pieces=self.pieces[position])

    def _fill(self, k: Kernel, s: Scheduled) -> KernelCall:
        assert k.program is not None and not workspace_bytes(s), "a border is filled by constants"
        args = tuple(self._slot(r, b, None) for r, b in zip(k.outputs, k.program.outputs, strict=True))
        return KernelCall(self._symbol(s), args, max(1, parallel_extent(s)), None, k.label)

    def _touches(self, position: int) -> list[Touch]:
        """The memory that a call reads and writes, but for weights, which nothing writes."""
        k = self.low.kernels[position]
        if k.program is not None:
            buffers = (*k.program.inputs, *k.program.outputs)
        else:
            assert k.node is not None
            buffers = tuple(Buffer("irregular", v.type.dtype, v.type.shape) for v in (*k.node.operands, *k.node.outputs))
        out = []
        for i, (r, b) in enumerate(zip((*k.inputs, *k.outputs), buffers, strict=True)):
            if self.low.views.storages[r.storage].kind != "weight" and 0 not in b.shape:
                slot = self._slot(r, b, None)
                size = b.dtype.bytes * (1 + sum((n - 1) * s for n, s in zip(b.shape, b.strides, strict=True)))
                ends = (slot.offset, slot.offset + slot.step * (k.times - 1))
                out.append(Touch((slot.kind, slot.index), min(ends), max(ends) + size, i >= len(k.inputs)))
        if (at := self.arena.workspaces.get(position)) is not None:
            out.append(Touch(("arena", 0), at, at + self.spaces[position] * self.teams[position], True))
        return out

    def _symbol(self, s: Scheduled) -> str:
        if id(s) not in self.symbols:  # equal programs have one schedule, see _schedule
            stem = "".join(c if c.isalnum() else "_" for c in s.program.name)[:40]
            self.symbols[id(s)] = symbol = f"{self.prefix}k{len(self.symbols)}_{stem}"
            self.code[symbol] = s
        return self.symbols[id(s)]

    def _slot(self, r: Ref, b: Buffer, pack: Pack | None) -> Slot:
        s = self.low.views.storages[r.storage]
        at, step = r.offset * b.dtype.bytes, r.step * b.dtype.bytes
        if s.kind == "arena":
            return Slot("arena", 0, self.arena.offsets.get(r.storage, 0) + at, step)
        if s.kind == "weight":
            shape = self.parameters[s.index].type.shape if pack is None else b.shape
            return Slot("weight", self.first_weight + self.weights.setdefault((s.index, shape, pack), len(self.weights)), at, step)
        assert s.kind in ("input", "output")
        return Slot("input" if s.kind == "input" else "output", s.index, at, step)

    def _native(self, k: Kernel, native: NativeCode, position: int) -> KernelCall:
        node = k.node
        assert isinstance(node, Node)
        _, symbol = self.native_symbols.setdefault(native.key, (native, f"{self.prefix}n{len(self.native_symbols)}_{node.op}"))
        refs = zip((*k.inputs, *k.outputs), (*node.operands, *node.outputs), strict=True)
        args = tuple(self._slot(r, Buffer("native", v.type.dtype, v.type.shape), None) for r, v in refs)
        space = self.arena.workspaces.get(position)
        return KernelCall(symbol, args, native.trips, None if space is None else Slot("arena", 0, space), k.label, 0,
                          native.bytes, team=self.teams[position], workspace_step=self.spaces[position],
                          pieces=self.pieces[position])

    def _factors(self, calls: Sequence[KernelCall]) -> frozenset[int]:
        """The numbers of the weights in f32 that only contractions read, as factors or in what follows them."""
        read: dict[bool, set[int]] = {True: set(), False: set()}
        for k, c in zip(self.low.kernels, calls, strict=True):
            multiplies = k.program is not None and any(map(is_contraction, k.program.computes))
            read[multiplies] |= {a.index - self.first_weight for a in c.args if a.kind == "weight"}
        return frozenset(n for n, (index, *_) in enumerate(self.weights)
                         if n in read[True] - read[False] and self.parameters[index].type.dtype == F32)

    def preparation(self) -> Graph:
        """The graph that computes the plan's weights, packed as the kernels want them; known after `plan`."""
        prep = self.low.prepared.prep
        b = GraphBuilder(prep.name)
        env: dict[str, Value] = {}
        for v in prep.inputs:
            b._taken.add(v.name)
            b.inputs.append(v)
            env[v.name] = v
        for g in (prep, self.low.prepared.main):
            for k, c in g.constants.items():
                env[k] = b.adopt(c)
        b._taken.update(v.name for n in prep.nodes for v in n.outputs)
        for n in prep.nodes:
            b.nodes.append(n)
            env.update({v.name: v for v in n.outputs})
        outs = [_op(b, _packed(b, env[self.parameters[index].name], shape, pack), "flush_subnormal", k in self.factors)
                for k, (index, shape, pack) in enumerate(self.weights)]
        return dce(b.graph(outs))


def _packed(b: GraphBuilder, v: Value, shape: Sequence[int], pack: Pack | None) -> Value:
    if pack is None:
        return v
    v = _op(b, v, "reshape", tuple(shape) != v.type.shape, shape=tuple(shape))
    after = tuple(p - n for p, n in zip(pack.padded, shape, strict=True))
    v = _op(b, v, "pad", any(after), before=(0,) * len(after), after=after)
    v = _op(b, v, "reshape", pack.split != v.type.shape, shape=pack.split)
    v = _op(b, v, "transpose", pack.perm != tuple(range(len(pack.perm))), perm=pack.perm)
    return _op(b, v, "reshape", pack.shape != v.type.shape, shape=pack.shape)


def _op(b: GraphBuilder, v: Value, op: str, needed: bool, **attrs: object) -> Value:
    return b.op(op, v, **attrs) if needed else v


def _loops(kernels: Sequence[Kernel]) -> tuple[Loop, ...]:
    """The loops, by the positions of their kernels."""
    found: dict[int, Loop] = {}
    for i, k in enumerate(kernels):
        if k.loop:
            found[k.loop.id] = Loop(found[k.loop.id].first if k.loop.id in found else i, i + 1, k.loop.trips)
    return tuple(found.values())


def _sources(kernels: Sequence[Kernel]) -> list[tuple[int, ...]]:
    """For each kernel, the positions of those whose results it reads. A storage may have several writers (parts of a concat)."""
    writers: dict[str, list[int]] = {}
    found: list[tuple[int, ...]] = []
    for i, k in enumerate(kernels):
        found.append(tuple(sorted({w for r in k.inputs if r is not None for w in writers.get(r.storage, ())})))
        for r in k.outputs:
            writers.setdefault(r.storage, []).append(i)
    return found

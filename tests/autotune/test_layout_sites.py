"""Layouts as sites: whichever images are plain and whichever in blocks, a net computes the same; its log says which were chosen."""
from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

import tilewright as tw
from tests.autotune.test_site import RNG, arrays, close, lowered, runnable, tasks, weight
from tests.autotune.test_tuner import Quiet
from tilewright.autotune.final import ROUNDS, Subject, faster_ways, finalists, outputs
from tilewright.autotune.in_model import Compared
from tilewright.autotune.log import Record, Steps, TuningLog, record
from tilewright.autotune.measure import Measurer, Result
from tilewright.autotune.replay import LogSource, replay
from tilewright.autotune.report import text
from tilewright.autotune.site import SiteTask, Way
from tilewright.autotune.task import parse_workload
from tilewright.autotune.tuner import Session
from tilewright.backends.target import Target
from tilewright.compiler.build import lower_graph, make_options
from tilewright.compiler.passes import layout_sites
from tilewright.compiler.passes.layout_sites import BLOCKED, PLAIN, decide_forms, forms_of, name_of
from tilewright.compiler.schedule.source import HEURISTIC, Choice, Decision, Open, Wanted
from tilewright.compiler.sites import Sites
from tilewright.errors import ScheduleError
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.types import F32, TensorType

HOST = Target.host()
LANES = max(4, HOST.vector_bytes // 4)


def conv(b: GraphBuilder, x: Value, out: int, k: int = 1, stride: int = 1, groups: int = 1) -> Value:
    w, bias = weight(b, out, x.type.shape[1] // groups, k, k), weight(b, out)
    return b.op("conv", x, w, bias, strides=(stride,) * 2, pads=(k // 2,) * 4, dilations=(1, 1), groups=groups)


def start(*shape: int, name: str = "g") -> tuple[GraphBuilder, Value]:
    b = GraphBuilder(name)
    return b, b.input(f"{name}_x", TensorType(F32, shape))


def narrow(name: str = "g", batch: int = 1) -> Graph:
    """Few channels, a residual sum, a pool of each kind."""
    b, x = start(batch, 3, 20, 18, name=name)
    y = b.op("relu", conv(b, x, 8, 3))
    z = b.op("add", conv(b, y, 8), y)
    p = b.op("max_pool", z, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), sizes=(10, 9))
    return b.graph((b.op("tanh", conv(b, p, 5)), b.op("reduce", z, kind="mean", axes=(2, 3), keepdims=True)))


def branches() -> Graph:
    """A concat of branches, one of them enlarged, before a head whose channels fill no block."""
    b, x = start(2, 24, 16, 16)
    small = conv(b, b.op("avg_pool", x, kernel=(2, 2), strides=(2, 2), pads=(0,) * 4, dilations=(1, 1), sizes=(8, 8)), 24)
    y = b.op("concat", conv(b, x, 24), b.op("repeat", small, factors=(1, 1, 2, 2)), axis=1)
    return b.graph((conv(b, b.op("sigmoid", y), 21), small))


def groups() -> Graph:
    """One filter a channel, groups of a few channels, groups of whole blocks."""
    b, x = start(1, 2 * LANES, 15, 16)
    y = b.op("relu", conv(b, x, 2 * LANES, 3, groups=2 * LANES))
    y = b.op("add", conv(b, y, 2 * LANES, 3, groups=LANES // 2), y)
    return b.graph((b.op("relu", conv(b, y, 2 * LANES, 1, groups=2)),))


def strided() -> Graph:
    b, x = start(1, 4, 17, 19)
    y = conv(b, conv(b, x, 12, 3, stride=2), 20)
    return b.graph((b.op("mul", y, b.op("sigmoid", conv(b, b.op("reduce", y, kind="mean", axes=(2, 3), keepdims=True), 20))),))


NETS = {"narrow": narrow, "branches": branches, "groups": groups, "strided": strided}


def layouts(g: Graph) -> list[SiteTask]:
    return [t for t in tasks(g) if t.kind == "layout"]


# -- right, whatever is chosen -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("pattern", ["p", "b", "pb", "bp", "ppb", "bbp"])
@pytest.mark.parametrize("net", sorted(NETS))
def test_any_forms_compute_the_same(net: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that estimates rule out."""
    g = NETS[net]()

    def forced(g: Graph, c: int, target: Target, strict: bool, sites: Sites) -> dict[str, str]:
        legal = {n.outputs[0].name: f for n in g.nodes if n.op == "conv" and (f := forms_of(n, c))}
        wanted = ({"p": PLAIN, "b": BLOCKED}[pattern[k % len(pattern)]] for k in range(len(legal)))
        return {name: w if w in f else f[0] for (name, f), w in zip(legal.items(), wanted, strict=True)}
    monkeypatch.setattr("tilewright.compiler.passes.layout.decide_forms", forced)
    data = arrays(g)
    want = run_graph(g, dict(zip((v.name for v in g.inputs), data, strict=True)))
    close(tw.compile(g, threads=1, schedules=Way("none", pattern), cache=False)(*data), tuple(want[v.name] for v in g.outputs))


@pytest.mark.parametrize("net", ["branches", "narrow"])
def test_each_way_computes_the_same_and_is_another_program(net: str) -> None:
    g = NETS[net]()
    data = arrays(g)
    want = run_graph(g, dict(zip((v.name for v in g.inputs), data, strict=True)))
    found = layouts(g)
    assert found, "few channels are where plain images are near"
    for task in found:
        assert task.own in task.options and 2 <= len(set(task.options)) == len(task.options)
        texts = set()
        for option in task.options:
            source = Only(task.hash, option)
            texts.add(str([w.program.key() for w in lower(g, source)]))
            close(tw.compile(g, threads=1, schedules=source)(*data), tuple(want[v.name] for v in g.outputs))
        assert len(texts) == len(task.options)


class Only:
    """A source that computes one site in one way."""

    def __init__(self, site: str, option: str) -> None:
        self._site, self._option, self.key = site, option, f"only {site} {option}"

    def choose(self, wanted: Sequence[Wanted], target: Target, threads: int) -> list[Choice]:
        return HEURISTIC.choose(wanted, target, threads)

    def decide(self, site: Open, target: Target, threads: int) -> Decision:
        return Decision(self._option if site.hash == self._site else site.default)


def lower(g: Graph, source: Only) -> tuple[Wanted, ...]:
    return lower_graph(g, make_options("native", 1, "f32", source, True)).wanted


# -- sites -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("net", sorted(NETS))
def test_a_region_compiles_alone_and_asks_for_itself(net: str) -> None:
    for task in layouts(NETS[net]()):
        again = parse_workload(task.workload, task.target)
        assert isinstance(again, SiteTask) and again.hash == task.hash and again.kind == "layout"
        inside = runnable(again.graph, 0)
        sites = [(s.options, s.default, s.hash) for s, _ in lowered(inside).sites if s.kind == "layout"]
        assert sites == [(task.options, task.own, task.hash)]


def test_the_best_estimate_comes_first_and_nothing_hopeless_comes() -> None:
    b, x = start(1, 8, 64, 64)
    few, = layouts(b.graph((conv(b, x, 8, 3),)))
    assert few.options[0] == "plain", "half the lanes of a block would be empty, and both ends are plain"
    b, x = start(1, 256, 14, 14)
    middle = conv(b, conv(b, x, 256, 3), 256, 3)
    assert not layouts(b.graph((middle,))), "Winograd on whole blocks"
    b, x = start(1, 32, 28, 28)
    assert not layouts(b.graph((conv(b, x, 32, 3, stride=2),))), "columns that are no neighbours"


def test_names_of_forms() -> None:
    assert name_of((PLAIN,)) == name_of((PLAIN, PLAIN)) == "plain"
    assert name_of((BLOCKED, BLOCKED, PLAIN)) == "2 blocked, 1 plain"


def test_a_long_chain_is_several_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_sites, "MOST_CONVOLUTIONS", 2)
    b, x = start(1, 8, 40, 40)
    for _ in range(5):
        x = b.op("relu", conv(b, x, 8, 3))
    g = b.graph((x,))
    sites = Sites(HEURISTIC, HOST)
    forms = decide_forms(g, LANES, HOST, True, sites)
    assert len(forms) == 5 and set(forms.values()) == {BLOCKED}
    assert [sum(n.op == "conv" for n in s.graph.nodes) for s, _ in sites.asked] == [2, 2, 1]


def test_the_heuristics_way_is_what_nobody_decided() -> None:
    for net in sorted(NETS):
        g = NETS[net]()
        plain = {t.hash: t.own for t in layouts(g)}
        for site, own in plain.items():
            assert [w.program.key() for w in lowered(g).wanted] == [w.program.key() for w in lower(g, Only(site, own))]


# -- measuring and replay ----------------------------------------------------------------------------------------------
def test_ways_are_measured_and_an_unknown_one_is_refused() -> None:
    task = layouts(narrow())[0]
    other = next(o for o in task.options if o != task.own)
    with Measurer(HOST) as m:
        futures = [m.submit(task, []), m.submit(task, task.steps(other)), m.submit(task, [["site", {"option": "striped"}]])]
        own, way, unknown = (f.result() for f in futures)
    assert own.ok and way.ok and len(way.samples_ns) == len(way.base_ns) >= 5
    assert unknown.status == "compile_error" and "'striped'" in (unknown.error or "") and other in (unknown.error or "")
    with pytest.raises(ScheduleError, match="the ways are"):
        lowered(narrow(), Way("layout", "striped"))


def test_ways_that_wait_can_be_cancelled() -> None:
    """A session whose time is up does not wait for each to be compiled and timed."""
    task = layouts(narrow())[0]
    with Measurer(HOST) as m:
        futures = [m.submit(task, task.steps(o)) for o in (*task.options, *task.options)]
        assert all(f.cancel() for f in futures[2:])
        wait(futures)
        assert futures[0].result().ok and all(f.cancelled() for f in futures[2:])


def measured(task: SiteTask, option: str, ns: int) -> Record:
    return record(task.hash, task.workload, task.target, task.threads, task.steps(option), "ok", [ns], None, 0)


def test_a_renamed_and_retrained_model_hits_its_records(tmp_path: Path) -> None:
    task = layouts(narrow())[0]
    other = next(o for o in task.options if o != task.own)
    log = tmp_path / "log.jsonl"
    TuningLog(log).append([measured(task, task.own, 1000), measured(task, other, 500)])
    RNG.standard_normal(7)  # other weights from here on
    again = narrow("renamed")
    decisions = [d for s, d in lowered(again, LogSource.read(log)).sites if s.hash == task.hash]
    assert [(d.status, d.option) for d in decisions] == [("applied", other)]
    row, = (r for r in replay(again, log, threads=1) if r.task.hash == task.hash)
    assert row.status == "applied" and row.reason.startswith(other) and "2.00 times as fast" in row.reason
    unknown = [measured(task, task.own, 1000), measured(task, "striped", 10)]
    rejected = [d for s, d in lowered(again, LogSource(unknown)).sites if s.hash == task.hash]
    assert [(d.status, d.option) for d in rejected] == [("rejected", task.own)]
    assert "'striped'" in rejected[0].reason
    assert task.hash not in {t.hash for t in layouts(narrow(batch=2))}, "another size is another task"


def test_tuning_tries_layouts_and_its_log_replays(tmp_path: Path) -> None:
    g, log = narrow(), tmp_path / "log.jsonl"
    tuned = tw.tune(g, log=log, trials=20, threads=1, watch=Quiet())
    sites = {t.hash for t in layouts(g)}
    tried = [r for r in TuningLog(log).records() if r.task in sites]
    assert len(tried) > len(sites) and all(r.ok for r in tried), [r.error for r in tried]
    decided = [r for r in TuningLog(log).records() if r.of_model][-1]
    assert sites <= {str(pair[0]) for pair in decided.schedule if isinstance(pair, list)}
    shown = text(tuned)
    assert "layout 1x8x20x18" in shown and "trials" in shown
    exe = tw.compile(g, threads=1, schedules=log)
    assert "layout applied" in exe.explain()
    data = arrays(g)
    for a, b in zip(outputs(exe, data), outputs(tuned.executable, data), strict=True):
        np.testing.assert_array_equal(a, b)


def test_finalists_are_measured_as_a_model_builds_them() -> None:
    task, state = layouts(narrow())[0], SimpleNamespace(share=1.0, good=[(1.2, [["a"]]), (1.001, [["b"]])])
    state.task = task
    asked: list[tuple[bool, object]] = []

    class Pool:
        def submit(self, task: SiteTask, steps: Steps) -> Future[Result]:
            asked.append((task.final, steps))
            f: Future[Result] = Future()
            f.set_result(Result("ok", (100,), None, (110,), 110))
            return f
    session = SimpleNamespace(default_seconds=1.0, states={task.hash: state}, pool=Pool())
    found = finalists(cast(Session, session))
    assert asked == [(True, [["a"]])] * ROUNDS and [s for _, s in found[task.hash]] == [[["a"]]]


@pytest.mark.parametrize("gain, kept", [(0.99, False), (1.0, True)])
def test_ways_that_are_slower_in_the_whole_model_go(gain: float, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = narrow()
    task = layouts(g)[0]
    way = {task.hash: task.steps(next(o for o in task.options if o != task.own))}
    monkeypatch.setattr("tilewright.autotune.final.compare", lambda *_: Compared(1.0, 1.0, gain, gain, (1,)))
    m = Subject(g, None, make_options("native", 1, "f32", None, True), (task,))
    assert faster_ways(m, way, Quiet(), 10.0) == (way if kept else {})
    assert faster_ways(m, way, Quiet(), -1.0) == way, "no time is left to try them"

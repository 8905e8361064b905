"""Sites: every way computes the same, a log says which one, and tuning chooses among them."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.autotune.test_tuner import Quiet
from tilewright.autotune.log import Record, Steps, TuningLog, record
from tilewright.autotune.measure import Measurer
from tilewright.autotune.replay import Fixed, LogSource
from tilewright.autotune.site import SiteTask, Way, option_of, parse_site, runnable, site_tasks
from tilewright.autotune.task import parse_workload
from tilewright.backends.target import Target
from tilewright.compiler.build import Lowered, lower_graph, make_options
from tilewright.errors import ScheduleError
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.types import F32, TensorType

RNG = np.random.default_rng(0)


def weight(b: GraphBuilder, *shape: int) -> Value:
    return b.weight("w", (RNG.standard_normal(shape) * 0.1).astype(np.float32))


def conv(b: GraphBuilder, x: Value, out: int) -> Value:
    w, bias = weight(b, out, x.type.shape[1], 3, 3), weight(b, out)
    return b.op("conv", x, w, bias, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1)


def convolutions(name: str = "g") -> Graph:
    """Two equal 3x3 convolutions, one after the other."""
    b = GraphBuilder(name)
    x = b.input(f"{name}_x", TensorType(F32, (1, 32, 15, 18)))
    return b.graph((b.op("relu", conv(b, b.op("relu", conv(b, x, 32)), 32)),))


def attention() -> Graph:
    b = GraphBuilder("attention")
    q, k, v = (b.input(n, TensorType(F32, s)) for n, s in (("q", (2, 12, 8)), ("k", (2, 8, 12)), ("v", (2, 12, 8))))
    return b.graph((b.op("matmul", b.op("softmax", b.op("matmul", q, k), axis=2), v),))


def dense() -> Graph:
    b = GraphBuilder("dense")
    x = b.input("x", TensorType(F32, (9, 40)))
    return b.graph((b.op("gelu", b.op("add", b.op("matmul", x, weight(b, 40, 48)), weight(b, 48))),))


def normalised() -> Graph:
    """A layer norm of a product, which is a result as well."""
    b = GraphBuilder("normalised")
    x = b.input("x", TensorType(F32, (130, 40)))
    t = b.op("add", b.op("matmul", x, weight(b, 40, 48)), weight(b, 48))
    return b.graph((b.op("layer_norm", t, weight(b, 48), weight(b, 48), axes=(1,)), t))


def siblings() -> Graph:
    b = GraphBuilder("siblings")
    x = b.input("x", TensorType(F32, (9, 40)))
    return b.graph(tuple(b.op("matmul", x, weight(b, 40, 16)) for _ in range(3)))


def pooled(op: str = "max_pool", kernel: int = 3, pad: int = 1) -> Graph:
    """A map before a pool; its windows overlap if they are longer than 2."""
    b = GraphBuilder("pooled")
    x = b.input("x", TensorType(F32, (1, 6, 13, 21)))
    sizes = tuple((n + 2 * pad - kernel) // 2 + 1 for n in (13, 21))
    y = b.op("tanh", b.op("add", x, weight(b, 6, 1, 1)))
    return b.graph((b.op(op, y, kernel=(kernel, kernel), strides=(2, 2), pads=(pad,) * 4, dilations=(1, 1), sizes=sizes),))


GRAPHS = {"convolution": convolutions, "attention": attention, "epilogue": dense, "siblings": siblings, "norm": normalised, "pool": pooled}


def lowered(g: Graph, source: Way | Fixed | LogSource | None = None, threads: int = 1) -> Lowered:
    return lower_graph(g, make_options("native", threads, "f32", source, True))


def tasks(g: Graph, threads: int = 1) -> list[SiteTask]:
    return site_tasks(lowered(g, threads=threads), make_options("native", threads, "f32", None, True))


def arrays(g: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(v.type.shape).astype(np.float32) for v in g.inputs]


def close(got: object, want: object) -> None:
    for a, b in zip(got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-4 * float(np.abs(np.asarray(b)).max()))


# -- every way is right ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", sorted(GRAPHS))
def test_each_way_computes_the_same(kind: str) -> None:
    g = GRAPHS[kind]()
    task = next(t for t in tasks(g) if t.kind == kind)
    data = arrays(g)
    want = run_graph(g, dict(zip((v.name for v in g.inputs), data, strict=True)))
    for option in task.options:
        close(tw.compile(g, threads=1, schedules=Way(kind, option))(*data), tuple(want[v.name] for v in g.outputs))


@pytest.mark.parametrize("kind", sorted(GRAPHS))
def test_a_part_compiles_alone_and_asks_for_itself(kind: str) -> None:
    task = next(t for t in tasks(GRAPHS[kind]()) if t.kind == kind)
    again = parse_workload(task.workload, task.target)
    assert isinstance(again, SiteTask) and again.hash == task.hash and again.kind == kind
    inside = runnable(again.graph, 0)
    found = [(s.options, s.default) for s, _ in lowered(inside).sites if s.kind == kind]
    assert (task.options, task.own) in found
    data = arrays(inside)
    base = tw.compile(inside, threads=1)(*data)
    for option in task.options[:3]:
        close(tw.compile(inside, threads=1, schedules=Way(kind, option))(*data), base)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("kernel, pad, own", [(2, 0, "joined"), (2, 1, "apart"), (3, 0, "apart"), (5, 2, "apart")])
def test_what_stands_before_a_pool_runs_inside_it_or_apart(op: str, kernel: int, pad: int, own: str) -> None:
    """Maps are not repeated for windows that overlap, unless that was measured to be faster."""
    g = pooled(op, kernel, pad)
    task, = (t for t in tasks(g) if t.kind == "pool")
    data = arrays(g)
    want = run_graph(g, {"x": data[0]})
    assert task.own == own
    for option, kernels in (("joined", 1), ("apart", 2)):
        assert len(lowered(g, Way("pool", option)).wanted) == kernels
        close(tw.compile(g, threads=1, schedules=Way("pool", option))(*data), want[g.outputs[0].name])


def test_ways_make_different_kernels() -> None:
    for kind, make in sorted(GRAPHS.items()):
        g = make()
        task = next(t for t in tasks(g) if t.kind == kind)
        texts = {str([w.program.key() for w in lowered(g, Way(kind, o)).wanted]) for o in task.options[:2]}
        assert len(texts) == 2, kind


# -- tasks -------------------------------------------------------------------------------------------------------------
def test_equal_parts_are_one_task_whatever_they_are_called() -> None:
    mine, renamed = tasks(convolutions()), tasks(convolutions("other"))
    assert [(t.kind, t.uses) for t in mine] == [("convolution", 2)]
    assert [t.hash for t in mine] == [t.hash for t in renamed]
    assert mine[0].work.flops == 2 * 32 * 15 * 18 * 32 * 9


def test_strict_leaves_no_choice_of_algorithm() -> None:
    options = make_options("native", 1, "f32", None, True, True)
    assert not [s for s, _ in lower_graph(convolutions(), options).sites if s.kind == "convolution"]


def test_the_default_is_what_nobody_decided() -> None:
    g = convolutions()
    assert [w.program.key() for w in lowered(g).wanted] == [w.program.key() for w in lowered(g, Fixed({})).wanted]


@pytest.mark.parametrize("steps", [[], [["site"]], [["site", {"option": 3}]], [["split", {"axis": "i"}]]],
                         ids=["none", "short", "number", "other"])
def test_steps_that_name_no_way(steps: Steps) -> None:
    with pytest.raises(ScheduleError):
        option_of(steps)


# -- measuring ---------------------------------------------------------------------------------------------------------
def test_ways_are_measured_and_failures_have_a_class() -> None:
    task = tasks(convolutions())[0]
    ways: list[Steps] = [[], task.steps("direct"), [["site", {"option": "F9"}]], [["rows", {}]]]
    with Measurer(Target.host()) as m:
        futures = [m.submit(task, steps) for steps in ways]
        own, direct, unknown, nonsense = (f.result() for f in futures)
    assert own.ok and direct.ok and len(direct.samples_ns) == len(direct.base_ns) >= 5
    assert unknown.status == nonsense.status == "compile_error"
    assert "F9" in (unknown.error or "")


# -- replay ------------------------------------------------------------------------------------------------------------
def measured(task: SiteTask, option: str, ns: int, target: Target | None = None) -> Record:
    return record(task.hash, task.workload, target or task.target, task.threads, task.steps(option), "ok", [ns], None, 0)


def fate(g: Graph, records: list[Record]) -> tuple[str, str]:
    site, d = next((s, d) for s, d in lowered(g, LogSource(records)).sites if s.kind == "convolution")
    assert d.option in site.options
    return d.status, d.option


def test_each_fate_of_a_record() -> None:
    g = convolutions()
    task = tasks(g)[0]
    other = next(o for o in task.options if o != task.own)
    own = measured(task, task.own, 1000)
    assert fate(g, []) == ("missing", task.own)
    assert fate(g, [own, measured(task, other, 800)]) == ("applied", other)
    assert fate(g, [own, measured(task, other, 990)]) == ("applied", task.own)
    elsewhere = replace(task.target, cpu="cortex-a72")
    assert fate(g, [measured(task, o, n, elsewhere) for o, n in ((task.own, 1000), (other, 10))]) == ("rejected", task.own)
    unknown = replace(own, schedule=[["site", {"option": "F9 apart"}]], samples_ns=(10,))
    assert fate(g, [own, unknown]) == ("rejected", task.own)


def test_tuning_tries_ways_records_what_it_decided_and_replays(tmp_path: Path) -> None:
    g, log = convolutions(), tmp_path / "log.jsonl"
    task = tasks(g)[0]
    tuned = tw.tune(g, log=log, trials=14, threads=1, watch=Quiet())
    tried = [r for r in TuningLog(log).records() if r.task == task.hash]
    assert 2 <= len(tried) <= 6 and all(r.ok for r in tried)
    decided = [r for r in TuningLog(log).records() if r.of_model][-1]
    assert task.hash in [pair[0] for pair in decided.schedule if isinstance(pair, list)]
    exe = tw.compile(g, threads=1, schedules=log)
    assert "convolution applied" in exe.explain()
    data = arrays(g)
    close(exe(*data), tuned.executable(*data))
    again = tw.tune(g, log=log, trials=14, threads=1, watch=Quiet())
    assert sum(len(s.points) for s in again.states if isinstance(s.task, SiteTask)) == 0
    keys = [r.key for r in TuningLog(log).records() if not r.of_model]
    assert len(set(keys)) == len(keys), "kernels whose records came after the ways' are known as well"
    with pytest.raises(ScheduleError):
        lowered(g, Way("convolution", "F9"))
    assert parse_site(task.workload, task.target).workload == task.workload

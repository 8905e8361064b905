"""Engines in processes of their own: right outputs are timed, wrong, failing and absent engines are named."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.reference
import pytest

from benchmarks import models
from tilewright.bench import compare as comparing
from tilewright.bench import worker
from tilewright.bench.compare import compare, comparison_from_json, worst_error
from tilewright.bench.engines import ENGINES, PEERS, Adapter, Job
from tilewright.bench.isolated import EngineError, Isolated
from tilewright.bench.machine import cpu_model, describe


@pytest.fixture
def add(tmp_path: Path) -> Job:
    path, inputs = models.load("add 16", lambda: models.add(16), tmp_path)
    return Job(path, inputs)


def test_side_by_side(add: Job) -> None:
    c = compare(add, ["tilewright", "onnxruntime", "numpy"], rounds=2, seconds=0.01, warm_up=0.0)
    assert [t.status for t in c.timings] == ["ok"] * 3, c
    assert c.reference == "onnxruntime" and c.ratio() is not None
    for t in c.timings:
        assert 0 < t.low <= t.median <= t.high and t.samples >= 6 and len(t.rounds) == 2 and t.memory >= 0 and t.version
        assert (t.error is None) == (t.engine == c.reference)
    assert comparison_from_json(c.to_json()) == c


def test_what_does_not_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, inputs = models.load("p", lambda: models.perceptron(1, (4, 3)), tmp_path)
    monkeypatch.setitem(ENGINES, "jax", Adapter("jax", "jax", ("no_such_module", "numpy"), lambda job: lambda ins: ins))
    c = compare(Job(path, inputs), ["tilewright", "numpy", "jax"], rounds=1, seconds=0.0, warm_up=0.0)
    ours, numpy, absent = c.timings
    assert ours.status == "ok" and c.reference == "tilewright" and c.ratio() is None
    assert numpy.status == "failed" and "one Add only" in numpy.text
    assert absent.status == "absent" and "no_such_module" in absent.text


def test_wrong_outputs_are_not_timed(add: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(comparing.TOLERANCE, "f32", -1.0)
    c = compare(add, ["tilewright", "onnxruntime"], rounds=1, seconds=0.0, warm_up=0.0)
    ours, reference = c.timings
    assert ours.status == "wrong" and ours.error == 0.0 and ours.median == 0 and reference.status == "ok"


def test_an_engine_that_dies_is_an_error(add: Job) -> None:
    with Isolated("numpy", add) as engine:
        assert min(engine.burst(0.0)) > 0
        engine._process.kill()
        engine._process.wait()  # only now does writing to it surely fail
        with pytest.raises(EngineError, match="signal 9"):
            engine.burst(0.0)


@pytest.mark.parametrize(("seconds", "hiccup", "count"), [(1e-7, 0, 400), (1e-7, 1e-3, 400), (1e-3, 0, 1), (0.1, 0, 1)])
def test_quick_calls_are_timed_many_at_a_time(monkeypatch: pytest.MonkeyPatch, seconds: float, hiccup: float, count: int) -> None:
    """On a clock of our own. `hiccup`: what the first call takes in addition, as one that is interrupted does."""
    now, calls = 0.0, 0

    def call() -> None:
        nonlocal now, calls
        now += seconds + (hiccup if not calls else 0)
        calls += 1
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: now))
    samples = worker.burst(call, 0.0)
    assert samples == pytest.approx([seconds] * 3)
    assert abs(calls - (1 if seconds > 0.05 else 5) - 3 * count) <= 3


@pytest.mark.parametrize(("a", "b", "error"), [
    ([1.0, 2.0], [1.0, 2.0], 0), ([1.0, 2.5], [1.0, 2.0], 0.25), ([np.inf, 1.0], [np.inf, 1.0], 0), ([np.inf, 1.0], [1.0, 1.0], np.inf),
    ([np.nan, 1.0], [np.nan, 1.0], 0), ([np.nan, 1.0], [1.0, 1.0], np.inf), ([0.5], [0.0], 0.5), ([1.0], [1.0, 2.0], np.inf), ([], [], 0)])
def test_worst_error(a: list[float], b: list[float], error: float) -> None:
    assert worst_error([np.array(a)], [np.array(b)]) == error


def test_worst_error_of_exact_values() -> None:
    assert worst_error([np.array([1, 2])], [np.array([1, 2])]) == 0 and worst_error([np.array([1, 2])], [np.array([1, 3])]) == np.inf
    assert worst_error([], [np.zeros(1)]) == np.inf


def test_the_machine_is_described(tmp_path: Path) -> None:
    d = describe(("tilewright", *PEERS))
    assert d["cores"] and d["cpu"] and isinstance(d["engines"], dict) and set(d["engines"]) == {"tilewright", *PEERS}
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Fast One\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Fast One" and cpu_model(tmp_path / "nothing")


def test_torch_runs_the_models(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tilewright.bench.onnx_torch import module
    for build in (lambda: models.convolution(4, 8, 9, 3, 2), lambda: models.perceptron(2, (4, 3)), lambda: models.rows("Softmax", 3, 5),
                  lambda: models.rows("LayerNormalization", 3, 5), lambda: models.rows("Gelu", 3, 5)):
        model, inputs = build()
        onnx.save(model, tmp_path / "m.onnx")
        found = module(tmp_path / "m.onnx", inputs)(*map(torch.from_numpy, inputs))
        want = onnx.reference.ReferenceEvaluator(model).run(None, dict(zip([i.name for i in model.graph.input], inputs, strict=True)))
        assert isinstance(want, list) and worst_error([o.numpy() for o in found], want) < 1e-5

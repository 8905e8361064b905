"""Replay: what becomes of each record, and that no log makes a compilation fail or answer wrongly."""
from __future__ import annotations

import json
import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.autotune.programs import mlp
from tilewright.autotune import replay as replaying
from tilewright.autotune.extract import extract
from tilewright.autotune.log import Hardware, LogWarning, Record, Steps, TuningLog, record
from tilewright.autotune.replay import Fixed, LogSource, replay
from tilewright.autotune.schedules import space_of
from tilewright.autotune.task import Task, model_text
from tilewright.backends.target import Target
from tilewright.compiler.schedule.source import workload_hash

HOST = Target.host()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return mlp(tmp_path / "m.onnx")


def point(t: Task, seed: int = 0) -> Steps:
    """Steps of some schedule that is not the default."""
    space, rng = space_of(t), random.Random(seed)
    while (d := space.sample(rng)) == space.default():
        pass
    return space.to_json(d)  # type: ignore[return-value]


def rec(t: Task, steps: Steps, ns: int, target: Target = HOST, threads: int = 1, status: str = "ok") -> Record:
    return record(t.hash, t.workload, target, threads, steps, status, [ns] if status == "ok" else [], None if status == "ok" else "why", 0)


def write(path: Path, records: list[Record]) -> Path:
    log = path / "log.jsonl"
    log.write_text("")
    TuningLog(log).append(records)
    return log


def foreign(r: Record, **changes: object) -> Record:
    return replace(r, target=replace(r.target, **changes))  # type: ignore[arg-type]


def statuses(model: Path, log: Path, threads: int | None = 1) -> dict[str, tuple[str, str]]:
    return {r.task.label: (r.status, r.reason) for r in replay(model, log, threads=threads)}


def test_each_fate(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "_predicted", lambda task, steps: 1.1)
    a, b, c = extract(model, threads=1)
    here = [rec(a, [], 1000), rec(a, point(a), 500)]
    there = foreign(rec(b, point(b), 1), cpu="another")
    arm = foreign(rec(c, point(c), 1), cpu="cortex-a72", triple="aarch64-unknown-linux-gnu")
    found = [statuses(model, write(tmp_path, [*here, there, arm]))[t.label] for t in (a, b, c)]
    assert [s for s, _ in found] == ["applied", "adapted", "rejected"]
    assert [w in why for w, (_, why) in zip(("2.00 times", "another", "cortex-a72"), found, strict=True)] == [True] * 3
    assert {s for s, _ in statuses(model, write(tmp_path, [])).values()} == {"missing"}


def test_the_results_are_the_models(model: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((9, 40)).astype("f4")
    want = tw.compile(model, threads=1)(x)
    tasks = extract(model, threads=1)
    for seed in range(3):
        log = write(tmp_path, [rec(t, point(t, seed), 5) for t in tasks])
        exe = tw.compile(model, threads=1, schedules=log)
        np.testing.assert_allclose(np.asarray(exe(x)), np.asarray(want), rtol=1e-5, atol=1e-6)
        assert "schedules: 3 applied" in exe.explain()
        assert "schedule applied: softmax" in exe.explain()


def test_a_record_of_another_processor_is_never_taken_by_rank(model: Path) -> None:
    a = extract(model, threads=1)[0]
    slow, fast = rec(a, [], 1000), foreign(rec(a, point(a), 1), cpu="another")
    from tilewright.autotune.replay import choose
    choice, steps = choose(a, [slow, fast], None)
    assert (choice.status, steps) == ("applied", [])


def test_an_adapted_schedule_must_be_expected_to_be_no_slower(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = extract(model, threads=1)[0]
    there = foreign(rec(a, point(a), 1), cpu="another")
    predicted = replaying._predicted(a, point(a))
    assert predicted is not None
    assert predicted > 0
    monkeypatch.setattr(replaying, "_predicted", lambda task, steps: 0.5)
    choice, _ = replaying.choose(a, [there], None)
    assert choice.status == "rejected"
    assert "expected to be slower here: x0.50" in choice.reason


def test_less_than_noise_is_not_taken(model: Path) -> None:
    from tilewright.autotune.replay import choose
    a = extract(model, threads=1)[0]
    assert choose(a, [rec(a, [], 1000), rec(a, point(a), 990)], None)[1] == []
    assert choose(a, [rec(a, [], 1000), rec(a, point(a), 900)], None)[1] == point(a)


def test_failures_reject_and_damage_repairs_or_rejects(model: Path) -> None:
    from tilewright.autotune.replay import choose
    a = extract(model, threads=1)[0]
    assert choose(a, [rec(a, point(a), 1, status="crash")], None)[0].status == "rejected"
    for steps in ([["no such sketch", {}]], [["split", {"stage": "nothing", "loop": "i", "factor": 3}]], [3], [[]], ["x"]):
        choice, _ = choose(a, [rec(a, steps, 1)], None)  # type: ignore[arg-type]
        assert choice.status == "rejected", steps
        assert str(choice.scheduled) == str(a.default())
    name, values = point(a)[0]  # type: ignore[misc]
    odd = [[name, {k: 10**6 if isinstance(v, int) else v for k, v in values.items()}]]  # type: ignore[union-attr]
    assert choose(a, [rec(a, odd, 1)], None)[0].status in ("adapted", "rejected")  # type: ignore[arg-type]


def test_records_of_other_thread_counts_are_adapted_only_if_no_thread_is_idle(model: Path) -> None:
    from tilewright.autotune.replay import choose
    a = extract(model, threads=2)[0]
    choice, _ = choose(a, [rec(a, point(a), 1, threads=1)], None)
    assert choice.status in ("adapted", "rejected")


def test_what_was_decided_for_the_model_counts(model: Path, tmp_path: Path) -> None:
    tasks = extract(model, threads=1)
    a = tasks[0]
    trials = [rec(a, [], 1000), rec(a, point(a, 1), 100), rec(a, point(a, 2), 200)]
    text = model_text(tasks)

    def decision(steps: Steps) -> Record:
        return record(workload_hash(text), text, HOST, 1, [[t.hash, steps if t is a else []] for t in tasks], "ok", [9], None, 0)
    source = LogSource([*trials, decision(point(a, 1)), decision(point(a, 2))])
    assert source.decided(tasks, HOST, 1)[a.hash] == (point(a, 2), "decided for this model")
    assert LogSource([*trials, decision([])]).decided(tasks, HOST, 1)[a.hash][0] == []
    part = LogSource([*trials, decision(point(a, 2))]).decided(tasks[:1], HOST, 1)
    assert part[a.hash] == (point(a, 2), "decided for another model")
    rows = replay(model, write(tmp_path, [*trials, decision(point(a, 2))]))
    assert [r.status for r in rows] == ["applied"] * 3
    assert rows[0].recorded == pytest.approx(200e-9)


def test_renamed_and_reweighted_models_hit_their_records(model: Path, tmp_path: Path) -> None:
    tasks = extract(model, threads=1)
    log = write(tmp_path, [rec(t, point(t), 5) for t in tasks])
    other = mlp(tmp_path / "other.onnx", seed=5, prefix="net/")
    assert {s for s, _ in statuses(other, log).values()} == {"applied"}


def test_replay_takes_the_logs_threads_and_measures(model: Path, tmp_path: Path) -> None:
    tasks = extract(model, threads=1)
    log = write(tmp_path, [rec(t, [], 10**9) for t in tasks])
    rows = replay(model, log, measure=True)
    assert all(r.task.threads == 1 and r.measured and r.drift is not None and r.drift < 0 for r in rows)


def test_damaged_logs_replay(model: Path, tmp_path: Path) -> None:
    a = extract(model, threads=1)[0]
    log = write(tmp_path, [rec(a, [], 1000)])
    with log.open("a") as f:
        f.write('{"hello": "world"}\n{"v": 1, "task": "torn')
    with pytest.warns(LogWarning):
        assert "applied" in {s for s, _ in statuses(model, log).values()}
    with pytest.raises(tw.InputError, match="cannot be read"):
        tw.compile(model, schedules=tmp_path / "none.jsonl")


def test_symbolic_models_take_schedules_when_they_are_compiled(tmp_path: Path) -> None:
    import onnx
    m = onnx.load(mlp(tmp_path / "m.onnx"))
    fixed = extract(tmp_path / "m.onnx", threads=1)
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(m, tmp_path / "s.onnx")
    log = write(tmp_path, [rec(t, point(t), 5) for t in fixed])
    exe = tw.compile(tmp_path / "s.onnx", threads=1, schedules=log)
    exe(np.zeros((9, 40), "f4"))
    assert "schedules: 3 applied" in exe.explain()


def test_sources_have_keys(model: Path) -> None:
    a = extract(model, threads=1)[0]
    r = rec(a, [], 1)
    assert LogSource([r]).key == LogSource([r]).key != LogSource([]).key
    assert Fixed({"a": []}).key == Fixed({"a": []}).key != Fixed({"a": [["s", {}]]}).key
    assert json.loads(json.dumps(point(a))) == point(a)
    assert Hardware.of(HOST).kind == r.target.kind
    warnings.simplefilter("default")

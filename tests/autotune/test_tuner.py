"""Tuning as a whole: it ends, it can be killed and goes on, several can share a log, and what it decides is what replays."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.autotune.programs import mlp
from tilewright.autotune.extract import extract
from tilewright.autotune.log import Record, Steps, TuningLog
from tilewright.autotune.measure import Result
from tilewright.autotune.task import Task
from tilewright.autotune.tuner import Session
from tilewright.autotune.view import PlainView, default_view, summary

TUNE = "import sys, tilewright as tw; tw.tune(sys.argv[1], log=sys.argv[2], trials=int(sys.argv[3]), threads=1)"


class Quiet(PlainView):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(every=0.0)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def trials(log: Path) -> list[Record]:
    return [r for r in TuningLog(log).records() if not r.of_model]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return mlp(tmp_path / "m.onnx")


def test_tuning_ends_with_a_right_model_and_a_decision(model: Path, tmp_path: Path) -> None:
    view = Quiet()
    log = tmp_path / "log.jsonl"
    tuned = tw.tune(model, log=log, trials=18, threads=1, watch=view)
    found = trials(log)
    assert len(found) == 18
    assert {r.task for r in found} == {t.hash for t in extract(model, threads=1)}
    assert len({r.key for r in found}) == 18
    assert all(r.ok for r in found), Counter(r.status for r in found)
    decided = [r for r in TuningLog(log).records() if r.of_model]
    assert len(decided) == 1
    x = np.random.default_rng(1).standard_normal((9, 40)).astype("f4")
    want = tw.compile(model, threads=1)(x)
    np.testing.assert_allclose(np.asarray(tuned.executable(x)), np.asarray(want), rtol=1e-5, atol=1e-6)
    again = tw.compile(model, threads=1, schedules=log)
    assert np.array_equal(np.asarray(again(x)), np.asarray(tuned.executable(x)))  # the same code
    assert "schedules: 3 applied" in again.explain()
    assert tuned.stopped == "trials"
    assert tuned.gain >= 1.0
    assert view.said[0] == "3 tasks"
    assert any("18 of 18 trials, 0 failed" in s for s in view.said)
    assert "18 trials" in str(tuned)
    # and again: nothing is left to do, and nothing is repeated
    before = log.read_bytes()
    tw.tune(model, log=log, trials=18, threads=1, watch=Quiet())
    assert log.read_bytes().startswith(before)
    assert len(trials(log)) == 18


def test_a_killed_tuner_loses_nothing_and_its_successor_repeats_nothing(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    p = subprocess.Popen([sys.executable, "-c", TUNE, str(model), str(log), "30"], stderr=subprocess.DEVNULL)
    while p.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 8):
        time.sleep(0.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    before = log.read_bytes()
    whole = before[:before.rfind(b"\n") + 1]
    assert whole.count(b"\n") >= 8
    tw.tune(model, log=log, trials=30, threads=1, watch=Quiet())
    assert log.read_bytes().startswith(whole)
    found = trials(log)
    assert len({r.key for r in found}) == len(found) == 30


def test_two_tuners_share_a_log(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    both = [subprocess.Popen([sys.executable, "-c", TUNE.replace("threads=1", f"threads=1, seed={k}"), str(model), str(log), "24"],
                             stderr=subprocess.PIPE, text=True) for k in (1, 2)]
    for p in both:
        _, err = p.communicate(timeout=300)
        assert p.returncode == 0, err
    found = trials(log)
    assert 24 <= len(found) <= 24 + 2 * 20  # each learns of the other's trials, but for those under way
    assert {r.seed for r in found} == {1, 2}
    assert "applied" in str(tw.compile(model, threads=1, schedules=log).explain())


def test_time_ends_the_search(model: Path, tmp_path: Path) -> None:
    tuned = tw.tune(model, log=tmp_path / "l.jsonl", seconds=1.0, threads=1, watch=Quiet())
    assert tuned.stopped in ("time", "everything was tried")


def test_only_some_tasks(model: Path, tmp_path: Path) -> None:
    tw.tune(model, log=tmp_path / "l.jsonl", trials=4, only=["softmax"], threads=1, watch=Quiet())
    labels = {t.hash: t.label for t in extract(model, threads=1)}
    assert {labels[r.task] for r in trials(tmp_path / "l.jsonl")} == {"softmax"}


@pytest.mark.parametrize(("arguments", "says"), [
    ({"trials": 0}, "budget"), ({"seconds": -1}, "budget"), ({"only": ["no such"]}, "no task is called no such"),
    ({"log": "/no/such/folder/l.jsonl"}, "folder"), ({"options": {"speed": 3.0}}, "unknown limits speed")])
def test_bad_arguments(model: Path, tmp_path: Path, arguments: dict, says: str) -> None:
    with pytest.raises(tw.InputError, match=says):
        tw.tune(model, **{"log": tmp_path / "l.jsonl", **arguments})  # type: ignore[arg-type]  # pyright: ignore


def test_targets_that_do_not_run_here_need_a_pool(model: Path, tmp_path: Path) -> None:
    with pytest.raises(tw.TargetError, match="pool="):
        tw.tune(model, target="aarch64", log=tmp_path / "l.jsonl")


# -- the session, with a pool that answers what the test says ------------------------------------------------------------
class Scripted:
    """A pool whose candidates take as long as a function of (task, steps) says."""

    width = 4

    def __init__(self, speedup: dict[int, float] | None = None, status: str = "ok") -> None:
        self.asked: list[tuple[str, str]] = []
        self._speedup, self._status = speedup or {}, status

    def submit(self, task: Task, steps: Steps) -> Future[Result]:
        self.asked.append((task.hash, json.dumps(steps)))
        f: Future[Result] = Future()
        speed = self._speedup.get(len(self.asked), 0.5)
        if steps and self._status != "ok":
            f.set_result(Result(self._status, error="planted"))
        else:
            f.set_result(Result("ok", (int(1000 / (speed if steps else 1)),), None, (1000,), 1000))
        return f


def session(tasks: Sequence[Task], log: Path, pool: Scripted, n: int = 20) -> Session:
    s = Session(tasks, TuningLog(log), pool, Quiet(), n, None)
    s.run()
    return s


def test_failures_are_logged_and_the_search_goes_on(model: Path, tmp_path: Path) -> None:
    s = session(extract(model, threads=1), tmp_path / "l.jsonl", Scripted(status="crash"))
    assert Counter(r.status for r in trials(tmp_path / "l.jsonl")) == {"ok": 3, "crash": 17}
    assert all(not x.steps and x.best == 1.0 for x in s.states.values())
    assert "17 failed" in summary(s)


def test_the_best_is_kept_and_resumed(model: Path, tmp_path: Path) -> None:
    tasks, log = extract(model, threads=1), tmp_path / "l.jsonl"
    first = session(tasks, log, Scripted({7: 2.0}))
    assert max(x.best for x in first.states.values()) == pytest.approx(2.0)
    pool = Scripted()
    second = session(tasks, log, pool)
    assert pool.asked == []  # the log had 20 trials
    assert {k: (x.best, x.steps) for k, x in second.states.items()} == {k: (x.best, x.steps) for k, x in first.states.items()}
    third = session(tasks, log, pool, 30)
    assert len(pool.asked) == 10
    assert third.used == 30


def test_views(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from tilewright.autotune.view import LiveView
    s = session(extract(model, threads=1), tmp_path / "l.jsonl", Scripted({5: 1.5}))
    live = LiveView()
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(live._table(s))
    shown = console.export_text()
    assert "softmax" in shown
    assert "x1.50" in shown
    assert "20 of 20 trials" in shown
    live.start(s)
    live.tick(s)
    live.stop(s)
    assert isinstance(default_view(), PlainView)
    PlainView().say("a line")
    assert "a line" in capsys.readouterr().err

"""The log: nothing whole is lost or changed, whatever happens around it."""
from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from tilewright.autotune.log import (
    LogWarning,
    Record,
    Steps,
    TuningLog,
    decisions,
    groups,
    merged,
    parse_line,
    pruned,
    record,
)
from tilewright.backends.target import Target
from tilewright.errors import ModelError

HOST = Target.host()
FIELDS = ["v", "task", "workload", "target", "threads", "schedule", "status", "samples_ns", "error", "tilewright", "llvm", "seed", "time"]


def one(n: int = 0, ns: int = 100, status: str = "ok", task: str = "t", schedule: list | None = None, workload: str = "w") -> Record:
    steps: Steps = [["s", {"n": n}]] if schedule is None else schedule
    return record(task, workload, HOST, 1, steps, status, [ns, ns + 5] if status == "ok" else [], None if status == "ok" else "why", 7)


def test_a_line_has_the_fields_of_the_format_and_reads_back() -> None:
    r = one()
    assert list(json.loads(r.line())) == FIELDS
    assert sorted(json.loads(r.line())["target"]) == ["caches", "cores", "cpu", "features", "triple"]
    assert parse_line(r.line()) == r
    assert "\n" not in one(schedule=[["s", {"text": "a\nb"}]]).line()


@pytest.mark.parametrize(("line", "says"), [
    ("{", "torn"), ('{"hello": "world"}', "not a tuning record"), ("[]", "not a tuning record"), ("7", "not"),
    (one().line().replace('"v":1', '"v":2'), "version 2"), (one().line().replace('"ok"', '"fine"'), "status"),
    (one().line().replace("[100,105]", "[-1]"), "samples_ns"), (one().line().replace('"threads":1', '"threads":"1"'), "threads"),
    (one().line().replace('"cpu"', '"chip"'), "target")])
def test_what_is_no_record_says_why(line: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        parse_line(line)


def test_torn_and_foreign_lines_cost_nothing_else(tmp_path: Path) -> None:
    log = TuningLog(tmp_path / "l.jsonl")
    log.append([one(1)])
    with log.path.open("ab") as f:
        f.write(b'{"hello": "world"}\n\n\xff\xfe\n{"v": 1, "task": "torn')
    log.append([one(2)])
    with pytest.warns(LogWarning, match=r"line 2 \(not a tuning record\).*line 4.*line 5"):
        found = log.records()
    assert [r.schedule for r in found] == [one(1).schedule, one(2).schedule]


def test_news_are_what_others_appended(tmp_path: Path) -> None:
    a, b = TuningLog(tmp_path / "l.jsonl"), TuningLog(tmp_path / "l.jsonl")
    assert a.news() == []
    b.append([one(1), one(2)])
    assert len(a.news()) == 2
    with b.path.open("ab") as f:
        f.write(one(3).line().encode()[:40])
    assert a.news() == []  # not whole yet
    with b.path.open("ab") as f:
        f.write(one(3).line().encode()[40:] + b"\n")
    assert [r.schedule for r in a.news()] == [one(3).schedule]


def _append_many(path: Path, who: int) -> None:
    log = TuningLog(path)
    for n in range(50):
        log.append([one(n, task=f"w{who}"), one(n, task=f"x{who}")])


def test_many_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    writers = [multiprocessing.get_context("spawn").Process(target=_append_many, args=(path, k)) for k in range(3)]
    for w in writers:
        w.start()
    for _ in range(5):  # and one that rewrites the file meanwhile
        time.sleep(0.1)
        log = TuningLog(path)
        if path.exists():
            with log._locked():
                from tilewright.autotune.log import _write
                _write(path, log.records())
    for w in writers:
        w.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = TuningLog(path).records()
    assert len(found) == 300
    assert all(len(g) == 50 for g in groups(found).values())


def _append_forever(path: Path) -> None:
    log = TuningLog(path)
    n = 0
    while True:
        log.append([one(n)])
        n += 1


def test_kill_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    p = multiprocessing.get_context("spawn").Process(target=_append_forever, args=(path,))
    p.start()
    while not path.exists() or path.stat().st_size < 20_000:
        time.sleep(0.01)
    assert p.pid
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    TuningLog(path).append([one(99_999)])
    lines = path.read_bytes().splitlines()
    assert sum(1 for x in lines if not x.endswith(b"}")) <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = TuningLog(path).records()
    assert [r.schedule for r in found] == [one(n).schedule for n in range(len(found) - 1)] + [one(99_999).schedule]


def test_merge_has_every_record_once() -> None:
    a, b, c = (replace(one(n), time=f"2026-01-0{n}") for n in (1, 2, 3))
    assert merged([[a, c], [b, c], [a]]) == [a, b, c]


def test_prune_keeps_what_a_replay_needs() -> None:
    own, slow, fast, bad = one(schedule=[]), one(1, 90), one(2, 50), one(3, status="crash")
    decided = one(workload="model\nt x1", task="m", schedule=[["t", slow.schedule]], ns=1000)
    before = [own, slow, fast, bad, decided]
    assert pruned(before) == [own, slow, fast, decided]  # slow is what was decided for the model
    assert pruned([own, slow, fast, bad]) == [own, fast]
    assert pruned([own, slow, fast, bad], keep=2) == [own, slow, fast]
    assert decisions(decided) == {"t": json.dumps(slow.schedule, sort_keys=True)}


def test_kinds_of_hardware() -> None:
    a = one().target
    assert a.kind == replace(a, cores=96, caches=(1, 2, 3)).kind
    assert a.kind != replace(a, cpu="other").kind
    assert a.kind == replace(a, features=",".join(reversed(a.features.split(",")))).kind

"""From a tuning log back to schedules: `tw.compile(model, schedules="tuning.jsonl")`.

For each task of a model, in this order:

    applied    what was decided for this very model, or for a model with this task, on this kind of processor;
               else the fastest record of this kind and number of threads, if it beats the default's by more than noise
    adapted    a record of another processor of the same architecture, or for another number of threads, brought to this one
               and checked, if the cost model does not expect it to be slower; times of another kind of machine rank nothing here
    rejected   there are records, none of which fits; the reason says why
    missing    there are none

The default schedule stands in wherever a record does not serve. Nothing here raises but `LogSource.read`, where there is no
file, and `strict` uses, which are the caller's.
"""
from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..backends.llvm.emit import parallel_extent
from ..backends.target import Target
from ..compiler.build import Lowered, Options, lower_graph, make_options
from ..compiler.compile import Inputs, first_graph
from ..compiler.schedule.source import Choice, Decision, Open, Wanted
from ..errors import InputError, ScheduleError
from ..ir.loops import Scheduled
from .extract import tasks_of_lowered
from .log import Hardware, Record, Steps, TuningLog, best_of, decisions
from .schedules import primitive, scheduled, space_of
from .site import option_of, site_tasks
from .task import Task, model_text, task_of

LEAST = 0.97    # of the default's speed, as predicted, that an adapted schedule must have
MARGIN = 1.03  # times faster than the default's record that a schedule must be where nothing was decided by comparing them


class LogSource:
    """A `ScheduleSource` of records. Later records count as newer."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = [r for r in records if not r.of_model]
        self._decided = [(r, decisions(r)) for r in records if r.of_model and r.ok]
        self._of_task: dict[str, list[Record]] = {}
        for r in self.records:
            self._of_task.setdefault(r.task, []).append(r)
        h = hashlib.sha256()
        for r in records:
            h.update(r.line().encode())
        self.key = f"log {h.hexdigest()[:20]}"

    @staticmethod
    def read(path: Path) -> LogSource:
        """Raises InputError where the file cannot be read; lines that are no records are skipped with a warning."""
        try:
            return LogSource(TuningLog(path).records())
        except OSError as e:
            raise InputError(f"the tuning log {path} cannot be read: {e.strerror or e}") from None

    def choose(self, wanted: Sequence[Wanted], target: Target, threads: int) -> list[Choice]:
        tasks = [task_of(w, target, threads) for w in wanted]
        decided = self.decided(tasks, target, threads)
        return [_named(choose(t, self.records_of(t), decided.get(t.hash))[0], w) for t, w in zip(tasks, wanted, strict=True)]

    def decide(self, site: Open, target: Target, threads: int) -> Decision:
        """What was decided last with this site in a model, on this kind of processor; else the fastest way of the records."""
        kind, found = Hardware.of(target).kind, site.hash
        for r, steps in reversed(self._decided):
            if r.target.kind == kind and r.threads == threads and found in steps:
                return _way(site, json.loads(steps[found]), "decided for a model")
        records = self._of_task.get(found, [])
        mine = [r for r in records if r.ok and r.target.kind == kind and r.threads == threads]
        if not any(not r.schedule for r in mine):
            there = "records of other processors or other numbers of threads only" if records else ""
            return Decision(site.default, "rejected" if records else "missing", there)
        best, gain = best_of(mine)
        if gain < MARGIN:
            return _way(site, [], f"none of {len(mine)} records beats it by {MARGIN - 1:.0%}")
        return _way(site, best.schedule, f"{gain:.2f} times as fast")

    def records_of(self, task: Task) -> list[Record]:
        return self._of_task.get(task.hash, [])

    def decided(self, tasks: Sequence[Task], target: Target, threads: int) -> dict[str, tuple[Steps, str]]:
        """task -> (schedule, whence) from the decisions about whole models: about this one, else the last one with that task."""
        kind, text = Hardware.of(target).kind, model_text(tasks)
        out: dict[str, tuple[Steps, str]] = {}
        for mine, whence in ((False, "decided for another model"), (True, "decided for this model")):
            for r, steps in self._decided:
                if r.target.kind == kind and r.threads == threads and (r.workload == text) is mine:
                    out |= {t: (json.loads(s), whence) for t, s in steps.items()}
        return out


def _way(site: Open, steps: Steps, reason: str) -> Decision:
    try:
        option = option_of(steps) if steps else site.default
    except ScheduleError as e:
        return Decision(site.default, "rejected", str(e))
    if option not in site.options:
        return Decision(site.default, "rejected", f"this version cannot compute it by {option!r:.40}")
    return Decision(option, "applied", reason if steps else f"{reason}: the compiler's own way")


def choose(task: Task, records: Sequence[Record], decided: tuple[Steps, str] | None) -> tuple[Choice, Steps]:
    """What the module says, for one task; and the steps where a record was applied, else those of the default, []."""
    kind = Hardware.of(task.target).kind
    good = [r for r in records if r.ok]
    mine = [r for r in good if r.target.kind == kind and r.threads == task.threads]
    if decided is not None:
        steps, whence = decided
        return _apply(task, steps, whence if steps else f"{whence}: the compiler's own schedule was not beaten")
    if mine:
        best, gain = best_of(mine)
        if 0 < gain < MARGIN:
            return _apply(task, [], f"the compiler's own schedule: none of {len(mine)} records beats it by {MARGIN - 1:.0%}")
        return _apply(task, best.schedule, f"{best.ns / 1e3:.3g} µs" + (f", {gain:.2f} times the compiler's own" if gain else ""))
    if near := [r for r in good if r.schedule and Hardware.of(task.target).triple == r.target.triple]:
        return _adapt(task, near)
    if good:
        there = sorted({f"{r.target.cpu} ({r.target.triple.split('-')[0]})" for r in good})
        return Choice(task.default(), "rejected", f"records of {', '.join(there)} only"), []
    if records:
        last = records[-1]
        return Choice(task.default(), "rejected", f"all {len(records)} trials failed; the last: {last.status}: {last.error}"[:200]), []
    return Choice(task.default(), "missing"), []


def _apply(task: Task, steps: Steps, reason: str) -> tuple[Choice, Steps]:
    try:
        return Choice(scheduled(task, steps), "applied", reason), steps
    except ScheduleError as e:
        found = _repaired(task, steps)
        if found is not None:
            return Choice(found, "adapted", f"the record does not fit this version ({e})"[:200]), []
        return Choice(task.default(), "rejected", f"the record does not fit: {e}"[:200]), []


def _adapt(task: Task, records: Sequence[Record]) -> tuple[Choice, Steps]:
    """The best schedule of each other kind of machine, brought here. One that divides the work among fewer threads than the
    default does is no use here."""
    least = min(task.threads, max(1, parallel_extent(task.default())))
    why = "no record could be adapted"
    groups: dict[object, list[Record]] = {}
    for r in records:
        groups.setdefault((r.target.kind, r.threads), []).append(r)
    for found in reversed(groups.values()):  # the newest machine first
        best, _ = best_of(found)
        s = _repaired(task, best.schedule)
        where = f"{best.target.cpu}, {best.threads} threads"
        if s is None:
            why = f"the record of {where} does not fit and cannot be repaired"
        elif max(1, parallel_extent(s)) < least:
            why = f"the record of {where} leaves threads without work"
        elif (gain := _predicted(task, best.schedule)) is not None and gain < LEAST:
            why = f"the record of {where} is expected to be slower here: x{gain:.2f} of the compiler's own"
        else:
            expected = "" if gain is None else f", expected x{gain:.2f}"
            return Choice(s, "adapted", f"from {where}; checked{expected}, not measured here"), []
    return Choice(task.default(), "rejected", why), []


def _predicted(task: Task, steps: Steps) -> float | None:
    """How many times faster than the default's the cost model expects the adapted schedule to be here; None: it cannot say."""
    from .choice import make_search
    space = space_of(task)
    d = None if primitive(steps) else space.repair(steps)
    return None if d is None else make_search(task, 0).predicted(d)


def _repaired(task: Task, steps: Steps) -> Scheduled | None:
    try:
        if primitive(steps):
            return scheduled(task, steps)
        space = space_of(task)
        d = space.repair(steps)
        return None if d is None else space.scheduled(d)
    except ScheduleError:
        return None


def _named(c: Choice, w: Wanted) -> Choice:
    """With the model's name of the program, which symbols show."""
    return replace(c, scheduled=replace(c.scheduled, program=replace(c.scheduled.program, name=w.program.name)))


# -- looking at it -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one task's records. recorded, measured: seconds of the applied schedule then and now; None: not known."""

    task: Task
    status: str
    reason: str
    recorded: float | None = None
    measured: float | None = None

    @property
    def drift(self) -> float | None:
        """By how much it is slower now: 0.1 is ten percent."""
        return self.measured / self.recorded - 1 if self.measured and self.recorded else None


def replay(model: object, log: Path, *, inputs: Inputs | None = None, target: str | Target = "native", threads: int | None = None,
           precision: str = "f32", strict: bool = False, measure: bool = False) -> list[Replayed]:
    """What `compile(model, schedules=log)` makes of each task. threads: default: those of most of the log's records.
    measure: times what is applied once more. Raises InputError where the log cannot be read, and as `compile`."""
    source = LogSource.read(log)
    if threads is None and (used := Counter(r.threads for r in source.records)):
        threads = used.most_common(1)[0][0]  # what a model consists of depends on them, too
    options = make_options(target, threads, precision, source, True, strict)
    low = lower_graph(first_graph(model, inputs), options)
    tasks = tasks_of_lowered(low, options)
    decided = source.decided(tasks, options.target, options.threads)
    found = [(t, *choose(t, source.records_of(t), decided.get(t.hash))) for t in tasks]
    times = _measured([(t, steps) for t, c, steps in found if c.status == "applied"]) if measure else {}
    return [*_replayed_sites(low, options),
            *(Replayed(t, c.status, c.reason, _recorded(source, t, steps) if c.status == "applied" else None, times.get(t.hash))
              for t, c, steps in found)]


def _replayed_sites(low: Lowered, options: Options) -> list[Replayed]:
    """What became of the sites that the log knows; one it knows nothing of was not worth a trial."""
    decided = {s.hash: d for s, d in low.sites}
    return [Replayed(t, d.status, f"{d.option}: {d.reason}") for t in site_tasks(low, options)
            if (d := decided[t.hash]).status != "missing"]


def _recorded(source: LogSource, task: Task, steps: Steps) -> float | None:
    kind, key = Hardware.of(task.target).kind, json.dumps(steps, sort_keys=True)
    return min((r.ns * 1e-9 for r in source.records_of(task) if r.ok and r.key[1] == key and r.target.kind == kind
                and r.threads == task.threads), default=None)


def _measured(wanted: Sequence[tuple[Task, Steps]]) -> dict[str, float]:
    """task -> seconds now, checked against the reference as any candidate."""
    from .measure import Measurer
    if not wanted:
        return {}
    with Measurer(wanted[0][0].target, wanted[0][0].threads) as m:
        futures = {t.hash: m.submit(t, steps) for t, steps in wanted}
        results = {t: f.result() for t, f in futures.items()}
    return {t: min(r.samples_ns) * 1e-9 for t, r in results.items() if r.ok}


class Fixed:
    """A `ScheduleSource` of given decisions: task -> steps; the default where there are none."""

    def __init__(self, steps: Mapping[str, Steps]) -> None:
        self._steps = dict(steps)
        self.key = "fixed " + hashlib.sha256(json.dumps(self._steps, sort_keys=True).encode()).hexdigest()[:20]

    def choose(self, wanted: Sequence[Wanted], target: Target, threads: int) -> list[Choice]:
        tasks = [task_of(w, target, threads) for w in wanted]
        return [_named(choose(t, (), (self._steps.get(t.hash, []), "tuned"))[0], w) for t, w in zip(tasks, wanted, strict=True)]

    def decide(self, site: Open, target: Target, threads: int) -> Decision:
        steps = self._steps.get(site.hash, []) if self._steps else []
        return _way(site, steps, "tuned")

"""`tune`: tasks, search, measurement, decision.

    extract tasks -> measure each default -> [scheduler picks a task -> its search proposes -> workers measure -> log] …
    -> finalists measured again, beside the default -> whole model, tuned beside untuned -> the faster is recorded and kept

Everything that was learned is in the log at once: a tuner that is killed loses the trials under way and nothing else, and
one that starts again goes on.
"""
from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from ..backends.executable import Executable
from ..backends.target import runs_here
from ..compiler.build import Options, lower_graph, make_options
from ..compiler.compile import Inputs, first_graph
from ..compiler.threads import seconds as rough_seconds
from ..errors import InputError, TargetError
from .extract import tasks_of, tasks_of_lowered
from .log import Hardware, Record, Steps, TuningLog, record
from .measure import Limits, Measurer, Result
from .replay import Fixed
from .roofline import Ceiling, measure
from .schedules import space_of
from .site import NAME as SITE
from .site import SiteTask, option_of, site_tasks
from .space import Decisions
from .task import Task

if TYPE_CHECKING:
    from ..backends.target import Target

AnyTask = TypeVar("AnyTask", bound=Task)
TRIALS_A_TASK = 32    # where the caller says neither trials nor seconds
AT_ONCE = 8           # candidates that a search proposes together
LITTLE = 0.002        # of the model's time: stop when no more than this is expected to be gained
SITES_SHARE = 0.34    # of the budget, for the ways to compute parts of the graph
IN_MODEL_SHARE = 0.1  # of the budget, for trying these ways in the whole model
LEAST_SITE = 0.01     # of the rough time of all sites: smaller ones keep the heuristic's way
WAY_GAIN = 1.03       # times faster than the heuristic's way, alone; in the model it is decided again
_POLL = 0.2           # seconds between looks at the clock


class Search(Protocol):
    """What proposes candidates for one task."""

    def known(self, schedules: Sequence[Steps]) -> None: ...
    def next(self, n: int) -> list[Decisions]: ...
    def report(self, d: Decisions, result: Result) -> None: ...
    def predicted(self, d: Decisions) -> float | None: ...


class Scheduler(Protocol):
    """What shares out the trials among tasks."""

    def pick(self) -> Task | None: ...
    def report(self, task: Task, best_seconds: float) -> None: ...
    def exhausted(self, task: Task) -> None: ...
    def expected_gain(self) -> float: ...


class Pool(Protocol):
    """What measures: `Measurer`, or `remote.Remote` over other machines. `width`: candidates to keep in flight."""

    @property
    def width(self) -> int: ...
    def submit(self, task: Task, steps: Steps) -> Future[Result]: ...


@dataclass(frozen=True, slots=True)
class Point:
    """One trial of a task, in order: what was predicted (relative speed, None: nothing) and what came."""

    steps: Steps
    status: str
    speedup: float
    predicted: float | None = None
    seconds: float = 0.0  # since the search began


@dataclass
class TaskState:
    """What is known of a task so far. best: default's time over that of the best schedule. default: seconds, in its own trial; least:
    the least ever seen, which is what the machine does when nothing else runs."""

    task: Task
    search: Search
    points: list[Point] = field(default_factory=list)
    default: float = float("nan")
    least: float = float("inf")
    best: float = 1.0
    steps: Steps = field(default_factory=list)
    good: list[tuple[float, Steps]] = field(default_factory=list)  # (speedup, steps) of all trials that went well
    before: int = 0     # trials that the log had already
    waiting: int = 0
    done: bool = False

    @property
    def known(self) -> bool:
        """Whether the default was measured."""
        return not math.isnan(self.default)

    @property
    def failures(self) -> Counter[str]:
        return Counter(p.status for p in self.points if p.status != "ok")

    @property
    def seconds(self) -> float:
        """Of the best schedule."""
        return self.default / self.best

    @property
    def share(self) -> float:
        """Seconds that all its uses take in a call of the untuned model."""
        return self.default * self.task.uses


class Watcher(Protocol):
    """Is told what goes on. `tick` comes several times a second."""

    def start(self, session: Session) -> None: ...
    def tick(self, session: Session) -> None: ...
    def say(self, text: str) -> None: ...
    def stop(self, session: Session) -> None: ...


class Session:
    """The search for schedules of some tasks, against a budget of trials and seconds."""

    def __init__(self, tasks: Sequence[Task], log: TuningLog, pool: Pool, watch: Watcher, trials: int, seconds: float | None,
                 seed: int = 0) -> None:
        from .choice import make_scheduler, make_search
        self.log, self.pool, self.watch, self.trials, self.seconds, self.seed = log, pool, watch, trials, seconds, seed
        self.states = {t.hash: TaskState(t, make_search(t, seed)) for t in tasks}
        self.scheduler: Scheduler = make_scheduler(tasks)
        self.began = time.monotonic()
        self.stopped = ""
        self._flight: dict[Future[Result], tuple[TaskState, Decisions | None, Steps]] = {}
        self._mine: set[tuple[str, str]] = set()  # keys of trials that this session began: others' are news
        self._learn(self.log.news())

    @property
    def used(self) -> int:
        """Trials so far, those under way and those of the log included."""
        return sum(s.before + len(s.points) + s.waiting for s in self.states.values())

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def default_seconds(self) -> float:
        """Of all kernels of one call, untuned, one after the other."""
        return sum(s.share for s in self.states.values() if s.known)

    @property
    def tuned_seconds(self) -> float:
        return sum(s.seconds * s.task.uses for s in self.states.values() if s.known)

    # -- what the log knows ------------------------------------------------------------------------------------------
    def _learn(self, records: Sequence[Record]) -> None:
        """Takes in records that others measured, or this tuner before it was stopped."""
        mine = [r for r in records if r.task in self.states and not r.of_model and r.key not in self._mine]
        for r in sorted(mine, key=lambda r: bool(r.schedule)):  # defaults first: they are what times are relative to
            s = self.states[r.task]
            if r.target.kind != Hardware.of(s.task.target).kind or r.threads != s.task.threads:
                continue
            self._mine.add(r.key)
            s.before += 1
            if not r.schedule and r.ok:
                s.default = r.ns * 1e-9
            s.search.known([r.schedule])
            self._take(s, r.schedule, _result_of(r, s.default), None)

    def _take(self, s: TaskState, steps: Steps, result: Result, d: Decisions | None) -> None:
        """Tells search and scheduler of a result."""
        if result.ok and result.nominal_ns:
            s.least = min(s.least, result.nominal_ns * 1e-9)
        if steps:
            if d is None:
                d = _decisions(s.task, steps)
            if d is not None:
                s.search.report(d, result)
        elif result.ok:
            s.default = result.seconds
        if result.ok and steps:
            s.good.append((result.speedup, steps))
            if result.speedup > s.best:
                s.best, s.steps = result.speedup, steps
        if s.known:
            self.scheduler.report(s.task, s.seconds)

    # -- the loop ----------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Until the budget is used, nothing is left to try, or little more is expected. KeyboardInterrupt ends it early."""
        if not self.states:
            self.stopped = "everything was tried"
            return
        self.watch.start(self)
        try:
            self._loop()
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        finally:
            for f in self._flight:
                f.cancel()
            self.watch.stop(self)

    def _loop(self) -> None:
        for s in self.states.values():
            if not s.known:
                self._submit(s, [], None)
        while self._flight or not self.stopped:
            self.stopped = self.stopped or self._reason()
            if not self.stopped:
                self._fill()
            elif self.stopped in ("time",):
                for f in self._flight:
                    f.cancel()
            if not self._flight:
                self.stopped = self.stopped or "everything was tried"
                return
            self._collect()
            self.watch.tick(self)

    def _reason(self) -> str:
        """Why to stop now; "" where there is no reason."""
        if self.seconds is not None and self.elapsed >= self.seconds:
            return "time"
        if self.used >= self.trials:
            return "trials"
        if all(s.done for s in self.states.values()):
            return "everything was tried"
        known = self.default_seconds
        if not self._flight and known and self.scheduler.expected_gain() < LITTLE * known:
            return f"less than {LITTLE:.1%} of the time is expected to be gained"
        return ""

    def _fill(self) -> None:
        while len(self._flight) < self.pool.width and self.used < self.trials:
            task = self.scheduler.pick() if any(s.known for s in self.states.values()) else None
            if task is None:
                return
            s = self.states[task.hash]
            n = min(AT_ONCE, self.trials - self.used)
            found = s.search.next(n)
            if not found:
                s.done = True
                self.scheduler.exhausted(task)
            for d in found:
                self._submit(s, _steps(s.task, d), d)

    def _submit(self, s: TaskState, steps: Steps, d: Decisions | None) -> None:
        s.waiting += 1
        self._mine.add((s.task.hash, json.dumps(steps, sort_keys=True)))
        self._flight[self.pool.submit(s.task, steps)] = s, d, steps

    def _collect(self) -> None:
        """Waits for results a moment, and takes in those that came: first the log, then the models."""
        done, _ = wait(self._flight, _POLL, FIRST_COMPLETED)
        found = []
        for f in done:
            s, d, steps = self._flight.pop(f)
            s.waiting -= 1
            if not f.cancelled():
                found.append((s, d, steps, f.result()))
        self.log.append(record(s.task.hash, s.task.workload, r.target or s.task.target, s.task.threads, steps, r.status, r.samples_ns,
                               r.error, self.seed, r.base_ns) for s, _, steps, r in found)
        for s, d, steps, r in found:
            s.points.append(Point(steps, r.status, r.speedup, s.search.predicted(d) if d else None, self.elapsed))
            if r.target is None or Hardware.of(r.target).kind == Hardware.of(s.task.target).kind:
                self._take(s, steps, r, d)
        self._learn(self.log.news())


def _result_of(r: Record, default: float) -> Result:
    """A record as a result: relative to the default's record where it has no samples taken beside it."""
    if not r.ok or math.isnan(default):
        return Result(r.status if not r.ok else "ok", (), r.error)
    ns = max(1, int(default * 1e9))
    return Result("ok", r.samples_ns, None, r.base_ns or (ns,), ns)


def _steps(task: Task, d: Decisions) -> Steps:
    return task.steps(str(d.values[0])) if isinstance(task, SiteTask) else cast(Steps, space_of(task).to_json(d))


def _decisions(task: Task, steps: Steps) -> Decisions | None:
    from ..errors import ScheduleError
    try:
        return Decisions(SITE, (option_of(steps),)) if isinstance(task, SiteTask) else space_of(task).from_json(steps)
    except ScheduleError:
        return None


# -- the whole -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tuned:
    """The outcome. executable: the model with the schedules that were decided on. gain: untuned over tuned time of a call, the
    median of pairs of bursts; 1 where the untuned was kept. untuned, tuned: least seconds of a call, nan where not timed. ceiling: what
    this machine can do, None where the schedules were measured elsewhere."""

    name: str
    executable: Executable
    states: Sequence[TaskState]
    chosen: Mapping[str, Steps]
    log: Path
    untuned: float
    tuned: float
    why: str
    stopped: str
    seconds: float
    gain: float = 1.0
    ceiling: Ceiling | None = None

    def __str__(self) -> str:
        from .report import text
        return text(self)

    def to_html(self, path: str | Path) -> None:
        """Writes a self-contained page: tuning curves, where the time went, predicted and measured, before and after."""
        from .report import page
        Path(path).write_text(page(self), encoding="utf-8")


def tune_model(model: object, *, inputs: Inputs | None, target: str | Target, threads: int | None, precision: str, strict: bool,
               trials: int | None, seconds: float | None, log: Path, pool: Executor | object | None, seed: int, cold: bool,
               watch: Watcher | None, only: Sequence[str], options: Mapping[str, float]) -> Tuned:
    """`tilewright.tune`, which see."""
    from .final import Subject, decide, faster_ways
    from .view import default_view
    chosen = make_options(target, threads, precision, None, True, strict)
    if not runs_here(chosen.target) and pool is None:
        raise TargetError(f"schedules for {chosen.target} are measured where it runs: here with target=\"native\", or with pool=")
    if (trials is not None and trials < 1) or (seconds is not None and seconds <= 0):
        raise InputError(f"tuning needs a budget: trials={trials!r}, seconds={seconds!r}")
    if not log.parent.is_dir():
        raise InputError(f"the folder of the log {log} does not exist")
    began = time.monotonic()
    graph = first_graph(model, inputs)
    low = lower_graph(graph, chosen)
    sites, tasks = _wanted(site_tasks(low, chosen), only), tasks_of_lowered(low, chosen)
    searched = _wanted(tasks, only)
    if not searched and not sites:
        known = ", ".join(dict.fromkeys(t.label for t in (*tasks, *site_tasks(low, chosen)))) or "none"
        raise InputError(f"no task is called {', '.join(only)}; the model's are {known}")
    limit = trials if trials is not None else 10**9 if seconds is not None else TRIALS_A_TASK * (len(searched) + len(sites))
    view, subject = watch or default_view(), Subject(model, inputs, chosen, sites)
    with ExitStack() as stack:
        measurer = _pool(pool, chosen, seed, cold, _limits(options), stack)
        ways, states, used = _ways(sites, TuningLog(log), measurer, view, limit, seconds, seed)
        if ways and runs_here(chosen.target):
            ways = faster_ways(subject, ways, view, None if seconds is None else IN_MODEL_SHARE * seconds)
        if ways:
            searched = _wanted(tasks_of(graph, replace(chosen, schedules=Fixed(ways))), only)
        left = None if seconds is None else max(1.0, seconds - (time.monotonic() - began))
        session = Session(searched, TuningLog(log), measurer, view, limit - used, left, seed)  # which reads the whole log for itself
        session.run()
        outcome = decide(subject, session, view, ways)
    ceiling = measure(chosen.target, chosen.threads) if pool is None else None
    return Tuned(graph.name, outcome.executable, [*states, *session.states.values()], outcome.chosen, log, outcome.untuned, outcome.tuned,
                 outcome.why, session.stopped, time.monotonic() - began, outcome.gain, ceiling)


def _wanted(tasks: Sequence[AnyTask], only: Sequence[str]) -> list[AnyTask]:
    return [t for t in tasks if not only or any(x in t.label for x in only)]


def _ways(sites: Sequence[SiteTask], log: TuningLog, pool: Pool, view: Watcher, trials: int, seconds: float | None,
          seed: int) -> tuple[dict[str, Steps], list[TaskState], int]:
    """First of all, how parts of the graph are computed, because the kernels follow from it: (what was faster than the heuristic's
    ways by more than noise, those that save most first; what is known of each site; trials used). Takes a part of the budget at
    most; sites that take long first."""
    if not sites:
        return {}, [], 0
    cost = {t.hash: t.uses * rough_seconds(t.work, t.target, True) for t in sites}
    least = LEAST_SITE * sum(cost.values())
    worth = [t for t in sorted(sites, key=lambda t: -cost[t.hash]) if cost[t.hash] >= least]
    most = max(len(worth), int(SITES_SHARE * trials))
    session = Session(worth, log, pool, view, min(most, trials), None if seconds is None else SITES_SHARE * seconds, seed)
    session.run()
    faster = sorted((s for s in session.states.values() if s.steps and s.best > WAY_GAIN), key=lambda s: s.seconds * s.task.uses - s.share)
    found = {s.task.hash: s.steps for s in faster}
    return found, list(session.states.values()), session.used


def _limits(options: Mapping[str, float]) -> Limits:
    try:
        return Limits(**cast("dict[str, int]", dict(options)))
    except TypeError:
        known = ", ".join(Limits.__dataclass_fields__)
        raise InputError(f"unknown limits {', '.join(options)}; known are {known}") from None


def _pool(pool: object, chosen: Options, seed: int, cold: bool, limits: Limits, stack: ExitStack) -> Pool:
    if pool is None:
        return stack.enter_context(Measurer(chosen.target, chosen.threads, seed=seed, cold=cold, limits=limits))
    from .remote import Remote
    remote = stack.enter_context(Remote(pool, seed=seed, cold=cold, limits=limits))
    remote.check(chosen.target)
    return remote

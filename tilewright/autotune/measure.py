"""Measuring: candidates in, times out. Building and running are done by processes that may die.

    with Measurer(target, threads=1) as m:
        f = m.submit(task, steps)          # a Future; f.result() -> Result

    builder processes (one a core)  ->  runner process (pinned to the last cores)  ->  Result

A builder on the runner's cores waits while it measures. Whatever a candidate does to its process, the next one is served by
a new process, and the trial's result says what happened.
"""
from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol, cast

from ..backends.target import Target
from ..errors import ScheduleError
from .built import Built
from .log import Steps
from .process import Died, Process
from .samples import disturbed, speedup
from .site import SiteTask, option_of
from .task import Task
from .wire import Header

BATCH = 8           # candidates that the runner measures in a row, while the builders on its cores wait
KEPT = 256          # candidates whose code is kept, some 50 kB each
AGAIN = 2           # times that a candidate is measured again which looks best beside a default that was disturbed
GATHER_SECONDS = 0.1  # that it waits for a batch to fill while builders are at work


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a trial. samples_ns: of the candidate, in the order taken; base_ns: of the default schedule, taken by
    turns with them. nominal_ns: the default's least time so far. target: where, if elsewhere."""

    status: str
    samples_ns: tuple[int, ...] = ()
    error: str | None = None
    base_ns: tuple[int, ...] = ()
    nominal_ns: int = 0
    target: Target | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def speedup(self) -> float:
        """The default's time over the candidate's, as `samples.speedup` says; 0 where the trial failed."""
        return speedup(self.samples_ns, self.base_ns, self.nominal_ns)

    @property
    def disturbed(self) -> bool:
        """Whether something else ran beside the default."""
        return bool(self.base_ns) and disturbed(self.base_ns, self.nominal_ns)

    @property
    def seconds(self) -> float:
        """Of one run on a machine as quiet as it ever was for the default; infinite where the trial failed."""
        return self.nominal_ns * 1e-9 / self.speedup if self.speedup else float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one candidate, in seconds and MiB. build: until its code is there; run: one measurement, all samples (its budget is
    much less, this is where it counts as a hang); setup: a task's inputs and reference; memory: of the running process."""

    build: float = 30.0
    run: float = 10.0
    setup: float = 300.0
    budget: float = 0.15
    memory: int = 4096


class Builder(Protocol):
    """Makes candidates' code. `build` may be called by one thread; raises Died, or returns why it is not possible."""

    def build(self, task: Task, steps: Steps, seconds: float) -> Built | str: ...
    def close(self) -> None: ...


class ProcessBuilder:
    """The usual one: `builder.py` in a process, where LLVM may crash."""

    def __init__(self) -> None:
        self._process = Process("tilewright.autotune.builder")

    def build(self, task: Task, steps: Steps, seconds: float) -> Built | str:
        request = {"workload": task.workload, "target": json.dumps(task.target.to_json()), "threads": task.threads, "steps": steps,
                   "final": task.final}
        r, blobs = self._process.ask(request, (), seconds)
        return cast(str, r["error"]) if "error" in r else Built.of(r, blobs)

    def close(self) -> None:
        self._process.close()


class Turns:
    """Who may use the runner's cores: the runner, or the builders that share them with it. The runner goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._building, self._measuring = 0, False

    @contextmanager
    def build(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._measuring)
            self._building += 1
        try:
            yield
        finally:
            with self._changed:
                self._building -= 1
                self._changed.notify_all()

    @contextmanager
    def measure(self) -> Iterator[None]:
        with self._changed:
            self._measuring = True
            self._changed.wait_for(lambda: self._building == 0)
        try:
            yield
        finally:
            with self._changed:
                self._measuring = False
                self._changed.notify_all()


@dataclass(eq=False)
class _Trial:
    """steps None: the default's code alone is wanted, for `base`."""

    task: Task
    steps: Steps | None
    base: Future[Built | Result]
    future: Future[Result] = field(default_factory=Future)
    built: Built | None = None


class Measurer:
    """A pool of builders and one runner. Its futures' results are `Result`s; they raise nothing but cancellation.

    cores: to use (default: those this process may use); the last `threads` of them are measured on. builder: makes the
    builders, one for each core."""

    def __init__(self, target: Target, threads: int = 1, *, seed: int = 0, cold: bool = False, limits: Limits | None = None,
                 cores: Sequence[int] | None = None, builder: Callable[[], Builder] = ProcessBuilder) -> None:
        self.target, self.threads, self.limits = target, threads, limits or Limits()
        self._seed, self._builder = seed, builder
        mine = sorted(os.sched_getaffinity(0) if cores is None else cores)
        args = ["--memory", str(self.limits.memory), *(["--cold"] if cold else [])]
        self._runner = Process("tilewright.autotune.runner", args, mine[-threads:])
        self._site_runner = Process("tilewright.autotune.site_runner", args[:2], mine[-threads:])
        self._todo: queue.SimpleQueue[_Trial | None] = queue.SimpleQueue()
        self._built: queue.SimpleQueue[_Trial | None] = queue.SimpleQueue()
        self._bases: dict[str, Future[Built | Result]] = {}
        self._best: dict[str, float] = {}
        self._nominal: dict[str, int] = {}
        self._kept: OrderedDict[tuple[str, str], Built] = OrderedDict()
        self._known: set[str] = set()  # tasks that the running process has
        self._turns, self._building = Turns(), 0
        self._lock = threading.Lock()
        shared = [k >= len(mine) - threads for k in range(len(mine))]
        self._threads = [threading.Thread(target=self._build_loop, args=(s,), daemon=True) for s in shared]
        self._measuring = threading.Thread(target=self._run_loop, daemon=True)
        for t in (*self._threads, self._measuring):
            t.start()

    @property
    def width(self) -> int:
        """How many candidates should be in flight, so that nobody waits."""
        return BATCH + 3 * len(self._threads)

    # -- concurrent.futures ------------------------------------------------------------------------------------------
    def submit(self, task: Task, steps: Steps) -> Future[Result]:
        """Builds and measures one candidate; [] is the default schedule."""
        with self._lock:
            known = self._bases.get(task.code_key)
            base = self._bases[task.code_key] = known or Future()
        if known is None:
            self._add(_Trial(task, None, base))
        trial = _Trial(task, steps, base)
        self._add(trial)
        return trial.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes, after what was submitted is done; with `cancel_futures`, without what is still waiting."""
        while cancel_futures and not self._todo.empty():
            if (t := self._todo.get()) is not None:
                t.future.cancel()
        for _ in self._threads:
            self._todo.put(None)
        ending = threading.Thread(target=self._finish, daemon=True)
        ending.start()
        if wait:
            ending.join()

    def _finish(self) -> None:
        for t in self._threads:
            t.join()
        self._built.put(None)
        self._measuring.join()

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown(cancel_futures=kind is not None)

    # -- building ----------------------------------------------------------------------------------------------------
    def _add(self, t: _Trial) -> None:
        with self._lock:
            self._building += 1
        self._todo.put(t)

    def _build_loop(self, shared: bool) -> None:
        builder = self._builder()
        try:
            while (t := self._todo.get()) is not None:
                with self._turns.build() if shared and t.steps != [] else nullcontext():
                    try:
                        self._build(builder, t)
                    except BaseException as e:  # noqa: BLE001  (whoever waits for it gets it, as from any executor)
                        if t.steps is None:
                            t.base.set_exception(e)
                        elif t.future.set_running_or_notify_cancel():
                            t.future.set_exception(e)
                with self._lock:
                    self._building -= 1
        finally:
            builder.close()

    def _build(self, builder: Builder, t: _Trial) -> None:
        if t.steps is None:
            t.base.set_result(self._code(builder, t.task, []))
            return
        if t.future.cancelled():
            t.future.set_running_or_notify_cancel()  # whoever waits for it is told
            return
        made = self._code(builder, t.task, t.steps) if t.steps else None  # None: the base's code
        if isinstance(made, Result):
            if t.future.set_running_or_notify_cancel():
                t.future.set_result(made)
        else:
            t.built = made
            self._built.put(t)

    def _code(self, builder: Builder, task: Task, steps: Steps) -> Built | Result:
        if isinstance(task, SiteTask):
            return Built((), 0, ())  # they are compiled where they run
        key = task.code_key, json.dumps(steps, sort_keys=True)
        with self._lock:
            if key in self._kept:  # finalists come again
                return self._kept[key]
        try:
            made = builder.build(task, steps, self.limits.build)
        except Died as e:
            return Result("timeout" if e.slow else "compile_error", error=f"compiling: {e.reason}")
        if not isinstance(made, Built):
            return Result("compile_error", error=made)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    # -- measuring ---------------------------------------------------------------------------------------------------
    def _run_loop(self) -> None:
        try:
            while (first := self._built.get()) is not None:
                batch, more = self._gather(first)
                wait([t.base for t in batch])
                with self._turns.measure():
                    for t in batch:
                        if not t.future.set_running_or_notify_cancel():  # a site's way may have waited for long
                            continue
                        try:
                            t.future.set_result(self._measure(t))
                        except BaseException as e:  # noqa: BLE001  (the same)
                            t.future.set_exception(e)
                if not more:
                    return
        finally:
            self._runner.close()
            self._site_runner.close()

    def _gather(self, first: _Trial) -> tuple[list[_Trial], bool]:
        """A batch of what is built or is about to be, and whether more will come after it."""
        batch, stop = [first], time.monotonic() + GATHER_SECONDS
        while len(batch) < BATCH:
            try:
                t = self._built.get(timeout=max(0.0, stop - time.monotonic()) if self._building else 0.0)
            except queue.Empty:
                break
            if t is None:
                return batch, False
            batch.append(t)
        return batch, True

    def _measure(self, t: _Trial) -> Result:
        if isinstance(t.task, SiteTask):
            return self._measure_site(t.task, t.steps or [])
        base = t.base.result()
        if isinstance(base, Result):
            return replace(base, error=f"the default schedule: {base.error}")
        built, key = t.built or base, t.task.code_key
        try:
            found = self._run(t.task, base, built)
            for _ in range(AGAIN):
                if not found.disturbed or found.speedup <= self._best.get(key, 1.0):
                    break
                found = self._run(t.task, base, built)
        except Died as e:
            self._known.clear()
            return Result("timeout" if e.slow else "crash", error=e.reason)
        self._best[key] = max(self._best.get(key, 1.0), found.speedup)
        return found

    def _run(self, task: Task, base: Built, built: Built) -> Result:
        """One measurement of a candidate. Raises Died."""
        if self._runner.fresh:
            self._known.clear()
        key = task.code_key
        for _ in range(2):
            if key not in self._known and (problem := self._introduce(task, base)):
                return Result("wrong_result", error=problem)
            request = built.header() | {"op": "trial", "task": key, "best": self._best.get(key, 1.0), "least": self._nominal[key],
                                        "budget": self.limits.budget}
            r, _ = self._runner.ask(request, built.objects, self.limits.run)
            if "unknown" not in r:
                return self._result(key, r)
            self._known.discard(key)
        raise AssertionError("the runner forgets what it was told at once")

    def _measure_site(self, task: SiteTask, steps: Steps) -> Result:
        try:
            option = option_of(steps) if steps else ""
            request: Header = {"workload": task.workload, "target": json.dumps(task.target.to_json()), "threads": task.threads,
                               "seed": self._seed, "option": option, "budget": 2 * self.limits.budget}
            r, _ = self._site_runner.ask(request, (), self.limits.run + 2 * self.limits.build)
        except ScheduleError as e:
            return Result("compile_error", error=str(e))
        except Died as e:
            return Result("timeout" if e.slow else "crash", error=e.reason)
        if "error" in r:
            return Result("compile_error", error=cast(str, r["error"]))
        return self._result(task.hash, r)

    def _introduce(self, task: Task, base: Built) -> str | None:
        """Tells the runner of a task; what is wrong with the task's default, if anything."""
        request = base.header() | {"op": "task", "task": task.code_key, "workload": task.workload, "threads": task.threads,
                                   "seed": self._seed, "target": json.dumps(task.target.to_json())}
        r, _ = self._runner.ask(request, base.objects, self.limits.setup)
        if r["error"] is not None:
            return cast(str, r["error"])
        self._known.add(task.code_key)
        self._nominal[task.code_key] = min(self._nominal.get(task.code_key, cast(int, r["base_ns"])), cast(int, r["base_ns"]))
        return None

    def _result(self, key: str, r: Header) -> Result:
        if "wrong" in r:
            return Result("wrong_result", error=cast(str, r["wrong"]))
        samples, beside = tuple(cast("list[int]", r["samples_ns"])), tuple(cast("list[int]", r["base_ns"]))
        self._nominal[key] = min(self._nominal.get(key, beside[0]), *beside)
        return Result("ok", samples, None, beside, self._nominal[key])

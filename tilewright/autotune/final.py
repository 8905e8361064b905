"""The decision at the end: what was fast alone must be fast in the model.

    1. finalists: the best few of each task are measured again, built as a model builds them, each by turns with the default
    2. in place:  builds with the finalists run as whole models, step by step beside one without them; each task keeps what was
                  fastest there, with the caches as they are in a real call
    3. whole:     the model so composed, also with its parts computed in other ways, beside the untuned one, burst by burst;
                  the fastest is recorded and kept
"""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import numpy as np

from ..backends.executable import Executable
from ..backends.target import runs_here
from ..compiler.build import Lowered, Options, lower_graph
from ..compiler.compile import Inputs, compile, first_graph
from ..compiler.schedule.source import workload_hash
from ..errors import InputError
from ..ir.types import TensorSpec
from .extract import tasks_of_lowered
from .in_model import burst, compare, faster_in_place, nanoseconds, owners, step_times
from .log import Hardware, Steps, record
from .measure import Result
from .replay import MARGIN, Fixed, LogSource
from .site import random_array
from .task import Task, model_text

if TYPE_CHECKING:
    from .tuner import Session, TaskState, Watcher

FINALISTS = 3        # of each task
ROUNDS = 3           # of measuring them
VARIANTS = 3         # builds of the whole model that finalists are tried in
NEGLIGIBLE = 5e-4    # share of the time of a call: tasks below keep their default
LEAST_GAIN = 1.01    # alone: with less, a schedule is no finalist
IN_CALLS, IN_CALLS_SECONDS = 12, 1.5  # tasks that are tried in whole calls; seconds of each
WAYS_SECONDS = 20.0  # for ways to compute sites that are tried in whole calls, where the caller says nothing
WHOLE_SECONDS = 5.0
WHOLE_GAIN = 1.004   # of a call: less is not told from noise, and the untuned is kept
QUIET_GAIN = 0.985   # of the calls that were disturbed least: fewer of them are seen, so noise is larger
WRONG = 1e-3         # of the largest output: see `bench.compare.TOLERANCE`
Chosen = dict[str, Steps]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`chosen`: task -> steps; the default where there are none. Seconds of a call; nan where they were not measured. gain:
    untuned over tuned time, the median over pairs of bursts."""

    executable: Executable
    chosen: Chosen
    untuned: float
    tuned: float
    why: str
    gain: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The model that is tuned. sites: its parts that can be computed in several ways."""

    model: object
    inputs: Inputs | None
    options: Options
    sites: Sequence[Task] = ()

    def build(self, chosen: Mapping[str, Steps]) -> Executable:
        o = self.options
        return compile(self.model, inputs=self.inputs, target=o.target, threads=o.threads, precision=o.precision, strict=o.strict,
                       schedules=Fixed(chosen) if chosen else None)

    def lowered(self, chosen: Mapping[str, Steps]) -> Lowered:
        return lower_graph(first_graph(self.model, self.inputs), replace(self.options, schedules=Fixed(chosen)))

    def tasks(self, chosen: Mapping[str, Steps]) -> list[Task]:
        """Which tasks there are depends on the ways that the sites are computed in."""
        return tasks_of_lowered(self.lowered(chosen), self.options)


def decide(m: Subject, session: Session, view: Watcher, ways: Mapping[str, Steps] = MappingProxyType({})) -> Outcome:
    """Chooses among the session's schedules, records the decision in its log, and returns the model compiled by it. ways: how
    sites are to be computed, which the session's tasks follow from."""
    view.say("measuring the finalists again")
    found = finalists(session)
    if not runs_here(m.options.target):
        chosen = dict(ways) | {t: best[0][1] for t, best in found.items() if best[0][0] > MARGIN}
        return Outcome(m.build(chosen), chosen, float("nan"), float("nan"), "measured elsewhere, kernel by kernel")
    default = m.build({})
    data = _data(default, m.inputs)
    variants = [{t: best[min(k, len(best) - 1)][1] for t, best in found.items()} for k in range(VARIANTS)]
    variants.append({t: s for t, s in _earlier(session, m.tasks(ways), m.options).items() if s})
    variants = [v for k, v in enumerate(variants) if v and v not in variants[:k]]
    if not variants and not ways:
        return _keep_default(m, default, session, data, "no schedule was faster than the compiler's own")
    view.say("trying the finalists in the whole model")
    kernels = _in_place(m, ways, variants, data) if variants else {}
    if not kernels and not ways:
        return _keep_default(m, default, session, data, "in the whole model no schedule was faster than the compiler's own")
    view.say("the tuned model beside the untuned")
    return _best_whole(m, default, [dict(ways) | kernels, kernels, dict(ways)], data, session)


def _best_whole(m: Subject, default: Executable, candidates: Sequence[Chosen], data: Sequence[np.ndarray], session: Session) -> Outcome:
    """Whole models beside the untuned one: the fastest, or the untuned where none is faster."""
    why = ""
    best: tuple[Outcome, Sequence[int]] | None = None
    for k, chosen in enumerate(candidates):
        if not chosen or chosen in candidates[:k]:
            continue
        tuned = m.build(chosen)
        if (error := _error(tuned, default, data)) > WRONG:
            why = why or f"the tuned model's outputs differ by {error:.1e}"
            continue
        found = compare(default, tuned, data, WHOLE_SECONDS)
        why = why or f"tuned schedules gave x{found.gain:.3f} end to end, x{found.quiet:.3f} in quiet moments: not more than noise"
        if found.gain >= WHOLE_GAIN and found.quiet >= QUIET_GAIN and (best is None or found.gain > best[0].gain):
            outcome = Outcome(tuned, chosen, found.first, found.second, f"tuned is x{found.gain:.3f} faster end to end", found.gain)
            best = outcome, found.samples
    if best is None:
        return _keep_default(m, default, session, data, why)
    _record(m, session, best[0].chosen, best[1])
    return best[0]


def faster_ways(m: Subject, ways: Mapping[str, Steps], view: Watcher, seconds: float | None) -> Chosen:
    """Without the ways to compute sites that make calls of the whole model slower, each tried for itself, as given: what a copy between
    layouts or an image beyond the caches costs shows there only. Those for which no time is left stay: the whole is judged at the end."""
    view.say(f"trying {len(ways)} other ways to compute sites in the whole model")
    base, out, stop = m.build({}), dict(ways), time.monotonic() + (WAYS_SECONDS if seconds is None else seconds)
    data = _data(base, m.inputs)
    for task in ways:
        if time.monotonic() > stop:
            break
        if compare(base, m.build({task: ways[task]}), data, IN_CALLS_SECONDS).gain < 1.0:
            del out[task]
    return out


def finalists(session: Session) -> dict[str, list[tuple[float, Steps]]]:
    """Task -> (speedup over the default, steps) of its best schedules by a second measurement, fastest first; the tasks in the order
    of what they save."""
    total = session.default_seconds or 1.0
    asked: list[tuple[TaskState, Steps, list[Future[Result]]]] = []
    for s in session.states.values():
        if s.share < NEGLIGIBLE * total:
            continue
        best = sorted((g for g in s.good if g[0] > LEAST_GAIN), key=lambda g: -g[0])[:FINALISTS]
        asked += [(s, steps, []) for _, steps in best]
    for _ in range(ROUNDS):
        for s, steps, futures in asked:
            futures.append(session.pool.submit(replace(s.task, final=True), steps))
    out: dict[str, list[tuple[float, Steps]]] = {}
    for s, steps, futures in asked:
        speedup = float(np.median([f.result().speedup for f in futures]))
        if speedup > LEAST_GAIN:
            out.setdefault(s.task.hash, []).append((speedup, steps))
    for best in out.values():
        best.sort(key=lambda x: -x[0])
    saved = {h: session.states[h].share * (1 - 1 / best[0][0]) for h, best in out.items()}
    return {h: out[h] for h in sorted(out, key=lambda h: -saved[h])}


def _earlier(session: Session, tasks: Sequence[Task], options: Options) -> Chosen:
    """What was decided for this model before."""
    try:
        records = session.log.records()
    except OSError:
        return {}
    known = {t.hash for t in tasks}
    found = LogSource(records).decided(tasks, options.target, options.threads)
    return {t: steps for t, (steps, _) in found.items() if t in known}


def _data(exe: Executable, inputs: Inputs | None) -> list[np.ndarray]:
    """Arrays to call the model with: the caller's examples, else random ones; integers 0 and 1 index most things."""
    given = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs or ())
    if given and all(isinstance(x, np.ndarray) for x in given) and not isinstance(inputs, Mapping):
        return cast("list[np.ndarray]", given)
    rng = np.random.default_rng(0)
    out = []
    for spec in exe.inputs:
        if not isinstance(spec, TensorSpec) or not all(isinstance(n, int) for n in spec.shape):
            raise InputError(f"input {spec} has no concrete shape to measure with")
        shape = cast("tuple[int, ...]", spec.shape)
        out.append(random_array(spec.dtype, shape, rng, 1.0))
    return out


# -- in place --------------------------------------------------------------------------------------------------------------
def _in_place(m: Subject, ways: Mapping[str, Steps], variants: Sequence[Chosen], data: Sequence[np.ndarray]) -> Chosen:
    """For each task the schedule that was fastest inside the model computed in `ways`."""
    if m.options.threads > 1:
        return _in_calls(m, ways, variants[0], data)
    try:
        instances = [m.build({**ways, **v}).single("timing steps") for v in ({}, *variants)]
    except InputError:
        return _in_calls(m, ways, variants[0], data)
    calls = owners(m.lowered(ways), m.options)
    if any(len(i.plan.calls) != len(calls) for i in instances):
        return _in_calls(m, ways, variants[0], data)
    return faster_in_place(step_times(instances, data), calls, variants)


def _in_calls(m: Subject, ways: Mapping[str, Steps], found: Chosen, data: Sequence[np.ndarray]) -> Chosen:
    """Where the steps of a call cannot be timed, because they run on several threads or there are several plans: of the first variant's
    schedules those that make whole calls no slower, each tried for itself, those that save most."""
    base, out = m.build(ways), dict(found)
    for task in list(found)[:IN_CALLS]:
        if compare(base, m.build({**ways, task: found[task]}), data, IN_CALLS_SECONDS).gain < 1.0:
            del out[task]
    return out


# -- whole -----------------------------------------------------------------------------------------------------------------
def _error(a: Executable, b: Executable, data: Sequence[np.ndarray]) -> float:
    """Largest difference of their outputs, relative to the largest output."""
    return max((difference(x, y) for x, y in zip(outputs(a, data), outputs(b, data), strict=True)), default=0.0)


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the largest number wanted; infinite where the finite ones are not the same. That of
    integers is 0: an index may tip over with the last bit of what it is chosen by."""
    if want.dtype.kind in "iub":
        return 0.0
    p, q = got.astype(np.float64), want.astype(np.float64)
    part = np.isfinite(q)
    if not np.array_equal(np.isfinite(p), part):
        return float("inf")
    return float(np.abs(p[part] - q[part]).max(initial=0.0)) / (float(np.abs(q[part]).max(initial=0.0)) or 1.0)


def outputs(exe: Executable, data: Sequence[np.ndarray]) -> list[np.ndarray]:
    found = exe(*data)
    return [x for x in (found if isinstance(found, tuple) else (found,)) if isinstance(x, np.ndarray)]


# -- the record ------------------------------------------------------------------------------------------------------------
def _keep_default(m: Subject, default: Executable, session: Session, data: Sequence[np.ndarray], why: str) -> Outcome:
    samples = burst(default, data)
    _record(m, session, {}, nanoseconds(samples))
    return Outcome(default, {}, min(samples), min(samples), "; ".join([why, *left(session)]))


def left(session: Session) -> list[str]:
    """Why there is little to gain, in a sentence: what the kernels' best schedules save alone, and how far all are from the highest
    rates of arithmetic and of memory traffic that any of them reaches."""
    states = [s for s in session.states.values() if s.known and s.default > 0]
    before, after = (sum(x) for x in zip(*((s.share, s.seconds * s.task.uses) for s in states), strict=True)) if states else (0, 0)
    if not after:
        return []
    flops = max(s.task.work.flops / s.seconds for s in states) or 1.0
    traffic = max(s.task.work.bytes / s.seconds for s in states) or 1.0
    least = sum(max(s.task.work.flops / flops, s.task.work.bytes / traffic) * s.task.uses for s in states)
    return [f"alone, the best of all trials would save {1 - after / before:.1%} of the kernels' time, and at the best rates of arithmetic "
            f"and memory that any of them reaches they would save {max(0.0, 1 - least / before):.0%}"]


def _record(m: Subject, session: Session, chosen: Mapping[str, Steps], samples: Sequence[int]) -> None:
    """One line about the model, which replay follows: each site with the way it is computed, each task with the schedule it keeps."""
    tasks, options = m.tasks(chosen), m.options
    text = model_text(tasks)
    pairs: Steps = [[t.hash, chosen.get(t.hash, [])] for t in sorted((*m.sites, *tasks), key=lambda t: t.hash)]
    new = record(workload_hash(text), text, options.target, options.threads, pairs, "ok", samples, None, session.seed)
    try:
        last = [r for r in session.log.records() if r.task == new.task and r.threads == new.threads and r.target.kind
                == Hardware.of(options.target).kind][-1:]
    except OSError:
        last = []
    if not last or last[0].schedule != replace(new, schedule=pairs).schedule:  # the same decision again says nothing new
        session.log.append([new])

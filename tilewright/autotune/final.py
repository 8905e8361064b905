"""The decision at the end: what was fast alone must be fast in the model.

    1. finalists: the best few of each task are measured again, each by turns with the default
    2. in place:  builds with the finalists run as whole models, step by step beside the default; each task keeps what was
                  fastest there, with the caches as they are in a real call
    3. whole:     the model so composed beside the untuned one, burst by burst; the faster is recorded and kept
"""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from ..backends.executable import Executable
from ..backends.instance import Instance
from ..backends.profile import Walk
from ..backends.target import runs_here
from ..compiler.build import Options, lower_graph
from ..compiler.compile import Inputs, compile, first_graph
from ..errors import InputError
from ..ir.types import TensorSpec
from .log import Hardware, Steps, record
from .measure import Result
from .replay import MARGIN, Fixed, LogSource
from .task import Task, model_text, task_of, workload_hash

if TYPE_CHECKING:
    from .tuner import Session, TaskState, Watcher

FINALISTS = 3        # of each task
ROUNDS = 3           # of measuring them
VARIANTS = 2         # builds of the whole model that finalists are tried in
NEGLIGIBLE = 5e-4    # share of the time of a call: tasks below keep their default
IN_PLACE_CALLS, IN_PLACE_SECONDS = 300, 2.0  # of each build, whichever is less
IN_PLACE_GAIN = 1.01
BURSTS, BURST_CALLS, BURST_SECONDS = 9, 100, 0.25
WHOLE_GAIN = 1.004   # of a call: less is not told from noise, and the untuned is kept
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


def decide(model: object, inputs: Inputs | None, options: Options, tasks: Sequence[Task], session: Session, view: Watcher) -> Outcome:
    """Chooses among the session's schedules, records the decision in its log, and returns the model compiled by it."""
    view.say("measuring the finalists again")
    found = finalists(session)
    earlier = _earlier(session, tasks, options)
    if not runs_here(options.target):
        chosen = {t: best[0][1] for t, best in found.items() if best[0][0] > MARGIN}
        return Outcome(_build(model, inputs, options, chosen), chosen, float("nan"), float("nan"), "measured elsewhere, kernel by kernel")
    default = _build(model, inputs, options, {})
    data = _data(default, inputs)
    variants = [{t: best[min(k, len(best) - 1)][1] for t, best in found.items()} for k in range(VARIANTS)]
    if earlier and any(earlier.values()):
        variants.append({t: s for t, s in earlier.items() if s})
    variants = [v for k, v in enumerate(variants) if v and v not in variants[:k]]
    if not variants:
        return _keep_default(default, session, tasks, options, data, "no schedule was faster than the compiler's own")
    view.say("trying the finalists in the whole model")
    chosen = _in_place(model, inputs, options, default, variants, data)
    if not chosen:
        return _keep_default(default, session, tasks, options, data, "in the whole model no schedule was faster than the compiler's own")
    tuned = _build(model, inputs, options, chosen)
    if (error := _error(tuned, default, data)) > WRONG:
        return _keep_default(default, session, tasks, options, data, f"the tuned model's outputs differ by {error:.1e}")
    view.say("the tuned model beside the untuned")
    a, b, gain, samples = compare(default, tuned, data)
    if gain < WHOLE_GAIN:
        return _keep_default(default, session, tasks, options, data, f"tuned schedules gave x{gain:.3f} end to end, not more than noise")
    _record(session, tasks, options, chosen, samples)
    return Outcome(tuned, chosen, a, b, f"tuned is x{gain:.3f} faster end to end", gain)


def finalists(session: Session) -> dict[str, list[tuple[float, Steps]]]:
    """Task -> (speedup over the default, steps) of its best schedules by a second measurement, fastest first."""
    total = session.default_seconds or 1.0
    asked: list[tuple[TaskState, Steps, list[Future[Result]]]] = []
    for s in session.states.values():
        if s.share < NEGLIGIBLE * total:
            continue
        best = sorted((g for g in s.good if g[0] > IN_PLACE_GAIN), key=lambda g: -g[0])[:FINALISTS]
        asked += [(s, steps, []) for _, steps in best]
    for _ in range(ROUNDS):
        for s, steps, futures in asked:
            futures.append(session.pool.submit(s.task, steps))
    out: dict[str, list[tuple[float, Steps]]] = {}
    for s, steps, futures in asked:
        speedup = float(np.median([f.result().speedup for f in futures]))
        if speedup > IN_PLACE_GAIN:
            out.setdefault(s.task.hash, []).append((speedup, steps))
    for best in out.values():
        best.sort(key=lambda x: -x[0])
    return out


def _earlier(session: Session, tasks: Sequence[Task], options: Options) -> Chosen:
    """What was decided for this model before."""
    try:
        records = session.log.records()
    except OSError:
        return {}
    known = {t.hash for t in tasks}
    found = LogSource(records).decided(tasks, options.target, options.threads)
    return {t: steps for t, (steps, _) in found.items() if t in known}


def _build(model: object, inputs: Inputs | None, options: Options, chosen: Mapping[str, Steps]) -> Executable:
    return compile(model, inputs=inputs, target=options.target, threads=options.threads, precision=options.precision,
                   strict=options.strict, schedules=Fixed(chosen) if chosen else None)


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
        kind = spec.dtype.kind
        out.append((rng.integers(0, 2, shape) if kind in "iub" else rng.standard_normal(shape)).astype(spec.dtype))
    return out


# -- in place --------------------------------------------------------------------------------------------------------------
def _in_place(model: object, inputs: Inputs | None, options: Options, default: Executable, variants: Sequence[Chosen],
              data: Sequence[np.ndarray]) -> Chosen:
    """For each task the schedule that was fastest inside the model; the first variant's where steps cannot be timed."""
    if options.threads > 1:
        return variants[0]
    try:
        instances = [exe.single("timing steps") for exe in (default, *(_build(model, inputs, options, v) for v in variants))]
    except InputError:
        return variants[0]
    owners = _owners(model, inputs, options)
    if any(len(i.plan.calls) != len(owners) for i in instances):
        return variants[0]
    times = _step_times(instances, data)
    out: Chosen = {}
    for task in dict.fromkeys(o for o in owners if o):
        mine = [k for k, o in enumerate(owners) if o == task]
        total = times[:, mine].sum(axis=1)
        best = int(total[1:].argmin())
        if task in variants[best] and total[0] > IN_PLACE_GAIN * total[1 + best]:
            out[task] = variants[best][task]
    return out


def _owners(model: object, inputs: Inputs | None, options: Options) -> list[str]:
    """For each step of the plan its task; "" for host functions."""
    low = lower_graph(first_graph(model, inputs), options)
    hashes = [task_of(w, options.target, options.threads).hash for w in low.wanted]
    number = {id(c.scheduled): h for c, h in zip(low.choices, hashes, strict=True)}
    return ["" if s is None else number[id(s)] for s in low.scheduled]


def _step_times(instances: Sequence[Instance], data: Sequence[np.ndarray]) -> np.ndarray:
    """[instance, step]: a low quantile of the time of each, in ticks; the instances run by turns."""
    walks = [Walk(i, data) for i in instances]
    rounds: list[list[np.ndarray]] = [[] for _ in walks]
    stop = time.perf_counter() + IN_PLACE_SECONDS * len(walks)
    while len(rounds[0]) < 7 or (time.perf_counter() < stop and len(rounds[0]) < IN_PLACE_CALLS):
        for w, into in zip(walks, rounds, strict=True):
            w.run()  # the caches are its own again
            into.append(np.diff(w.run()))
    return np.array([np.quantile(np.array(r), 0.2, axis=0) for r in rounds])


# -- whole -----------------------------------------------------------------------------------------------------------------
def compare(a: Executable, b: Executable, data: Sequence[np.ndarray]) -> tuple[float, float, float, list[int]]:
    """(seconds of a call of a, of b, how many times b is faster, all samples of b in ns), by bursts in turns."""
    ratios, samples = [], []
    times: tuple[list[float], list[float]] = [], []
    for k in range(BURSTS + 1):
        burst = {}
        for which in ((0, 1), (1, 0))[k % 2]:
            burst[which] = _burst((a, b)[which], data, BURST_SECONDS if k else BURST_SECONDS / 2)
        if k:  # the first warms up
            low = min(burst[0]), min(burst[1])
            ratios.append(low[0] / low[1])
            times[0].append(low[0])
            times[1].append(low[1])
            samples += [max(1, int(x * 1e9)) for x in burst[1][:50]]
    return min(times[0]), min(times[1]), float(np.median(ratios)), samples


def _burst(exe: Executable, data: Sequence[np.ndarray], seconds: float) -> list[float]:
    found, stop = [], time.perf_counter() + seconds
    while len(found) < 3 or (time.perf_counter() < stop and len(found) < BURST_CALLS):
        begin = time.perf_counter()
        exe(*data)
        found.append(time.perf_counter() - begin)
    return found


def _error(a: Executable, b: Executable, data: Sequence[np.ndarray]) -> float:
    """Largest difference of their outputs, relative to the largest output."""
    worst = 0.0
    for x, y in zip(_outputs(a, data), _outputs(b, data), strict=True):
        if x.dtype.kind in "iub":
            continue  # an index may tip over with the last bit of what it is chosen by
        p, q = x.astype(np.float64), y.astype(np.float64)
        if not np.array_equal(np.isfinite(p), np.isfinite(q)):
            return float("inf")
        part = np.isfinite(q)
        if part.any():
            worst = max(worst, float(np.abs(p[part] - q[part]).max()) / (float(np.abs(q[part]).max()) or 1.0))
    return worst


def _outputs(exe: Executable, data: Sequence[np.ndarray]) -> list[np.ndarray]:
    found = exe(*data)
    return [x for x in (found if isinstance(found, tuple) else (found,)) if isinstance(x, np.ndarray)]


# -- the record ------------------------------------------------------------------------------------------------------------
def _keep_default(default: Executable, session: Session, tasks: Sequence[Task], options: Options, data: Sequence[np.ndarray],
                  why: str) -> Outcome:
    samples = _burst(default, data, BURST_SECONDS)
    _record(session, tasks, options, {}, [max(1, int(x * 1e9)) for x in samples[:50]])
    return Outcome(default, {}, min(samples), min(samples), why)


def _record(session: Session, tasks: Sequence[Task], options: Options, chosen: Mapping[str, Steps], samples: Sequence[int]) -> None:
    """One line about the model, which replay follows: each task with the schedule that it keeps."""
    text = model_text(tasks)
    pairs: Steps = [[t.hash, chosen.get(t.hash, [])] for t in sorted(tasks, key=lambda t: t.hash)]
    new = record(workload_hash(text), text, options.target, options.threads, pairs, "ok", samples, None, session.seed)
    try:
        last = [r for r in session.log.records() if r.task == new.task and r.threads == new.threads and r.target.kind
                == Hardware.of(options.target).kind][-1:]
    except OSError:
        last = []
    if not last or last[0].schedule != replace(new, schedule=pairs).schedule:  # the same decision again says nothing new
        session.log.append([new])

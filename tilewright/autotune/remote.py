"""Measuring elsewhere: any executor, such as a dask cluster, whose workers can import tilewright.

    client = distributed.Client("scheduler:8786")
    tw.tune(model, pool=client, log="tuning.jsonl")

A task goes as its workload's text, a schedule as its steps, a result as numbers. Each worker has processes of its own for
building and running, so a candidate that crashes costs no worker; a worker that goes away has its trials done by another.
Workers say what processor they have: it is what their records carry, and only times of this one's kind are ranked.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, replace
from functools import cache
from types import TracebackType
from typing import Protocol, cast

from ..backends.target import Target
from ..errors import InputError
from .log import Hardware, Steps
from .measure import Limits, Measurer, Result
from .task import Task, parse_workload

NATIVE = "native"
Answer = dict[str, object]


class Submits(Protocol):
    """What is asked of a pool: `submit` as in concurrent.futures."""

    def submit(self, fn: Callable[..., Answer], /, *args: object) -> object: ...


class Remote:
    """A pool for `Session` over an executor or a dask client. It is not closed with this object."""

    def __init__(self, pool: object, seed: int = 0, cold: bool = False, limits: Limits | None = None, width: int | None = None) -> None:
        if not callable(getattr(pool, "submit", None)):
            raise InputError(f"pool= takes an executor or a dask client, got {type(pool).__name__}")
        self._pool = cast(Submits, pool)
        self._settings = json.dumps({"seed": seed, "cold": cold, "limits": asdict(limits or Limits())})
        self._dask = hasattr(pool, "scheduler_info")
        self._width = width

    @property
    def width(self) -> int:
        """Four candidates in flight for each thread of the workers."""
        if self._width is not None:
            return self._width
        threads = sum(cast("dict[str, int]", self._pool.nthreads()).values()) if self._dask else 2  # type: ignore[attr-defined]
        return max(4, 4 * threads)

    def check(self, target: Target) -> None:
        """Raises InputError where a cluster has no worker of the target's kind."""
        if not self._dask or target.name != NATIVE:
            return
        found = cast("dict[str, str]", self._pool.run(describe))  # type: ignore[attr-defined]
        theirs = [Target.from_json(json.loads(x)) for x in found.values()]
        if not any(Hardware.of(t).kind == Hardware.of(target).kind for t in theirs):
            cpus = ", ".join(sorted({t.cpu for t in theirs})) or "none"
            raise InputError(f"this machine's processor is {target.cpu}, the workers' are {cpus}; name the target to tune for with target=")

    def submit(self, task: Task, steps: Steps) -> Future[Result]:
        out: Future[Result] = Future()
        target = NATIVE if task.target.name == NATIVE else json.dumps(task.target.to_json())
        args = (task.workload, target, task.threads, json.dumps(steps), self._settings, task.final)
        theirs = self._pool.submit(measure, *args, **({"pure": False} if self._dask else {}))
        theirs.add_done_callback(lambda f: _hand_over(f, out))  # type: ignore[attr-defined]
        return out

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        pass


def _hand_over(theirs: object, out: Future[Result]) -> None:
    """A finished future of the pool's kind into one of ours. Where the worker was lost for good, the trial has crashed."""
    if not out.set_running_or_notify_cancel():
        return
    try:
        answer = cast("Future[Answer]", theirs).result()
    except (CancelledError, OSError, RuntimeError) as e:
        out.set_result(Result("crash", error=f"the worker was lost: {type(e).__name__}: {e}"[:500]))
        return
    except BaseException as e:  # noqa: BLE001  (a fault of the pool or of the worker's installation: whoever waits gets it)
        if type(e).__name__ in ("KilledWorker", "FutureCancelledError"):
            out.set_result(Result("crash", error=f"the worker was lost: {e}"[:500]))
        else:
            out.set_exception(e)
        return
    out.set_result(_result(answer))


def _result(a: Answer) -> Result:
    return Result(cast(str, a["status"]), tuple(cast("list[int]", a["samples_ns"])), cast("str | None", a["error"]),
                  tuple(cast("list[int]", a["base_ns"])), cast(int, a["nominal_ns"]), Target.from_json(json.loads(cast(str, a["target"]))))


# -- on the workers --------------------------------------------------------------------------------------------------------
def describe() -> str:
    """This machine."""
    return json.dumps(Target.host().to_json())


def measure(workload: str, target: str, threads: int, steps: str, settings: str, final: bool = False) -> Answer:
    """One trial on this machine. Arguments and result are text and numbers, so that nothing of ours needs to be pickled."""
    here = Target.host() if target == NATIVE else Target.from_json(json.loads(target))
    task = replace(parse_workload(workload, here, threads), final=final)
    r = _measurer(here, threads, settings).submit(task, json.loads(steps)).result()
    return {"status": r.status, "samples_ns": list(r.samples_ns), "error": r.error, "base_ns": list(r.base_ns), "nominal_ns": r.nominal_ns,
            "target": json.dumps(here.to_json())}


@cache
def _measurer(target: Target, threads: int, settings: str) -> Measurer:
    """This process's workers, which live as long as it does."""
    s = json.loads(settings)
    return Measurer(target, threads, seed=s["seed"], cold=s["cold"], limits=Limits(**s["limits"]))

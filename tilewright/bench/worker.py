"""One engine in a process of its own: `python -m tilewright.bench.worker FOLDER`, where FOLDER/request.json says what to do.

Prepares the model, runs it once, answers one line of JSON, then answers each line on stdin: {"seconds": s} with the times of
calls for about s seconds. An error ends the process, with a traceback on stderr, whose last line `isolated.py` reports.
"""
from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .engines import ENGINES, Job

_SAMPLE = 20e-6  # seconds that one sample lasts at least: quicker calls are timed many at a time
_SLOW = 0.05     # seconds of a call, above which what interrupts it does not matter


def load_arrays(path: Path) -> tuple[np.ndarray, ...]:
    with np.load(path, allow_pickle=False) as z:
        return tuple(z[f"arr_{k}"] for k in range(len(z.files)))


def main() -> None:
    folder = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints must not get among the answers
    request = json.loads((folder / "request.json").read_text())
    adapter = ENGINES[request["engine"]]
    for m in adapter.modules:
        importlib.import_module(m)
    inputs = load_arrays(folder / "inputs.npz")
    job = Job(Path(request["model"]), inputs, request["threads"], request["precision"], request["schedules"], request["cold"],
              request["strict"])
    before, start = _peak_memory(), time.perf_counter()
    run = adapter.prepare(job)
    prepared = time.perf_counter()
    outputs = run(inputs)
    ran = time.perf_counter()
    found = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    np.savez(folder / "outputs.npz", *(np.asarray(o) for o in found))
    del outputs, found

    def answer(x: object) -> None:
        print(json.dumps(x), file=answers, flush=True)
    answer({"prepare": prepared - start, "first": ran - prepared, "memory": _peak_memory() - before})
    for line in sys.stdin:
        answer(burst(lambda: run(inputs), json.loads(line)["seconds"]))


def burst(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds a call: samples over about `seconds`, three at least, each of so many calls that the clock does not matter."""
    clock = time.perf_counter

    def sample(count: int) -> float:
        begin = clock()
        for _ in range(count):
            call()
        return (clock() - begin) / count
    once = sample(1)
    if once < _SLOW:  # the one call may have been interrupted, and then looks slow
        once = min(once, *(sample(1) for _ in range(4)))
    count = 1 if once > _SAMPLE else max(1, int(2 * _SAMPLE / max(once, 1e-7)))
    samples, stop = [], clock() + seconds
    while len(samples) < 3 or clock() < stop:
        samples.append(sample(count))
    return samples


def _peak_memory() -> int:
    """The most memory this process has had in use so far, in bytes. (getrusage counts what the parent had, too.)"""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main()

"""Times the ways to compute a site: `python -m tilewright.autotune.site_runner [--memory MIB] < requests > replies`.

    {"workload", "target", "threads", "seed", "option", "budget"}  ->  {"samples_ns", "base_ns"} or {"wrong"} or {"error"}

Both the heuristic's way and the candidate are compiled here as whole models of their own, and run by turns with caches that other
layers have used in between: what differs between ways is largely what they must fetch again. Results may differ by what the
ways' rounding errors do (Winograd's are larger); more counts as wrong.
"""
from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from ..backends.executable import Executable
from ..backends.target import Target
from ..compiler.compile import compile as compile_with
from ..errors import TilewrightError
from ..ir.graph import Graph
from .final import WRONG, difference, outputs
from .runner import serve
from .site import Way, parse_site, random_array, runnable
from .wire import Header

MOST_SITES = 4      # kept with their inputs; the one used longest ago goes
SAMPLES = 15
LEAST = 5           # samples, however long they take
SWEEP = 2           # second-level caches' worth of memory that is touched between runs


@dataclass
class _Bench:
    """One site: the part with its weights, inputs, the heuristic's way and its outputs."""

    graph: Graph
    target: Target
    threads: int
    inputs: list[np.ndarray]
    base: Executable
    reference: list[np.ndarray]
    made: dict[str, Executable] = field(default_factory=dict)


def _bench(workload: str, target: Target, threads: int, seed: int) -> _Bench:
    task = parse_site(workload, target, threads)
    graph = runnable(task.graph, seed)
    rng = np.random.default_rng(seed + 1)
    inputs = [random_array(v.type.dtype.numpy, v.type.shape, rng) for v in graph.inputs]
    base = compile_with(graph, target=target, threads=threads)
    return _Bench(graph, target, threads, inputs, base, [x.copy() for x in outputs(base, inputs)])


class Runner:
    """The process's state: sites by their text."""

    def __init__(self) -> None:
        self._benches: OrderedDict[tuple[str, int], _Bench] = OrderedDict()
        self._sweep = np.zeros(max(SWEEP * Target.host().l2, 4 << 20), np.uint8)

    def answer(self, r: Header, _: list[bytes]) -> Header:
        key = cast(str, r["workload"]), cast(int, r["threads"])
        try:
            if key not in self._benches:
                while len(self._benches) >= MOST_SITES:
                    self._benches.popitem(last=False)
                self._benches[key] = _bench(key[0], Target.from_json(json.loads(cast(str, r["target"]))), key[1], cast(int, r["seed"]))
            self._benches.move_to_end(key)
            b = self._benches[key]
            exe = self._way(b, parse_site(*key[:1], b.target).kind, cast(str, r["option"]))
        except TilewrightError as e:
            return {"error": f"{type(e).__name__}: {e}"[:1000]}
        if found := _wrong(outputs(exe, b.inputs), b.reference):
            return {"wrong": found}
        samples, base = self._times(b, exe, int(cast(float, r["budget"]) * 1e9))
        return {"samples_ns": samples, "base_ns": base}

    @staticmethod
    def _way(b: _Bench, kind: str, option: str) -> Executable:
        if not option:
            return b.base
        if option not in b.made:
            b.made[option] = compile_with(b.graph, target=b.target, threads=b.threads, schedules=Way(kind, option))
        return b.made[option]

    def _times(self, b: _Bench, exe: Executable, budget: int) -> tuple[list[int], list[int]]:
        """Samples of the candidate and of the heuristic's way, by turns."""
        samples: list[int] = []
        base: list[int] = []
        stop = time.perf_counter_ns() + budget
        while len(samples) < SAMPLES and (len(samples) < LEAST or time.perf_counter_ns() < stop):
            for e, into in ((b.base, base), (exe, samples)):
                self._sweep += 1
                begin = time.perf_counter_ns()
                e(*b.inputs)
                into.append(max(1, time.perf_counter_ns() - begin))
        return samples, base


def _wrong(got: list[np.ndarray], want: list[np.ndarray]) -> str | None:
    """What is wrong with a way's results, None where nothing is."""
    for k, (x, y) in enumerate(zip(got, want, strict=True)):
        if (found := difference(x, y)) == np.inf:
            return f"result {k} is not finite where it should be"
        if found > WRONG:
            return f"result {k} differs by {found:.3g} of the largest"
    return None


if __name__ == "__main__":
    from .process import child
    _parser = argparse.ArgumentParser()
    _parser.add_argument("--memory", type=int, default=4096)
    serve(*child(), _parser.parse_args().memory, lambda: Runner().answer)

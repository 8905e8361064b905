"""How many trials a second tuning gets through: `python -m benchmarks.tuning_rate MODELS [--out rate.md]`.

Each task is tuned on its own as `tilewright.tune` does it, with all that costs: worker processes that start, inputs and expected
results, search and cost model, code, checks, samples, the log. MODELS: a folder of .onnx with .npz inputs. Run it under
`taskset -c 1` for the rate of one core; on several, the rate is divided by their number.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.tuning_quality import load_tasks
from tilewright.autotune.extract import extract
from tilewright.autotune.log import TuningLog
from tilewright.autotune.measure import Measurer
from tilewright.autotune.task import Task
from tilewright.autotune.tuner import Session
from tilewright.backends.target import Target

HEAD = """# How many trials a second

Written by `python -m benchmarks.tuning_rate MODELS --out`. Each task is tuned on its own as `tilewright.tune` does it, with all that it
costs: processes that start, inputs and expected results, search and cost model, code, checks, samples, the log.

"""
SMALL = 300e-6  # seconds of the default schedule: tasks up to here count as small
CONVOLUTIONS = 6  # of ResNet-50: the heaviest


class Silent:
    """Shows nothing."""

    def start(self, session: Session) -> None: ...
    def tick(self, session: Session) -> None: ...
    def say(self, text: str) -> None: ...
    def stop(self, session: Session) -> None: ...


@dataclass(frozen=True)
class Rate:
    """trials: that were measured; seconds: of wall clock; default: of one run of the default schedule."""

    name: str
    trials: int
    failed: int
    seconds: float
    default: float
    cores: int

    @property
    def a_core(self) -> float:
        return self.trials / self.seconds / self.cores


def rate(name: str, task: Task, trials: int) -> Rate:
    """Tunes one task from nothing."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with Measurer(task.target) as pool:
            session = Session([task], TuningLog(Path(folder) / "log.jsonl"), pool, Silent(), trials, None)
            session.run()
        took = time.perf_counter() - begin
    state = session.states[task.hash]
    return Rate(name, len(state.points), sum(state.failures.values()), took, state.default, cores)


def convolutions(models: Path) -> list[tuple[str, Task]]:
    """The heaviest convolutions of ResNet-50."""
    arrays = np.load(models / "resnet50.npz")
    found = extract(str(models / "resnet50.onnx"), inputs=[arrays[k] for k in arrays.files], threads=1)
    found = sorted((t for t in found if "conv" in t.label), key=lambda t: -t.work.flops * t.uses)
    return [("resnet50", t) for t in found[:CONVOLUTIONS]]


def table(rates: list[Rate]) -> str:
    lines = ["| task | default | trials | failed | trials a second a core |", "|---|---|---|---|---|"]
    lines += [f"| {r.name} | {r.default * 1e6:.0f} us | {r.trials} | {r.failed} | {r.a_core:.1f} |" for r in rates]
    small = [r.a_core for r in rates if r.default <= SMALL and not r.name.startswith("resnet50")]
    large = [r.a_core for r in rates if r.name.startswith("resnet50")]
    parts = [f"{len(small)} small tasks (up to {SMALL * 1e6:.0f} us): median {np.median(small):.1f}"] if small else []
    parts += [f"{len(large)} convolutions of ResNet-50: median {np.median(large):.1f}, least {min(large):.1f}"] if large else []
    return "\n".join([*lines, "", f"Trials a second a core, on {rates[0].cores} core(s): {'; '.join(parts)}."])


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", type=Path)
    ap.add_argument("--trials", type=int, default=64)
    ap.add_argument("--only", default="", help="part of a task's name")
    ap.add_argument("--out", type=Path)
    a = ap.parse_args()
    tasks = [(f"{m} {t.label}", t) for m, t in (*load_tasks(Target.parse("native")), *convolutions(a.models))]
    found = []
    for name, task in tasks:
        if a.only in name:
            found.append(rate(name, task, a.trials))
            print(f"{name}: {found[-1].a_core:.1f}", flush=True)
    text = table(found)
    print(text)
    if a.out:
        a.out.write_text(HEAD + text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

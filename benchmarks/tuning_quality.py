"""How good the search is: on tasks of real models, which the shipped cost model never saw.

    python -m benchmarks.tuning_quality tasks MODELS --out tasks.jsonl     # once: 12 tasks, by their text
    python -m benchmarks.tuning_quality random --out random.jsonl --trials 1000 --lock /tmp/lock --core 1
    python -m benchmarks.tuning_quality search --out search.jsonl …        # 64 trials each: with the model, without one
    python -m benchmarks.tuning_quality report random.jsonl search.jsonl

Each command goes on where it stopped, so that it can run in slices.
"""
from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import tuning_records
from benchmarks.trials import Trials
from tilewright.autotune.space import Space
from tilewright.autotune.task import Task, extract, parse_workload
from tilewright.backends.target import Target

TASKS = Path(__file__).parent / "data" / "tuning_tasks.jsonl"
BATCH = 25
CHOSEN = (  # (model, label, position among its tasks of that label by work): each model's heaviest kind, four that are no contractions
    ("densenet121", "winograd_multiply", 0), ("inception_v2", "conv_direct+relu", 3), ("magika", "add+gelu+reduce", 0),
    ("minilm_128", "matmul+add+add", 1), ("minilm_128", "softmax", 0), ("minilm_16", "matmul+add", 0),
    ("mobilenet_v2", "conv_depthwise+relu+min", 0), ("ocr_cls", "conv_direct+hard_swish", 0),
    ("ocr_rec", "conv_direct+hard_swish+mul+add", 8), ("resnet50", "conv_direct+relu", 4), ("shufflenet", "conv_direct", 0),
    ("squeezenet", "max_pool", 0))


def choose(models: Path, out: Path) -> None:
    """Writes the tasks' texts; they stay the same when the compiler changes. `models`: a folder of .onnx with .npz inputs."""
    lines = []
    for model, label, at in CHOSEN:
        arrays = np.load(models / f"{model}.npz")
        found = extract(str(models / f"{model}.onnx"), inputs=[arrays[k] for k in arrays.files], threads=1, strict=False)
        found = sorted((t for t in found if t.label == label), key=lambda t: (-t.work.flops, t.hash))
        t = found[min(at, len(found) - 1)]
        lines.append(json.dumps({"model": model, "label": t.label, "workload": t.workload}))
        print(f"{model:14} {t.label:32} {t.work.flops / 1e6:8.1f} MFLOP {t.hash}")
    out.write_text("\n".join(lines) + "\n")


def load_tasks(target: Target) -> list[tuple[str, Task]]:
    """(model, task) of each of the twelve."""
    out = []
    for text in TASKS.read_text().splitlines():
        line = json.loads(text)
        t = parse_workload(line["workload"], target)
        out.append((line["model"], Task(t.workload, t.program, t.packable, target, 1, 1, line["label"])))
    return out


def random_trials(out: Path, target: Target, trials: int, lock: Path | None, core: int | None, seconds: float) -> None:
    """Random points of each task until each has `trials`, by turns; stops after `seconds`."""
    end = time.monotonic() + seconds
    counts = {r.task.hash: r for r in tuning_records.read(out)} if out.exists() else {}
    state = []
    for model, task in load_tasks(target):
        seen = set(counts[task.hash].decisions) if task.hash in counts else set()
        state.append((model, task, Space(task), seen))
    made: dict[str, Trials] = {}
    active = True
    while active and time.monotonic() < end:
        active = False
        for model, task, space, seen in state:
            missing = trials - len(seen)
            if missing <= 0 or time.monotonic() > end:
                continue
            rng = random.Random(f"{task.hash} {len(seen)}")
            drawn = tuning_records.distinct(space.sample, min(BATCH, missing), rng, seen)
            if not drawn:
                continue
            active = True
            begin = time.perf_counter()
            if task.hash not in made:
                made[task.hash] = Trials(task, lock, core)
            kept, timed = tuning_records.run(made[task.hash], space, drawn)
            tuning_records.append(out, task, space, kept, timed)
            print(f"{model} {task.label[:30]}: {len(seen)} trials, batch of {len(kept)} in {time.perf_counter() - begin:.1f} s", flush=True)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="command", required=True)
    t = sub.add_parser("tasks")
    t.add_argument("models", type=Path)
    t.add_argument("--out", type=Path, default=TASKS)
    r = sub.add_parser("random")
    r.add_argument("--out", type=Path, required=True)
    r.add_argument("--trials", type=int, default=1000)
    r.add_argument("--seconds", type=float, default=1e9)
    r.add_argument("--target", default="native")
    r.add_argument("--lock", type=Path)
    r.add_argument("--core", type=int)
    a = ap.parse_args()
    if a.command == "tasks":
        choose(a.models, a.out)
    elif a.command == "random":
        random_trials(a.out, Target.parse(a.target), a.trials, a.lock, a.core, a.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())

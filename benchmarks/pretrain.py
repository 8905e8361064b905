"""The cost model that ships in the wheel: how its data are collected and how it is trained, to be run again at any time.

    python -m benchmarks.pretrain collect --out data.jsonl --seeds 0:200 --lock /tmp/lock --core 1     # stops and goes on at will
    python -m benchmarks.pretrain train data.jsonl …               # cross-validation by task, then writes the model
    python -m benchmarks.pretrain pack data.jsonl --out benchmarks/data/tuning.jsonl.gz

Data are timed schedules of generated tasks (generated.py), random ones and neighbours of the best so far. A group is a task:
correlations are of tasks that were held out as a whole.
"""
from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tilewright
from benchmarks import tuning_records
from benchmarks.generated import tasks
from benchmarks.trials import Trials
from tilewright.autotune.cost_model import RANK, SHIPPED, SQUARED, CostModel, rank_correlation
from tilewright.autotune.features import FEATURES, Features
from tilewright.autotune.space import Decisions, Space
from tilewright.autotune.task import Task
from tilewright.backends.target import Target
from tilewright.errors import ScheduleError

MODEL = Path(tilewright.__file__).parent / "autotune" / SHIPPED
FOLDS = 5
LEAST_POINTS = 5   # of a task, to be learned from or judged by
BATCH = 18
CONTRACTION_POINTS, ROWS_POINTS = 36, 24


def collect(out: Path, seeds: range, target: Target, lock: Path | None, core: int | None) -> None:
    """Times schedules of the seeds' tasks that are not in `out` yet."""
    done = {json.loads(line)["workload"] for line in out.read_text().splitlines() if line.endswith("}")} if out.exists() else set()
    for seed in seeds:
        for task in tasks(seed, target):
            if task.workload not in done:
                done.add(task.workload)
                begin = time.perf_counter()
                n = _collect_task(task, out, lock, core)
                print(f"seed {seed}: {task.label[:40]:40} {n} points in {time.perf_counter() - begin:.1f} s", flush=True)


def _collect_task(task: Task, out: Path, lock: Path | None, core: int | None) -> int:
    space = Space(task)
    if space.size < 4:
        return 0
    rng = random.Random(task.hash)
    try:
        trials = Trials(task, lock, core)
    except ScheduleError:
        return 0  # too long to compile
    count = ROWS_POINTS if space.sketches[0].name == "rows" else CONTRACTION_POINTS
    seen: set[Decisions] = {space.default()}
    best: list[tuple[float, Decisions]] = [(1.0, space.default())]
    decisions: list[Decisions] = [space.default()]
    times: list[tuple[float, float] | None] = [(1.0, 1.0)]

    def draw(r: random.Random) -> Decisions:
        return space.sample(r) if r.random() < 0.5 else space.mutate(r.choice(best)[1], r)
    for at in range(0, count, BATCH):
        kept, timed = tuning_records.run(trials, space, tuning_records.distinct(draw, min(BATCH, count - at), rng, seen))
        decisions += kept
        times += timed
        best = sorted([*best, *((t[0] / t[1], d) for t, d in zip(timed, kept, strict=True) if t)], key=lambda x: x[0])[:6]
    tuning_records.append(out, task, space, decisions, times)
    return len(decisions)


@dataclass(frozen=True)
class Data:
    """Rows of all tasks: features, best/cost of their task, the task's number; names: the tasks'. kinds: of their first sketch."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]
    kinds: tuple[str, ...]


def load(files: Sequence[Path]) -> Data:
    """What the files hold, as features and labels of the present version."""
    xs, ys, groups, names, kinds = [], [], [], [], []
    for path in files:
        for r in tuning_records.read(path):
            ratio = r.ratio
            if (ratio > 0).sum() < LEAST_POINTS:
                continue
            space = Space(r.task)
            xs.append(Features(space, r.task)(r.decisions))
            ys.append(ratio / ratio.max())
            groups.append(np.full(len(ratio), len(names)))
            names.append(r.task.label)
            kinds.append(space.sketches[0].name)
    return Data(np.concatenate(xs), np.concatenate(ys).astype(np.float32), np.concatenate(groups), tuple(names), tuple(kinds))


def validate(d: Data, objective: str, rounds: int) -> None:
    """Prints what models reach on tasks that they never saw, each fold of tasks held out in turn."""
    order = np.random.default_rng(0).permutation(len(d.names))
    rows = []
    for fold in range(FOLDS):
        held = np.isin(d.group, order[fold::FOLDS])
        model = CostModel.train(d.x[~held], d.y[~held], d.group[~held], rounds, objective)
        for task in sorted(set(d.group[held])):
            mine = d.group == task
            p, y = model.predict(d.x[mine]), d.y[mine]
            default = y[d.x[mine, FEATURES.index("default")] > 0]
            picks = y[np.argsort(-p)[:8]]
            rows.append((d.kinds[task], rank_correlation(p, y), picks[0], picks.max(), default[0] if len(default) else np.nan))
    for kind in ("contraction", "rows"):
        of = [r[1:] for r in rows if r[0] == kind]
        if of:
            mid = np.nanmedian(np.array(of), 0)
            print(f"{objective:18} {kind:12} {len(of):4} tasks held out: rank correlation {mid[0]:.3f}, first pick {mid[1]:.3f} of the "
                  f"best, best of eight picks {mid[2]:.3f}, default {mid[3]:.3f} (medians)", flush=True)


def train(files: Sequence[Path], out: Path, rounds: int) -> None:
    """Cross-validates both objectives, then trains on everything for order, which does better on tasks that were held out."""
    d = load(files)
    print(f"{len(d.names)} tasks, {len(d.x)} points, {d.x.shape[1]} features")
    for objective in (SQUARED, RANK):
        validate(d, objective, rounds)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(CostModel.train(d.x, d.y, d.group, rounds).save())
    print(f"{out}: {out.stat().st_size / 1024:.0f} KiB")


def pack(files: list[Path], out: Path) -> None:
    """All lines in one compressed file, times rounded to four digits."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(out, "wb", mtime=0) as raw:
        for path in files:
            for text in path.read_text().splitlines():
                line = json.loads(text)
                line["points"] = [[p[0], *(None if x is None else float(f"{x:.4g}") for x in p[1:])] for p in line["points"]]
                raw.write((json.dumps(line, separators=(",", ":")) + "\n").encode())


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="command", required=True)
    c = sub.add_parser("collect")
    c.add_argument("--out", type=Path, required=True)
    c.add_argument("--seeds", default="0:100", help="first:end")
    c.add_argument("--target", default="native")
    c.add_argument("--lock", type=Path, help="file to hold while timing")
    c.add_argument("--core", type=int, help="core to time on")
    t = sub.add_parser("train")
    t.add_argument("files", type=Path, nargs="+")
    t.add_argument("--out", type=Path, default=MODEL)
    t.add_argument("--rounds", type=int, default=200)
    k = sub.add_parser("pack")
    k.add_argument("files", type=Path, nargs="+")
    k.add_argument("--out", type=Path, required=True)
    a = ap.parse_args()
    if a.command == "collect":
        first, end = map(int, a.seeds.split(":"))
        collect(a.out, range(first, end), Target.parse(a.target), a.lock, a.core)
    elif a.command == "train":
        train(a.files, a.out, a.rounds)
    elif a.command == "pack":
        pack(a.files, a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

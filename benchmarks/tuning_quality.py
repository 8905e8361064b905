"""How good the search is: on tasks of real models, which the shipped cost model never saw.

    python -m benchmarks.tuning_quality tasks MODELS --out tasks.jsonl     # once: 12 tasks, by their text
    python -m benchmarks.tuning_quality random FOLDER --trials 1000        # random points
    python -m benchmarks.tuning_quality search FOLDER                      # 64 trials each: with the shipped model, without any
    python -m benchmarks.tuning_quality final FOLDER                       # the best of all, timed again together
    python -m benchmarks.tuning_rate MODELS --out FOLDER/rate.md           # trials a second, under `taskset -c 1`
    python -m benchmarks.tuning_quality report FOLDER --out benchmarks/TUNING.md

FOLDER keeps what was timed, a file for each strategy. Each command goes on where it stopped, so that it can run in slices.
"""
from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import tuning_records
from benchmarks.trials import Trials
from tilewright.autotune.cost_model import CostModel, rank_correlation
from tilewright.autotune.extract import extract
from tilewright.autotune.features import Features
from tilewright.autotune.search import Search
from tilewright.autotune.space import Decisions, Space
from tilewright.autotune.task import Task, parse_workload
from tilewright.backends.target import Target

TASKS = Path(__file__).parent / "data" / "tuning_tasks.jsonl"
BATCH = 25
STRATEGIES = ("model", "none")
FINAL_TIMES = 3
NOTE = ("Written by `python -m benchmarks.tuning_quality report`; the commands that gather the data are in that file. Twelve tasks of real "
        "models, none of which the shipped cost model was trained on. One thread, operands warm, every candidate beside the default.")
CHOSEN = (  # (model, label, position among its tasks of that label by work): each model's heaviest kind, four that are no contractions
    ("densenet121", "winograd_multiply", 0), ("inception_v2", "conv_direct+relu", 3), ("magika", "add+gelu+reduce", 0),
    ("minilm_128", "matmul+add+add", 1), ("minilm_128", "softmax", 0), ("minilm_16", "matmul+add", 0),
    ("mobilenet_v2", "conv_depthwise+relu+min", 0), ("ocr_cls", "conv_direct+hard_swish", 0),
    ("ocr_rec", "conv_direct+hard_swish+mul+add", 8), ("resnet50", "conv_direct+relu", 4), ("shufflenet", "conv_direct", 0),
    ("squeezenet", "max_pool", 0))
ABOUT = ("`us`: the default schedule. `random`: how many random trials there were. `best`: the fastest of them, the default being 1x. "
         "`rank`: Spearman's, the shipped model against those trials. The rest: speed reached, as a share of the best random trial's; a "
         "search that finds nothing faster ends with the default, and `first` is the model's first pick whatever it is.")


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


@dataclass(frozen=True)
class Outcome:
    """What a search is told of a trial."""

    ok: bool
    speedup: float


def searched_trials(folder: Path, target: Target, trials: int, lock: Path | None, core: int | None, seconds: float) -> None:
    """Each strategy's trials of each task, after those that are recorded."""
    end = time.monotonic() + seconds
    model = CostModel.load_default()
    for strategy in STRATEGIES:
        for name, task in load_tasks(target):
            space, made = Space(task), None
            path = folder / f"{strategy}.jsonl"
            search = Search(task, space, model if strategy == "model" else None, learn=strategy == "model")
            before = next((r for r in tuning_records.read(path) if r.task.hash == task.hash), None) if path.exists() else None
            done = 0
            if before is not None:
                done = len(before.decisions)
                for d, ratio in zip(before.decisions, before.ratio.tolist(), strict=True):
                    search.report(d, Outcome(ratio > 0, ratio))
            while done < trials and time.monotonic() < end and (drawn := search.next(min(8, trials - done))):
                made = made or Trials(task, lock, core)
                kept, timed = tuning_records.run(made, space, drawn)
                tuning_records.append(path, task, space, kept, timed)
                for d, t in zip(kept, timed, strict=True):
                    search.report(d, Outcome(t is not None, t[1] / t[0] if t else 0.0))
                done += len(drawn)
            print(f"{name} {task.label[:30]} {strategy}: {done} trials", flush=True)


def finals(folder: Path, target: Target, lock: Path | None, core: int | None) -> None:
    """The best three of each strategy, timed again together: the least of a thousand noisy times is not the best schedule."""
    out = folder / "final.jsonl"
    done = {r.task.hash for r in tuning_records.read(out)} if out.exists() else set()
    records = {s: {r.task.hash: r for r in tuning_records.read(folder / f"{s}.jsonl")} for s in ("random", *STRATEGIES)}
    for name, task in load_tasks(target):
        if task.hash in done or not all(task.hash in r for r in records.values()):
            continue
        space = Space(task)
        chosen = [space.default()]
        for r in (records[s][task.hash] for s in records):
            chosen += [r.decisions[k] for k in np.argsort(-r.ratio)[:3]] + r.decisions[:1]
        trials = Trials(task, lock, core)
        kept, timed = tuning_records.run(trials, space, list(dict.fromkeys(chosen)) * FINAL_TIMES)
        tuning_records.append(out, task, space, kept, timed)
        print(f"{name} {task.label[:30]}: {len(kept) // FINAL_TIMES} finalists", flush=True)


def report(folder: Path, target: Target) -> str:
    """The table, and what it says in a few lines."""
    files = {s: {r.task.hash: r for r in tuning_records.read(folder / f"{s}.jsonl")} for s in ("random", *STRATEGIES, "final")
             if (folder / f"{s}.jsonl").exists()}
    model = CostModel.load_default()
    rows = []
    for name, task in load_tasks(target):
        if any(task.hash not in files.get(s, {}) for s in ("random", *STRATEGIES)):
            continue
        rows.append(_row(name, task, {s: f[task.hash] for s, f in files.items() if task.hash in f}, model))
    return f"{_table(rows)}\n\n{_rates(load_tasks(target), model)}"


@dataclass(frozen=True)
class Row:
    """One task. Speeds are relative to the default's. random64: the middle one of many draws of 64 of the random trials."""

    name: str
    microseconds: float
    points: int
    random: float
    random64: float
    evolved: float
    modelled: float
    first: float
    correlation: float

    @property
    def best(self) -> float:
        return max(self.random, 1.0)

    def shares(self) -> tuple[float, ...]:
        """Of the best random trial: the default, the model's first pick, the faster of both, 64 trials three ways."""
        zero = (1.0, self.first, max(1.0, self.first))
        return tuple(x / self.best for x in (*zero, max(1.0, self.random64), max(1.0, self.evolved), max(1.0, self.modelled)))


def _rates(tasks: list[tuple[str, Task]], model: CostModel) -> str:
    """How many candidates a second of one core's time features and predictions take."""
    made, scored, count = 0.0, 0.0, 0
    for _, task in tasks:
        space, rng = Space(task), random.Random(0)
        points = [space.sample(rng) for _ in range(1000)]
        features = Features(space, task)
        features(points[:10])  # the first call compiles, and remembers how accesses move
        begin = time.process_time()
        x = features(points)
        middle = time.process_time()
        model.predict(x)
        made, scored, count = made + middle - begin, scored + time.process_time() - middle, count + len(points)
    return f"One core computes features of {count / made:,.0f} candidates a second, and predictions for {count / scored:,.0f}."


def _row(name: str, task: Task, r: dict[str, tuning_records.Record], model: CostModel) -> Row:
    again = _again(r["final"]) if "final" in r else {}

    def best(x: tuning_records.Record) -> float:
        known = [again[d] for d in x.decisions if d in again]
        return max(known) if known else float(x.ratio.max())
    random_ = r["random"]
    rng = np.random.default_rng(0)
    at64 = float(np.median([rng.choice(random_.ratio, min(64, len(random_.ratio)), False).max() for _ in range(200)]))
    at64 *= best(random_) / random_.ratio.max()  # what timing again took off the luckiest
    good = random_.ratio > 0
    points = [d for d, ok in zip(random_.decisions, good, strict=True) if ok]
    predicted = model.predict(Features(Space(task), task)(points))
    first = r["model"].decisions[0]
    return Row(f"{name} {task.label}", 1e6 * float(np.median(random_.base)), len(random_.ratio), best(random_), at64, best(r["none"]),
               best(r["model"]), again.get(first, float(r["model"].ratio[0])), rank_correlation(predicted, random_.ratio[good]))


def _again(final: tuning_records.Record) -> dict[Decisions, float]:
    """The middle ratio of each finalist's repeated timings."""
    found: dict[Decisions, list[float]] = {}
    for d, x in zip(final.decisions, final.ratio.tolist(), strict=True):
        found.setdefault(d, []).append(x)
    return {d: float(np.median(v)) for d, v in found.items()}


def _table(rows: list[Row]) -> str:
    head = ("task", "us", "random", "best", "rank", "default", "first", "random 64", "no model 64", "model 64")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        s = r.shares()
        cells = (r.name, f"{r.microseconds:.0f}", str(r.points), f"{r.random:.2f}x", f"{r.correlation:.2f}", f"{s[0]:.0%}", f"{s[1]:.0%}",
                 f"{s[3]:.0%}", f"{s[4]:.0%}", f"{s[5]:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    if rows:
        mid = np.median(np.array([r.shares() for r in rows]), 0)
        rank = float(np.median([r.correlation for r in rows]))
        least = min(r.shares()[5] for r in rows)
        lines += ["", f"Medians over {len(rows)} tasks, of the best of the random trials: without trials, the default reaches {mid[0]:.1%} "
                  f"and the model's first pick {mid[1]:.1%}; 64 random trials {mid[3]:.1%}; 64 of evolution without a model {mid[4]:.1%};",
                  f"64 with the shipped model {mid[5]:.1%} (least: {least:.1%}). Rank correlation of the shipped model with the random "
                  f"trials: {rank:.2f}.", "", ABOUT]
    return "\n".join(lines)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="command", required=True)
    t = sub.add_parser("tasks")
    t.add_argument("models", type=Path)
    t.add_argument("--out", type=Path, default=TASKS)
    r = sub.add_parser("random")
    r.add_argument("folder", type=Path)
    r.add_argument("--trials", type=int, default=1000)
    q = sub.add_parser("search")
    q.add_argument("folder", type=Path)
    q.add_argument("--trials", type=int, default=64)
    f = sub.add_parser("final")
    f.add_argument("folder", type=Path)
    p = sub.add_parser("report")
    p.add_argument("folder", type=Path)
    p.add_argument("--out", type=Path)
    for x in (r, q, f):
        x.add_argument("--seconds", type=float, default=1e9)
        x.add_argument("--lock", type=Path, help="file to hold while timing")
        x.add_argument("--core", type=int, help="core to time on")
    for x in (r, q, f, p):
        x.add_argument("--target", default="native")
    a = ap.parse_args()
    if a.command == "tasks":
        choose(a.models, a.out)
    elif a.command == "random":
        random_trials(a.folder / "random.jsonl", Target.parse(a.target), a.trials, a.lock, a.core, a.seconds)
    elif a.command == "search":
        searched_trials(a.folder, Target.parse(a.target), a.trials, a.lock, a.core, a.seconds)
    elif a.command == "final":
        finals(a.folder, Target.parse(a.target), a.lock, a.core)
    elif a.command == "report":
        text = report(a.folder, Target.parse(a.target))
        if (rate := a.folder / "rate.md").exists():  # by benchmarks.tuning_rate
            text += f"\n\n## Trials a second\n\n{rate.read_text().strip()}"
        print(text)
        if a.out:
            a.out.write_text(f"# How good the search is\n\n{NOTE}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

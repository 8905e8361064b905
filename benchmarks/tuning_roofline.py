"""How near the compiler's own schedules are to what the machine can do, kernel by kernel, and what a long search adds.

    python -m benchmarks.tuning_roofline search MODELS FOLDER --model squeezenet --trials 150 --tasks 4   # logs; goes on where it stopped
    python -m benchmarks.tuning_roofline report MODELS FOLDER --model squeezenet … --out benchmarks/TUNING_ROOFLINE.md

MODELS: a folder of .onnx with .npz inputs. FOLDER keeps the logs. One thread. `report` runs, by turns and in one process, the whole model
by the compiler's own schedules, the whole model by the best of the search, multiply-adds from registers, and reads from the caches: a
processor that other machines share changes its speed by a third within milliseconds, and only what took turns can be compared.

The roofline of a kernel is the time that its arithmetic needs at the peak, or its operands need from the level where they are when the
kernel runs in the model, whichever is longer. That level follows from the plan: what was last touched less than a second-level cache ago
is there, the rest comes from behind it (Mattson et al. 1970: stack distances). A kernel that streams weights is held against a loop that
does as many multiply-adds while as many lines come, too (backends/streams.py): it depends
on the machine how much of the two overlaps.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.tuning_rate import Silent
from tilewright.autotune.extract import tasks_of_lowered
from tilewright.autotune.final import Subject
from tilewright.autotune.in_model import compare, owners
from tilewright.autotune.log import Record, Steps, TuningLog, best_of, least_own
from tilewright.autotune.measure import Measurer
from tilewright.autotune.task import Task
from tilewright.autotune.tuner import Session
from tilewright.backends.peak import f32_peak, memory_bandwidth, read_bandwidth
from tilewright.backends.plan import Plan
from tilewright.backends.profile import Walk
from tilewright.backends.streams import LINE, WAYS, Stream, stream
from tilewright.backends.target import Target
from tilewright.compiler.build import make_options

SECONDS = 16.0       # of the turns
PASSES = 8           # of a turn, the last is timed: as long as it takes until the third-level cache keeps what comes again and again
PEAK_ROUNDS = 12_000  # of the peak's loop: some 0.06 ms
QUIET = 0.02         # quantile of a kernel's time that counts as undisturbed
COMPARED = 6.0       # seconds of whole calls
SHOWN = 0.015        # share of a call's time: kernels below are one line
PAGE = 4096
STREAMED = 64        # multiply-adds of vectors a line of weights: with more of them, streaming takes little beside them
ALONE = {0.0}        # lines without multiply-adds
PIECE = 2 << 20      # bytes that the loops of streams are timed with
HEAD = """# How near the compiler's own schedules are to the roofline

Written by `python -m benchmarks.tuning_roofline report`. One thread, the models whole, by turns with the ceilings. The core's other
hardware thread belongs to somebody else: *quiet* times are the 2% quantile of some hundred runs, when it idles, as for the ceilings; the
medians are what it leaves. Multiply-adds from registers suffer less from it than kernels, which load operands too, so that at the
median no schedule reaches the share that the same code reaches in quiet moments.

`roofline`: the time that arithmetic (a) or operands, from where they are in the model (b), need at least, or both at once (c), whichever
is longest. `share`: roofline over the kernel's quiet time; functions such as `exp` count one operation, and copies none. `alone`: the
default's least time in the tuner's process. `found`: trials of the search, the best schedule's gain alone, and its gain in the model
(medians of pairs of runs).

(c) counts for kernels that stream weights: they read them once, from behind the second-level cache, with few multiply-adds for each line
of 64 bytes. Such a kernel needs lines and multiply-adds at the same time, and nothing says that a core does both at their full rates. What
it does is measured by an emitted loop of as many multiply-adds and as many lines, with its accumulators in registers and its operands from
the second-level cache; there is nothing else in it, neither rows of the other operand, nor masks, nor stores. (c) is the loop's quiet time
with lines prefetched, or loaded, whichever is less, over a buffer as large as the model's weights, by turns with the model.

How much overlaps depends on how long lines take to come, and so on what the third-level cache holds, which others use, too. On one machine
and day the loop took from 117 us (all overlaps) to 226 for 2.36 MB beside 115 us of multiply-adds. A part of this is how often the same
data came before: of eight passes in a row over weights of 42 MB the first took such a product 236 us a call and the loop 213, the last 165
and 138. So loops and models make the same number of passes in each turn, and the last counts; (c) belongs to the run that it was measured
in. Where it is near max(a, b), what a product lacks to it is the product's own to gain.
"""


def subject(models: Path, name: str) -> tuple[Subject, list[np.ndarray]]:
    arrays = np.load(models / f"{name}.npz")
    data = [arrays[k] for k in arrays.files]
    return Subject(str(models / f"{name}.onnx"), data, make_options("native", 1, "f32", None, True)), data


# -- search ----------------------------------------------------------------------------------------------------------------
def search(models: Path, folder: Path, name: str, trials: int, count: int, seconds: float) -> None:
    """The `count` tasks of a model with the most arithmetic, each until its log has `trials`; a task at a time for `seconds` at most."""
    m, _ = subject(models, name)
    for task in sorted(m.tasks({}), key=lambda t: -t.work.flops * t.uses)[:count]:
        with Measurer(task.target) as pool:
            s = Session([task], TuningLog(folder / f"{name}.jsonl"), pool, Silent(), trials, seconds)
            s.run()
        print(f"{name} {task.label}: {s.used} trials, {s.stopped}, best x{s.states[task.hash].best:.3f}", flush=True)


def found_in(folder: Path, name: str, tasks: Sequence[Task]) -> dict[str, tuple[int, float, Steps, float]]:
    """task -> (trials, gain alone, steps, the default's least seconds alone)."""
    path = folder / f"{name}.jsonl"
    of: dict[str, list[Record]] = {}
    for r in TuningLog(path).records() if path.exists() else ():
        of.setdefault(r.task, []).append(r)
    out = {}
    for t in tasks:
        if good := [r for r in of.get(t.hash, ()) if r.ok]:
            best, gain = best_of(good)
            out[t.hash] = len(of[t.hash]), gain, best.schedule, least_own(good) * 1e-9
    return out


# -- where operands are -----------------------------------------------------------------------------------------------------
class Where(NamedTuple):
    """Of a call's operands: bytes in the second-level cache, bytes that are not, and those of the latter that are weights."""

    near: int
    far: int
    weights: int

    def adds_per_line(self, flops: float, target: Target) -> float | None:
        """Multiply-adds of whole vectors for each line of weights from behind the cache; None: the call streams no weights to speak of."""
        rate = flops / (target.vector_bytes // 2) / (self.weights / LINE) if self.weights else 0.0
        return round(rate, 1 if rate < 8 else None) if 0.05 < rate < STREAMED else None


def far_bytes(low_buffers: Sequence[Sequence[tuple[str, int, int, int]]], cache: int) -> list[Where]:
    """For each call of a plan where that is what it reads and writes, when calls of the plan follow each other.
    low_buffers: of each call the buffers that it touches: (memory, number, offset, bytes)."""
    last: OrderedDict[tuple[str, int, int], None] = OrderedDict()
    out: list[Where] = []
    for turn in range(2):  # the first fills the caches
        for buffers in low_buffers:
            pages = {(kind, index, p) for kind, index, at, size in buffers for p in range(at // PAGE, -(-(at + size) // PAGE))}
            recent = set()
            for n, page in enumerate(reversed(last)):
                if n * PAGE >= cache:
                    break
                recent.add(page)
            near = len(pages & recent) * PAGE
            if turn:
                weights = sum(kind == "weight" for kind, _, _ in pages - recent)
                out.append(Where(near, len(pages) * PAGE - near, weights * PAGE))
            for page in pages:
                last.pop(page, None)
                last[page] = None
    return out


def touched(plan: Plan, m: Subject, sizes: Sequence[int]) -> list[list[tuple[str, int, int, int]]]:
    """The buffers of each call. sizes: bytes of each weight as it is packed. An embedding table counts with what is read of it."""
    from tilewright.compiler.build import Assembly
    low = Assembly(m.lowered({}), m.options, keep_borders=True).low
    out = []
    for call, kernel in zip(plan.calls, low.kernels, strict=True):
        p = kernel.program
        buffers = (*p.inputs, *p.outputs) if p is not None else ()
        found = []
        for slot, b in zip(call.args, buffers, strict=False):
            size = 0 if 0 in b.shape else b.dtype.bytes * (1 + sum((n - 1) * s for n, s in zip(b.shape, b.strides, strict=True)))
            size = sizes[slot.index] if slot.kind == "weight" else size
            found.append((slot.kind, slot.index, slot.offset, min(size, call.bytes or size)))
        out.append(found)
    return out


# -- turns ------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Measured:
    """times: [round, model, call], seconds. peak: flops a second; near, far: bytes a second. lines: of each rate of multiply-adds a line
    the seconds of a line, [way, quiet or median]."""

    times: np.ndarray
    peak: float
    typical_peak: float
    near: float
    far: float
    lines: Mapping[float, np.ndarray]


def ones(size: int) -> np.ndarray:
    """`size` bytes of f32 from the start of a page on: written, for zeros would be one page of memory, again and again."""
    a = np.ones((size + PAGE) // 4, np.float32)
    start = -a.ctypes.data % PAGE // 4
    return a[start:start + size // 4]


class Streams:
    """The loops of products that stream weights, of one rate of multiply-adds a line, on the buffer `cold`. The loop goes through it
    as often as the models run in a turn, the last time is timed, so that its lines are where theirs are."""

    def __init__(self, target: Target, rate: float, cold: np.ndarray) -> None:
        self.loops: list[Stream] = [stream(target, rate, way) for way in WAYS]
        self.pieces, self.cold, self.panel = cold.nbytes // PIECE - 1, cold, ones(2 * self.loops[0].panel_bytes)
        self.times: list[list[list[float]]] = [[] for _ in WAYS]  # [way, round, piece]

    def turn(self) -> None:
        for s, times in zip(self.loops, self.times, strict=True):
            rounds = PIECE // LINE // s.lines
            for _ in range(PASSES):
                stamps = [time.perf_counter()]
                for k in range(self.pieces):
                    s.run(self.panel.ctypes.data, self.cold.ctypes.data + k * PIECE, rounds)
                    stamps.append(time.perf_counter())
            times.append([t / (rounds * s.lines) for t in np.diff(stamps)])

    def result(self) -> np.ndarray:
        """Seconds of a line, [way, quiet or median]."""
        return np.array([np.quantile(t, (QUIET, 0.5), axis=0).mean(axis=1) for t in self.times])


def by_turns(walks: Sequence[Walk], target: Target, streams: Mapping[float, Streams]) -> Measured:
    loop, rounds, peaks = f32_peak(target), [], []
    stop = time.perf_counter() + SECONDS
    begin, first = time.perf_counter_ns(), walks[0].run()
    while time.perf_counter() < stop or len(rounds) < 20:
        row = []
        for w in walks:
            loop.run(PEAK_ROUNDS // 4)
            t = time.perf_counter()
            loop.run(PEAK_ROUNDS)
            peaks.append(PEAK_ROUNDS * loop.flops / (time.perf_counter() - t))
            stamps = [w.run() for _ in range(PASSES)][-1]
            row.append(np.diff(stamps))
        for s in streams.values():
            s.turn()
        rounds.append(row)
    last = walks[0].run()
    tick = (walks[0].began - begin) * 1e-9 / (int(last[0]) - int(first[0]))
    near, far = (max(max(read_bandwidth(target, n), memory_bandwidth(n, 0.05)) for _ in range(4)) for n in (target.l2 // 4, 64 << 20))
    return Measured(np.array(rounds, np.float64) * tick, max(peaks), float(np.median(peaks)), near, far,
                    {rate: s.result() for rate, s in streams.items()})


@dataclass(frozen=True, slots=True)
class Row:
    """A task in its model; seconds of one use. found: trials, gain alone, gain in the model."""

    label: str
    uses: int
    quiet: float
    median: float
    roof: float
    bound: str
    alone: float
    found: tuple[int, float, float] | None
    single: float  # the roof without streams
    streamed: tuple[float, np.ndarray] | None  # multiply-adds a line; seconds, [way (the last: lines alone), quiet or median]

    @property
    def total(self) -> float:
        return self.uses * self.quiet


def _limits(flops: float, at: Where, m: Measured, target: Target) -> tuple[float, float, float]:
    """The least seconds of a call, by arithmetic, operands, and both together where it streams weights."""
    rate = at.adds_per_line(flops, target)
    return flops / m.peak, at.near / m.near + at.far / m.far, at.weights / LINE * float(m.lines[rate][1:, 0].min()) if rate else 0.0


def rows_of(plan: Plan, calls: Sequence[str], tasks: Mapping[str, Task], m: Measured, levels: Sequence[Where],
            found: Mapping[str, tuple[int, float, Steps, float]], target: Target) -> list[Row]:
    out, alone = [], m.lines[0.0][1:].min(axis=0)
    for h in dict.fromkeys(c for c in calls if c):
        mine = [k for k, c in enumerate(calls) if c == h]
        times = m.times[:, :, mine]
        quiet, median = np.quantile(times[:, 0], QUIET, axis=0).sum() / len(mine), np.median(times[:, 0], axis=0).sum() / len(mine)
        limits = [np.mean(x) for x in zip(*(_limits(plan.calls[k].flops, levels[k], m, target) for k in mine), strict=True)]
        rate = levels[mine[0]].adds_per_line(plan.calls[mine[0]].flops, target)
        lines = sum(levels[k].weights for k in mine) / len(mine) / LINE
        got = found.get(h)
        gain = float(np.median(times[:, 0].sum(axis=1) / times[:, 1].sum(axis=1))) if got and got[2] else 1.0
        out.append(Row(tasks[h].label, len(mine), quiet, median, float(max(limits)), "abc"[int(np.argmax(limits))],
                       got[3] if got else 0.0, (got[0], got[1], gain) if got and got[0] > 1 else None,
                       float(max(limits[:2])), (rate, lines * np.vstack([m.lines[rate], alone])) if rate else None))
    return sorted(out, key=lambda r: -r.total)


def report(models: Path, folder: Path, name: str) -> str:
    m, data = subject(models, name)
    low = m.lowered({})
    tasks = {t.hash: t for t in tasks_of_lowered(low, m.options)}
    found = found_in(folder, name, list(tasks.values()))
    chosen = {h: steps for h, (_, gain, steps, _) in found.items() if steps and gain > 1.0}
    exes = [m.build({}), m.build(chosen)]
    instances = [e.single("the report") for e in exes]
    plan, calls = instances[0].plan, owners(low, m.options)
    target, sizes = m.options.target, [a.nbytes for a in instances[0].weight_arrays]
    levels = far_bytes(touched(plan, m, sizes), target.l2)
    rates = {at.adds_per_line(c.flops, target) for c, h, at in zip(plan.calls, calls, levels, strict=True) if h}
    cold = ones(max(4 * target.l2, sum(at.weights for at in levels)) // PIECE * PIECE + PIECE)
    turns = by_turns([Walk(i, data) for i in instances], target, {r: Streams(target, r, cold) for r in ALONE | rates if r is not None})
    rows = rows_of(plan, calls, tasks, turns, levels, found, target)
    # of the schedules of the search, those that are faster in the model
    kept = {h: s for h, s in chosen.items() if _gain(turns, calls, h) > 1.005}
    whole = compare(exes[0], m.build(kept), data, COMPARED) if kept else None
    return table(name, rows, turns, whole and (len(kept), whole.gain, whole.quiet))


def _gain(m: Measured, calls: Sequence[str], h: str) -> float:
    mine = [k for k, c in enumerate(calls) if c == h]
    return float(np.median(m.times[:, 0, mine].sum(axis=1) / m.times[:, 1, mine].sum(axis=1)))


def table(name: str, rows: Sequence[Row], m: Measured, whole: tuple[int, float, float] | None) -> str:
    total, roof, median = (sum(r.uses * x for r, x in zip(rows, xs, strict=True)) * 1e3 for xs in (
        [r.quiet for r in rows], [r.roof for r in rows], [r.median for r in rows]))
    lines = [f"## {name}", "",
             f"Ceilings: {m.peak / 1e9:.0f} GFLOP/s (median {m.typical_peak / 1e9:.0f}), {m.near / 1e9:.0f} GB/s from the second-level "
             f"cache, {m.far / 1e9:.0f} GB/s from behind it.",
             f"The kernels of a call take {total:.2f} ms in quiet moments (median {median:.2f}), their rooflines {roof:.2f}: "
             f"**{roof / total:.0%}**.", "",
             "| kernel | uses | of the call | median us | quiet us | roofline us | share | alone us | found: trials, alone, in the model |",
             "|---|---|---|---|---|---|---|---|---|"]
    shown = [r for r in rows if r.total * 1e3 >= SHOWN * total]
    for r in shown:
        found = f"{r.found[0]}, x{r.found[1]:.3f}, x{r.found[2]:.3f}" if r.found else ""
        alone = f"{r.alone * 1e6:.1f}" if r.alone else ""
        lines.append(f"| {r.label} | {r.uses} | {r.total * 1e3 / total:.1%} | {r.median * 1e6:.1f} | {r.quiet * 1e6:.1f} | "
                     f"{r.roof * 1e6:.1f} {r.bound} | {r.roof / r.quiet:.0%} | {alone} | {found} |")
    if rest := [r for r in rows if r not in shown]:
        t, b, typical = (sum(r.uses * x for r, x in zip(rest, xs, strict=True)) * 1e6 for xs in (
            [r.quiet for r in rest], [r.roof for r in rest], [r.median for r in rest]))
        lines.append(f"| {len(rest)} others | {sum(r.uses for r in rest)} | {t / 1e3 / total:.1%} | {typical:.1f} | {t:.1f} | {b:.1f} | "
                     f"{b / t:.0%} | | |")
    lines += streams_table(shown)
    if whole is None:
        return "\n".join([*lines, "", "No found schedule is faster in place by more than 0.5%."])
    return "\n".join([*lines, "", f"With the {whole[0]} found schedules that are faster in place, a whole call is x{whole[1]:.3f} as fast "
                                  f"(median of pairs; x{whole[2]:.3f} in quiet moments)."])


def streams_table(rows: Sequence[Row]) -> list[str]:
    """How the loops of streams compare with the kernels that stream weights: quiet times and, in brackets, medians."""
    lines = []
    for r in rows:
        if r.streamed:
            rate, times = r.streamed
            cells = " | ".join(f"{quiet * 1e6:.1f} ({median * 1e6:.1f})" for quiet, median in times)
            lines.append(f"| {r.label} | {rate:g} | {r.single * 1e6:.1f} | {cells} | {r.quiet * 1e6:.1f} ({r.median * 1e6:.1f}) |")
    return ["", "Multiply-adds beside lines of weights, quiet (median):", "",
            "| kernel | multiply-adds a line | larger of a, b, us | multiply-adds alone, us | both, lines prefetched, us | "
            "both, lines loaded, us | lines alone, us | kernel, us |",
            "|---|---|---|---|---|---|---|---|", *lines] if lines else []


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("command", choices=("search", "report"))
    ap.add_argument("models", type=Path)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--model", action="append", required=True)
    ap.add_argument("--trials", type=int, default=150)
    ap.add_argument("--tasks", type=int, default=4)
    ap.add_argument("--seconds", type=float, default=60.0)
    ap.add_argument("--out", type=Path)
    a = ap.parse_args()
    a.folder.mkdir(exist_ok=True)
    if a.command == "search":
        for name in a.model:
            search(a.models, a.folder, name, a.trials, a.tasks, a.seconds)
        return 0
    parts = []
    for name in a.model:
        parts.append(report(a.models, a.folder, name))
        print(parts[-1], flush=True)
    if a.out:
        a.out.write_text("\n\n".join([HEAD.strip(), *parts]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

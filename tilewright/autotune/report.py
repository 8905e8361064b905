"""The outcome of tuning, as text and as a self-contained page."""
from __future__ import annotations

import math
from collections import Counter

from ..backends import html
from ..backends.profile import time_text
from ..compiler.schedule.primitives import from_json, to_text
from .log import Steps
from .roofline import cells, sentence
from .schedules import primitive
from .site import SiteTask, option_of
from .tuner import TaskState, Tuned

ROOF = ("GFLOP/s", "GB/s", "of roofline")  # by the compiler's own schedule -> by the best found
LABEL = 48   # characters of a task's label
CURVES = 7  # tasks whose curves are drawn: those that take longest


def text(t: Tuned) -> str:
    """A few lines, then a table of the tasks."""
    rows = [("task", "uses", "default", "best", "gain", "trials", "failed", "kept", *ROOF), *(_row(t, s) for s in _sorted(t))]
    widths = [max(len(r[c]) for r in rows) for c in range(len(rows[0]))]
    lines = ["  ".join(x.ljust(w) if c in (0, 7) else x.rjust(w) for c, (x, w) in enumerate(zip(r, widths, strict=True))).rstrip()
             for r in rows]
    return "\n".join([*_summary(t), "", *lines])


def _summary(t: Tuned) -> list[str]:
    now = sum(len(s.points) for s in t.states)
    before = sum(s.before for s in t.states)
    failed = sum((s.failures for s in t.states), Counter())
    out = [f"{t.name}: {t.why}"]
    if not math.isnan(t.tuned) and any(t.chosen.values()):
        out.append(f"a call takes {time_text(t.tuned)} at least, untuned {time_text(t.untuned)}")
    out.append(f"{now} trials in {t.seconds:.0f} s" + (f", {before} more in the log before" if before else "") + f"; stopped: {t.stopped}"
               + (f"; failed: {', '.join(f'{n} {k}' for k, n in failed.items())}" if failed else ""))
    kept = sum(bool(t.chosen.get(s.task.hash)) for s in t.states)
    out += sentence(t.states, t.ceiling)
    return [*out, f"{kept} of {len(t.states)} tasks keep a searched schedule, the others the compiler's own; the log is {t.log}"]


def _sorted(t: Tuned) -> list[TaskState]:
    return sorted(t.states, key=lambda s: -(s.share if s.known else 0.0))


def _row(t: Tuned, s: TaskState) -> tuple[str, ...]:
    way = f" -> {option_of(s.steps)}" if isinstance(s.task, SiteTask) and s.steps else ""
    return ((s.task.label + way)[:LABEL], str(s.task.uses), time_text(s.default) if s.known else "",
            time_text(s.seconds) if s.known else "", f"x{s.best:.2f}", str(s.before + len(s.points)), str(sum(s.failures.values()) or ""),
            "yes" if t.chosen.get(s.task.hash) else "", *cells(s, t.ceiling))


# -- the page ------------------------------------------------------------------------------------------------------------
def page(t: Tuned) -> str:
    """HTML: curves, where the time went, predicted against measured, each kernel before and after."""
    states = _sorted(t)
    body = [f"<h1>Tuning {html.text(t.name)}</h1>", *(f"<p>{html.text(x)}</p>" for x in _summary(t)), "<h2>Where the time goes</h2>",
            '<p class="dim">All uses of a kernel in one call: by the compiler\'s own schedule, and by the best one found.</p>',
            html.key(["untuned", "best found"]), html.bars(_bars(states)), "<h2>Tuning curves</h2>",
            f'<p class="dim">The best speed so far, times the default\'s, by trials of the task; the {CURVES} that take longest.</p>',
            _curves(states), "<h2>Predicted and measured</h2>", _predictions(states), "<h2>Where the trials went</h2>",
            html.bars([_trials(s) for s in states[:20] if s.points]), _failures(states), "<h2>Kernels</h2>", _kernels(t, states)]
    return html.page(f"Tuning {t.name}", body)


def _bars(states: list[TaskState]) -> list[html.Bar]:
    known = [s for s in states if s.known][:20]
    return [b for s in known for b in (
        html.Bar(s.task.label[:34], s.share * 1e6, f"{time_text(s.share)} ({s.task.uses} uses)"),
        html.Bar("", s.seconds * s.task.uses * 1e6, f"{time_text(s.seconds * s.task.uses)}, x{s.best:.2f}", 1))]


def _trials(s: TaskState) -> html.Bar:
    failed = f", {sum(s.failures.values())} failed" if s.failures else ""
    return html.Bar(s.task.label[:34], float(len(s.points)), f"{len(s.points)}{failed}", 2)


def _curves(states: list[TaskState]) -> str:
    lines = []
    for s in [s for s in states if any(p.steps for p in s.points)][:CURVES]:
        best, points = 1.0, [(0.0, 1.0)]
        for n, p in enumerate((p for p in s.points if p.steps), 1):
            best = max(best, p.speedup)
            points.append((float(n), best))
        lines.append(html.Line(s.task.label[:26], tuple(points), len(lines), False))
    return html.chart(lines, (), "trials", "times the default's speed", log=False) if lines else '<p class="dim">No trials in this run.</p>'


def _predictions(states: list[TaskState]) -> str:
    dots = [html.Dot(p.predicted, p.speedup, f"{s.task.label}: predicted {p.predicted:.2f}, measured {p.speedup:.2f}", k, 3)
            for k, s in enumerate(states) for p in s.points if p.predicted is not None and p.status == "ok"]
    if not dots:
        return '<p class="dim">Nothing was predicted in this run.</p>'
    return html.chart((), dots, "predicted speed (relative)", "measured, times the default's", log=False)


def _failures(states: list[TaskState]) -> str:
    rows = [(s.task.label, p.status, _steps_text(p.steps)[:300]) for s in states for p in s.points if p.status != "ok"][:50]
    return "<h3>Failures</h3>" + html.table([("task", "what", "schedule"), *rows], wide=(2,)) if rows else ""


def _kernels(t: Tuned, states: list[TaskState]) -> str:
    head = ("task", "uses", "default", "best", "gain", "trials", "kept", *ROOF, "schedule")
    rows = [(s.task.label, str(s.task.uses), time_text(s.default) if s.known else "", time_text(s.seconds) if s.known else "",
             f"x{s.best:.2f}", str(s.before + len(s.points)), "yes" if t.chosen.get(s.task.hash) else "no",
             *cells(s, t.ceiling), _steps_text(t.chosen.get(s.task.hash) or s.steps)) for s in states]
    return html.table([head, *rows], numbers=(1, 2, 3, 4, 5, 7, 8, 9), wide=(10,))


def _steps_text(steps: Steps) -> str:
    """"gemm: rows 14, columns 32"; the compiler's own schedule is not spelled out."""
    if not steps:
        return "the compiler's own"
    if primitive(steps):
        return to_text(from_json(steps))
    parts = []
    for step in steps:
        name, values = step if isinstance(step, list) and len(step) == 2 else (step, {})
        parts.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in values.items()) if isinstance(values, dict) else str(step))
    return "; ".join(parts)

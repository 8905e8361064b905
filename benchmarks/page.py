"""The results as one self-contained HTML page."""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends import html
from tilewright.backends.profile import time_text
from tilewright.bench.compare import OURS

from .results import Results, SuiteResult, failures, losses, machine_rows, rows, scaling

_LONGEST = 5.0  # times ours: longer bars are cut off
_AXES = {"threads": "threads", "batch": "images in a batch", "sequence": "tokens"}


def results_page(r: Results) -> str:
    body = ["<h1>Tilewright beside its peers</h1>", f'<p class="dim">{html.text(r.machine["cpu"])}, {html.text(r.machine["time"])}</p>',
            *_summary(r)]
    for s in r.suites:
        body += [f"<h2>{html.text(s.name)}</h2>", f"<p>{html.text(s.about[0].upper() + s.about[1:])}.</p>"]
        body += _scaling(s, r.engines) if s.name == "scaling" else _ratios(s, r.engines)
        body += ["<details><summary>all numbers</summary>", _numbers(s, r.engines), "</details>"]
    body += _rooflines(r)
    if failed := failures(r):
        body += ["<h2>What did not run</h2>", html.table([("engine", "why", "models"), *failed], wide=(1, 2))]
    body += ["<h2>Machine and method</h2>", html.table([("", ""), *machine_rows(r)], wide=(1,))]
    return html.page("Tilewright benchmarks", body)


def _summary(r: Results) -> list[str]:
    behind, counted = losses(r), sum(s.ratio(c) is not None for s in r.suites for c in s.comparisons)
    items = [html.Bar(f"{s.name}, {n} thread{'s' * (n > 1)}", m, f"{m:.2f}", 0) for s in r.suites for n in s.threads if (m := s.mean(n))]
    text = (f"Best peer's value divided by ours, geometric mean of each suite: right of the line we are ahead. "
            f"Of {counted} comparisons a peer is ahead in {len(behind)}.")
    worst = [("suite", "model", "threads", "best peer / ours", "ahead of us"),
             *((s.name, c.model, str(c.threads), f"{x:.2f}", p.engine if (p := c.best_peer(s.of)) else "") for s, c, x in behind)]
    out = ["<h2>In short</h2>", f"<p>{text}</p>", html.bars(items, mark=1.0)]
    return out + (["<h3>Where we lose</h3>", html.table(worst, numbers=(2, 3))] if behind else [])


def _ratios(s: SuiteResult, engines: Sequence[str]) -> list[str]:
    """For each number of threads: a group of bars for each model, each engine's value over ours, with its spread."""
    out = []
    for n in s.threads:
        items, shown = [], set[str]()
        for c in s.comparisons:
            ours = c.of(OURS)
            base = s.of(ours) if ours else 0.0
            first = True
            for t in c.timings:
                if c.threads != n or t.status != "ok" or not base or s.of(t) <= 0:
                    continue
                spread = (t.low / base, t.high / base) if s.value == "median" else None
                value = s.of(t) / base
                cut = value > _LONGEST  # one engine that is far behind should not squeeze the chart, nor one disturbed round
                if spread and (cut or spread[1] > _LONGEST):
                    spread = None if cut else (spread[0], _LONGEST)
                note = f"{s.text(s.of(t))}  ×{value:.2f}" + (" ▸" if cut else "")
                items.append(html.Bar(c.model if first else "", min(value, _LONGEST), note, engines.index(t.engine), spread))
                shown.add(t.engine)
                first = False
        if items:
            what = {"median": "Time of a call", "ready": "Time until the first result", "memory": "Memory"}[s.value]
            out += [f"<h3>{n} thread{'s' * (n > 1)}</h3>",
                    f'<p class="dim">{what}, relative to {OURS}: longer is worse (▸: longer than drawn).</p>',
                    html.key(engines, shown), html.bars(items, mark=1.0)]
    return out


def _numbers(s: SuiteResult, engines: Sequence[str]) -> str:
    """The table, the last column coloured."""
    head, *body = rows(s, engines)

    def mark(x: str) -> str:
        return x if x == "-" else f'<span class="{"good" if float(x) >= 1 else "bad"}">{x}</span>'
    last = len(head) - 1
    return html.table([head, *((*r[:-1], mark(r[-1])) for r in body)], numbers=range(1, last + 1), raw=(last,))


def _scaling(s: SuiteResult, engines: Sequence[str]) -> list[str]:
    out = []
    for axis, label in _AXES.items():
        for family, found in scaling(s, axis).items():
            if axis == "threads":
                lines = [html.Line(e, tuple((x, points[0][1] / v) for x, v in points), engines.index(e))
                         for e, points in found if len(points) > 1]
                ylabel = "times as fast as on one thread"
            else:
                lines = [html.Line(e, tuple((x, x / v) for x, v in points), engines.index(e)) for e, points in found]
                ylabel = f"{label.split(' ')[0]} a second"
            if lines:
                out += [f"<h3>{html.text(family)}, by {label}</h3>",
                        html.chart(lines, (), label, ylabel, log=axis != "threads", height=340)]
    return out


def _rooflines(r: Results) -> list[str]:
    if not r.profiles:
        return []
    groups = list(dict.fromkeys(suite for suite, _ in r.profiles))
    peak, memory = max(p.peak for p in r.profiles.values()), max(p.memory for p in r.profiles.values())
    dots = []
    for (suite, model), p in r.profiles.items():
        most = max((c.seconds for c in p.calls), default=0.0) or 1.0
        dots += [html.Dot(c.flops / c.bytes, c.gflops, f"{model}: {c.label or c.symbol}, {time_text(c.seconds)}, {c.gflops:.1f} GFLOP/s",
                          groups.index(suite), 2.5 + 6 * (c.seconds / most) ** 0.5) for c in p.calls if c.flops and c.bytes and c.seconds]
    slow = sorted(((c.seconds - max(c.flops / peak / 1e9, c.bytes / memory), m, c, p) for (_, m), p in r.profiles.items()
                   for c in p.calls), key=lambda x: -x[0])[:20]
    table = [("model", "step", "time", "of its model", "GFLOP/s", "GB/s", "could save"),
             *((m, c.label or c.symbol, time_text(c.seconds), f"{c.seconds / (p.seconds or 1):.1%}", f"{c.gflops:.1f}",
                f"{c.bandwidth / 1e9:.1f}", time_text(lost)) for lost, m, c, p in slow)]
    return ["<h2>Roofline</h2>", "<p>Each dot is a kernel on one thread; its area is its share of its model's time. "
            "The slope is main memory's: what lies in caches may stand above it.</p>", html.key(groups), html.roofline(peak, memory, dots),
            "<h3>Where time can be won</h3>", '<p class="dim">Kernels that are farthest from their roof, by the time between.</p>',
            html.table(table, numbers=(2, 3, 4, 5, 6), wide=(1,))]

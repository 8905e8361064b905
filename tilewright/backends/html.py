"""Self-contained pages: a style for light and dark, tables, and charts as inline SVG. No scripts, nothing from elsewhere.

Charts take their colours from the page's variables: --s0, --s1, … for series in order, which stay the same for an engine
throughout a page. Every mark has a <title>, which browsers show when the pointer rests on it.
"""
from __future__ import annotations

import html
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

SERIES = 8
_STYLE = """
:root{color-scheme:light dark;--bg:#fdfdfc;--fg:#1d2126;--dim:#636b74;--line:#dfe2e5;--card:#f4f5f5;--good:#12805c;
--bad:#b3371f;--s0:#0b6bcb;--s1:#d9730d;--s2:#7a4cc2;--s3:#17807a;--s4:#b8326e;--s5:#8a6d00;--s6:#4b5d73;--s7:#5d8a1f}
@media (prefers-color-scheme:dark){:root{--bg:#15181b;--fg:#e4e7ea;--dim:#98a1aa;--line:#32383e;--card:#1e2226;
--good:#4cc38a;--bad:#ff8a70;--s0:#5aa9f7;--s1:#f5a04c;--s2:#b79af0;--s3:#4fc4bb;--s4:#f07cab;--s5:#d9b93b;--s6:#9fb0c3;--s7:#9fcf5b}}
*{box-sizing:border-box}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:76rem;padding:1.5rem}
h1{font-size:1.7rem;margin:.2em 0}h2{font-size:1.2rem;margin:2em 0 .5em}h3{font-size:1rem;margin:1.4em 0 .4em}p{max-width:60rem}
.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.22em .75em;text-align:left;border-bottom:1px solid var(--line);vertical-align:top;white-space:nowrap}
th{color:var(--dim);font-weight:600}td.n,th.n{text-align:right}td.w{white-space:normal;overflow-wrap:anywhere;min-width:14rem}
pre{background:var(--card);padding:.8em 1em;overflow:auto;border-radius:6px;font-size:13px}
svg{display:block;max-width:100%;height:auto}svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg .dim{fill:var(--dim)}
svg .grid{stroke:var(--line);fill:none}svg .edge{stroke:var(--dim);fill:none;stroke-width:1.2}
.flow td{padding-top:0;padding-bottom:0;height:26px;vertical-align:middle}
.flow td:first-child{padding:0;line-height:0}.flow svg{max-width:none}.flow td,.flow th{border-bottom:0}
.flow tr:hover td{background:var(--card)}
.key{display:flex;flex-wrap:wrap;gap:.3em 1.2em;margin:.3em 0;font-size:13px}
.key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}
.bar{display:inline-block;height:.7em;background:var(--s0);border-radius:2px;vertical-align:middle}
""" + "".join(f".s{k}{{fill:var(--s{k})}}.l{k}{{stroke:var(--s{k});fill:none;stroke-width:2}}" for k in range(SERIES))


def page(title: str, body: Sequence[str]) -> str:
    """A whole document."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n")


def text(s: object) -> str:
    return html.escape(str(s))


def table(rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), wide: Sequence[int] = (), raw: Sequence[int] = ()) -> str:
    """The first row is the heading. numbers: columns set flush right; wide: columns whose text may wrap; raw: columns that
    are HTML already."""
    def cell(tag: str, k: int, x: str) -> str:
        kind = ' class="n"' if k in numbers else ' class="w"' if k in wide else ""
        return f"<{tag}{kind}>{x if k in raw and tag == 'td' else text(x)}</{tag}>"
    lines = ["<tr>" + "".join(cell("td" if r else "th", k, x) for k, x in enumerate(row)) + "</tr>" for r, row in enumerate(rows)]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def key(names: Sequence[str], shown: Collection[str] | None = None) -> str:
    """The legend of series 0, 1, …, or of those that are `shown`."""
    items = "".join(f'<span><i style="background:var(--s{k % SERIES})"></i>{text(n)}</span>' for k, n in enumerate(names)
                    if shown is None or n in shown)
    return f'<div class="key">{items}</div>'


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of `bars`: a label, its length, the text beside it; `whisker`: ends of its spread."""

    label: str
    value: float
    note: str
    series: int = 0
    whisker: tuple[float, float] | None = None


def bars(items: Sequence[Bar], mark: float | None = None, width: int = 860, label: int = 210) -> str:
    """Horizontal bars from 0; `mark`: a vertical line at this value. A bar with a label begins a group."""
    if not items:
        return ""
    room, note, row = width - label - 120, 8, 19
    most = max([b.value for b in items] + [b.whisker[1] for b in items if b.whisker] + ([mark] if mark else [])) or 1.0
    out, y = [], 18.0

    def x(v: float) -> float:
        return label + room * v / most
    for k, b in enumerate(items):
        y += 7 if k and b.label else 0
        if b.label:
            out.append(f'<text x="{label - 8}" y="{y + 12:.1f}" text-anchor="end">{text(b.label)}</text>')
        out.append(f'<rect class="s{b.series % SERIES}" x="{label}" y="{y:.1f}" width="{max(1.0, room * b.value / most):.1f}" '
                   f'height="{row - 5}" rx="2"><title>{text(b.label)} {text(b.note)}</title></rect>')
        end = x(b.value)
        if b.whisker:
            low, high = (x(v) for v in b.whisker)
            out.append(f'<path class="edge" d="M{low:.1f} {y + 7:.1f}H{high:.1f}M{low:.1f} {y + 4:.1f}v6M{high:.1f} {y + 4:.1f}v6"/>')
            end = max(end, high)
        out.append(f'<text x="{end + note:.1f}" y="{y + 12:.1f}" class="dim">{text(b.note)}</text>')
        y += row
    line = ""
    if mark:
        line = (f'<path class="edge" stroke-dasharray="4 3" d="M{x(mark):.1f} 14V{y:.0f}"/>'
                f'<text class="dim" x="{x(mark):.1f}" y="10" text-anchor="middle">{mark:g}</text>')
    return f'<svg viewBox="0 0 {width} {y + 6:.0f}" width="{width}" role="img">{"".join(out)}{line}</svg>'


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    note: str
    series: int = 0
    radius: float = 4.0


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: tuple[tuple[float, float], ...]
    series: int = 0
    marks: bool = True


def chart(lines: Sequence[Line], dots: Sequence[Dot], xlabel: str, ylabel: str, log: bool = True, width: int = 860,
          height: int = 420) -> str:
    """Lines (with their names at their ends) and dots; both axes logarithmic, or both linear from 0."""
    points = [p for line in lines for p in line.points] + [(d.x, d.y) for d in dots]
    if log:
        points = [p for p in points if p[0] > 0 and p[1] > 0]
    if not points:
        return ""
    left, right, top, bottom = 62, 110, 14, 44
    xs = _Axis([p[0] for p in points], log, left, width - right)
    ys = _Axis([p[1] for p in points], log, height - bottom, top)
    foot = height - bottom
    out = [f'<path class="grid" d="M{xs.at(t):.1f} {top}V{foot}"/>{_label(xs.at(t), foot + 17, _tick(t))}' for t in xs.ticks]
    out += [f'<path class="grid" d="M{left} {ys.at(t):.1f}H{width - right}"/>{_label(left - 7, ys.at(t) + 4, _tick(t), "end")}'
            for t in ys.ticks]
    out.append(_label((left + width - right) / 2, height - 6, xlabel))
    out.append(f'<g transform="rotate(-90 14 {height / 2:.0f})">{_label(14, height / 2, ylabel)}</g>')
    taken: list[float] = []
    for line in sorted(lines, key=lambda n: -n.points[-1][1]):
        at = [(xs.at(a), ys.at(b)) for a, b in line.points if not log or (a > 0 and b > 0)]
        colour, name = line.series % SERIES, text(line.name)
        out.append(f'<path class="l{colour}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in at)}"><title>{name}</title></path>')
        end = at[-1][1] + 4
        while any(abs(end - t) < 13 for t in taken):
            end += 1
        if name:
            taken.append(end)
            out.append(f'<text style="fill:var(--s{colour})" x="{at[-1][0] + 6:.1f}" y="{end:.1f}">{name}</text>')
        if line.marks:
            out += [f'<circle class="s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{name}: {a:g}, {b:.4g}</title></circle>'
                    for (x, y), (a, b) in zip(at, line.points, strict=True)]
    out += [f'<circle class="s{d.series % SERIES}" fill-opacity=".7" cx="{xs.at(d.x):.1f}" cy="{ys.at(d.y):.1f}" r="{d.radius:.1f}">'
            f"<title>{text(d.note)}</title></circle>" for d in dots if not log or (d.x > 0 and d.y > 0)]
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(out)}</svg>'


def _label(x: float, y: float, s: str, anchor: str = "middle") -> str:
    return f'<text class="dim" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(s)}</text>'


class _Axis:
    """From values to positions between `start` and `end`, and where its ticks are."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float) -> None:
        self._log, self._start, self._end = log, start, end
        if log:
            self._low, self._high = math.log10(min(values)) - 0.08, math.log10(max(values)) + 0.08
            first, last = math.floor(self._low), math.ceil(self._high)
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            found = [m * 10.0**e for e in range(first, last + 1) for m in steps]
            self.ticks = [t for t in found if self._low <= math.log10(t) <= self._high]
        else:
            self._low, self._high = 0.0, max(values) * 1.05 or 1.0
            step = _nice(self._high / 6)
            self.ticks = [step * k for k in range(int(self._high / step) + 1)]

    def at(self, v: float) -> float:
        p = ((math.log10(v) if self._log else v) - self._low) / (self._high - self._low)
        return self._start + (self._end - self._start) * p


def _nice(step: float) -> float:
    """1, 2 or 5 times a power of ten, `step` or a little more."""
    base = 10.0 ** math.floor(math.log10(step))
    return next(m * base for m in (1, 2, 5, 10) if m * base >= step * 0.999)


def _tick(v: float) -> str:
    return f"{v:g}" if 0.001 <= abs(v) < 1e5 or v == 0 else f"{v:.0e}"


def roofline(peak: float, memory: float, dots: Sequence[Dot]) -> str:
    """Operations a byte against GFLOP/s under the two roofs: `peak` in GFLOP/s, `memory` in bytes a second."""
    ridge = peak * 1e9 / memory
    xs = [d.x for d in dots if d.x > 0] or [ridge]
    low, high = min(*xs, ridge / 8), max(*xs, ridge * 8)
    roof = (Line("core's peak", ((ridge, peak), (high * 1.3, peak)), 6, False),
            Line("", ((low, low * memory / 1e9), (ridge, peak)), 6, False))
    return chart(roof, dots, "operations a byte (inputs and outputs moved once)", "GFLOP/s")


def flow(reads: Sequence[Sequence[int]], row: int = 26, most_lanes: int = 24) -> tuple[list[str], int]:
    """For a list of steps, one piece of SVG a row, and its width: a dot for the step, and lanes that carry results from the
    step that made them to those that read them, as histories of versions are drawn. Results for the next step alone go
    straight down."""
    last = {}
    for k, sources in enumerate(reads):
        for s in sources:
            last[s] = k
    lanes: list[int | None] = []  # the step whose result a lane carries
    drawn: list[str] = []
    widest = 0
    mid = row / 2
    for k, sources in enumerate(reads):
        parts = []
        for j, owner in enumerate(lanes):
            if owner is None or j >= most_lanes:
                continue
            x = 22 + 9 * j
            end = last[owner] == k
            if owner in sources:
                parts.append(f'<path class="edge" d="M{x} 0Q{x} {mid} 10 {mid}"/>')
            if not end:
                parts.append(f'<path class="edge" d="M{x} 0V{row}"/>')
            else:
                lanes[j] = None
            widest = max(widest, j)
        if k and (k - 1) in sources:
            parts.append(f'<path class="edge" d="M10 0V{mid}"/>')
        if k in last:
            if k + 1 < len(reads) and k in reads[k + 1]:
                parts.append(f'<path class="edge" d="M10 {mid}V{row}"/>')
            if last[k] > k + 1:
                j = next((i for i, o in enumerate(lanes) if o is None), len(lanes))
                lanes[j:j + 1] = [k]
                if j < most_lanes:
                    parts.append(f'<path class="edge" d="M10 {mid}Q{22 + 9 * j} {mid} {22 + 9 * j} {row}"/>')
                    widest = max(widest, j)
        drawn.append("".join(parts) + f'<circle class="s0" cx="10" cy="{mid}" r="4"/>')
    width = 34 + 9 * min(widest, most_lanes)
    return [f'<svg viewBox="0 0 {width} {row}" width="{width}" height="{row}">{d}</svg>' for d in drawn], width

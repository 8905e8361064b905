"""What `Executable.explain` shows."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from . import html
from .arguments import Spec
from .instance import Instance
from .plan import KernelCall, Plan, Slot
from .profile import Profile, bytes_text, time_text
from .target import Target


class Report(str):
    """Text, with a page of the same content."""

    __slots__ = ("_page",)
    _page: str

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a self-contained page: the fused graph, and after `profile` the time and the roofline of its steps."""
        Path(path).write_text(self._page, encoding="utf-8")


def explain(name: str, inputs: Sequence[Spec], outputs: Sequence[Spec], target: Target, instances: Sequence[Instance]) -> Report:
    head = [f"{name} for {target} ({target.arch}, {target.cpu}, {target.vector_bytes}-byte vectors)",
            f"  inputs   {', '.join(map(repr, inputs)) or 'none'}", f"  outputs  {', '.join(map(repr, outputs)) or 'none'}"]
    if not instances:
        head.append("  nothing is compiled yet: the first call with concrete shapes compiles")
    lines, body = list(head), [f"<h1>{html.text(name)}</h1>", _pre(head)]
    for k, i in enumerate(instances):
        summary, table, number = _summary(i, k if len(instances) > 1 else None), _rows(i), len(instances) > 1
        widths = [max(len(r[c]) for r in table) for c in range(len(table[0]))]
        lines += ["", *summary, "", *("  " + "  ".join(x.ljust(w) for x, w in zip(r, widths, strict=True)).rstrip() for r in table)]
        lines += ["", str(i.profiled)] if i.profiled else []
        lines += ["", *i.notes] if i.notes else []
        body += [f"<h2>Part {k}</h2>" if number else "", _pre(summary), *(_measured(i.profiled) if i.profiled else ()), _steps(i, table)]
        body += ["<h3>Decisions</h3>", _pre(i.notes)] if i.notes else []
    report = Report("\n".join(lines))
    report._page = html.page(name, body)
    return report


def _pre(lines: Sequence[str]) -> str:
    return f"<pre>{html.text(chr(10).join(lines))}</pre>"


def _measured(p: Profile) -> list[str]:
    """The profile's totals and roofline."""
    most = max((c.seconds for c in p.calls), default=0.0) or 1.0
    dots = [html.Dot(c.flops / c.bytes, c.gflops, f"{c.label or c.symbol}: {time_text(c.seconds)}, {c.gflops:.1f} GFLOP/s, "
                     f"{p.share(c):.0%} of peak", 0, 3 + 9 * (c.seconds / most) ** 0.5)
            for c in p.calls if c.flops and c.bytes and c.seconds]
    return ["<h3>Roofline</h3>", f"<p>{html.text(p.summary())}. Each dot is a step; its area is its share of the time.</p>",
            html.roofline(p.peak, p.memory, dots) if dots else ""]


def _steps(i: Instance, rows: Sequence[tuple[str, ...]]) -> str:
    """The fused graph as a table: whose results a step reads, what it is and, once measured, how long it takes."""
    calls, p = i.plan.calls, i.profiled
    if p and p.rows == 1:  # it is of other calls than these, which are for a block
        p = None
    pieces, _ = html.flow([c.reads for c in calls])
    head = ["", "#", "step", *(("time", "of the whole", "GFLOP/s", "of peak", "bytes") if p else ("operations", "bytes")), *rows[0][2:]]
    most = max((c.seconds for c in p.calls), default=0.0) if p else 0.0
    table: list[list[str]] = [head]
    for k, (c, r) in enumerate(zip(calls, rows[1:], strict=True)):
        flops = c.flops
        if p:
            m = p.calls[k]
            share = f'<span class="bar" style="width:{90 * m.seconds / (most or 1):.1f}px"></span> {m.seconds / (p.seconds or 1):.1%}'
            facts = [time_text(m.seconds), share, *((f"{m.gflops:.1f}", f"{p.share(m):.0%}") if flops else ("", "")), bytes_text(c.bytes)]
        else:
            facts = [f"{flops / 1e6:.3g} M" if flops else "", bytes_text(c.bytes)]
        table.append([pieces[k], r[0], r[1], *facts, *r[2:]])
    numbers = (1, 3, 5, 6, 7, 9, 10) if p else (1, 3, 4, 6, 7)
    return ('<h3>Steps</h3><p class="dim">In the order they run. The lines on the left lead from each step to those that read its result.'
            '</p><div class="flow">' + html.table(table, numbers, (), (0, 4) if p else (0,)) + "</div>")


def _summary(i: Instance, number: int | None) -> list[str]:
    p = i.plan
    shapes = ", ".join(f"{n}: {t}" for n, t in p.inputs)
    title = "" if number is None else f"part {number}: "
    return [f"{title}compiled for ({shapes})",
            f"  calls    {len(p.calls)} kernels ({len(p.symbols)} distinct)",
            f"  memory   weights {bytes_text(sum(t.bytes for _, t in p.weights))} in {len(p.weights)} arrays, "
            f"arena {bytes_text(p.arena_bytes)}, code {bytes_text(i.image.blobs['text'].size)}",
            f"  threads  {_threads(p)}"]


def _threads(p: Plan) -> str:
    if p.threads == 1:
        return "1, the caller's"
    divided = sum(c.team > 1 for c in p.calls)
    return f"up to {p.threads}: {divided} of {len(p.calls)} calls are divided, the threads meet {p.meetings} times"


def _rows(i: Instance) -> list[tuple[str, ...]]:
    """A heading and one row for each call: what it is, its code, where it reads and writes."""
    def show(s: Slot) -> str:
        if s.kind == "arena":
            return f"arena+{s.offset}{f'{s.step:+}t' if s.step else ''}"
        names = {"input": i.plan.inputs, "output": i.plan.outputs, "weight": i.plan.weights}[s.kind]
        return names[s.index][0] + (f"+{s.offset}" if s.offset else "") + (f"{s.step:+}t" if s.step else "")
    times = i.plan.times

    def row(k: int, c: KernelCall) -> tuple[str, ...]:
        trips = str(c.trips) if times[k] == 1 else f"{times[k]} x {c.trips}"
        size = i.image.symbols[c.symbol].size if c.symbol in i.image.symbols else 0
        return str(k), c.label or c.symbol, c.symbol, trips, bytes_text(size) if size else "", " ".join(map(show, c.args))
    return [("#", "step", "code", "trips", "size", "buffers"), *(row(k, c) for k, c in enumerate(i.plan.calls))]

"""What `Executable.explain` shows."""
from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

from .arguments import Spec
from .instance import Instance
from .plan import Call, KernelCall, Slot
from .target import Target

_STYLE = ("body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em}table{border-collapse:collapse}"
          "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}td.n{text-align:right}"
          "pre{background:#f6f6f6;padding:1em;overflow:auto}")


class Report(str):
    """Text, with a page of the same content."""

    __slots__ = ("_page",)
    _page: str

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a self-contained page."""
        Path(path).write_text(self._page, encoding="utf-8")


def explain(name: str, inputs: Sequence[Spec], outputs: Sequence[Spec], target: Target, instances: Sequence[Instance]) -> Report:
    head = [f"{name} for {target} ({target.arch}, {target.cpu}, {target.vector_bytes}-byte vectors)",
            f"  inputs   {', '.join(map(repr, inputs)) or 'none'}", f"  outputs  {', '.join(map(repr, outputs)) or 'none'}"]
    if not instances:
        head.append("  nothing is compiled yet: the first call with concrete shapes compiles")
    text, page = list(head), [f"<h1>{html.escape(name)}</h1>", f"<pre>{html.escape(chr(10).join(head))}</pre>"]
    for k, i in enumerate(instances):
        lines, table = _summary(i, k if len(instances) > 1 else None), _rows(i)
        widths = [max(len(r[c]) for r in table) for c in range(len(table[0]))]
        text += ["", *lines, "", *("  " + "  ".join(x.ljust(w) for x, w in zip(r, widths, strict=True)).rstrip() for r in table)]
        text += ["", *i.notes] if i.notes else []
        page += [f"<pre>{html.escape(chr(10).join(lines))}</pre>", _table(table)]
        page += [f"<pre>{html.escape(chr(10).join(i.notes))}</pre>"] if i.notes else []
    report = Report("\n".join(text))
    report._page = (f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(name)}</title><style>{_STYLE}</style>"
                    + "\n".join(page) + "</html>\n")
    return report


def _summary(i: Instance, number: int | None) -> list[str]:
    p = i.plan
    kernels = sum(isinstance(c, KernelCall) for c in p.calls)
    shapes = ", ".join(f"{n}: {t}" for n, t in p.inputs)
    title = "" if number is None else f"part {number}: "
    return [f"{title}compiled for ({shapes})",
            f"  calls    {kernels} kernels ({len(p.symbols)} distinct), {len(p.host_calls)} host functions",
            f"  memory   weights {_bytes(sum(t.bytes for _, t in p.weights))} in {len(p.weights)} arrays, arena {_bytes(p.arena_bytes)}, "
            f"code {_bytes(i.image.blobs['text'].size)}"]


def _rows(i: Instance) -> list[tuple[str, ...]]:
    """A heading and one row for each call: what it is, its code, where it reads and writes."""
    def show(s: Slot) -> str:
        if s.kind == "arena":
            return f"arena+{s.offset}"
        names = {"input": i.plan.inputs, "output": i.plan.outputs, "weight": i.plan.weights}[s.kind]
        return names[s.index][0] + (f"+{s.offset}" if s.offset else "")

    def row(k: int, c: Call) -> tuple[str, ...]:
        what, trips = (c.symbol, str(c.trips)) if isinstance(c, KernelCall) else (f"host {c.op}", "")
        size = i.image.symbols[c.symbol].size if isinstance(c, KernelCall) and c.symbol in i.image.symbols else 0
        return str(k), c.label or what, what, trips, _bytes(size) if size else "", " ".join(map(show, c.args))
    return [("#", "step", "code", "trips", "size", "buffers"), *(row(k, c) for k, c in enumerate(i.plan.calls))]


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = ["".join(f"<{'td' if k else 'th'}>{html.escape(x)}</{'td' if k else 'th'}>" for x in r) for k, r in enumerate(rows)]
    return "<table><tr>" + "</tr>\n<tr>".join([head, *body]) + "</tr></table>"


def _bytes(n: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n} B"

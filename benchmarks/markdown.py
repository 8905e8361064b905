"""RESULTS.md: the record of performance in the repository."""
from __future__ import annotations

from collections.abc import Sequence

from .results import Results, failures, losses, machine_rows, rows
from .suites import suites

_INTRO = """# Measurements

Written by `python -m benchmarks --write-results`; do not edit. Every engine runs in a process of its own; its outputs are compared
with the reference engine's before its times count; engines take turns in short bursts. The tables show medians, ± half the distance
from the 10th to the 90th percentile. The last column is the best peer's value divided by ours: above 1 we are ahead.
"""


def results_md(r: Results) -> str:
    out = [_INTRO, "## On what\n", _table([("", ""), *machine_rows(r)])]
    busy = r.machine["load"]
    if isinstance(busy, list) and busy and busy[0] > 0.5:
        out.append(f"\n**The machine was not quiet** (load {busy[0]} before the run): take these numbers as a sketch.")
    out += ["\n## In short\n", _table([("suite", "threads", "best peer / ours, geometric mean", "cases"),
            *((s.name, str(n), f"{m:.2f}" if (m := s.mean(n)) else "-", str(sum(c.threads == n for c in s.comparisons)))
              for s in r.suites for n in s.threads)])]
    if left := _left_out(r):
        out += ["\nNot measured in this run, so nothing is claimed about them:\n", *left]
    behind = losses(r)
    out.append("\n## Where we lose\n")
    out.append(_table([("suite", "model", "threads", "best peer / ours", "ahead of us"),
                       *((s.name, c.model, str(c.threads), f"{x:.2f}", p.engine if (p := c.best_peer(s.of)) else "")
                         for s, c, x in behind)]) if behind else "Nowhere among the cases of this run.")
    for s in r.suites:
        out += [f"\n## {s.name}\n", f"{s.about[0].upper()}{s.about[1:]}.\n", _table(rows(s, r.engines), right=1)]
    if failed := failures(r):
        out += ["\n## What did not run\n", _table([("engine", "why", "models"), *failed])]
    return "\n".join(out) + "\n"


def _left_out(r: Results) -> list[str]:
    """A line for each suite of which the run left out all or some models."""
    done = {s.name: {c.model for c in s.comparisons} for s in r.suites}
    out = []
    for s in suites(1).values():
        missing = [m for m in dict.fromkeys(c.model for c in s.cases) if m not in done.get(s.name, ())]
        if missing:
            out.append(f"- {s.name}: {', '.join(missing) if s.name in done else 'the whole suite'}")
    return out


def _table(lines: Sequence[Sequence[str]], right: int = 99) -> str:
    """A Markdown table; columns from `right` on are set flush right."""
    head, *body = [[c.replace("|", "\\|") for c in r] for r in lines]
    rule = ["---:" if k >= right else "---" for k in range(len(head))]
    return "\n".join("| " + " | ".join(r) + " |" for r in (head, rule, *body))

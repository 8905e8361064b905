"""What a tuner shows while it runs: a live table on a terminal, a line now and then elsewhere."""
from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ..backends.profile import time_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from .tuner import Session, TaskState, Watcher

UNLIMITED = 10**8    # trials: more are no budget
LINE_SECONDS = 5.0   # between lines where there is no terminal
SHOWN = 16           # tasks in the live table: those that take longest


def default_view() -> Watcher:
    return LiveView() if sys.stderr.isatty() else PlainView()


def summary(s: Session) -> str:
    """One line: "81 of 200 trials, 3 failed, kernels 1.31 ms -> 1.12 ms (x1.17), expected gain 2.0%, 12 s, about 20 s left"."""
    failed = sum(sum(x.failures.values()) for x in s.states.values())
    parts = [f"{s.used} of {s.trials} trials" if s.trials < UNLIMITED else f"{s.used} trials", f"{failed} failed"]
    if s.default_seconds:
        parts.append(f"kernels {time_text(s.default_seconds)} -> {time_text(s.tuned_seconds)} (x{s.default_seconds / s.tuned_seconds:.2f})")
        gain = s.scheduler.expected_gain()
        parts += [f"expected gain {gain / s.default_seconds:.1%}"] if gain < s.default_seconds else []
    return ", ".join([*parts, f"{s.elapsed:.0f} s", *((f"about {left:.0f} s left",) if (left := _left(s)) is not None else ())])


def _left(s: Session) -> float | None:
    """Seconds until the budget is used, by the rate so far."""
    tried = sum(len(x.points) for x in s.states.values())
    by_trials = (s.trials - s.used) * s.elapsed / tried if tried and s.trials < UNLIMITED else None
    by_time = max(0.0, s.seconds - s.elapsed) if s.seconds is not None else None
    known = [x for x in (by_trials, by_time) if x is not None]
    return min(known) if known else None


class PlainView:
    """Lines on stderr."""

    def __init__(self, every: float = LINE_SECONDS) -> None:
        self._every, self._last = every, 0.0

    def start(self, session: Session) -> None:
        before = sum(s.before for s in session.states.values())
        self.say(f"{len(session.states)} tasks" + (f", {before} trials in the log already" if before else ""))
        self._last = time.monotonic()

    def tick(self, session: Session) -> None:
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self.say(summary(session))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def stop(self, session: Session) -> None:
        self.say(f"{summary(session)}; stopped: {session.stopped}")


class LiveView:
    """A table of the tasks that take longest, kept up to date."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def start(self, session: Session) -> None:
        from rich.console import Console
        from rich.live import Live
        self._live = Live(self._table(session), console=Console(stderr=True), refresh_per_second=4, transient=True)
        self._live.start()

    def tick(self, session: Session) -> None:
        if self._live is not None:
            self._live.update(self._table(session))

    def say(self, text: str) -> None:
        from rich.console import Console
        Console(stderr=True, highlight=False).print(text, markup=False)

    def stop(self, session: Session) -> None:
        if self._live is not None:
            self._live.update(self._table(session))
            self._live.stop()
            self._live = None
        self.say(f"{summary(session)}; stopped: {session.stopped}")

    def _table(self, session: Session) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        out = Table(box=None, pad_edge=False)
        for name in ("task", "uses", "share", "default", "best", "gain", "trials", "failed"):
            out.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
        total = session.default_seconds or 1.0
        for s in sorted(session.states.values(), key=lambda s: -(s.share if s.known else 0.0))[:SHOWN]:
            out.add_row(*_row(s, total), style="dim" if s.done else "")
        return Group(out, summary(session))


def _row(s: TaskState, total: float) -> tuple[str, ...]:
    known = s.known
    return (s.task.label[:40], str(s.task.uses), f"{s.share / total:.0%}" if known else "", time_text(s.default) if known else "",
            time_text(s.seconds) if known else "", f"x{s.best:.2f}", str(s.before + len(s.points)), str(sum(s.failures.values()) or ""))

"""The outcome of tuning as text."""
from __future__ import annotations

from .tuner import Tuned


def text(t: Tuned) -> str:
    return f"{t.name}: {t.why}; {t.stopped}; {t.seconds:.0f} s"

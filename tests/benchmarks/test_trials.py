"""What timing asks of the system is asked politely: a system that has no such thing is no reason to fail."""
from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import trials


@pytest.mark.parametrize(("text", "nice"), [
    ("/autogroup-12 nice 0\n", 0), ("/autogroup-12 nice -7\n", -7), ("", 0), ("/autogroup-12\n", 0), (None, 0),
], ids=["plain", "negative", "empty", "nameless", "missing"])
def test_the_group_of_a_session_may_be_anything(text: str | None, nice: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group = tmp_path / "autogroup"
    if text is not None:
        group.write_text(text)
    monkeypatch.setattr(trials, "GROUP", group)
    assert trials._group_nice() == nice
    trials._prefer(trials.os.getpriority(trials.os.PRIO_PROCESS, 0), nice)
    assert group.exists() == (text is not None) and (text is None or group.read_text() == text)

"""The soak of benchmarks/soak.py in a process of its own: seconds here, the whole of it with TILEWRIGHT_LONG=1; and that it
sees what it is for."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import ALLOWED, MIB, Failed, State, grown, in_child
from tests.machines import LONG

SECONDS, CYCLES = (60, 1000) if LONG else (1, 24)


def test_right_answers_and_nothing_left_behind() -> None:
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "benchmarks.soak", "--seconds", str(SECONDS), "--cycles", str(CYCLES)],
                          cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert f"calls from {soak.CALLERS} threads" in done.stdout and f"{CYCLES} executables compiled, called and dropped" in done.stdout


def test_growth_is_seen() -> None:
    before = State(100 * MIB, 5000, 300, 3, 6, 0)
    assert grown(before, before, ALLOWED) == []
    assert grown(before, State(102 * MIB, 5000, 300, 4, 6, 1), ALLOWED) == [
        "memory grew from 104,857,600 to 106,954,752", "threads grew from 3 to 4", "children grew from 0 to 1"]


def test_bad_children_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    in_child(lambda: True)
    with pytest.raises(Failed, match="computed something else"):
        in_child(lambda: False)
    with pytest.raises(Failed, match="ended with 2"):
        in_child(lambda: bool(1 // 0))
    monkeypatch.setattr(soak, "CHILD_SECONDS", 0.05)
    with pytest.raises(Failed, match="did not end"):
        in_child(lambda: bool(__import__("time").sleep(5)))

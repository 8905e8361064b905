"""The report of a tuning run: its text, and its page in a browser."""
from __future__ import annotations

from pathlib import Path

import tilewright as tw
from tests.autotune.programs import mlp
from tests.benchmarks.test_results import browser, check_in_browser
from tilewright.autotune.choice import make_search
from tilewright.autotune.extract import extract
from tilewright.autotune.roofline import Ceiling
from tilewright.autotune.schedules import space_of
from tilewright.autotune.tuner import Point, TaskState, Tuned

__all__ = ["browser"]


def outcome(tmp_path: Path) -> Tuned:
    """As if a model had been tuned: one task faster by 1.5, one with failures, one untouched."""
    model = mlp(tmp_path / "m.onnx")
    tasks = extract(model, threads=1)
    states = [TaskState(t, make_search(t, 0), default=1e-6 * (k + 1)) for k, t in enumerate(tasks)]
    steps = space_of(tasks[0]).to_json(space_of(tasks[0]).default())
    for n, (speed, status) in enumerate([(0.8, "ok"), (1.2, "ok"), (0.0, "crash"), (1.5, "ok"), (0.9, "ok")]):
        states[0].points.append(Point(steps, status, speed, 0.1 * n + 0.7, float(n)))  # type: ignore[arg-type]
        states[1].points.append(Point([["x", {"a": 1}]], "wrong_result", 0.0, None, float(n)))
    states[0].best, states[0].steps, states[2].before = 1.5, steps, 7  # type: ignore[assignment]
    return Tuned("mlp", tw.compile(model, threads=1), states, {tasks[0].hash: steps}, tmp_path / "l.jsonl", 6e-6, 5e-6,  # type: ignore[dict-item]
                 "tuned is x1.200 faster end to end", "trials", 3.0, 1.2, Ceiling(100e9, 50e9, 10e9, 1 << 20))


def test_text(tmp_path: Path) -> None:
    shown = str(outcome(tmp_path))
    assert "x1.200" in shown
    assert "a call takes 5.00 us at least, untuned 6.00 us" in shown
    assert "10 trials in 3 s, 7 more in the log before; stopped: trials; failed: 1 crash, 5 wrong_result" in shown
    assert "1 of 3 tasks keep a searched schedule" in shown


def test_kernels_beside_the_roofline(tmp_path: Path) -> None:
    t = outcome(tmp_path)
    shown = str(t)
    assert "the machine does 100 GFLOP/s of f32, 50 GB/s from the second-level cache, 10 GB/s from memory" in shown
    work, seconds = t.states[0].task.work, t.states[0].default
    assert f"{work.flops / seconds / 1e9:.1f} -> {1.5 * work.flops / seconds / 1e9:.1f}" in shown
    limit = max(work.flops / 100e9, work.bytes / 50e9)  # 2*9*40*48 operations, 12 kB: within the cache
    assert f"{limit / seconds:.0%} -> {1.5 * limit / seconds:.0%}" in shown
    assert "where x1.05 or less was gained" in shown and "where more was gained" in shown


def test_page_in_a_browser(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "tuned.html"
    outcome(tmp_path).to_html(page)
    text = page.read_text()
    for words in ("Tuning curves", "Predicted and measured", "Where the time goes", "wrong_result", "x: a 1", "softmax"):
        assert words in text
    check_in_browser(browser, page, tmp_path)

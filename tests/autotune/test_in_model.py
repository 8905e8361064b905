"""Which schedules are kept: by what they do inside the model."""
from __future__ import annotations

import random

import numpy as np
import pytest

from tilewright.autotune.extract import tasks_of_lowered
from tilewright.autotune.in_model import compare, faster_in_place, nanoseconds, owners, step_times
from tilewright.backends.executable import Executable
from tilewright.compiler.build import lower_graph, make_options
from tilewright.compiler.compile import compile
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph
from tilewright.ir.types import F32, TensorType


def two_convolutions() -> Graph:
    """Images with borders of zeros, which a plan fills once for all and not in every call."""
    b = GraphBuilder("two")
    rng = np.random.default_rng(0)
    x = b.input("x", TensorType(F32, (1, 16, 20, 20)))
    for k in range(2):
        w = b.weight(f"w{k}", rng.standard_normal((16, 16, 3, 3)).astype(np.float32))
        x = b.op("relu", b.op("conv", x, w, None, strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1))
    return b.graph((x,))


def test_each_call_of_the_plan_has_its_task() -> None:
    g, options = two_convolutions(), make_options("native", 1, "f32", None, True)
    instance = compile(g, threads=1).single("the test")
    low = lower_graph(g, options)
    labels = {t.hash: t.label for t in tasks_of_lowered(low, options)}
    assert len(low.kernels) > len(instance.plan.calls), "the test needs borders that no call fills"
    found = owners(low, options)
    assert [labels[h] for h in found] == [c.label for c in instance.plan.calls]


def test_steps_are_timed_by_turns() -> None:
    instance = compile(two_convolutions(), threads=1).single("the test")
    times = step_times([instance, instance], [np.zeros((1, 16, 20, 20), np.float32)], 0.0)
    assert times.shape[1:] == (2, len(instance.plan.calls))
    assert (times >= 0).all()


def test_each_task_keeps_what_is_surely_faster_in_the_model() -> None:
    rng = np.random.default_rng(1)
    pace = 1 + 0.3 * (rng.random((60, 1, 1)) < 0.5)  # of each round
    speeds = np.array([[100, 50, 100, 80], [90, 50, 90, 80], [80, 51, 115, 90]], float)  # of the default's model, then of two variants
    times = pace * speeds * (1 + 0.002 * rng.standard_normal((60, 3, 4)))
    found = faster_in_place(times, ["a", "b", "a", ""], [{"a": ["first"], "b": ["first"]}, {"a": ["second"], "b": ["second"]}])
    assert found == {"a": ["first"]}  # together its calls are faster; b's are not, and what is no task is nobody's


def test_noise_is_no_gain() -> None:
    rng = np.random.default_rng(2)
    times = 1 + 0.3 * (rng.random((40, 2, 30)) < 0.5)
    calls = [f"t{k}" for k in range(30)]
    assert len(faster_in_place(times, calls, [{c: ["x"] for c in calls}])) < 10


class Call:
    """An executable that takes as long as the machine's mood lets it, on a clock of its own."""

    now = 0.0

    def __init__(self, seconds: float, rng: random.Random) -> None:
        self.seconds, self.rng = seconds, rng

    def __call__(self, *data: np.ndarray) -> None:
        Call.now += self.seconds * self.rng.choice((1.0, 1.0, 1.3))


@pytest.mark.parametrize(("other", "gain"), [(0.010, 1.0), (0.009, 1.11), (0.012, 0.83)], ids=["equal", "faster", "slower"])
def test_whole_calls_by_turns(other: float, gain: float) -> None:
    rng = random.Random(0)
    pair: list[Executable] = [Call(0.010, rng), Call(other, rng)]  # type: ignore[list-item]
    found = compare(pair[0], pair[1], [], 10.0, clock=lambda: Call.now)
    assert found.gain == pytest.approx(gain, abs=0.02)
    assert found.quiet == pytest.approx(gain, abs=0.02)
    assert found.second == pytest.approx(other)
    assert len(found.samples) > 100


def test_samples_for_the_log_are_positive() -> None:
    assert nanoseconds([0.0, 1e-6]) == (1, 1000)

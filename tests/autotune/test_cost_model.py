"""The cost model: the shipped one loads anywhere and is for this version's features; learning from trials improves it."""
from __future__ import annotations

import random
import socket

import numpy as np
import pytest

from tests.autotune.spaces import problem
from tilewright.autotune.cost_model import RANK, CostModel, TaskModel, rank_correlation
from tilewright.autotune.features import FEATURES, Features
from tilewright.autotune.space import Space
from tilewright.errors import ModelError


def _points(count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Features of a matmul's points, and a speed that follows from them."""
    t = problem("matmul")
    space, rng = Space(t), random.Random(1)
    x = Features(space, t)([space.sample(rng) for _ in range(count)])
    y = x[:, FEATURES.index("accumulators")] - 0.2 * x[:, FEATURES.index("cycles")]
    return x, np.exp2(0.3 * (y - y.max()))


def test_the_shipped_model_loads_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    x, _ = _points(20)
    p = CostModel.load_default().predict(x)
    assert p.shape == (20,) and p.dtype == np.float32 and np.isfinite(p).all() and p.std() > 0


def test_the_shipped_model_prefers_the_untuned_schedule_to_most() -> None:
    """What it learned at all: on a task that it never saw, the compiler's own choice is not among the worst."""
    t = problem("matmul")
    space, rng = Space(t), random.Random(3)
    p = CostModel.load_default().predict(Features(space, t)([space.default(), *(space.sample(rng) for _ in range(50))]))
    assert (p[0] > p[1:]).mean() > 0.5


def test_a_damaged_model_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        CostModel.load(b"not a model")


@pytest.mark.parametrize("objective", ["reg:squarederror", RANK])
def test_training_orders_what_it_saw(objective: str) -> None:
    x, y = _points()
    group = np.repeat([0, 1, 2], 40)
    model = CostModel.train(x, y.astype(np.float32), group, 60, objective)
    assert rank_correlation(model.predict(x), y) > 0.9
    again = CostModel.load(model.save())
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_a_task_learns_from_its_trials() -> None:
    x, y = _points()
    for base in (None, CostModel.load_default()):
        m = TaskModel(base)
        before = m.predict(x[60:])
        assert m.informed == (base is not None)
        m.update(x[:4], y[:4])  # too few to say anything
        np.testing.assert_array_equal(m.predict(x[60:]), before)
        m.update(x[:60], y[:60])
        assert m.informed and rank_correlation(m.predict(x[60:]), y[60:]) > 0.6
        m2 = TaskModel(base)
        m2.update(x[:60], y[:60])
        np.testing.assert_array_equal(m2.predict(x), m.predict(x))
    assert len(TaskModel(None).predict(x[:0])) == 0


def test_failures_alone_teach_nothing() -> None:
    x, y = _points(20)
    m = TaskModel(None)
    m.update(x, np.zeros_like(y))
    assert not m.informed


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 2], [1, 1, 2, 2]) == pytest.approx(1)
    assert np.isnan(rank_correlation([1, 1], [1, 2]))
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 50), rng.integers(0, 5, 50)
    from scipy.stats import spearmanr
    assert rank_correlation(a, b) == pytest.approx(float(spearmanr(a, b)[0]))  # type: ignore[arg-type]

"""What a candidate will cost, learned: boosted trees over closed-form features, trained before shipping and again while tuning.

    model = CostModel.load_default()          # ships in the wheel
    task_model = TaskModel(model)              # of one task: learns what this task's trials add
    task_model.update(x, speed)                # features [n, F], speed relative to the best so far
    task_model.predict(x)                      # float32 [n], higher is faster; only comparable within the task

The label is best/cost of each task, so tasks of all sizes count alike and the largest possible value is about 1. The trees of a
task are fitted to what the shipped ones leave over: with few trials they hardly change it. xgboost is imported when it is needed.
"""
from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ModelError
from .features import FEATURES

if TYPE_CHECKING:
    import xgboost

SHIPPED = "pretrained/speed.ubj"
SQUARED, RANK = "reg:squarederror", "rank:pairwise"
OFFLINE: dict[str, float | int | str] = {"max_depth": 6, "eta": 0.06, "subsample": 0.8, "colsample_bytree": 0.4, "min_child_weight": 3,
                                         "tree_method": "hist", "lambda": 2.0}
ONLINE: dict[str, float | int | str] = {"max_depth": 4, "eta": 0.15, "min_child_weight": 1, "tree_method": "hist", "lambda": 2.0}
ONLINE_ROUNDS = 40
# within one task what stands beside the default says nothing new, and the number of changes misleads trees of few trials
OWN = np.array([k for k, n in enumerate(FEATURES) if n != "changed" and not n.endswith("_beside")])
FEW = 8  # trials before a task's own trees are fitted


class CostModel:
    """Trees that predict relative speed from features. Not changed by use."""

    def __init__(self, booster: xgboost.Booster) -> None:
        if booster.feature_names != list(FEATURES):
            raise ModelError("the cost model was trained on other features than this version computes; train it again "
                             "(python -m benchmarks.pretrain)")
        self._booster = booster
        self._slope, self._level = (float(booster.attr(k) or d) for k, d in (("slope", 1), ("level", 0)))

    @staticmethod
    def load_default() -> CostModel:
        """The model that ships with this version."""
        return CostModel.load(files("tilewright.autotune").joinpath(SHIPPED).read_bytes())

    @staticmethod
    def load(data: bytes) -> CostModel:
        """The model that `save` wrote. Raises ModelError where it is damaged or of another version."""
        import xgboost
        booster = xgboost.Booster({"nthread": 1})
        try:
            booster.load_model(bytearray(data))
        except xgboost.core.XGBoostError as e:
            raise ModelError(f"the cost model cannot be read: {e}") from None
        return CostModel(booster)

    @staticmethod
    def train(x: np.ndarray, y: np.ndarray, group: np.ndarray, rounds: int = 200, objective: str = RANK, seed: int = 0) -> CostModel:
        """x: [n, F]; y: [n] best/cost of the row's task; group: [n] the task's number, ascending. Trees trained for order alone are
        brought to the labels' scale by a straight line, which is kept with them."""
        import xgboost
        settings = OFFLINE | {"objective": objective, "seed": seed, "nthread": 1}
        data = _data(x, y)
        if objective == RANK:
            data.set_info(qid=group)
            settings |= {"lambdarank_num_pair_per_sample": 8, "lambdarank_pair_method": "mean"}
        else:
            data.set_weight(_even_weights(group))
        booster = xgboost.train(settings, data, rounds)
        if objective == RANK:
            slope, level = np.polyfit(booster.predict(data), y, 1)
            booster.set_attr(slope=f"{slope:.6g}", level=f"{level:.6g}")
        return CostModel(booster)

    def save(self) -> bytes:
        """The model as bytes (Universal Binary JSON)."""
        return bytes(self._booster.save_raw("ubj"))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """float32 [n]: higher is faster, for candidates of one task. x: [n, F]."""
        if not len(x):
            return np.zeros(0, np.float32)
        return (self._slope * self._booster.predict(_data(x)) + self._level).astype(np.float32)


class TaskModel:
    """The cost model of one task: the shipped one and what the task's own trials say beyond it. Without a shipped one (None) it
    knows nothing until it has FEW trials."""

    def __init__(self, base: CostModel | None, seed: int = 0) -> None:
        self.base, self.seed = base, seed
        self._own: xgboost.Booster | None = None

    @property
    def informed(self) -> bool:
        """Whether predictions mean anything."""
        return self.base is not None or self._own is not None

    def predict(self, x: np.ndarray) -> np.ndarray:
        """float32 [n], higher is faster."""
        if not len(x):
            return np.zeros(0, np.float32)
        known = self.base.predict(x) if self.base is not None else np.full(len(x), 0.5, np.float32)
        if self._own is None:
            return known
        return self._own.predict(_data(x[:, OWN], margin=known, names=False))

    def update(self, x: np.ndarray, speed: np.ndarray) -> None:
        """Fits the task's own trees to all its trials so far. x: [n, F]; speed: [n] of the candidates, in any unit; 0: failed."""
        if len(x) < FEW or not np.any(speed > 0):
            return
        import xgboost
        y = speed / speed.max()
        known = self.base.predict(x) if self.base is not None else np.full(len(x), 0.5, np.float32)
        settings = ONLINE | {"objective": SQUARED, "seed": self.seed, "nthread": 1}
        # fast candidates are what is looked for: how slow the slow ones are matters little
        self._own = xgboost.train(settings, _data(x[:, OWN], y, known, 0.25 + y, names=False), ONLINE_ROUNDS)


def _data(x: np.ndarray, y: np.ndarray | None = None, margin: np.ndarray | None = None,
          weight: np.ndarray | None = None, names: bool = True) -> xgboost.DMatrix:
    """names: of the features, which models on disk are checked by; comparing them takes longer than a round of training."""
    import xgboost
    return xgboost.DMatrix(x, y, weight=weight, base_margin=margin, feature_names=list(FEATURES) if names else None, nthread=1)


def _even_weights(group: np.ndarray) -> np.ndarray:
    """Every task counts alike, whatever its number of points."""
    _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    return len(group) / len(counts) / counts[inverse]


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's: of two orders of the same candidates; ties share their ranks. nan where one of them is constant."""
    ra, rb = _ranks(np.asarray(a, np.float64)), _ranks(np.asarray(b, np.float64))
    ra, rb = ra - ra.mean(), rb - rb.mean()
    norm = float(np.sqrt((ra * ra).sum() * (rb * rb).sum()))
    return float((ra * rb).sum() / norm) if norm else float("nan")


def _ranks(v: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]

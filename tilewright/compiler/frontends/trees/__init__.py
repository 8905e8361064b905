"""Tree ensembles of LightGBM, XGBoost, CatBoost and scikit-learn as graphs. The libraries are not imported here: who has a model of one
has it loaded already; files of LightGBM need none.

    table = load_trees(model, "predict")       # what it needs, what it makes
    outputs = table.build(b, x)                # in a graph under construction, for x[rows, table.features]
"""
from __future__ import annotations

import os
from pathlib import Path

from ....errors import UnsupportedError
from .table import Table

_HEAD = 256  # bytes of a file that tell what it is

__all__ = ["Table", "is_tree_model", "load_trees"]


def is_tree_model(model: object) -> bool:
    """An estimator or booster that `load_trees` knows, or the path of a LightGBM, XGBoost or CatBoost (JSON) model file."""
    if isinstance(model, (str, os.PathLike)):
        return _file_kind(Path(model)) != ""
    package, name = type(model).__module__.split(".")[0], type(model).__name__
    if package == "sklearn":
        from .sklearn import LOADERS
        return name in LOADERS
    return package in ("lightgbm", "xgboost", "catboost")


def load_trees(model: object, method: str = "", iterations: tuple[int, int] | None = None, numbered: bool = False) -> Table:
    """method: "predict" (default), "predict_proba", "decision_function" or "raw_score", "apply" (the leaves' numbers), what the
    model has of them. iterations: the boosting rounds [begin, end) to use (default: what the library's own predict uses).
    numbered: CatBoost's classes are 0, 1, …, whatever they are called. Raises UnsupportedError for what is not compiled, with its
    name and the reason; ModelError for damaged files."""
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if _file_kind(path) == "lightgbm":
            from .lightgbm import load_text
            return load_text(path.read_text(), method, iterations)
        if _file_kind(path) == "catboost":
            from .catboost import load_json
            return load_json(path, method, iterations)
        from .xgboost import load_file
        return load_file(path, method, iterations)
    package, name = type(model).__module__.split(".")[0], type(model).__name__
    if package == "lightgbm":
        from .lightgbm import load_lightgbm
        return load_lightgbm(model, method, iterations)
    if package == "xgboost":
        from .xgboost import load_xgboost
        return load_xgboost(model, method, iterations)
    if package == "sklearn":
        from .sklearn import LOADERS
        if iterations is not None:
            raise UnsupportedError(f"iterations= is for boosters of LightGBM, XGBoost and CatBoost; {name} uses all of its trees")
        return LOADERS[name](model, method)
    from .catboost import load_catboost
    return load_catboost(model, method, iterations, numbered)


def _file_kind(path: Path) -> str:
    """Which library wrote it ("lightgbm", "xgboost", "catboost"), by suffix and first bytes; "" for other files."""
    try:
        with path.open("rb") as f:
            head = f.read(_HEAD)
    except OSError:
        return ""
    if head.startswith((b"tree\n", b"tree\r\n")):
        return "lightgbm"
    if path.suffix == ".ubj" or (path.suffix == ".json" and b"learner" in head[:64]):
        return "xgboost"
    if path.suffix == ".json" and (b'"features_info"' in head or b'"ctr_data"' in head):
        return "catboost"
    return ""

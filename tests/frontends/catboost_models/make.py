"""Records small models of CatBoost and what it predicts with them, for test_catboost.py: `python -m tests.frontends.catboost_models.make`.

CatBoost (100 MB) is needed here alone. Each model is a file of its own JSON form; predictions.npz has the rows and the results.
"""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FEATURES, CATEGORY = 5, 4


def table(rows: int, rng: np.random.Generator) -> np.ndarray:
    """f64, of numbers that f32 has too; the last column are categories."""
    x = rng.standard_normal((rows, FEATURES)).astype(np.float32).astype(np.float64)
    x[rng.random(x.shape) < 0.1] = 0
    x[rng.random(x.shape) < 0.1] = np.nan
    x[:, CATEGORY] = rng.integers(0, 6, rows)
    return x


MODELS: dict[str, dict[str, object]] = {
    "regression": {"depth": 4}, "lossguide": {"grow_policy": "Lossguide", "max_leaves": 9},
    "depthwise": {"grow_policy": "Depthwise", "depth": 3},
    "poisson": {"loss_function": "Poisson"}, "nan_max": {"nan_mode": "Max", "depth": 3}, "binary": {"loss_function": "Logloss"},
    "multiclass": {"loss_function": "MultiClass"}, "ova": {"loss_function": "MultiClassOneVsAll"},
    "one_hot": {"one_hot_max_size": 9, "cat_features": [CATEGORY]},
    "one_hot_lossguide": {"one_hot_max_size": 9, "cat_features": [CATEGORY], "grow_policy": "Lossguide"},
    "two": {"loss_function": "MultiRMSE"}, "ctr": {"one_hot_max_size": 1, "cat_features": [CATEGORY]}}
CLASSIFIERS = ("binary", "multiclass", "ova")


def main() -> None:
    import catboost  # pyright: ignore[reportMissingImports]
    import pandas as pd
    rng = np.random.default_rng(0)
    x, rows = table(600, rng), table(100, rng)
    y = np.nan_to_num(x[:, 0] - x[:, 1] * x[:, 2]) + (x[:, CATEGORY] == 2)
    found: dict[str, np.ndarray] = {"x": rows}
    for name, more in MODELS.items():
        kind = catboost.CatBoostClassifier if name in CLASSIFIERS else catboost.CatBoostRegressor
        m = kind(**{"iterations": 7, "depth": 3, "verbose": 0, "allow_writing_files": False, "thread_count": 1, "random_seed": 1, **more})
        target = np.stack([y, -y], 1) if name == "two" else np.exp(y / 2) if name == "poisson" else y
        if name in CLASSIFIERS:
            target = y > 0.2 if name == "binary" else np.array([4, 7, 1])[np.digitize(y, [-0.5, 0.5])]

        def given(a: np.ndarray, categories: bool = "cat_features" in more):
            d = pd.DataFrame(a, columns=list("abcde"))
            return d.astype({"e": int}) if categories else d
        m.fit(given(x), target)
        path = HERE / f"{name}.json"
        m.save_model(str(path), format="json", pool=catboost.Pool(given(x), cat_features=more.get("cat_features")))
        data = json.loads(path.read_text())
        data["model_info"] = {k: v for k, v in data["model_info"].items() if k in ("params", "class_params")}
        data["model_info"]["params"] = {"loss_function": data["model_info"]["params"]["loss_function"]}
        data.pop("ctr_data", None)
        path.write_text(json.dumps(data, sort_keys=True) + "\n")
        found[f"{name}.raw_score"] = m.predict(given(rows), prediction_type="RawFormulaVal")
        found[f"{name}.predict"] = np.asarray(m.predict(given(rows))).squeeze()
        if name in CLASSIFIERS:
            found[f"{name}.predict"] = found[f"{name}.predict"] if name != "binary" else found[f"{name}.predict"].astype(str) == "True"
            found[f"{name}.predict_proba"] = m.predict_proba(given(rows))
        if "grow_policy" not in more:
            found[f"{name}.apply"] = m.calc_leaf_indexes(given(rows))
    np.savez_compressed(HERE / "predictions.npz", **found)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()

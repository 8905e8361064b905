"""TreeEnsembleRegressor and TreeEnsembleClassifier against ONNX Runtime."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright as tw

RNG = np.random.default_rng(3)
FEATURES = 4


def arrays(trees: int, columns: int, prefix: str, mode: str, signed: bool) -> dict[str, list]:
    """Full trees of depth 3 with some leaves higher up."""
    fields = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true")
    found: dict[str, list] = {f"nodes_{k}": [] for k in fields}
    weights: dict[str, list] = {f"{prefix}_{k}": [] for k in ("treeids", "nodeids", "ids", "weights")}
    for t in range(trees):
        for k in range(15):
            leaf = k >= 7
            row = (t, k, 0 if leaf else int(RNG.integers(FEATURES)), 0.0 if leaf else round(float(RNG.standard_normal()), 1),
                   "LEAF" if leaf else mode, 0 if leaf else 2 * k + 1, 0 if leaf else 2 * k + 2, 0 if leaf else int(RNG.integers(2)))
            for key, v in zip(found, row, strict=True):
                found[key].append(v)
            if leaf:
                for c in range(columns):
                    w = float(RNG.standard_normal()) if signed else float(RNG.random()) / trees
                    for key, v in zip(weights, (t, k, c, w), strict=True):
                        weights[key].append(v)
    return found | weights


def model(op: str, outputs: Sequence[tuple[str, int]], **attrs: Any):
    node = helper.make_node(op, ["x"], [o for o, _ in outputs], "trees", domain="ai.onnx.ml", **attrs)
    infos = [helper.make_tensor_value_info(o, t, None) for o, t in outputs]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])], infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)


def compare(m: object, rows: int) -> None:
    import onnxruntime as ort
    x = np.round(RNG.standard_normal((rows, FEATURES)), 1).astype("f4")
    x[RNG.random(x.shape) < 0.1] = np.nan
    want = ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})  # type: ignore[attr-defined]
    got = tw.compile(m)(x)
    for g, w in zip(got if isinstance(got, tuple) else (got,), want, strict=True):
        if w.dtype.kind == "f":
            np.testing.assert_allclose(np.asarray(g), w, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("mode", ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE"])
def test_regressor(mode: str) -> None:
    for targets, more in ((1, {}), (3, {"base_values": [0.5, -1.0, 2.0]}), (2, {"aggregate_function": "AVERAGE"})):
        trees = arrays(5, targets, "target", mode, True)
        m = model("TreeEnsembleRegressor", [("y", TensorProto.FLOAT)], n_targets=targets, **trees, **more)
        for rows in (1, 7, 600):
            compare(m, rows)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_classifier(transform: str) -> None:
    outputs = [("label", TensorProto.INT64), ("scores", TensorProto.FLOAT)]
    for classes in (1, 3):
        if classes == 1 and transform == "SOFTMAX":
            continue
        for signed in (False, True):
            m = model("TreeEnsembleClassifier", outputs, **arrays(5, classes, "class", "BRANCH_LEQ", signed), post_transform=transform,
                      classlabels_int64s=[7, 3] if classes == 1 else [4, 2, 9])
            compare(m, 40)


def test_refusals() -> None:
    for more, text in (({"aggregate_function": "MIN"}, "MIN"), ({"post_transform": "PROBIT"}, "PROBIT")):
        m = model("TreeEnsembleRegressor", [("y", TensorProto.FLOAT)], n_targets=1, **arrays(1, 1, "target", "BRANCH_LEQ", True), **more)
        with pytest.raises(tw.UnsupportedError, match=text):
            tw.compile(m)(np.zeros((1, FEATURES), "f4"))
    m = model("TreeEnsembleRegressor", [("y", TensorProto.FLOAT)], n_targets=1, **arrays(1, 1, "target", "BRANCH_EQ", True))
    with pytest.raises(tw.UnsupportedError, match="BRANCH_EQ"):
        tw.compile(m)(np.zeros((1, FEATURES), "f4"))

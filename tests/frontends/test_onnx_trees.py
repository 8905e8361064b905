"""TreeEnsembleRegressor and TreeEnsembleClassifier against ONNX Runtime, TreeEnsemble against onnx's reference."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

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


@pytest.mark.parametrize("mode", ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE", "BRANCH_EQ", "BRANCH_NEQ"])
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


@pytest.mark.parametrize("kind", ["MIN", "MAX", "AVERAGE"])
def test_aggregates(kind: str) -> None:
    for targets, more in ((1, {}), (3, {"base_values": [0.5, -1.0, 2.0]}), (2, {"post_transform": "LOGISTIC"})):
        m = model("TreeEnsembleRegressor", [("y", TensorProto.FLOAT)], n_targets=targets, aggregate_function=kind,
                  **arrays(5, targets, "target", "BRANCH_LEQ", True), **more)
        for rows in (1, 600):
            compare(m, rows)


def version_5(modes: Sequence[int], members: Sequence[float], dtype: type, targets: int = 1, **attrs: Any):
    """Two full trees of depth 2 for each mode."""
    kind, roots, count = TensorProto.FLOAT if dtype is np.float32 else TensorProto.DOUBLE, [], 6 * len(modes)
    true, false, leaf_true, leaf_false = [], [], [], []
    for t in range(2 * len(modes)):
        roots.append(3 * t)
        true += [3 * t + 1, 4 * t, 4 * t + 2]
        false += [3 * t + 2, 4 * t + 1, 4 * t + 3]
        leaf_true += [0, 1, 1]
        leaf_false += [0, 1, 1]
    splits = np.round(RNG.standard_normal(count), 1).astype(dtype)
    weights = RNG.standard_normal(8 * len(modes)).astype(dtype)

    def tensor(values: Sequence[float] | np.ndarray, of: int = kind):
        return helper.make_tensor("t", of, (len(values),), values)
    if members:
        attrs["membership_values"] = tensor([float(v) for v in members])
    node = helper.make_node(
        "TreeEnsemble", ["x"], ["y"], "trees", domain="ai.onnx.ml", n_targets=targets, tree_roots=roots, nodes_splits=tensor(splits),
        nodes_featureids=RNG.integers(0, FEATURES, count).tolist(), nodes_modes=tensor(np.repeat(modes, 6), TensorProto.UINT8),
        nodes_truenodeids=true, nodes_falsenodeids=false, nodes_trueleafs=leaf_true, nodes_falseleafs=leaf_false,
        leaf_targetids=RNG.integers(0, targets, len(weights)).tolist(), leaf_weights=tensor(weights), **attrs)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", kind, [300, FEATURES])],
                              [helper.make_tensor_value_info("y", kind, [300, targets])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 5)], ir_version=10)


def _reference(m: ModelProto, x: np.ndarray) -> np.ndarray:
    """What onnx's own evaluator gives."""
    from onnx.reference import ReferenceEvaluator
    found = ReferenceEvaluator(m).run(None, {"x": x})
    assert isinstance(found, list)
    return found[0]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("targets", [1, 3])
def test_version_5(targets: int, dtype: str) -> None:
    """All modes, sets of any numbers, against onnx's reference."""
    nan, own = float("nan"), np.dtype(dtype).type
    x = np.round(RNG.standard_normal((300, FEATURES)), 1).astype(own)
    x[RNG.random(x.shape) < 0.1] = np.nan
    for more in ({}, {"nodes_missing_value_tracks_true": [1] * 42}, {"aggregate_function": 0}):
        # without 0, at which the reference ends a set
        sets = [v for k in range(6) for v in (*RNG.choice([-1.2, -0.7, -0.3, -0.1, 0.1, 0.2, 0.4, 0.9], k + 1, replace=False), nan)]
        m = version_5([0, 1, 2, 3, 4, 5, 6], sets, own, targets, **more)
        want = _reference(m, x)
        np.testing.assert_allclose(np.asarray(tw.compile(m)(x)), want, rtol=1e-5, atol=1e-5)
    for k in (2, 3):  # the least and the largest; every target has a value where there is one
        if targets == 1:
            m = version_5([0, 4], (), own, 1, aggregate_function=k)
            want = _reference(m, x)
            np.testing.assert_array_equal(np.asarray(tw.compile(m)(x)), want)


def test_version_5_damaged() -> None:
    x = np.zeros((300, FEATURES), "f4")
    cases: list[tuple[list[int], list[float], dict[str, Any], str]] = [
        ([6], [1.0], {}, "membership_values"), ([0], [], {"tree_roots": [99]}, "no trees"), ([9], [], {}, "no trees"),
        ([0], [], {"post_transform": 4}, "PROBIT")]
    for modes, members, more, text in cases:
        with pytest.raises(tw.TilewrightError, match=text):
            if "tree_roots" in more:
                m = version_5(modes, members, np.float32)
                next(a for a in m.graph.node[0].attribute if a.name == "tree_roots").ints[:] = more["tree_roots"]
            else:
                m = version_5(modes, members, np.float32, **more)
            tw.compile(m)(x)


def test_refusals() -> None:
    m = model("TreeEnsembleRegressor", [("y", TensorProto.FLOAT)], n_targets=1, post_transform="PROBIT",
              **arrays(1, 1, "target", "BRANCH_LEQ", True))
    with pytest.raises(tw.UnsupportedError, match="PROBIT"):
        tw.compile(m)(np.zeros((1, FEATURES), "f4"))

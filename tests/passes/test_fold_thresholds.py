"""Scaling in front of forests becomes part of their thresholds: the same bits for every number, or nothing is changed."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.passes.fold_thresholds import fold_thresholds
from tilewright.errors import InputError
from tilewright.ir.builder import GraphBuilder
from tilewright.ir.forest import DEFAULT_LEFT, Field, Forest, MissingKind
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import run_graph
from tilewright.ir.ops.convert import convert
from tilewright.ir.ops.tree_engines import RanksAttrs, TreeRanks, rank_inputs
from tilewright.ir.ops.trees import random_forest
from tilewright.ir.tree_tables import make_ranks
from tilewright.ir.types import F32, F64, I64, TensorType, dtype_of

ROWS, FEATURES = 900, 4
KINDS = (0, 1, 1 | DEFAULT_LEFT)
Chain = Callable[[GraphBuilder, Value, Callable[..., Value]], Value]


def forest(rng: np.random.Generator, dtype: np.dtype, kinds: tuple[int, ...] = KINDS, scale: float = 1) -> Forest:
    f = random_forest(rng, dtype, 12, 14, FEATURES)
    nodes, threshold = f.nodes.copy(), (f.threshold * dtype.type(scale)).astype(dtype)
    nodes[:, Field.KIND] = rng.choice(kinds, len(nodes))
    return Forest(nodes, threshold, f.words, f.trees, f.values, f.base)


def graph(chain: Chain, f: Forest, dtype: np.dtype, rows: int = ROWS, features: int = FEATURES) -> Graph:
    b = GraphBuilder("scaled")
    x = b.input("x", TensorType(dtype_of(dtype), (rows, features)))
    v = chain(b, x, lambda name, *a: b.weight(name, np.array(a)))
    names = "nodes", "threshold", "words", "trees"
    parts = [b.constant(a, name=n) for a, n in zip(f.arrays[:4], names, strict=True)]
    return b.graph((b.op("tree_ensemble", v, *parts, b.weight("leaf_values", f.values), b.constant(f.base)),))


def near(values: np.ndarray) -> np.ndarray:
    """Numbers, and their neighbours."""
    with np.errstate(over="ignore"):
        return np.concatenate([values, np.nextafter(values, values.dtype.type(np.inf)), np.nextafter(values, values.dtype.type(-np.inf))])


def table(rng: np.random.Generator, thresholds: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Anything, and numbers beside the thresholds that were found."""
    info = np.finfo(dtype)
    odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0, info.tiny, -info.smallest_subnormal, info.max, -info.max, 1, -1], dtype)
    own = near(thresholds[~np.isnan(thresholds)].astype(dtype))
    pool = np.concatenate([odd, own, own, rng.standard_normal(200).astype(dtype) * 3])
    return rng.choice(pool, (ROWS, FEATURES))


def result(g: Graph, x: np.ndarray) -> np.ndarray:
    return run_graph(g, {"x": x})[g.outputs[0].name]


C, S = (0.1, -3.7, 1e5, 1 / 3), (0.7, 1e-3, 2.5e4, 3.0)
CHAINS: dict[str, Chain] = {
    "standard": lambda b, x, w: b.op("div", b.op("sub", x, own(b, x, w, C)), own(b, x, w, S)),
    "min_max": lambda b, x, w: b.op("add", b.op("mul", x, own(b, x, w, S)), own(b, x, w, C)),
    "turned": lambda b, x, w: b.op("sub", own(b, x, w, C), b.op("div", x, own(b, x, w, (-0.7, 3, -1e4, 5)))),
    "overflow": lambda b, x, w: b.op("add", b.op("mul", x, own(b, x, w, (1e30, 1e-30, -1e38, 1e-38))), own(b, x, w, C)),
    "imputed": lambda b, x, w: b.op("sub", b.op("where", b.op("isnan", x), own(b, x, w, C), x), own(b, x, w, S)),
    "clipped": lambda b, x, w: b.op("max", b.op("min", b.op("neg", x), num(b, x, 0.5)), num(b, x, -0.5)),
    "steps": lambda b, x, w: b.op("cast", b.op("floor", b.op("mul", x, num(b, x, 2.0))), dtype=x.type.dtype),
    "bins": lambda b, x, w: bins(b, x),
    "picked": lambda b, x, w: b.op("div", b.op("concat", half(b, x, 2),
                                               b.op("gather", x, b.constant(np.array([1, 0])), axis=1), axis=1), own(b, x, w, S)),
    "halves": lambda b, x, w: b.op("concat", b.op("div", half(b, x, 0), num(b, x, 3)), b.op("mul", half(b, x, 2), num(b, x, 3)), axis=1)}


def half(b: GraphBuilder, x: Value, first: int) -> Value:
    return b.op("slice", x, starts=(0, first), steps=(1, 1), sizes=(x.type.shape[0], 2))


def own(b: GraphBuilder, x: Value, w: Callable[..., Value], values: tuple[float, ...]) -> Value:
    return w("c", *np.array(values).astype(x.type.dtype.numpy))


def num(b: GraphBuilder, x: Value, v: float) -> Value:
    return b.constant(np.array(v, x.type.dtype.numpy))


def bins(b: GraphBuilder, x: Value) -> Value:
    """As KBinsDiscretizer has them."""
    at = num(b, x, 0)
    for edge in (-1.0, 0.0, 0.3):
        at = b.op("add", at, b.op("cast", b.op("le", num(b, x, edge), x), dtype=x.type.dtype))
    return b.op("cast", b.op("min", b.op("cast", at, dtype=I64), b.constant(np.array([[2]]))), dtype=x.type.dtype)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("seed", range(3))
def test_every_number_goes_the_same_way(name: str, dtype: type, seed: int) -> None:
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    f = forest(rng, kind, scale=(1, 1e4, 1e-3)[seed])
    g = graph(CHAINS[name], f, kind)
    h = fold_thresholds(g, frozen=True)
    assert [n.op for n in h.nodes] == ["tree_ensemble"]
    found = h.constants[h.nodes[0].inputs[2].name].array  # type: ignore[union-attr]
    for _ in range(3):
        x = table(rng, found, kind)
        np.testing.assert_array_equal(result(h, x), result(g, x))


def test_wider_steps_round_as_they_do() -> None:
    """f32 data scaled in f64 and rounded back, as RobustScaler does it."""
    def chain(b: GraphBuilder, x: Value, w: Callable[..., Value]) -> Value:
        wide = b.op("sub", b.op("cast", x, dtype=F64), w("center", *C))
        return b.op("cast", b.op("div", b.op("cast", b.op("cast", wide, dtype=F32), dtype=F64), w("scale", *S)), dtype=F32)
    rng = np.random.default_rng(0)
    g = graph(chain, forest(rng, np.dtype("f4")), np.dtype("f4"))
    h = fold_thresholds(g, frozen=True)
    assert [n.op for n in h.nodes] == ["tree_ensemble"]
    x = table(rng, h.constants[h.nodes[0].inputs[2].name].array, np.dtype("f4"))  # type: ignore[union-attr]
    np.testing.assert_array_equal(result(h, x), result(g, x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_nodes_choose_columns(dtype: type) -> None:
    """Also behind a cast, and of every kind of node."""
    rng = np.random.default_rng(0)
    kinds, f = (0, 1, 5, 2, 6), random_forest(rng, np.dtype("f4"), 12, 14, FEATURES)
    assert len(set(f.nodes[:, Field.KIND])) > len(kinds)

    def chain(b: GraphBuilder, x: Value, w: Callable[..., Value]) -> Value:
        return convert(b, b.op("gather", x, b.constant(np.array([6, 2, 2, 0])), axis=1), F32)
    g = graph(chain, f, np.dtype(dtype), features=7)
    h = fold_thresholds(g)
    assert [n.op for n in h.nodes] == (["tree_ensemble"] if dtype == np.float32 else ["cast", "tree_ensemble"])
    x = np.concatenate([table(rng, f.threshold, np.dtype(dtype)), table(rng, f.threshold, np.dtype(dtype))[:, :3]], 1)
    np.testing.assert_array_equal(result(h, x), result(g, x))


REFUSED: dict[str, Chain] = {
    "zero": lambda b, x, w: b.op("mul", x, w("c", 1.0, 0, 2, 3)),                 # 0 * inf is NaN
    "infinite": lambda b, x, w: b.op("sub", x, w("c", 1.0, np.inf, 2, 3)),        # so is inf - inf
    "divided": lambda b, x, w: b.op("div", w("c", 1.0, 1, 2, 3), x),
    "square": lambda b, x, w: b.op("mul", x, x),
    "difference": lambda b, x, w: b.op("sub", x, b.op("neg", b.op("abs", x))),
    "mixed": lambda b, x, w: b.op("add", x, b.op("gather", x, b.constant(np.array([1, 2, 3, 0])), axis=1)),
    "function": lambda b, x, w: b.op("tanh", x)}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_to_keep_order_stays(name: str) -> None:
    f = forest(np.random.default_rng(0), np.dtype("f8"))
    g = graph(REFUSED[name], f, np.dtype("f8"))
    assert fold_thresholds(g, frozen=True) is g


def test_nodes_that_need_the_scaled_numbers_keep_them() -> None:
    rng = np.random.default_rng(0)
    for kinds in ((int(MissingKind.ZERO),), (8,), (17,)):
        g = graph(CHAINS["standard"], forest(rng, np.dtype("f8"), kinds), np.dtype("f8"))
        assert fold_thresholds(g, frozen=True) is g


def test_weights_and_values_with_other_readers_stay() -> None:
    g = graph(CHAINS["standard"], forest(np.random.default_rng(0), np.dtype("f8")), np.dtype("f8"))
    assert fold_thresholds(g) is g, "weights may change"
    read = g.replace(outputs=(*g.outputs, g.nodes[1].outputs[0]))
    assert fold_thresholds(read, frozen=True) is read


def test_nan_like_a_number_needs_one_group() -> None:
    """Behind an imputer NaN goes right at low thresholds and left at high ones."""
    rng = np.random.default_rng(0)
    h = fold_thresholds(graph(CHAINS["imputed"], forest(rng, np.dtype("f8"), (1,)), np.dtype("f8")), frozen=True)
    arrays = [h.constants[v.name].array for v in h.nodes[0].operands[1:]]
    f = Forest(*arrays)
    ranks = make_ranks(f)
    assert ranks.count == FEATURES == ranks.columns
    x = table(rng, f.threshold, np.dtype("f8"))
    (got,) = TreeRanks().reference(RanksAttrs(ranks.columns), x, *rank_inputs(ranks))
    for n in range(len(f.nodes)):
        value, kind = x[:, f.nodes[n, Field.FEATURE]], f.nodes[n, Field.KIND]
        want = np.where(np.isnan(value), bool(kind & DEFAULT_LEFT), value <= f.threshold[n])
        np.testing.assert_array_equal(got[:, ranks.column[n]] < ranks.bound[n], want)


# -- pipelines ---------------------------------------------------------------------------------------------------------
X = np.random.default_rng(3).standard_normal((1200, 5)) * (1, 100, 1e-4, 3, 7) + (0, 1e4, 0, -2, 1)
Y = X[:, 0] - X[:, 3] * X[:, 4]


@pytest.mark.parametrize("scaler", ["StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler"])
@pytest.mark.parametrize("last", ["lightgbm", "histogram", "forest", "xgboost"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_pipelines_equal_the_library(scaler: str, last: str, dtype: type) -> None:
    pytest.importorskip("sklearn")
    from sklearn import ensemble, pipeline, preprocessing
    make = {"histogram": lambda: ensemble.HistGradientBoostingRegressor(max_iter=9),
            "forest": lambda: ensemble.RandomForestRegressor(5, random_state=0),
            "lightgbm": lambda: pytest.importorskip("lightgbm").LGBMRegressor(n_estimators=9, verbose=-1, n_jobs=1),
            "xgboost": lambda: pytest.importorskip("xgboost").XGBRegressor(n_estimators=9, n_jobs=1)}
    x = X.astype(dtype)
    m = pipeline.make_pipeline(getattr(preprocessing, scaler)(), make[last]()).fit(x, Y)
    exe = tw.compile(m, inputs=x, threads=1)
    for part in (near(x)[:3000], x[:1]):
        want = m.predict(part)
        np.testing.assert_allclose(np.asarray(exe(part)), want, rtol=0 if last != "forest" else 1e-15)
    folded = dtype == np.float32 or last in ("lightgbm", "histogram")
    names = {k for i in exe.instances() for k in i.preparation.names}
    assert folded == (not names & {"mean", "scale", "center", "min"})
    if folded:
        with pytest.raises(InputError, match="part of the compiled code"):
            exe.update_weights({"scale": np.ones(5, dtype)})

"""Fitted estimators for the conformance test: (name, estimator, methods, kinds of data that it takes)."""
from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from sklearn import (
    calibration,
    cluster,
    compose,
    cross_decomposition,
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    impute,
    isotonic,
    linear_model,
    model_selection,
    multiclass,
    multioutput,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
)
from sklearn.base import BaseEstimator

from .sklearn_others import others

ROWS, COLUMNS = 240, 6
RNG = np.random.default_rng(7)
X = RNG.standard_normal((ROWS, COLUMNS)) * np.array([1, 3, 0.2, 1, 10, 1]) + np.array([0, 1, 0, -2, 5, 0])
Y = X[:, 0] + 0.3 * X[:, 1] - np.sin(X[:, 3]) + 0.1 * RNG.standard_normal(ROWS)
TWO = (np.median(Y) < Y).astype(int)
THREE = np.digitize(Y, np.quantile(Y, [0.3, 0.7]))
HOLES = np.where(RNG.random(X.shape) < 0.15, np.nan, X)
CODES = RNG.integers(0, 5, (ROWS, COLUMNS)).astype(float)
COUNTS = RNG.integers(0, 9, (ROWS, COLUMNS)).astype(float)
TARGETS = np.stack([Y, Y ** 2], 1)
BOTH = ("predict", "decision_function")
ALL = ("predict", "predict_proba", "decision_function")
PROBA = ("predict", "predict_proba")
Case = tuple[str, BaseEstimator, np.ndarray, np.ndarray | None, tuple[str, ...]]


def _scaled_pair(x: np.ndarray) -> np.ndarray:
    return np.column_stack([np.sqrt((x[:, 0] - x[:, 1]) ** 2 + (x[:, 2] - x[:, 3]) ** 2), np.clip(x[:, 4], -1, 1) * x[:, 5],
                            np.where(x[:, 0] > 0, x[:, 1], -x[:, 1]), np.digitize(x[:, 1], [-1, 0, 2.5])])


def _row_share(x: np.ndarray) -> np.ndarray:
    return np.abs(x) / np.sum(np.abs(x), axis=1, keepdims=True)


def transformers() -> Iterator[Case]:
    p, d, t = preprocessing, decomposition, ("transform",)
    for e in (p.StandardScaler(), p.StandardScaler(with_mean=False), p.StandardScaler(with_std=False), p.MinMaxScaler(),
              p.MinMaxScaler((-1, 2), clip=True), p.MaxAbsScaler(), p.RobustScaler(), p.RobustScaler(with_centering=False),
              p.Normalizer(),
              p.Normalizer("l1"), p.Normalizer("max"), p.Binarizer(threshold=0.3), p.PowerTransformer(),
              p.PowerTransformer(standardize=False),
              p.KBinsDiscretizer(4, encode="ordinal", subsample=None), p.KBinsDiscretizer(20, encode="ordinal", strategy="uniform"),
              p.KBinsDiscretizer(5, encode="onehot-dense", subsample=None), p.PolynomialFeatures(2),
              p.PolynomialFeatures(3, interaction_only=True),
              p.PolynomialFeatures((2, 3), include_bias=False), p.QuantileTransformer(n_quantiles=50),
              p.QuantileTransformer(n_quantiles=50, output_distribution="normal"), p.SplineTransformer(),
              p.SplineTransformer(7, degree=2, include_bias=False),
              p.SplineTransformer(extrapolation="linear"), p.SplineTransformer(extrapolation="continue"),
              p.SplineTransformer(extrapolation="periodic"),
              p.FunctionTransformer(np.tanh), p.FunctionTransformer(_scaled_pair), p.FunctionTransformer(_row_share),
              p.FunctionTransformer(),
              d.PCA(3), d.PCA(whiten=True), d.IncrementalPCA(3), d.TruncatedSVD(3), d.FastICA(3, random_state=0), d.FactorAnalysis(2)):
        yield "", e, X, None, t
    yield "", p.PowerTransformer("box-cox"), np.abs(X) + 0.1, None, t
    for e in (impute.SimpleImputer(), impute.SimpleImputer(strategy="median", add_indicator=True),
        impute.SimpleImputer(strategy="most_frequent"),
              impute.SimpleImputer(strategy="constant", fill_value=-1.0), impute.MissingIndicator(), p.StandardScaler(), p.MinMaxScaler(),
              p.RobustScaler(), p.QuantileTransformer(n_quantiles=20), p.PowerTransformer()):
        yield "holes", e, HOLES, None, t
    yield "minus", impute.SimpleImputer(missing_values=0), CODES, None, t
    for e in (p.OneHotEncoder(sparse_output=False), p.OneHotEncoder(drop="first", sparse_output=False), p.OneHotEncoder(drop="if_binary"),
              p.OneHotEncoder(handle_unknown="ignore"), p.OneHotEncoder(max_categories=3, handle_unknown="infrequent_if_exist"),
              p.OrdinalEncoder(), p.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
              p.TargetEncoder(random_state=0)):
        yield "codes", e, CODES, Y, t
    yield "classes", p.TargetEncoder(random_state=0), CODES, THREE, t
    yield "wide", p.OneHotEncoder(), np.round(X * 5) / 4, None, t
    for e in (feature_selection.SelectKBest(k=3), feature_selection.VarianceThreshold(0.5),
        feature_selection.RFE(linear_model.LinearRegression()),
              feature_selection.SelectFromModel(linear_model.Lasso(0.1)), feature_selection.SelectPercentile(percentile=50)):
        yield "", e, X, Y, t
    yield "", cross_decomposition.PLSRegression(2), X, Y, ("transform", "predict")
    yield "several", cross_decomposition.PLSRegression(2), X, TARGETS, ("transform", "predict")
    yield "", cluster.KMeans(4, n_init=1, random_state=0), X, None, ("transform", "predict")
    yield "", cluster.MiniBatchKMeans(4, n_init=1, random_state=0), X, None, ("transform", "predict")


def regressors() -> Iterator[Case]:
    m = linear_model
    for e in (m.LinearRegression(), m.Ridge(), m.RidgeCV(), m.Lasso(0.1), m.ElasticNet(0.1), m.BayesianRidge(),
        m.HuberRegressor(max_iter=1000),
              m.SGDRegressor(random_state=0, eta0=1e-4), m.OrthogonalMatchingPursuit(), m.Lars(), m.RANSACRegressor(random_state=0),
              svm.LinearSVR(),
              svm.SVR(), svm.SVR(kernel="linear", max_iter=500), svm.SVR(kernel="poly", max_iter=500), svm.SVR(kernel="sigmoid"),
              svm.NuSVR(),
              neighbors.KNeighborsRegressor(), neighbors.KNeighborsRegressor(weights="distance"),
                  neighbors.KNeighborsRegressor(metric="manhattan"),
              neural_network.MLPRegressor(hidden_layer_sizes=(9, 5), max_iter=30, random_state=0),
              ensemble.RandomForestRegressor(5, random_state=0),
              ensemble.VotingRegressor([("a", m.Ridge()), ("b", ensemble.RandomForestRegressor(4, random_state=0))], weights=[1, 3]),
              ensemble.StackingRegressor([("a", m.Ridge()), ("b", svm.SVR())], passthrough=True),
              ensemble.BaggingRegressor(m.Ridge(), 3, random_state=0, max_features=0.7),
              model_selection.GridSearchCV(m.Ridge(), {"alpha": [0.1, 1]}, cv=2)):
        yield "", e, X, Y, ("predict",)
    for e in (m.LinearRegression(), m.Ridge(), m.MultiTaskLasso(0.1), neighbors.KNeighborsRegressor(),
        neural_network.MLPRegressor(hidden_layer_sizes=(5,), max_iter=20),
              multioutput.MultiOutputRegressor(m.Lasso(0.1))):
        yield "several", e, X, TARGETS, ("predict",)
    yield "", m.PoissonRegressor(), X, np.abs(Y), ("predict",)
    yield "", m.GammaRegressor(), X, np.abs(Y) + 0.1, ("predict",)
    yield "", isotonic.IsotonicRegression(out_of_bounds="clip"), X[:, :1], Y, ("predict",)


def classifiers() -> Iterator[Case]:
    m = linear_model
    for label, y in (("two", TWO), ("three", THREE), ("names", np.array(["no", "yes", "perhaps"])[THREE]), ("floats", THREE * 2.0 - 1)):
        few = label in ("names", "floats")
        for e, methods in (
                (m.LogisticRegression(max_iter=500), (*ALL, "predict_log_proba")), (m.RidgeClassifier(), BOTH),
                (naive_bayes.GaussianNB(), PROBA),
                (svm.SVC(), BOTH), (neighbors.KNeighborsClassifier(), PROBA), (ensemble.RandomForestClassifier(5, random_state=0), PROBA),
                (ensemble.VotingClassifier([("a", m.LogisticRegression()), ("b", naive_bayes.GaussianNB())]), ("predict",)),
                (pipeline.make_pipeline(preprocessing.StandardScaler(), decomposition.PCA(3), m.LogisticRegression()), PROBA)):
            yield label, e, X, y, methods
        for e, methods in (() if few else (
                (m.LogisticRegressionCV(cv=2, Cs=2), ALL), (m.SGDClassifier(loss="log_loss", alpha=0.1, random_state=0), ALL),
                (m.SGDClassifier(random_state=0), BOTH),
                (m.SGDClassifier(loss="modified_huber", alpha=0.1, random_state=0), ALL), (m.Perceptron(), BOTH), (svm.LinearSVC(), BOTH),
                (svm.SVC(kernel="linear"), BOTH), (svm.SVC(kernel="poly", decision_function_shape="ovo"), BOTH), (svm.NuSVC(nu=0.2),
                BOTH),
                (svm.SVC(break_ties=True), ("predict",)), (discriminant_analysis.LinearDiscriminantAnalysis(), (*ALL, "transform")),
                (neighbors.KNeighborsClassifier(7, weights="distance"), PROBA), (neighbors.NearestCentroid(), ("predict",)),
                (neural_network.MLPClassifier((8, 6), max_iter=40, random_state=0), PROBA),
                (neural_network.MLPClassifier((8,), activation="tanh", max_iter=40, random_state=0), PROBA),
                (ensemble.VotingClassifier([("a", m.LogisticRegression()), ("b", naive_bayes.GaussianNB())], voting="soft"),
                (*PROBA, "transform")),
                (ensemble.StackingClassifier([("a", m.LogisticRegression()), ("b", svm.LinearSVC())]), PROBA),
                (ensemble.BaggingClassifier(m.LogisticRegression(), 3, random_state=0), PROBA),
                (calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2), PROBA),
                (calibration.CalibratedClassifierCV(m.LogisticRegression(), cv=2, method="isotonic"), PROBA),
                (multiclass.OneVsRestClassifier(m.LogisticRegression()), PROBA))):
            yield label, e, X, y, methods
        if not few:
            for e in (naive_bayes.MultinomialNB(), naive_bayes.ComplementNB(), naive_bayes.BernoulliNB(binarize=2.0),
                naive_bayes.CategoricalNB()):
                yield label, e, COUNTS, y, (*PROBA, "predict_log_proba")


def composed() -> Iterator[Case]:
    p, m = preprocessing, linear_model
    parts = compose.ColumnTransformer([
        ("num", pipeline.make_pipeline(impute.SimpleImputer(), p.StandardScaler()), [0, 2]),
        ("bins", p.KBinsDiscretizer(5, subsample=None), slice(4, 6)),
        ("one", p.OneHotEncoder(handle_unknown="ignore"), [3]),
        ("keep", "passthrough", np.array([False, True, False, False, False, False]))])
    mixed = HOLES.copy()
    mixed[:, 3:] = CODES[:, 3:]
    mixed[:, 1] = X[:, 1]
    yield "columns", parts, mixed, None, ("transform",)
    for name, last, y in (("ridge", m.Ridge(), Y), ("mlp", neural_network.MLPClassifier((8,), max_iter=20, random_state=0), THREE),
                          ("forest", ensemble.RandomForestClassifier(5, random_state=0), THREE)):
        yield f"columns {name}", pipeline.make_pipeline(parts, last), mixed, y, ("predict",)
    yield "rest", compose.ColumnTransformer([("a", p.MinMaxScaler(), [5, 1])], remainder="passthrough"), X, None, ("transform",)
    e = compose.ColumnTransformer([("a", p.MinMaxScaler(), [5, 1]), ("b", "drop", [0])], remainder=p.MaxAbsScaler())
    yield "drop", e, X, None, ("transform",)
    union = pipeline.make_union(decomposition.PCA(2), feature_selection.SelectKBest(k=2), "passthrough")
    yield "union", pipeline.make_pipeline(p.StandardScaler(), union, m.LogisticRegression()), X, THREE, PROBA
    e = pipeline.FeatureUnion([("a", p.MinMaxScaler()), ("b", p.StandardScaler())], transformer_weights={"a": 3.0})
    yield "weights", e, X, None, ("transform",)


def cases() -> list[tuple[str, BaseEstimator, np.ndarray, np.ndarray | None, tuple[str, ...]]]:
    out = []
    more = others(X, Y, TWO, THREE, HOLES, CODES)
    for family in (transformers(), regressors(), classifiers(), composed(), more):
        for label, e, x, y, methods in family:
            name = f"{type(e).__name__} {label} {e.get_params(deep=False) if len(str(e)) > 200 else e!s}"
            out.append((" ".join(name.split())[:110], e, x, y, methods))
    return out


def fitted(e: BaseEstimator, x: np.ndarray, y: np.ndarray | None) -> BaseEstimator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return e.fit(x, y)  # type: ignore[attr-defined]

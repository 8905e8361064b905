"""More fitted estimators for the conformance test: models made of others, kernels, Gaussian models, neighbours, clusters."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn import (
    cluster,
    covariance,
    cross_decomposition,
    decomposition,
    dummy,
    ensemble,
    frozen,
    gaussian_process,
    kernel_approximation,
    kernel_ridge,
    linear_model,
    mixture,
    model_selection,
    multiclass,
    multioutput,
    neighbors,
    pipeline,
    preprocessing,
    semi_supervised,
    svm,
    tree,
)
from sklearn import compose as compose_
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.gaussian_process import kernels as gp

Case = tuple[str, BaseEstimator, np.ndarray, np.ndarray | None, tuple[str, ...]]
T, P, BOTH = ("transform",), ("predict",), ("predict", "decision_function")
PROBA, ALL = ("predict", "predict_proba"), ("predict", "predict_proba", "decision_function")
OUTLIERS = ("predict", "decision_function", "score_samples")


def target_transformed(x: np.ndarray, y: np.ndarray) -> Iterator[Case]:
    lm, p, positive = linear_model, preprocessing, np.abs(y) + 0.5
    for t in (p.StandardScaler(), p.MinMaxScaler(), p.MaxAbsScaler(), p.RobustScaler(), p.PowerTransformer(),
              p.PowerTransformer("box-cox"), p.QuantileTransformer(n_quantiles=50),
              p.QuantileTransformer(n_quantiles=50, output_distribution="normal"),
              pipeline.make_pipeline(p.FunctionTransformer(np.log, np.exp), p.StandardScaler())):
        yield "", compose_.TransformedTargetRegressor(lm.Ridge(), transformer=t), x, positive, P
    yield "logs", compose_.TransformedTargetRegressor(lm.Ridge(), func=np.log1p, inverse_func=np.expm1), x, positive, P
    yield "several", compose_.TransformedTargetRegressor(lm.Ridge(), transformer=p.StandardScaler()), x, np.stack([y, y * y], 1), P


def made_of_others(x: np.ndarray, y: np.ndarray, two: np.ndarray, three: np.ndarray) -> Iterator[Case]:
    lm = linear_model
    names = np.array(["no", "yes", "perhaps"])
    for label, c in (("two", two), ("three", three), ("names", names[three])):
        yield label, ensemble.AdaBoostClassifier(n_estimators=6, random_state=0), x, c, (*ALL, "predict_log_proba")
        yield label, ensemble.AdaBoostClassifier(lm.LogisticRegression(), n_estimators=4, random_state=0), x, c, ALL
        yield label, multiclass.OneVsOneClassifier(lm.LogisticRegression()), x, c, BOTH
        yield label, multiclass.OneVsOneClassifier(svm.LinearSVC()), x, c, BOTH
        yield label, multiclass.OutputCodeClassifier(lm.LogisticRegression(), random_state=0), x, c, P
        yield label, dummy.DummyClassifier(), x, c, (*PROBA, "predict_log_proba")
        yield label, dummy.DummyClassifier(strategy="most_frequent"), x, c, PROBA
        yield label, frozen.FrozenEstimator(lm.LogisticRegression().fit(x, c)), x, c, PROBA
        yield label, QuadraticDiscriminantAnalysis(), x, c, (*ALL, "predict_log_proba")
        yield label, gaussian_process.GaussianProcessClassifier(gp.RBF(2.0), optimizer=None), x, c, PROBA
        yield label, neighbors.RadiusNeighborsClassifier(8.0), x, c, PROBA
        yield label, neighbors.RadiusNeighborsClassifier(8.0, weights="distance"), x, c, PROBA
        yield label, svm.SVC(probability=True, random_state=0), x, c, PROBA
        yield label, svm.NuSVC(nu=0.2, probability=True, random_state=0), x, c, (*PROBA, "predict_log_proba")
    yield "", multiclass.OneVsOneClassifier(svm.SVC(kernel="poly")), x, three, BOTH
    yield "", dummy.DummyClassifier(strategy="uniform"), x, three, ("predict_proba",)
    yield "", dummy.DummyClassifier(strategy="constant", constant=1), x, three, PROBA
    unlabelled = np.where(np.arange(len(x)) % 3 == 0, three, -1)
    yield "", semi_supervised.SelfTrainingClassifier(lm.LogisticRegression()), x, unlabelled, ALL
    yield "", semi_supervised.LabelSpreading(gamma=0.05), x, unlabelled, PROBA
    yield "", model_selection.FixedThresholdClassifier(lm.LogisticRegression(), threshold=0.3), x, two, ALL
    yield "", model_selection.FixedThresholdClassifier(svm.LinearSVC(), pos_label=0), x, two, BOTH
    yield "", model_selection.TunedThresholdClassifierCV(lm.LogisticRegression(), cv=2), x, two, ALL
    labels = np.stack([two, (x[:, 1] > 1).astype(int), (x[:, 2] > 0).astype(int)], 1)
    for e in (multioutput.ClassifierChain(lm.LogisticRegression(), order=[2, 0, 1]),
              multioutput.ClassifierChain(lm.LogisticRegression(), chain_method="predict_proba")):
        yield "", e, x, labels, ALL
    yield "", multiclass.OneVsRestClassifier(lm.LogisticRegression()), x, labels, ALL
    yield "", multioutput.MultiOutputClassifier(lm.LogisticRegression()), x, labels, P
    yield "", multioutput.RegressorChain(lm.Ridge(), order=[1, 0]), x, np.stack([y, y * y], 1), P
    yield "", ensemble.AdaBoostRegressor(n_estimators=7, random_state=0), x, y, P
    yield "", ensemble.BaggingClassifier(svm.LinearSVC(), 3, random_state=0), x, three, P
    yield "", dummy.DummyRegressor(), x, y, P
    yield "several", dummy.DummyRegressor(strategy="median"), x, np.stack([y, y * y], 1), P


def kernels(x: np.ndarray, y: np.ndarray) -> Iterator[Case]:
    positive = np.abs(x)
    for kind in ("linear", "rbf", "laplacian", "poly", "sigmoid", "cosine"):
        yield kind, kernel_ridge.KernelRidge(alpha=50.0, kernel=kind, gamma=1.0, degree=2), x / 10, y, P
        yield kind, decomposition.KernelPCA(3, kernel=kind, gamma=0.02) if kind != "laplacian" else decomposition.KernelPCA(3), x, None, T
        few = 5 if kind in ("linear", "cosine", "sigmoid") else 20  # more than the kernel's rank is noise
        yield kind, kernel_approximation.Nystroem(kind, n_components=few, gamma=0.05, random_state=0), x, None, T
    for kind in ("chi2", "additive_chi2"):
        yield kind, kernel_ridge.KernelRidge(alpha=50.0, kernel=kind, gamma=1.0 if kind == "chi2" else None), positive / 10, y, P
    yield "", kernel_ridge.KernelRidge(kernel="rbf"), x, np.stack([y, y * y], 1), P
    yield "", kernel_approximation.RBFSampler(gamma=0.2, random_state=0), x, None, T
    yield "", kernel_approximation.SkewedChi2Sampler(skewedness=1.0, n_components=9, random_state=0), positive, None, T
    for steps in (1, 2, 3):
        yield "", kernel_approximation.AdditiveChi2Sampler(sample_steps=steps), np.floor(positive), None, T
    for degree in (1, 2, 3):
        e = kernel_approximation.PolynomialCountSketch(gamma=0.5, degree=degree, coef0=degree - 1, n_components=11, random_state=0)
        yield "", e, x, None, T
    yield "", neighbors.KernelDensity(bandwidth=1.5, rtol=0), x, None, ("score_samples",)
    for k in (gp.RBF(2.0), gp.ConstantKernel(2.0) * gp.RBF([1.0, 2, 1, 3, 4, 5]) + gp.WhiteKernel(0.5),
              gp.Matern(3.0, nu=1.5), gp.Matern(3.0, nu=0.5),
              gp.Matern(3.0, nu=2.5), gp.Matern(3.0, nu=np.inf), gp.RationalQuadratic(2.0, 0.7)):
        yield "", gaussian_process.GaussianProcessRegressor(k, alpha=0.1, optimizer=None, normalize_y=True), x, y, P
    for k in (gp.DotProduct(1.5) ** 2 + gp.WhiteKernel(1.0), gp.ExpSineSquared(4.0, 9.0)):
        yield "one", gaussian_process.GaussianProcessRegressor(k, alpha=9.0, optimizer=None), x[:, :1], y, P
    yield "several", gaussian_process.GaussianProcessRegressor(gp.RBF(2.0), alpha=0.1, optimizer=None), x, np.stack([y, y * y], 1), P


def gaussians(x: np.ndarray) -> Iterator[Case]:
    m = (*PROBA, "score_samples")
    for kind in ("full", "tied", "diag", "spherical"):
        yield kind, mixture.GaussianMixture(3, covariance_type=kind, random_state=0), x, None, m
        yield kind, mixture.BayesianGaussianMixture(n_components=3, covariance_type=kind, random_state=0, max_iter=20), x, None, m
    yield "", mixture.BayesianGaussianMixture(n_components=3, weight_concentration_prior_type="dirichlet_distribution",
                                              random_state=0, max_iter=20), x, None, m
    yield "", covariance.EllipticEnvelope(random_state=0), x, None, OUTLIERS


def near(x: np.ndarray, y: np.ndarray, holes: np.ndarray) -> Iterator[Case]:
    from sklearn import impute
    yield "", neighbors.RadiusNeighborsRegressor(9.0), x, y, P
    yield "", neighbors.RadiusNeighborsRegressor(9.0, weights="distance"), x, np.stack([y, y * y], 1), P
    yield "", neighbors.LocalOutlierFactor(novelty=True), x, None, OUTLIERS
    yield "", neighbors.NeighborhoodComponentsAnalysis(3, max_iter=5, random_state=0), x, (y > 0).astype(int), T
    scaled = np.round((holes - np.nanmean(holes, 0)) / np.nanstd(holes, 0) * 256) / 256  # f32 holds distances exactly, few tie
    yield "", impute.KNNImputer(), scaled, None, T
    yield "", impute.KNNImputer(n_neighbors=3, weights="distance", add_indicator=True), scaled, None, T
    yield "", cluster.Birch(threshold=6, n_clusters=3), x, None, (*T, *P)
    yield "", cluster.Birch(threshold=6, n_clusters=None), x, None, (*T, *P)
    yield "", cluster.BisectingKMeans(5, random_state=0), x, None, (*T, *P)
    yield "", cluster.MeanShift(bandwidth=8, bin_seeding=True), x, None, P
    yield "", cluster.AffinityPropagation(random_state=0, damping=0.8, max_iter=500), x, None, P
    yield "", cluster.FeatureAgglomeration(3), x, None, T


def decompositions(x: np.ndarray) -> Iterator[Case]:
    d, positive = decomposition, np.abs(x)
    yield "alone", d.NMF(3, random_state=0, max_iter=400), positive, None, T
    yield "alone", d.NMF(3, random_state=0, alpha_W=0.01, l1_ratio=0.5), positive, None, T
    yield "", d.SparsePCA(3, random_state=0, max_iter=10), x, None, T
    yield "", d.MiniBatchSparsePCA(3, random_state=0, max_iter=10), x, None, T
    yield "", d.DictionaryLearning(4, max_iter=5, random_state=0, transform_algorithm="threshold", transform_alpha=0.3), x, None, T
    from sklearn.neural_network import BernoulliRBM
    yield "", cross_decomposition.PLSSVD(2), x, np.stack([x[:, 0] - x[:, 1], x[:, 2]], 1), T
    yield "", BernoulliRBM(4, n_iter=3, random_state=0), positive / positive.max(), None, T
    from sklearn.feature_extraction.text import TfidfTransformer
    for e in (TfidfTransformer(), TfidfTransformer(norm="l1", sublinear_tf=True), TfidfTransformer(use_idf=False, norm=None)):
        yield "", e, np.floor(positive), None, T


def trees_and_codes(x: np.ndarray, codes: np.ndarray) -> Iterator[Case]:
    yield "", ensemble.RandomTreesEmbedding(5, max_depth=3, random_state=0), x, None, T
    yield "", tree.DecisionTreeRegressor(max_depth=4, random_state=0), x, x[:, 0], P
    o = preprocessing.OrdinalEncoder
    for e in (o(max_categories=3), o(min_frequency=45), o(max_categories=2, handle_unknown="use_encoded_value", unknown_value=-1)):
        yield "", e, codes, None, T


def others(x: np.ndarray, y: np.ndarray, two: np.ndarray, three: np.ndarray, holes: np.ndarray, codes: np.ndarray) -> Iterator[Case]:
    yield from target_transformed(x, y)
    yield from made_of_others(x, y, two, three)
    yield from kernels(x, y)
    yield from gaussians(x)
    yield from near(x, y, holes)
    yield from decompositions(x)
    yield from trees_and_codes(x, codes)

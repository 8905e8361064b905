"""Estimators that are not compiled, each with the reason."""
from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

_REASONS = {
    "it has no predict or transform for new rows": (
        "AgglomerativeClustering", "ClassicalMDS", "DBSCAN", "HDBSCAN", "MDS", "OPTICS", "SpectralBiclustering", "SpectralClustering",
        "SpectralCoclustering", "SpectralEmbedding", "TSNE", "EmpiricalCovariance", "GraphicalLasso", "GraphicalLassoCV", "LedoitWolf",
        "MinCovDet", "OAS", "ShrunkCovariance", "NearestNeighbors"),
    "it reads text, tokens or dictionaries, not rows of numbers": (
        "CountVectorizer", "DictVectorizer", "FeatureHasher", "HashingVectorizer", "TfidfVectorizer"),
    "it encodes targets, of which a compiled model has none": ("LabelBinarizer", "LabelEncoder", "MultiLabelBinarizer"),
    "its result is a sparse graph of neighbours": ("KNeighborsTransformer", "RadiusNeighborsTransformer"),
    "it cuts images into patches, more rows than come in": ("PatchExtractor",),
    "each row is solved for by an iteration whose end depends on the other rows, or on chance": ("MiniBatchNMF",),
    "each row is solved for by a variational iteration of its own": ("LatentDirichletAllocation",),
    "each row is solved for by a linear system of its own": ("LocallyLinearEmbedding",),
    "shortest paths through the training data are not compiled": ("Isomap",),
    "its rounds of regression on the other columns are not compiled": ("IterativeImputer",),
}


def _by_name() -> Iterator[tuple[str, str]]:
    for reason, names in _REASONS.items():
        for n in names:
            yield n, reason


REFUSED = MappingProxyType(dict(_by_name()))

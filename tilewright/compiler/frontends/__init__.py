"""Frontends: models from elsewhere become a `Source`, which imports itself as concrete graphs (see source.py)."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from ...errors import InputError, ModelError
from .rows import RowSource, table_spec
from .source import NeedsValue, Segment, Source
from .trees import is_tree_model

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.nn import Module  # pyright: ignore[reportMissingImports]
    from typing_extensions import TypeIs

    from .onnx.check import Finding
    from .sklearn.inspect import Finding as SklearnFinding

__all__ = ["NeedsValue", "Segment", "Source", "check", "load"]


def load(model: object, inputs: Sequence[object] | None = None, method: str = "", iterations: tuple[int, int] | None = None) -> Source:
    """The source of `model`: a path, bytes or ModelProto of ONNX, a torch.nn.Module with example `inputs`, or a model on
    tables, of whose methods `method` is compiled (`trees.load_trees`).

    Raises ModelError (damaged, unsafe, or not a model), UnsupportedError (valid, but not compiled).
    """
    sample = inputs[0] if inputs else None
    if _is_estimator(model, sample, iterations):
        from .sklearn import load_sklearn
        return load_sklearn(model, sample, method)
    if is_tree_model(model):
        from .trees import load_trees
        t = load_trees(model, method, iterations)
        like = np.zeros(0, t.dtype) if sample is None else sample
        return RowSource(t.name, (table_spec(like, t.features),), t.outputs, lambda b, xs: t.build(b, xs[0]))
    if method or iterations is not None:
        raise InputError(f"method= and iterations= are for models on tables, not for a {type(model).__name__}")
    if _is_module(model):
        from .torch import load_torch
        return load_torch(model, inputs)
    if isinstance(model, (str, os.PathLike)) and Path(model).suffix in (".pt", ".pth", ".pt2"):
        raise ModelError(f"{str(model)!r} looks like a saved PyTorch model; load it with torch and pass the module with inputs=")
    if _is_onnx(model):
        from .onnx import load_onnx
        return load_onnx(model)
    raise ModelError(f"cannot compile an object of type {type(model).__module__}.{type(model).__qualname__}; expected a path, bytes or "
                     "ModelProto of an ONNX model, a torch.nn.Module, or trees of LightGBM, XGBoost or scikit-learn")


@overload
def check(model: str | os.PathLike[str] | bytes | ModelProto) -> list[Finding]: ...
@overload
def check(model: object) -> Sequence[Finding | SklearnFinding]: ...
def check(model: object) -> Sequence[Finding | SklearnFinding]:
    """Everything in an ONNX model (path, bytes, ModelProto), a fitted estimator of scikit-learn or a model of trees that Tilewright
    cannot compile; [] if there is nothing."""
    if is_tree_model(model):
        from .sklearn.inspect import check_trees
        return check_trees(model)
    if _is_estimator(model, None, None):
        from .sklearn import check_sklearn
        return check_sklearn(model)
    if not _is_onnx(model):
        raise ModelError(f"cannot check an object of type {type(model).__qualname__}; expected a path, bytes or ModelProto of "
                         "ONNX, or an estimator of scikit-learn")
    from .onnx.check import check as check_onnx
    return check_onnx(model)


def _is_onnx(model: object) -> TypeIs[str | os.PathLike[str] | bytes | ModelProto]:
    onnx = sys.modules.get("onnx")  # a ModelProto can only be at hand if onnx is imported already
    return isinstance(model, (str, os.PathLike, bytes)) or (onnx is not None and isinstance(model, onnx.ModelProto))


def _is_module(model: object) -> TypeIs[Module]:
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "nn") and isinstance(model, torch.nn.Module)


def _is_estimator(model: object, sample: object, iterations: tuple[int, int] | None) -> bool:
    """What the frontend of scikit-learn takes: its estimators, and models of trees where frames or names of classes need it."""
    if isinstance(model, (str, os.PathLike, bytes)) or iterations is not None or "sklearn" not in sys.modules:
        return False
    from .sklearn import is_estimator, needs_boundary
    return needs_boundary(model, sample) if is_tree_model(model) else is_estimator(model)

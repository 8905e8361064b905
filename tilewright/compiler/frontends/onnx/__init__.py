"""ONNX models. `load_onnx(path | bytes | ModelProto)` gives an `OnnxSource`; nothing of onnx is imported before."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .loading import load_model
from .source import OnnxSource, make_source

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OnnxSource", "load_onnx"]


def load_onnx(model: str | os.PathLike[str] | bytes | ModelProto) -> OnnxSource:
    """Loads and checks a model. Raises ModelError, UnsupportedError."""
    return make_source(load_model(model))

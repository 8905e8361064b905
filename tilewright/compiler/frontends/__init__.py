"""Frontends: models from elsewhere become a `Source`, which imports itself as concrete graphs (see source.py)."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import ModelError
from .source import NeedsValue, Segment, Source

__all__ = ["NeedsValue", "Segment", "Source", "load"]


def load(model: object, inputs: Sequence[object] | None = None) -> Source:
    """The source of `model`: a path, bytes or ModelProto of ONNX, or a torch.nn.Module with example `inputs`.

    Raises ModelError (damaged, unsafe, or not a model), UnsupportedError (valid, but not compiled).
    """
    torch = sys.modules.get("torch")  # a module can only be at hand if torch is imported already
    if torch is not None and isinstance(model, torch.nn.Module):
        from .torch import load_torch
        return load_torch(model, inputs)
    if isinstance(model, (str, os.PathLike)):
        if Path(model).suffix in (".pt", ".pth", ".pt2"):
            raise ModelError(f"{str(model)!r} looks like a saved PyTorch model; load it with torch and pass the module with inputs=")
        from .onnx import load_onnx
        return load_onnx(model)
    if isinstance(model, (bytes, bytearray, memoryview)):
        from .onnx import load_onnx
        return load_onnx(bytes(model))
    onnx = sys.modules.get("onnx")
    if onnx is not None and isinstance(model, onnx.ModelProto):
        from .onnx import load_onnx
        return load_onnx(model)
    raise ModelError(f"cannot compile an object of type {type(model).__module__}.{type(model).__qualname__}; expected a path, bytes or "
                     "ModelProto of an ONNX model, or a torch.nn.Module")

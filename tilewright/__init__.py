"""Tilewright: an ML compiler for CPUs.

    import tilewright as tw
    exe = tw.compile("model.onnx")
    y = exe(x)

Importing the package loads nothing heavy: each public name is fetched from its module when it is first used.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    InputError,
    ModelError,
    ScheduleError,
    ShapeError,
    TargetError,
    TilewrightError,
    UnsupportedError,
    VerifyError,
)
from .version import __version__

if TYPE_CHECKING:
    from .api import compile, tune
    from .backends.executable import Executable
    from .backends.target import Target
    from .compiler.frontends import check
    from .compiler.load import load
    from .ir.types import TensorSpec

__all__ = [
    "Executable", "InputError", "ModelError", "ScheduleError", "ShapeError", "Target", "TargetError", "TensorSpec",
    "TilewrightError", "UnsupportedError", "VerifyError", "__version__", "check", "compile", "load", "tune",
]

_LAZY = {
    "Executable": ".backends.executable", "load": ".compiler.load", "Target": ".backends.target",
    "compile": ".api", "tune": ".api", "check": ".compiler.frontends", "TensorSpec": ".ir.types",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

"""Saved models back into executables, compiling those that were saved as models."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .. import config
from ..backends import saved
from ..backends.executable import Executable
from ..backends.target import Target
from ..errors import ModelError


def load(path: str | os.PathLike[str]) -> Executable:
    """Reads what `Executable.save` wrote. The file holds machine code: load only files that you trust. Models with symbolic
    shapes are stored as themselves and compile again, for "native" on the machine that loads them.

    Raises ModelError where the file is damaged, TargetError where its code is for another kind of machine."""
    return saved.load(Path(path), _recompile)


def _recompile(model: bytes, options: Mapping[str, str | int | bool]) -> Executable:
    from .compile import compile  # files that hold code load without the compiler
    target, threads, precision = (options.get(k) for k in ("target", "threads", "precision"))
    strict = options.get("strict", False)
    if not isinstance(strict, bool) or not isinstance(target, str) or not isinstance(threads, int) or not isinstance(precision, str):
        raise ModelError("the saved model's options are damaged")
    threads = min(threads, config.read().threads or Target.host().cores)  # the model may come from a larger machine
    return compile(model, target=target, threads=threads, precision=precision, strict=strict)

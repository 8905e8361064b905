"""PyTorch modules, through torch's own ONNX exporter. torch is imported only when a module is given."""
from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import InputError, ModelError, UnsupportedError
from .onnx import OnnxSource, load_onnx

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]


def load_torch(module: torch.nn.Module, inputs: Sequence[object] | None,  # pyright: ignore[reportAttributeAccessIssue]
               dynamic: dict[str, object] | None = None) -> OnnxSource:
    """Exports `module` for example `inputs` (tensors or arrays; positional arguments of forward) and loads the result.

    `dynamic`: torch's `dynamic_shapes`, for dimensions that may change from call to call. The module is exported in the
    mode it is in, which should be eval(). Raises InputError without inputs, UnsupportedError where torch cannot export.
    """
    if inputs is None:
        raise InputError(f"a torch module needs example inputs to be exported: tw.compile({type(module).__name__.lower()}, inputs=(x,))")
    if module.training:
        raise ModelError(f"the module {type(module).__name__} is in training mode; call .eval() first, or dropout and batch norm "
                         "would be compiled as in training")
    import torch  # pyright: ignore[reportMissingImports]
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]  (torch's exporter needs it and says so less clearly)
    except ImportError:
        raise UnsupportedError("exporting a torch module needs the package onnxscript: pip install 'tilewright[torch]'") from None
    args = tuple(x if isinstance(x, torch.Tensor) else torch.as_tensor(x) for x in inputs)  # type: ignore[arg-type]
    try:
        with torch.no_grad(), _quiet():  # pyright: ignore[reportAttributeAccessIssue]
            export = torch.onnx.export  # pyright: ignore[reportAttributeAccessIssue]
            program = export(module, args, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    except torch.onnx.OnnxExporterError as e:  # pyright: ignore[reportAttributeAccessIssue]
        raise UnsupportedError(f"torch cannot export {type(module).__name__} to ONNX: {_root_cause(e)}") from e
    assert program is not None
    return load_onnx(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that are not installed and on its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _root_cause(e: BaseException) -> str:
    """The first line of the innermost cause, which names the problem; the exporter wraps it in advice."""
    while e.__cause__ is not None:
        e = e.__cause__
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)

"""From a path, bytes or a ModelProto to a checked `OnnxModel`. Damage is found here, before anything is built."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ....backends.mapped import MappedFile, map_file
from ....errors import ModelError, UnsupportedError
from .tensors import sparse_to_array, to_array
from .wire import split_weights

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto

ModelLike = "str | os.PathLike[str] | bytes | ModelProto"


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A parsed model. `raw` holds the bytes of the main graph's large initializers, by position, that are not in `proto`."""

    proto: ModelProto
    name: str
    folder: Path | None
    raw: Mapping[int, memoryview]
    functions: Mapping[tuple[str, str, str], FunctionProto] = field(default_factory=dict)

    @property
    def graph(self) -> GraphProto:
        return self.proto.graph


def load_model(model: str | os.PathLike[str] | bytes | ModelProto) -> OnnxModel:
    """Reads and parses `model`. Raises ModelError for what is damaged, UnsupportedError for what is too new."""
    from onnx import ModelProto
    if isinstance(model, ModelProto):
        return _checked(OnnxModel(model, model.graph.name or "model", None, {}), "the model")
    if isinstance(model, (bytes, bytearray, memoryview)):
        return _parse(bytes(model), "the model", None)
    path = Path(model)
    try:
        data = map_file(path)
    except OSError as e:
        raise ModelError(f"cannot read model {str(path)!r}: {e.strerror or e}") from None
    return _parse(data, repr(str(path)), path.parent)


def _parse(data: bytes | MappedFile, where: str, folder: Path | None) -> OnnxModel:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto
    skeleton, raw = split_weights(data) or (bytes(data), {})
    try:
        proto = ModelProto.FromString(skeleton)
    except DecodeError:
        raise ModelError(f"{where} is not an ONNX model, or is truncated: {len(data)} bytes that cannot be decoded") from None
    return _checked(OnnxModel(proto, proto.graph.name or "model", folder, raw), where)


def _checked(m: OnnxModel, where: str) -> OnnxModel:
    import onnx
    p = m.proto
    if not p.HasField("graph") or not p.ir_version or not p.opset_import:
        raise ModelError(f"{where} is not an ONNX model: it has no {'graph' if not p.HasField('graph') else 'version'}")
    if p.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(f"{where} has IR version {p.ir_version}; the installed onnx {onnx.__version__} knows up to "
                               f"{onnx.IR_VERSION}: install a newer onnx")
    check_text(where, p.graph.name)
    opsets = opset_versions(p.opset_import, where)
    newest = onnx.defs.onnx_opset_version()
    if opsets.get("", 0) > newest:
        raise UnsupportedError(f"{where} uses opset {opsets['']}; the installed onnx {onnx.__version__} knows up to {newest}: "
                               "install a newer onnx")
    functions: dict[tuple[str, str, str], FunctionProto] = {}
    for f in p.functions:
        check_text(where, f.domain, f.name, f.overload, *f.input, *f.output)
        key = (domain_of(f.domain), f.name, f.overload)
        if key in functions:
            raise ModelError(f"{where} defines the function {f.domain}.{f.name} twice")
        functions[key] = f
    return OnnxModel(p, m.name, m.folder, m.raw, functions)


def domain_of(domain: str) -> str:
    """ONNX's own domain has two spellings; here it is ""."""
    return "" if domain == "ai.onnx" else domain


def check_text(where: str, *names: str | bytes) -> None:
    """Raises ModelError for a name that is not UTF-8; protobuf gives these as bytes."""
    for n in names:
        if isinstance(n, bytes):
            raise ModelError(f"{where}: the name {n!r} is not valid UTF-8")


def opset_versions(imports: object, where: str) -> dict[str, int]:
    """Domain -> version. Raises ModelError where one domain has two."""
    out: dict[str, int] = {}
    for o in imports:  # type: ignore[attr-defined]
        check_text(where, o.domain)
        d = domain_of(o.domain)
        if out.setdefault(d, o.version) != o.version:
            raise ModelError(f"{where} imports two versions of the operators of {o.domain or 'ai.onnx'!r}")
        if o.version < 1:
            raise ModelError(f"{where} imports version {o.version} of the operators of {o.domain or 'ai.onnx'!r}")
    return out


class Initializers:
    """The constants of one graph by name, decoded when they are first asked for."""

    def __init__(self, graph: GraphProto, model: OnnxModel, main: bool):
        self._model, self._graph, self._main = model, graph, main
        self._dense = {t.name: k for k, t in enumerate(graph.initializer)}
        self._sparse = {t.values.name: k for k, t in enumerate(graph.sparse_initializer)}
        self._arrays: dict[str, np.ndarray] = {}
        if len(self._dense) != len(graph.initializer) or self._dense.keys() & self._sparse.keys():
            names = [t.name for t in graph.initializer] + list(self._sparse)
            twice = next(n for n in names if names.count(n) > 1)
            raise ModelError(f"the initializer {twice!r} is defined twice")

    def names(self) -> frozenset[str]:
        return frozenset(self._dense) | frozenset(self._sparse)

    def __contains__(self, name: str) -> bool:
        return name in self._dense or name in self._sparse

    def array(self, name: str) -> np.ndarray:
        """The value of an initializer. Raises ModelError where its data are damaged, missing or outside the model's folder."""
        if name not in self._arrays:
            if name in self._dense:
                k = self._dense[name]
                raw = self._model.raw.get(k) if self._main else None
                self._arrays[name] = to_array(self._graph.initializer[k], self._model.folder, raw)
            else:
                self._arrays[name] = sparse_to_array(self._graph.sparse_initializer[self._sparse[name]], self._model.folder)
        return self._arrays[name]

"""TensorProto -> NumPy arrays: views where the bytes allow it, and every length checked before anything is allocated."""
from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from ....errors import ModelError, UnsupportedError
from ....ir.builder import MAX_TENSOR_BYTES
from ....ir.types import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType

if TYPE_CHECKING:
    from onnx import SparseTensorProto, TensorProto

# TensorProto.DataType -> (DType, the field of typed data). onnx.proto: 16-bit floats are bit patterns in int32_data.
_TYPES: dict[int, tuple[DType, str]] = {
    1: (F32, "float_data"), 2: (U8, "int32_data"), 3: (I8, "int32_data"), 4: (U16, "int32_data"), 5: (I16, "int32_data"),
    6: (I32, "int32_data"), 7: (I64, "int64_data"), 9: (BOOL, "int32_data"), 10: (F16, "int32_data"), 11: (F64, "double_data"),
    12: (U32, "uint64_data"), 13: (U64, "uint64_data"), 16: (BF16, "int32_data")}
_ONNX_TYPES = {d.name: k for k, (d, _) in _TYPES.items()}
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL


def element_type(code: int, where: str) -> DType:
    """The DType of an ONNX element type. Raises UnsupportedError for strings, complex numbers, 8-bit floats and 4-bit integers."""
    if code not in _TYPES:
        raise UnsupportedError(f"{where}: element type {type_name(code)} is not supported; supported are "
                               f"{', '.join(d.name for d, _ in _TYPES.values())}")
    return _TYPES[code][0]


def supported_type(code: int) -> bool:
    return code in _TYPES


def type_name(code: int) -> str:
    """ONNX's own spelling of an element type: "FLOAT8E4M3FN"; the number where it has none."""
    from onnx import TensorProto
    return TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else f"number {code}"


def onnx_type(d: DType) -> int:
    """TensorProto.DataType of a DType."""
    return _ONNX_TYPES[d.name]


def to_array(t: TensorProto, folder: Path | None, raw: memoryview | None = None) -> np.ndarray:
    """The array of a TensorProto. `raw` is its raw_data where the loader kept that out of the proto; `folder` is the
    model's, for external data. Raises ModelError and UnsupportedError."""
    where = f"tensor {t.name!r}" if t.name else "a tensor attribute"
    dtype, field = element_type(t.data_type, where), _TYPES[t.data_type][1]
    shape, size = _checked_shape(t, dtype, where)
    if t.HasField("segment"):
        raise UnsupportedError(f"{where} is stored in segments, which no known exporter writes")
    if t.data_location == _EXTERNAL:
        return _external(t, folder, size * dtype.bytes, where).view(dtype.numpy).reshape(shape)
    if raw is not None or t.HasField("raw_data"):
        data = raw if raw is not None else t.raw_data
        if len(data) != size * dtype.bytes:
            raise ModelError(f"{where} of type {dtype}{list(shape)} needs {size * dtype.bytes} bytes, but has {len(data)}")
        return _from_bytes(data, dtype).reshape(shape)
    values = getattr(t, field)
    if len(values) != size:
        raise ModelError(f"{where} of type {dtype}{list(shape)} needs {size} values, but {field} has {len(values)}")
    return _from_values(values, dtype).reshape(shape)


def _checked_shape(t: TensorProto, dtype: DType, where: str) -> tuple[tuple[int, ...], int]:
    shape = tuple(t.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"{where} has the impossible shape {list(shape)}")
    size = math.prod(shape)
    if size * dtype.bytes > MAX_TENSOR_BYTES:
        raise ModelError(f"{where} of type {dtype}{list(shape)} would take {size * dtype.bytes / 2**30:,.0f} GiB; the model is damaged")
    return shape, size


def _from_bytes(data: bytes | memoryview, dtype: DType) -> np.ndarray:
    """Little-endian bytes as an array; bools other than 0 and 1 are made so."""
    if dtype is BOOL:
        return np.frombuffer(data, np.uint8) != 0
    return np.frombuffer(data, dtype.numpy)


def _from_values(values: object, dtype: DType) -> np.ndarray:
    if dtype in (F16, BF16):
        bits = np.array(values, np.int64).astype(np.uint16)
        return bits.view(np.float16 if dtype is F16 else ml_dtypes.bfloat16)
    wide = np.array(values, np.float64 if dtype is F64 else np.float32 if dtype is F32 else np.uint64 if dtype is U64 else np.int64)
    return wide.astype(dtype.numpy)


def _external(t: TensorProto, folder: Path | None, n_bytes: int, where: str) -> np.ndarray:
    """The bytes of external data. The file must be inside `folder`, symbolic links resolved."""
    entries = {e.key: e.value for e in t.external_data}
    location = entries.get("location", "")
    if not location:
        raise ModelError(f"{where} is stored outside the model, but the model does not say where")
    if folder is None:
        raise ModelError(f"{where} is stored in the file {location!r} beside the model; pass the model's path instead of bytes or a proto")
    path = _inside(folder, location, where)
    offset, length = (_number(entries, k, default, where) for k, default in (("offset", 0), ("length", n_bytes)))
    if length != n_bytes:
        raise ModelError(f"{where} needs {n_bytes} bytes, but its external data is said to have {length}")
    try:
        available = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"{where}: external data {location!r} is not a file")
        if offset + length > available:
            raise ModelError(f"{where} needs bytes {offset} to {offset + length} of {location!r}, which has only {available}")
        return np.fromfile(path, np.uint8, count=length, offset=offset)
    except OSError as e:
        raise ModelError(f"{where}: external data {location!r} cannot be read: {e.strerror or e}") from None


def _inside(folder: Path, location: str, where: str) -> Path:
    parts = location.replace("\\", "/").split("/")
    if os.path.isabs(location) or location.startswith("\\") or ":" in parts[0] or ".." in parts or "\0" in location:
        raise ModelError(f"{where}: external data {location!r} must be a relative path inside the model's folder")
    path = folder / Path(*parts)
    try:
        real, root = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise ModelError(f"{where}: external data {location!r} cannot be opened: {reason}") from None
    if not real.is_relative_to(root):
        raise ModelError(f"{where}: external data {location!r} is a link out of the model's folder")
    return real


def _number(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key, "")
    if not text:
        return default
    if not text.isdecimal():
        raise ModelError(f"{where}: the {key} of its external data is {text!r}, not a number")
    return int(text)


def sparse_to_array(t: SparseTensorProto, folder: Path | None) -> np.ndarray:
    """A dense array; `indices` are linear, or one row of coordinates for each value. Raises ModelError."""
    values, indices = to_array(t.values, folder), to_array(t.indices, folder)
    where = f"sparse tensor {t.values.name!r}"
    shape = tuple(t.dims)
    if any(d < 0 for d in shape) or math.prod(shape) * values.itemsize > MAX_TENSOR_BYTES:
        raise ModelError(f"{where} has the impossible shape {list(shape)}")
    linear = indices if indices.ndim == 1 else None
    if indices.ndim == 2 and indices.shape[1] == len(shape) and bool(((indices >= 0) & (indices < np.array(shape))).all()):
        linear = np.asarray(np.ravel_multi_index(tuple(indices.T), shape))
    if linear is None or len(linear) != values.size or (linear.size and (linear.min() < 0 or linear.max() >= math.prod(shape))):
        raise ModelError(f"{where} has indices that do not fit its shape {list(shape)}")
    out = np.zeros(math.prod(shape), values.dtype)
    out[linear] = values.ravel()
    return out.reshape(shape)

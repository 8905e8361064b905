"""From what a caller passes to what compiled code may read: native, aligned, C-contiguous arrays of checked types.

Every check runs before any native code, and every message names the argument, what was expected and what was given.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np

from ..errors import InputError
from ..ir.types import UNKNOWN_RANK, TensorSpec, dtype_of
from .memory import out_of_memory

Data = np.ndarray | Sequence["Data"] | None  # an argument or result: a tensor, a list of them, or an absent optional


class Spec(Protocol):
    """An input or output. All are TensorSpecs but for lists of tensors and optionals, which have an `element`."""

    @property
    def name(self) -> str: ...


@runtime_checkable
class _Tensor(Protocol):
    """A tensor of another library."""

    def __dlpack__(self) -> object: ...


def ready(a: np.ndarray) -> np.ndarray:
    """`a` itself if compiled code may read it, else a copy: native byte order, aligned, C-contiguous.
    Raises InputError where there is no memory for it."""
    f = a.flags
    if f.c_contiguous and f.aligned and a.dtype.isnative:
        return a
    try:
        return np.require(a, a.dtype.newbyteorder("="), ["C", "A"]).reshape(a.shape)
    except MemoryError:
        raise out_of_memory("copies of inputs", a.nbytes) from None


def tensor(spec: TensorSpec, x: object, what: str = "input") -> np.ndarray:
    """The array for one argument, of the dtype of `spec` exactly. Python numbers and lists of them have no dtype of their
    own and take it from the spec if it can hold their kind. Raises InputError."""
    if isinstance(x, (bool, int, float, list, tuple)):
        a = _from_python(spec, x, what)
    else:
        a = _array(spec, x, what)
    want = np.dtype(spec.dtype)
    if a.dtype.newbyteorder("=") != want:
        raise InputError(f"{what} {spec.name!r} has dtype {a.dtype}, expected {want}; convert it, for example with x.astype({want.name!r})")
    return ready(a)


def _array(spec: TensorSpec, x: object, what: str) -> np.ndarray:
    """Arrays and scalars of NumPy, and of other libraries by DLPack or the array protocol."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    try:
        if type(x).__module__.split(".")[0] == "torch":
            return _from_torch(x)
        if isinstance(x, _Tensor):
            try:
                return np.from_dlpack(x)  # pyright: ignore[reportArgumentType]
            except (BufferError, RuntimeError, TypeError, ValueError):  # read-only, or a dtype that DLPack or NumPy lacks
                return np.asarray(x)
        if hasattr(x, "__array__") or hasattr(x, "__array_interface__"):
            return np.asarray(x)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{what} {spec.name!r}: this {type(x).__name__} cannot be read as an array in main memory: {e}") from None
    raise InputError(f"{what} {spec.name!r} is a {type(x).__name__}, expected an array")


class _Torch(Protocol):
    dtype: object

    def detach(self) -> _Torch: ...
    def contiguous(self) -> _Torch: ...
    def view(self, dtype: object) -> _Torch: ...
    def resolve_conj(self) -> _Torch: ...
    def numpy(self) -> np.ndarray: ...


def _from_torch(x: object) -> np.ndarray:
    """Shares memory with the tensor. torch has no NumPy form of bf16: its bits go through i16."""
    t = cast(_Torch, x).detach()
    if str(t.dtype) != "torch.bfloat16":
        return t.resolve_conj().numpy()
    import ml_dtypes
    import torch  # pyright: ignore[reportMissingImports]  (the caller has it)
    return t.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def _from_python(spec: TensorSpec, x: object, what: str) -> np.ndarray:
    try:
        a = np.asarray(x)
    except ValueError as e:
        raise InputError(f"{what} {spec.name!r}: the nested lists are no array: {e}") from None
    want = np.dtype(spec.dtype)
    order = {"b": 0, "i": 1, "u": 1, "f": 2, "V": 2}
    if a.size and order.get(a.dtype.kind, 3) > order.get(_kind(want), -1):
        raise InputError(f"{what} {spec.name!r}: {a.dtype} values cannot become {want} without loss")
    if a.size and _kind(want) in "iu" and a.dtype.kind in "iu":
        low, high = np.iinfo(want).min, np.iinfo(want).max
        if int(a.min()) < low or int(a.max()) > high:
            raise InputError(f"{what} {spec.name!r}: values outside of {want}'s range")
    return a.astype(want)


def _kind(dtype: np.dtype) -> str:
    return dtype_of(dtype).kind


def check_shape(spec: TensorSpec, shape: tuple[int, ...], dims: dict[str, tuple[int, str]], what: str = "input") -> None:
    """Raises InputError where `shape` does not fit. `dims`: symbolic dimension -> its size and the argument that set it;
    names that begin with "?" are anonymous and may differ."""
    if spec.shape == UNKNOWN_RANK:
        return
    if len(shape) != len(spec.shape):
        raise InputError(f"{what} {spec.name!r} has shape {_text(shape)} of {len(shape)} dimensions, expected {_text(spec.shape)}")
    for k, (want, got) in enumerate(zip(spec.shape, shape, strict=True)):
        if isinstance(want, int):
            if want != got:
                raise InputError(f"{what} {spec.name!r} has shape {_text(shape)}, expected {_text(spec.shape)} (dimension {k} differs)")
        elif not want.startswith("?"):
            size, setter = dims.setdefault(want, (got, spec.name))
            if size != got:
                raise InputError(f"dimension {want!r} is {size} in {what} {setter!r} and {got} in {what} {spec.name!r}")


def convert(specs: Sequence[Spec], args: Sequence[object]) -> list[Data]:
    """Checked arguments in the order of `specs`. Raises InputError."""
    if len(args) != len(specs):
        names = ", ".join(map(repr, specs)) or "none"
        raise InputError(f"{len(args)} inputs were given, expected {len(specs)}: {names}")
    dims: dict[str, tuple[int, str]] = {}
    return [_data(s, x, dims) for s, x in zip(specs, args, strict=True)]


def _data(spec: Spec, x: object, dims: dict[str, tuple[int, str]]) -> Data:
    if isinstance(spec, TensorSpec):
        a = tensor(spec, x)
        check_shape(spec, a.shape, dims)
        return a
    if x is None:
        return None
    element = getattr(spec, "element", None)
    if isinstance(x, (list, tuple)) and not isinstance(element, TensorSpec | None):
        return [_data(element, e, {}) for e in x]
    if isinstance(x, (list, tuple)):
        return [np.asarray(ready(np.asarray(e))) if element is None else tensor(element, e) for e in x]
    return tensor(element, x) if isinstance(element, TensorSpec) else ready(np.asarray(x))


def by_name(specs: Sequence[Spec], given: dict[str, object]) -> list[object]:
    """The values of `given` in the order of `specs`. Inputs that are optional may be missing. Raises InputError."""
    known = [s.name for s in specs]
    for name in given:
        if name not in known:
            raise InputError(f"there is no input {name!r}; the inputs are {', '.join(known) or 'none'}")
    for s in specs:
        if s.name not in given and isinstance(s, TensorSpec):
            raise InputError(f"input {s.name!r} is missing; expected {', '.join(known)}")
    return [given.get(n) for n in known]


def _text(shape: Sequence[int | str]) -> str:
    return f"[{','.join(map(str, shape))}]"

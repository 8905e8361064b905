"""Data frames of several libraries as what the boundary reads: names, and columns by position. None of them is imported here.

    pandas.DataFrame    also Modin's, which has the same methods
    polars.DataFrame    missing values are None in strings and NaN in numbers
    pyarrow.Table       and RecordBatch, as polars
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ..errors import InputError


class Values(Protocol):
    """A column's values in pandas, where they are no array of NumPy."""

    def to_numpy(self, dtype: object = None, na_value: object = None) -> np.ndarray: ...


class Frame(Protocol):
    """As much of all of them as is needed to tell them apart."""

    def __len__(self) -> int: ...


def is_frame(x: object) -> bool:
    return _kind(x) != ""


def _kind(x: object) -> str:
    """"pandas", "polars", "arrow" or ""."""
    t = type(x)
    if t.__name__ == "DataFrame":
        if hasattr(t, "iloc"):
            return "pandas"
        return "polars" if hasattr(t, "to_series") else ""
    return "arrow" if t.__name__ in ("Table", "RecordBatch") and hasattr(t, "column_names") and hasattr(t, "column") else ""


def refuse_lazy(x: object) -> None:
    """Raises InputError for frames that hold no values yet."""
    if type(x).__name__ == "LazyFrame":
        raise InputError("a LazyFrame holds no values; pass frame.collect()")


def names_of(x: Frame) -> list[object]:
    """The columns' names in order."""
    kind = _kind(x)
    if kind == "pandas":
        return x.columns.tolist()  # type: ignore[attr-defined]
    return list(x.columns if kind == "polars" else x.column_names)  # type: ignore[attr-defined]


def has_nulls(x: Frame) -> bool:
    """Whether missing strings are always None: a model may know them as NaN, which pandas has."""
    return _kind(x) != "pandas"


def reader(x: Frame) -> Callable[[int], Values | np.ndarray]:
    """Columns by position: pandas has a way that makes no Series, in which a call for one row would spend most of its time."""
    kind = _kind(x)
    if kind == "pandas":
        if hasattr(x, "_get_column_array"):
            return x._get_column_array  # type: ignore[attr-defined]
        return lambda k: x.iloc[:, k].array  # type: ignore[attr-defined]
    of = x.to_series if kind == "polars" else x.column  # type: ignore[attr-defined]
    return lambda k: _without_none(of(k))


def _without_none(column: object) -> np.ndarray:
    """The values of a column of polars or Arrow; missing truth values are NaN."""
    a = column.to_numpy() if _is_chunked(column) else column.to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]
    if a.dtype != object or not {bool} <= {type(v) for v in a.tolist()} <= {bool, type(None)}:
        return a
    return np.array([np.nan if v is None else float(v) for v in a.tolist()])


def _is_chunked(column: object) -> bool:
    """Arrow's single arrays ask for leave to copy."""
    return not hasattr(column, "buffers")


def numbers(a: Values | np.ndarray, name: str) -> np.ndarray:
    """A column as numbers, NaN where one is missing. Raises InputError naming it where it holds none."""
    try:
        kind = getattr(a, "dtype", None)
        if getattr(kind, "kind", "") in ("m", "M"):  # NumPy and pandas would count their units
            raise TypeError(f"it holds {kind}")
        if isinstance(a, np.ndarray):
            return a.astype(np.float64)
        return a.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as e:
        raise InputError(f"column {name!r} holds something that is no number: {e}") from None


def dtypes_of(x: Frame) -> Sequence[np.dtype]:
    """NumPy's types of the columns that have one."""
    if _kind(x) == "pandas":
        return [d for d in x.dtypes.tolist() if isinstance(d, np.dtype)]  # type: ignore[attr-defined]
    read = reader(x)
    return [np.asarray(read(k)).dtype for k in range(len(names_of(x)))]
